"""Proxies, of the kubeconfig and of the environment, as Go uses them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster import proxies
from podmgr.cluster.access import of_service_account
from podmgr.cluster.api import UnreachableError
from podmgr.errors import PodmgrError
from tests.unit.cluster.kubeconfigs import NO, Recorder, ask, config, encoded, refused


def test_a_proxy_of_the_kubeconfig_carries_the_request(recorder: Recorder, tmp_path: Path) -> None:
    proxy = recorder.url.replace("//", "//ann:sécret€@")
    ask(tmp_path, config({"server": "http://cluster.example:6443", "proxy-url": proxy}, {"token": "t"}))
    assert recorder.last["path"].startswith("http://cluster.example:6443/api/v1/pods")
    assert recorder.last["headers"]["Proxy-Authorization"] == [f"Basic {encoded('ann:sécret€'.encode())}"]


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
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_proxied: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(proxy=recorder.url))
    assert proxies.of_environment("http://192.0.2.7:6443") == (recorder.url if is_proxied else None)
    assert proxies.of_environment("http://127.0.0.1:6443") is None


def test_a_dead_proxy_is_named_as_the_proxy_without_its_password(tmp_path: Path) -> None:
    cluster = {"server": "https://192.0.2.7:6443", "proxy-url": "http://ann:secret@127.0.0.1:1"}
    proxy = r"the proxy http://127\.0\.0\.1:1 to the API server .* reached: Connection refused$"
    with pytest.raises(UnreachableError, match=proxy) as caught:
        ask(tmp_path, config(cluster))
    assert "secret" not in str(caught.value)


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
        of_service_account(tmp_path, variables)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a SOCKS proxy": (config({**NO, "proxy-url": "socks5://127.0.0.1:1080"}), "SOCKS"),
    "another proxy": (config({**NO, "proxy-url": "ftp://x"}), "no http or https"),
    "a proxy without the end of its address": (config({**NO, "proxy-url": "http://[x"}), "proxy-url"),
    "a proxy whose port is none": (config({**NO, "proxy-url": "http://h:99999"}), "proxy-url"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    refused(tmp_path, content, reason)
