"""A server that speaks the Kubernetes API, and requests to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from tests.kube.apiserver import ApiServer


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
