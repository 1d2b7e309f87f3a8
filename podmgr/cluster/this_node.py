"""Which of the cluster's nodes podmgr runs on: as it is told, or by what kubelet says of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.objects import is_name, mapping
from podmgr.cluster.this_machine import Machine, this_machine
from podmgr.errors import PodmgrError

_NODES = "/api/v1/nodes"


class UnknownNodeError(PodmgrError):
    """No node can be said to be this machine: not now, but kubelet may say so later."""


class Described(NamedTuple):
    """A node, and what its kubelet says of the machine; "" where it says nothing."""

    name: str
    boot_id: str = ""
    machine_id: str = ""
    addresses: tuple[str, ...] = ()


def find_node(api: Api, named: str | None) -> str:
    """This node's name: as named, or NODE_NAME, or that of the node which is this machine.

    Raises UnknownNodeError if none can be said to be.
    """
    given = named or os.environ.get("NODE_NAME")
    if given:
        return given
    machine = this_machine()
    try:
        nodes = [_described(item) for item in api.list(_NODES)[0]]
    except StatusError as error:
        if not error.is_refusal:
            raise
        return _unlisted(api, machine)
    name = node_of(nodes, machine)
    if name is None:
        raise _unknown(machine, f"none of {len(nodes)} nodes: {_some([node.name for node in nodes])}")
    return name


def node_of(nodes: Sequence[Described], machine: Machine) -> str | None:
    """The node that is this machine; None if that cannot be told.

    The one that was booted when it was. Of several such (nodes in containers share a kernel), and where
    there is none (after a boot, until kubelet has told of it), the one with most else in common: its name
    or an address of it, and the machine's id. The id alone is not enough, copies of a machine have it too.
    """
    booted = [node for node in nodes if node.boot_id and node.boot_id == machine.boot_id]
    if len(booted) == 1:
        return booted[0].name
    called = _called(booted or nodes, machine.host)
    clues: dict[str, tuple[int, bool]] = {}
    for node in booted or nodes:
        is_called = node.name in called
        is_here = any(map(machine.has_address, node.addresses))
        is_same = bool(node.machine_id) and node.machine_id == machine.machine_id
        if is_called or is_here or (is_same and (booted or len(nodes) == 1)):
            clues[node.name] = (is_called + is_here + is_same, is_called)
    best = [name for name, clue in clues.items() if clue == max(clues.values())]
    if len(best) == 1:
        return best[0]
    if len(nodes) == 1 and not nodes[0].boot_id:
        return nodes[0].name  # it says nothing of its machine
    return None


def _called(nodes: Iterable[Described], host: str) -> set[str]:
    """Those that are called like the host, or else those that are but for the domain."""
    names = {node.name for node in nodes}
    short = host.partition(".")[0]
    return names & {host} or {name for name in names if name.partition(".")[0] == short}


def _unlisted(api: Api, machine: Machine) -> str:
    """Where nodes may not be listed, the node that is called like its host. A kubelet may get its own."""
    names = dict.fromkeys((machine.host, machine.host.partition(".")[0]))
    for name in filter(is_name, names):
        try:
            return _described(api.get(f"{_NODES}/{quote(name)}")).name or name
        except StatusError as error:
            if error.is_refusal:
                return machine.host  # what there is cannot be known: most nodes are called so
            if not error.is_missing:
                raise
    raise _unknown(machine, "no node, and nodes may not be listed")


def _unknown(machine: Machine, what: str) -> UnknownNodeError:
    return UnknownNodeError(
        f"which node is this? {machine.host} is {what}",
        tip="--node-name NAME, or NODE_NAME in the environment",
    )


def _described(item: Mapping[str, Any]) -> Described:
    status = mapping(item.get("status"))
    info = mapping(status.get("nodeInfo"))
    there = status.get("addresses")
    addresses = [mapping(one) for one in there] if isinstance(there, list) else []
    return Described(
        str(mapping(item.get("metadata")).get("name") or ""),
        str(info.get("bootID") or ""),
        str(info.get("machineID") or ""),
        tuple(str(one.get("address")) for one in addresses if one.get("type") == "InternalIP"),
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
