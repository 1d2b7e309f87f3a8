"""Servers: one that speaks the Kubernetes API, with requests to it, and those that remember who asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.cluster import exec_plugin
from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from tests.certificates import Authority
from tests.kube.apiserver import ApiServer
from tests.unit.cluster.kubeconfigs import Recorder, recording


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


@pytest.fixture
def access(server: ApiServer, tmp_path: Path) -> Access:
    return Access(str(server.write_kubeconfig(tmp_path / "kubeconfig", namespace="shop")))


@pytest.fixture
def api(access: Access) -> Iterator[Api]:
    made = Api(access)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    exec_plugin._answers.clear()
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as made:
        yield made


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def secure(authority: Authority, tmp_path: Path) -> Iterator[Recorder]:
    with recording(authority, tmp_path) as made:
        yield made
