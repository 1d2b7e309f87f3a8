"""The name of this node: as told, or as found among those of the cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.cluster.this_node import find_node
from podmgr.errors import PodmgrError
from tests.kube import objects
from tests.kube.apiserver import ApiServer


def nodes(*names: str, error: PodmgrError | None = None) -> Api:
    class Fake:
        asked = 0

        def list(self, path: str) -> tuple[Sequence[Mapping[str, Any]], str]:
            assert path == "/api/v1/nodes"
            if error is not None:
                raise error
            return [{"metadata": {"name": name}} for name in names], "1"

    return cast(Api, Fake())


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The machine is called worker-1, unless the test says otherwise."""
    monkeypatch.delenv("NODE_NAME", raising=False)

    def call(name: str) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: name)

    call("worker-1")
    return call


def test_node_is_as_named_then_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    unasked = nodes(error=UnreachableError("nobody was to ask"))
    monkeypatch.setenv("NODE_NAME", "from-environment")
    assert find_node(unasked, "from-flag") == "from-flag"
    assert find_node(unasked, None) == "from-environment"
    monkeypatch.setenv("NODE_NAME", "")
    with pytest.raises(UnreachableError):
        find_node(unasked, None)


@pytest.mark.parametrize(
    ("called", "names", "node"),
    [
        ("worker-1", ["worker-0", "worker-1", "worker-10"], "worker-1"),
        ("WORKER-1", ["worker-0", "worker-1"], "worker-1"),
        ("worker-1.example.com", ["worker-0", "worker-1"], "worker-1"),
        ("worker-1", ["worker-0.example.com", "worker-1.example.com"], "worker-1.example.com"),
        ("worker-1", ["worker-1.a", "worker-1"], "worker-1"),
        ("worker-1.b", ["worker-1.a", "worker-1.b"], "worker-1.b"),
        ("laptop", ["k3s-server"], "k3s-server"),
    ],
    ids=["exact", "case", "host has a domain", "node has a domain", "exact first", "domains", "only one"],
)
def test_node_is_the_one_that_is_called_like_the_host_or_the_only_one(
    host: Callable[[str], None], called: str, names: list[str], node: str
) -> None:
    host(called)
    assert find_node(nodes(*names), None) == node


@pytest.mark.parametrize("names", [["a", "b"], ["worker-1.a", "worker-1.b"], []])
def test_node_that_cannot_be_told_is_an_error(names: list[str]) -> None:
    with pytest.raises(PodmgrError, match="which node is this") as caught:
        find_node(nodes(*names), None)
    assert caught.value.tip == "--node-name NAME, or NODE_NAME in the environment"


def test_many_nodes_are_not_all_named() -> None:
    with pytest.raises(PodmgrError, match=r"is none of 500 nodes: n0, n1, n2, n3, n4 …$"):
        find_node(nodes(*(f"n{number}" for number in range(500))), None)


def test_node_is_called_after_its_host_if_nodes_may_not_be_listed(host: Callable[[str], None]) -> None:
    host("Worker-1.Example.com")
    assert find_node(nodes(error=StatusError(403, "forbidden")), None) == "worker-1.example.com"


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_node_is_not_guessed_because_the_server_is_in_trouble(status: int) -> None:
    """The wrong name would be watched for ever: a node without pods."""
    with pytest.raises(StatusError) as caught:
        find_node(nodes(error=StatusError(status, "no")), None)
    assert caught.value.status == status


def test_node_is_found_at_a_real_server(server: ApiServer, api: Api, host: Callable[[str], None]) -> None:
    for name in ("node-1", "node-2"):
        server.create(objects.node(name))
    host("node-2")
    assert find_node(api, None) == "node-2"
