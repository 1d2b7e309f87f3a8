"""One API server from start to end, over real HTTP: credentials may change under it, the server may not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.errors import PodmgrError
from podmgr.watch.reconnect import reconnect
from tests.kube.apiserver import ApiServer


@pytest.fixture
def servers() -> Iterator[tuple[ApiServer, ApiServer]]:
    with ApiServer() as one, ApiServer() as other:
        yield one, other


def test_credentials_may_change_but_not_the_server(
    tmp_path: Path, servers: tuple[ApiServer, ApiServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = servers
    closed: list[str] = []
    monkeypatch.setattr(Api, "close", lambda api: closed.append(api.server))
    access = Access(str(tmp_path / "kubeconfig"))

    one.write_kubeconfig(tmp_path / "kubeconfig", token="second")
    renewed = reconnect(access, one.url)
    assert renewed.server == one.url
    assert "second" in str(renewed._headers)
    assert closed == []

    other.write_kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(PodmgrError) as caught:
        reconnect(access, one.url)
    assert caught.value.message == f"the kubeconfig leads to {other.url} now, not to {one.url}"
    assert "start podmgr watch again" in (caught.value.tip or "")
    assert closed == [other.url]

    one.write_kubeconfig(tmp_path / "kubeconfig")
    assert reconnect(access, one.url).server == one.url
