"""Kubeconfigs as client-go takes them: each ends in a request with the right credentials, or in one line."""

from __future__ import annotations

import base64
import json
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from podmgr import proc
from podmgr.cluster import documents, kubeconfig
from podmgr.cluster.access import Access
from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.errors import PodmgrError
from tests.certificates import Authority
from tests.unit.samples import Script, said

PODS = "/api/v1/pods"


@dataclass
class Recorder:
    """A server that says yes, and remembers who asked."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    @property
    def last(self) -> dict[str, Any]:
        return self.seen[-1]


@contextmanager
def recording(authority: Authority | None = None, folder: Path | None = None) -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            peer = self.connection.getpeercert() if authority else None
            names = [dict(part)["commonName"] for part in (peer or {}).get("subject", ())]
            values = {
                name.title() if "Extra" not in name else name: self.headers.get_all(name)
                for name in self.headers
            }
            recorder.seen.append({"path": self.path, "headers": values, "client": names})
            body = b'{"kind": "PodList", "metadata": {}, "items": []}'
            self.send_response(recorder.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if authority and folder:
        context = authority.server_context(folder, "127.0.0.1", "localhost")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    recorder.url = f"{'https' if authority else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig._answers.clear()
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[Recorder]:
    with recording() as made:
        yield made


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def secure(authority: Authority, tmp_path: Path) -> Iterator[Recorder]:
    with recording(authority, tmp_path) as made:
        yield made


def config(
    cluster: dict[str, Any], user: dict[str, Any] | None = None, *, current: str = "c", **other: Any
) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": current,
        **other,
    }


def ask(folder: Path, content: dict[str, Any], context: str | None = None) -> Api:
    """One request with this kubeconfig."""
    path = folder / "kubeconfig"
    path.write_text(json.dumps(content))
    api = Api(Access(str(path), context))
    try:
        api.list(PODS)
    finally:
        api.close()
    return api


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def script(folder: Path, text: str, name: str = "plugin") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


V1 = "client.authentication.k8s.io/v1"


def answering(folder: Path, status: dict[str, Any], before: str = "") -> dict[str, Any]:
    answer = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})
    return {"apiVersion": V1, "command": script(folder, f"{before}\ncat <<'END'\n{answer}\nEND")}


# Who asks

USERS: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    "nobody": ({}, {}),
    "a token": ({"token": "t"}, {"Authorization": ["Bearer t"]}),
    "a token with a newline": ({"token": "t\n"}, {"Authorization": ["Bearer t"]}),
    "a name and a password": (
        {"username": "ann", "password": "päss"},
        {"Authorization": [f"Basic {encoded('ann:päss'.encode())}"]},
    ),
    "another user": (
        {"token": "t", "as": "someone", "as-uid": "7", "as-groups": ["viewers", "testers"]},
        {
            "Authorization": ["Bearer t"],
            "Impersonate-User": ["someone"],
            "Impersonate-Uid": ["7"],
            "Impersonate-Group": ["viewers", "testers"],
        },
    ),
    "another user with more": (
        {"as": "someone", "as-user-extra": {"example.com/scope": ["a", "b"]}},
        {"Impersonate-User": ["someone"], "Impersonate-Extra-example.com%2Fscope": ["a", "b"]},
    ),
}


@pytest.mark.parametrize(("user", "headers"), USERS.values(), ids=USERS.keys())
def test_the_request_says_who_asks(
    server: Recorder, tmp_path: Path, user: dict[str, Any], headers: dict[str, list[str]]
) -> None:
    ask(tmp_path, config({"server": server.url}, user))
    names = ("Authorization", *(name for name in server.last["headers"] if name.startswith("Impersonate-")))
    assert {name: server.last["headers"][name] for name in names if name in server.last["headers"]} == headers


def test_a_token_file_is_read_beside_its_kubeconfig_without_its_newline(
    server: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    ask(tmp_path, config({"server": server.url}, {"tokenFile": "token", "token": "old"}))
    assert server.last["headers"]["Authorization"] == ["Bearer from-file"]


def test_several_files_are_merged_and_the_first_counts(server: Recorder, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "sub" / "second"
    second.parent.mkdir()
    (second.parent / "token").write_text("beside the second")
    first.write_text("users: [{name: other, user: {}}]\ncurrent-context: c\n")
    second.write_text(json.dumps(config({"server": server.url}, {"tokenFile": "token"})))
    api = Api(Access(f"{first}:{tmp_path / 'gone'}:{second}"))
    api.list(PODS)
    assert server.last["headers"]["Authorization"] == ["Bearer beside the second"]


def test_a_context_that_is_named_needs_no_current_one(server: Recorder, tmp_path: Path) -> None:
    content = config({"server": server.url}, {"token": "t"}, current="gone")
    ask(tmp_path, content, "c")
    assert server.last["headers"]["Authorization"] == ["Bearer t"]


def test_the_servers_path_is_kept(server: Recorder, tmp_path: Path) -> None:
    ask(tmp_path, config({"server": f"{server.url}/k8s/clusters/c-1/"}))
    assert server.last["path"].startswith("/k8s/clusters/c-1/api/v1/pods")


def test_a_name_and_a_password_in_the_server_are_sent_as_go_sends_them_and_not_shown(
    server: Recorder, tmp_path: Path
) -> None:
    with_login = server.url.replace("//", "//ann:s%2Fcr@t@")
    plugin = answering(tmp_path, {"token": "t"})
    for user in ({}, {"token": "t", "as": "someone"}, {"exec": plugin}):
        assert ask(tmp_path, config({"server": with_login}, user)).server == server.url
        assert server.last["headers"]["Authorization"] == [f"Basic {encoded(b'ann:s/cr@t')}"]
    server.status = 500
    with pytest.raises(StatusError):
        ask(tmp_path, config({"server": f"{with_login}/a@b"}))
    assert server.last["path"].startswith("/a@b/api")


@pytest.mark.parametrize(
    "address", ["ann:s3cret@127.0.0.1:1", "ann:s3cret@[x", "ann:s3cret/@h", "ann@s3cret@h:x"]
)
@pytest.mark.parametrize("field", ["server", "proxy-url"])
def test_no_error_shows_the_password_of_an_address(tmp_path: Path, field: str, address: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        ask(tmp_path, config({"server": "https://192.0.2.7", field: f"http://{address}"}))
    error = caught.value
    assert "s3cret" not in f"{error.message} {error.tip} {error.detail}"


# Exec plugins


def test_a_plugin_is_asked_once_with_what_it_wants_to_know(server: Recorder, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    said = f'echo "$1 $PLACE $KUBERNETES_EXEC_INFO" >> {asked}'
    plugin = answering(tmp_path, {"token": "from-plugin"}, said)
    plugin |= {"args": ["login"], "env": [{"name": "PLACE", "value": "here"}], "provideClusterInfo": True}
    for _ in range(2):
        ask(tmp_path, config({"server": server.url}, {"exec": plugin}))
    assert server.last["headers"]["Authorization"] == ["Bearer from-plugin"]
    (line,) = asked.read_text().splitlines()
    words = line.split(maxsplit=2)
    assert words[:2] == ["login", "here"]
    info = json.loads(words[2])
    assert (info["apiVersion"], info["spec"]["cluster"]["server"]) == (V1, server.url)


def test_a_credential_that_has_ended_or_is_not_accepted_is_asked_for_anew(
    server: Recorder, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    ended = {"token": "t", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    plugin = answering(tmp_path, ended, f"echo x >> {count}")
    for _ in range(2):
        ask(tmp_path, config({"server": server.url}, {"exec": plugin}))
    assert count.read_text().count("x") == 2
    lasting = answering(tmp_path, {"token": "t"}, f"echo y >> {count}")
    server.status = 401
    for _ in range(2):
        with pytest.raises(StatusError):
            ask(tmp_path, config({"server": server.url}, {"exec": lasting}))
    assert count.read_text().count("y") == 2


def test_a_plugin_beside_the_kubeconfig_is_found(server: Recorder, tmp_path: Path) -> None:
    plugin = answering(tmp_path, {"token": "t"}) | {"command": "./plugin"}
    ask(tmp_path, config({"server": server.url}, {"exec": plugin}))
    assert server.last["headers"]["Authorization"] == ["Bearer t"]


def test_a_plugin_is_run_by_whatever_runs_commands(tmp_path: Path) -> None:
    credential = {"apiVersion": V1, "kind": "ExecCredential", "status": {"token": "t"}}
    runner = Script(said(json.dumps(credential)))
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(plugged("login", env=[{"name": "PLACE", "value": "here"}])))
    found = kubeconfig.load(str(path), runner=runner)
    assert found.headers == (("Authorization", "Bearer t"),)
    assert runner.calls == [("login",)]
    assert runner.variables[0]["PLACE"] == "here"


# Certificates


def test_a_clusters_authority_without_key_usage_is_accepted_and_a_strangers_is_not(
    secure: Recorder, authority: Authority, tmp_path: Path
) -> None:
    trusted = encoded(authority.pem)
    ask(tmp_path, config({"server": secure.url, "certificate-authority-data": trusted}))
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    ask(tmp_path, config({"server": secure.url, "certificate-authority": "ca.crt"}))
    assert len(secure.seen) == 2
    for cluster in (
        {"server": secure.url, "certificate-authority-data": encoded(Authority("other").pem)},
        {"server": secure.url},
        {
            "server": secure.url,
            "certificate-authority-data": encoded(authority.pem),
            "tls-server-name": "else",
        },
    ):
        with pytest.raises(UnreachableError, match="certificate"):
            ask(tmp_path, config(cluster))
    assert len(secure.seen) == 2
    ask(tmp_path, config({"server": secure.url, "insecure-skip-tls-verify": True}))
    ask(
        tmp_path,
        config(
            {
                "server": secure.url,
                "certificate-authority-data": encoded(authority.pem),
                "tls-server-name": "localhost",
            }
        ),
    )
    assert len(secure.seen) == 4


@pytest.mark.parametrize("way", ["data", "file", "plugin"])
def test_a_client_certificate_is_shown_without_a_temporary_file(
    secure: Recorder, authority: Authority, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    certificate, key = authority.issue("ann")
    (tmp_path / "ann.crt").write_bytes(certificate)
    (tmp_path / "ann.key").write_bytes(key)
    status = {"clientCertificateData": certificate.decode(), "clientKeyData": key.decode()}
    users: dict[str, Callable[[], dict[str, Any]]] = {
        "data": lambda: {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)},
        "file": lambda: {"client-certificate": "ann.crt", "client-key": str(tmp_path / "ann.key")},
        "plugin": lambda: {"exec": answering(tmp_path, status)},
    }
    cluster = {"server": secure.url, "certificate-authority-data": encoded(authority.pem)}
    ask(tmp_path, config(cluster, users[way]()))
    assert secure.last["client"] == ["ann"]


# Proxies


def test_a_proxy_of_the_kubeconfig_carries_the_request(server: Recorder, tmp_path: Path) -> None:
    proxy = server.url.replace("//", "//ann:sécret€@")
    ask(tmp_path, config({"server": "http://cluster.example:6443", "proxy-url": proxy}, {"token": "t"}))
    assert server.last["path"].startswith("http://cluster.example:6443/api/v1/pods")
    assert server.last["headers"]["Proxy-Authorization"] == [f"Basic {encoded('ann:sécret€'.encode())}"]


@pytest.mark.parametrize(
    ("variables", "is_proxied"),
    [
        ({"HTTP_PROXY": "{proxy}"}, True),
        ({"http_proxy": "{proxy}"}, True),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "192.0.2.0/24"}, False),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "a.example, 192.0.2.7"}, False),
        ({"HTTP_PROXY": "{proxy}", "no_proxy": "*"}, False),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "198.51.100.0/24"}, True),
        ({"HTTPS_PROXY": "{proxy}"}, False),
    ],
)
def test_the_environments_proxy_is_used_as_go_uses_it(
    server: Recorder, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_proxied: bool
) -> None:
    from podmgr.cluster import proxies

    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(proxy=server.url))
    assert proxies.of_environment("http://192.0.2.7:6443") == (server.url if is_proxied else None)
    assert proxies.of_environment("http://127.0.0.1:6443") is None


def test_a_dead_proxy_is_named_as_the_proxy_without_its_password(tmp_path: Path) -> None:
    cluster = {"server": "https://192.0.2.7:6443", "proxy-url": "http://ann:secret@127.0.0.1:1"}
    proxy = r"the proxy http://127\.0\.0\.1:1 to the API server .* reached: Connection refused$"
    with pytest.raises(UnreachableError, match=proxy) as caught:
        ask(tmp_path, config(cluster))
    assert "secret" not in str(caught.value)


# What is refused, in one line

NO = {"server": "http://127.0.0.1:1"}
TLS = {"server": "https://x"}
KEYLESS = {"client-certificate-data": encoded(b"x")}


def plugged(command: str, **other: Any) -> dict[str, Any]:
    return config(NO, {"exec": {"apiVersion": V1, "command": command, **other}})


REFUSED: dict[str, tuple[dict[str, Any] | str, str]] = {
    "a SOCKS proxy": (config({**NO, "proxy-url": "socks5://127.0.0.1:1080"}), "SOCKS"),
    "another proxy": (config({**NO, "proxy-url": "ftp://x"}), "no http or https"),
    "no current context": (config(NO, current=""), "current-context"),
    "a context that is gone": (config(NO, current="gone"), "no context 'gone'"),
    "a cluster that is gone": (config(NO, clusters=[]), "no cluster 'c'"),
    "a user that is gone": (config(NO, users=[]), "no user 'u'"),
    "groups without a user": (config(NO, {"as-groups": ["a"]}), "but no as"),
    "an auth provider": (config(NO, {"auth-provider": {"name": "gcp"}}), "auth-provider"),
    "a certificate without a key": (
        config(NO, {"client-certificate-data": encoded(b"x")}),
        "without a key",
    ),
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
    "an authority that is none": (
        config({"server": "https://x", "certificate-authority-data": encoded(b"nonsense")}),
        "certificates for https://x cannot be used",
    ),
    "an authority that is not there": (
        config({"server": "https://x", "certificate-authority": "gone"}),
        "gone: No such",
    ),
    "data that is not base64": (
        config({"server": "https://x", "certificate-authority-data": "a"}),
        "not base64",
    ),
    "a token of two lines": (config(NO, {"token": "a\nb"}), "no header may hold"),
    "another scheme": (config({"server": "ftp://x"}), "no http or https"),
    "a plugin that is missing": (
        plugged("no-such-plugin", installHint="get it\nhere"),
        "no-such-plugin is not installed",
    ),
    "a plugin of an old version": (
        plugged("true", apiVersion=V1 + "alpha1"),
        "wants 'client.authentication.k8s.io/v1alpha1'",
    ),
    "a plugin that answers nothing": (
        config(NO, {"exec": {"apiVersion": V1, "command": "true"}}),
        "no ExecCredential",
    ),
    "a plugin that fails": (
        config(NO, {"exec": {"apiVersion": V1, "command": "false"}}),
        "ended with code 1",
    ),
    "a plugin that asks": (
        config(NO, {"exec": {"apiVersion": V1, "command": "true", "interactiveMode": "Always"}}),
        "needs a terminal",
    ),
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
    "a proxy without the end of its address": (config({**NO, "proxy-url": "http://[x"}), "proxy-url"),
    "a proxy whose port is none": (config({**NO, "proxy-url": "http://h:99999"}), "proxy-url"),
    "a name for TLS that is none": (config({**TLS, "tls-server-name": ".x"}), "its tls-server-name '.x'"),
    "a command with a NUL": (plugged("a\0b"), "its exec command holds a NUL"),
    "an argument with a NUL": (plugged("true", args=["ok", "a\0b"]), "its exec args holds a NUL"),
    "a variable with a NUL": (
        plugged("true", env=[{"name": "A", "value": "\0"}]),
        "its exec env A holds a NUL",
    ),
    "a variable's name with a NUL": (plugged("true", env=[{"name": "\0"}]), "its exec env holds a NUL"),
    "a variable called A=B": (plugged("true", env=[{"name": "A=B"}]), "its exec env holds 'A=B'"),
    "a variable without a name": (plugged("true", env=[{"value": "x"}]), "its exec env holds ''"),
    "a plugin that cannot be run": (plugged("/"), "its plugin: /: Permission denied"),
    "a plugin without a command": (plugged(""), "its exec has no command"),
    "nothing": ("", "current-context"),
    "a list": ("[]", "is no kubeconfig"),
    "half": ("{", "is not YAML"),
    "a NUL": ("\0", "is not YAML"),
    "numbers": ("clusters: 5\nusers: [5]\ncontexts: {}\ncurrent-context: 7", "no context '7'"),
    "another file": ("kind: Pod\nmetadata: {name: x}\n", "current-context"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: dict[str, Any] | str, reason: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PodmgrError) as caught:
        Api(Access(str(path)))
    assert reason in caught.value.message
    assert caught.value.message.isprintable() and caught.value.tip
    assert "manifest" not in caught.value.tip
    if "installHint" in str(content):
        assert caught.value.tip == "get it·here"


@pytest.mark.parametrize("url", ["http://[x", "http://h:99999"])
def test_an_address_of_the_environment_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(PodmgrError, match=f"HTTPS_PROXY in the environment: '{re.escape(url)}'"):
        ask(tmp_path, config({"server": "https://192.0.2.7"}))
    (tmp_path / "token").write_text("t")
    variables = {"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "99999"}
    with pytest.raises(PodmgrError, match="KUBERNETES_SERVICE_HOST"):
        kubeconfig.of_service_account(tmp_path, variables)


def test_a_plugin_that_does_not_end_or_prints_without_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(PodmgrError, match=r"^kubeconfig .*: its plugin: .*/plugin did not end") as caught:
        ask(tmp_path, plugged(script(tmp_path, "sleep 20 & wait"), installHint="get another"))
    assert caught.value.tip == "get another"
    monkeypatch.setattr(proc, "TIMEOUT_SECONDS", 20.0)
    monkeypatch.setattr(proc, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(PodmgrError, match=r"^kubeconfig .*: its plugin: yes prints more than 1 MiB"):
        ask(tmp_path, plugged("yes"))


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
