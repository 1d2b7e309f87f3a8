"""The name of this node: as told, or as found among those of the cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.cluster.this_machine import Machine, this_machine
from podmgr.cluster.this_node import Described, UnknownNodeError, find_node, node_of
from podmgr.errors import PodmgrError
from tests.kube import objects
from tests.kube.apiserver import ApiServer


def nodes(*names: str, error: PodmgrError | None = None) -> Api:
    class Fake:
        asked = 0

        def get(self, path: str) -> Mapping[str, Any]:
            assert path.startswith("/api/v1/nodes/")
            raise error or AssertionError("no need to ask for one")

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
    with pytest.raises(UnknownNodeError, match="which node is this") as caught:
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


def test_kubelet_which_may_get_its_own_node_alone_finds_it(
    server: ApiServer, api: Api, host: Callable[[str], None]
) -> None:
    server.create(objects.node("worker-1"))
    server.fail("list", 403, "nodes")
    host("worker-1.example.com")
    assert find_node(api, None) == "worker-1"
    host("worker-2")
    with pytest.raises(UnknownNodeError, match="nodes may not be listed"):
        find_node(api, None)


def test_node_is_found_at_a_real_server(server: ApiServer, api: Api, host: Callable[[str], None]) -> None:
    for name in ("node-1", "node-2"):
        server.create(objects.node(name))
    host("node-2")
    assert find_node(api, None) == "node-2"


def test_node_that_is_called_otherwise_is_the_one_that_was_booted_when_the_machine_was(
    server: ApiServer, api: Api, host: Callable[[str], None]
) -> None:
    """The machine's own boot id, which is the same in containers."""
    boot_id = this_machine().boot_id
    assert boot_id
    server.create(objects.node("i-0aa", boot_id="another"))
    server.create(objects.node("i-0bb", boot_id=boot_id))
    host("laptop")
    assert find_node(api, None) == "i-0bb"
    host("i-0aa")
    assert find_node(api, None) == "i-0bb"


# What a node and a machine have in common. This machine is called worker-1 and has the address 10.0.0.1.

BOOT, BEFORE, OTHER = "boot-2", "boot-1", "boot-9"
HERE, THERE = ("10.0.0.1", "fd00::1"), ("10.0.0.2",)


def node(name: str, boot_id: str = BEFORE, machine_id: str = "m", addresses: Sequence[str] = ()) -> Described:
    return Described(name, boot_id, machine_id, tuple(addresses))


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([node("worker-1", OTHER, "m", HERE), node("b", BOOT, "x", THERE)], "b"),
        ([node("a", BEFORE, "m", HERE), node("b", OTHER, "x", THERE)], "a"),
        ([node("a", BEFORE, "m", HERE), node("b", OTHER, "m", THERE)], "a"),
        ([node("a", BEFORE, "m"), node("b", OTHER, "x")], None),
        ([node("worker-1", BEFORE, "m", THERE), node("b", OTHER, "x", HERE)], "worker-1"),
        ([node("worker-1", OTHER, "x"), node("b", BEFORE, "m", HERE)], "b"),
        ([node("worker-1", OTHER, "x"), node("b", OTHER, "y", HERE)], "worker-1"),
        ([node("a", BEFORE, "x", HERE), node("b", OTHER, "y", HERE)], None),
        ([node("a", BOOT, "x"), node("b", BOOT, "m")], "b"),
        ([node("a", BOOT, "x"), node("worker-1", BOOT, "y")], "worker-1"),
        ([node("a", BOOT, "x"), node("b", BOOT, "y")], None),
        ([node("worker-1.a", BOOT), node("worker-1.b", OTHER)], "worker-1.a"),
        ([node("worker-1.a", BEFORE, "x", HERE), node("worker-1.b", OTHER, "y")], "worker-1.a"),
        ([node("a", OTHER, "x", THERE)], None),
        ([node("a", BEFORE, "m", THERE)], "a"),
        ([node("a", "", "", ())], "a"),
        ([node("a", "", "", ()), node("b", "", "", ())], None),
    ],
    ids=[
        "booted when it was, whatever else",
        "after a boot: by its address",
        "after a boot, with a copy beside it",
        "an id alone may be a copy's",
        "a new address",
        "a name that is another's: two against one",
        "name and address disagree: the name",
        "an address that two have",
        "nodes in containers: by their id",
        "nodes in containers: by their name",
        "nodes in containers that nothing tells apart",
        "a short name that two have: by boot",
        "a short name that two have: by address",
        "the only node is another machine",
        "the only node, just booted and moved",
        "the only node says nothing",
        "two that say nothing",
    ],
)
def test_node_is_the_one_with_most_in_common(nodes: list[Described], found: str | None) -> None:
    machine = Machine("worker-1", BOOT, "m", HERE.__contains__)
    assert node_of(nodes, machine) == found
    assert node_of(nodes[::-1], machine) == found


def test_machine_that_says_nothing_is_no_node_that_says_nothing_either() -> None:
    machine = Machine("laptop", "", "", lambda _: False)
    assert node_of([node("a", "", ""), node("b", "", "")], machine) is None


@pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "::1", "192.0.2.77", "worker-1", "", "None"])
def test_what_is_no_address_of_the_machines_own_is_none(text: str) -> None:
    assert not this_machine().has_address(text)
