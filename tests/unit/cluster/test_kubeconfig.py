"""Kubeconfigs as client-go takes them: which server is meant, or in one line why none is."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster import documents
from podmgr.cluster.access import Access
from podmgr.cluster.api import Api, StatusError
from podmgr.errors import PodmgrError
from tests.unit.cluster.kubeconfigs import NO, PODS, TLS, Recorder, answering, ask, config, encoded, refused


def test_several_files_are_merged_and_the_first_counts(recorder: Recorder, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "sub" / "second"
    second.parent.mkdir()
    (second.parent / "token").write_text("beside the second")
    first.write_text("users: [{name: other, user: {}}]\ncurrent-context: c\n")
    second.write_text(json.dumps(config({"server": recorder.url}, {"tokenFile": "token"})))
    api = Api(Access(f"{first}:{tmp_path / 'gone'}:{second}"))
    api.list(PODS)
    assert recorder.last["headers"]["Authorization"] == ["Bearer beside the second"]


def test_a_context_that_is_named_needs_no_current_one(recorder: Recorder, tmp_path: Path) -> None:
    content = config({"server": recorder.url}, {"token": "t"}, current="gone")
    ask(tmp_path, content, "c")
    assert recorder.last["headers"]["Authorization"] == ["Bearer t"]


def test_the_servers_path_is_kept(recorder: Recorder, tmp_path: Path) -> None:
    ask(tmp_path, config({"server": f"{recorder.url}/k8s/clusters/c-1/"}))
    assert recorder.last["path"].startswith("/k8s/clusters/c-1/api/v1/pods")


def test_a_name_and_a_password_in_the_server_are_sent_as_go_sends_them_and_not_shown(
    recorder: Recorder, tmp_path: Path
) -> None:
    with_login = recorder.url.replace("//", "//ann:s%2Fcr@t@")
    plugin = answering(tmp_path, {"token": "t"})
    for user in ({}, {"token": "t", "as": "someone"}, {"exec": plugin}):
        assert ask(tmp_path, config({"server": with_login}, user)).server == recorder.url
        assert recorder.last["headers"]["Authorization"] == [f"Basic {encoded(b'ann:s/cr@t')}"]
    recorder.status = 500
    with pytest.raises(StatusError):
        ask(tmp_path, config({"server": f"{with_login}/a@b"}))
    assert recorder.last["path"].startswith("/a@b/api")


@pytest.mark.parametrize(
    "address", ["ann:s3cret@127.0.0.1:1", "ann:s3cret@[x", "ann:s3cret/@h", "ann@s3cret@h:x"]
)
@pytest.mark.parametrize("field", ["server", "proxy-url"])
def test_no_error_shows_the_password_of_an_address(tmp_path: Path, field: str, address: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        ask(tmp_path, config({"server": "https://192.0.2.7", field: f"http://{address}"}))
    error = caught.value
    assert "s3cret" not in f"{error.message} {error.tip} {error.detail}"


REFUSED: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no current context": (config(NO, current=""), "current-context"),
    "a context that is gone": (config(NO, current="gone"), "no context 'gone'"),
    "a cluster that is gone": (config(NO, clusters=[]), "no cluster 'c'"),
    "a user that is gone": (config(NO, users=[]), "no user 'u'"),
    "an authority that is not to be checked": (
        config(
            {
                "server": "https://x",
                "certificate-authority-data": encoded(b"x"),
                "insecure-skip-tls-verify": True,
            }
        ),
        "not to check",
    ),
    "an authority that is not there": (
        config({"server": "https://x", "certificate-authority": "gone"}),
        "gone: No such",
    ),
    "data that is not base64": (
        config({"server": "https://x", "certificate-authority-data": "a"}),
        "not base64",
    ),
    "another scheme": (config({"server": "ftp://x"}), "no http or https"),
    "a server without the end of its address": (
        config({"server": "https://[bad"}),
        "its server 'https://[bad'",
    ),
    "a server whose port is none": (config({"server": "https://h:99999"}), "its server 'https://h:99999'"),
    "a server whose name has an empty part": (
        config({"server": "https://a..b"}),
        "its server 'https://a..b'",
    ),
    "a server with an escape": (config({"server": "http://h/\x1b[31m"}), "its server 'http://h/·[31m'"),
    "a name for TLS that is none": (config({**TLS, "tls-server-name": ".x"}), "its tls-server-name '.x'"),
    "nothing": ("", "current-context"),
    "a list": ("[]", "is no kubeconfig"),
    "half": ("{", "is not YAML"),
    "a NUL": ("\0", "is not YAML"),
    "numbers": ("clusters: 5\nusers: [5]\ncontexts: {}\ncurrent-context: 7", "no context '7'"),
    "another file": ("kind: Pod\nmetadata: {name: x}\n", "current-context"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: dict[str, Any] | str, reason: str) -> None:
    refused(tmp_path, content, reason)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(PodmgrError, match=r"directory"):
            Api(Access(str(path)))


@pytest.mark.parametrize("paths", ["/nix:/nax", "/nix:/dev/null/nax", ":"])
def test_files_of_which_none_exists_are_told_as_that(paths: str) -> None:
    with pytest.raises(PodmgrError, match=f"^kubeconfig {paths}: none of these files exists$") as caught:
        Api(Access(paths))
    assert "KUBECONFIG" in (caught.value.tip or "")


def test_a_file_without_end_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 1 << 20)
    with pytest.raises(PodmgrError, match="/dev/zero is larger than 1 MiB"):
        Api(Access("/dev/zero"))
    endless = {"certificate-authority": "/dev/zero"}
    for cluster, user in ((TLS | endless, {}), (NO, {"tokenFile": "/dev/zero"})):
        with pytest.raises(PodmgrError, match="/dev/zero is larger than 1 MiB"):
            ask(tmp_path, config(cluster, user))


def test_a_kubeconfig_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("{}")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PodmgrError, match="Permission denied"):
        Api(Access(str(path)))
    assert stat.S_ISREG(path.stat().st_mode)
