"""What names in rules cost `podmgr watch`: 110 pods with ten rules each, and each rule names a service.

All ten are of one kind and direction, so that each program's table is made with a look at the other nine.
Nine services are of the pod's namespace, the tenth is one that all pods name. Each has five endpoints.
"""

from __future__ import annotations

import json
import struct
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from podmgr.kernel.map_contents import PinnedMap
from podmgr.reconcile.actual import pin_of
from podmgr.reconcile.observe import observe
from podmgr.rules.peers import prefix_of
from tests.bench.effort import Effort
from tests.bench.findings import Findings
from tests.bench.node import (
    CLUSTER_PODS,
    NAMESPACES,
    PODS,
    SERVICES,
    Node,
    Result,
    findings,
    full_node,
    memory_mib,
    p99,
    soon,
)
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import NODE
from tests.kube.store import Obj

RULES = 10  # on each pod
ENDPOINTS = CLUSTER_PODS // SERVICES
CHANGES, COMMON_CHANGES = 300, 100
COMMON = "common"  # the namespace and the service that all pods name
WORDS = ("--peer-namespaces", COMMON, "--resync", "1h")
START_SECONDS = 300.0

_PREFIX = struct.Struct("=I17s3x")  # bpf/match.h, struct podmgr_prefix

EFFORT = Effort(rounds=3)


def measure(effort: Effort) -> Findings:
    """All results. Leaves nothing behind."""
    with full_node("peers", {"fill": _fill, "move": _move}) as node:
        node.ask("fill", [(pod.namespace, pod.name, pod.uid) for pod in node.pods])
        results = [*_starts(node, effort.rounds or 1), *_running(node)]
    title = f"{PODS} pods of {CLUSTER_PODS:,}, {RULES} rules each with a service of {SERVICES} as its peer"
    return findings(title, results)


# The cluster


def _fill(api: ApiServer, pods: list[tuple[str, str, str]]) -> None:
    api.create(objects.node(NODE))
    names = [(f"team-{number % NAMESPACES}", f"s-{number}") for number in range(SERVICES - 1)]
    for namespace in (*(f"team-{number}" for number in range(NAMESPACES)), COMMON):
        api.create(objects.namespace(namespace))
    for number, (namespace, name) in enumerate([*names, (COMMON, COMMON)]):
        service = objects.service(name, namespace)
        service["spec"] |= {"clusterIP": f"10.43.0.{number}", "clusterIPs": [f"10.43.0.{number}"]}
        api.create(service)
        addresses = [f"10.42.{number}.{endpoint}" for endpoint in range(ENDPOINTS)]
        api.create(objects.endpoint_slice(name, namespace, addresses=addresses))
    for number, (namespace, name, uid) in enumerate(pods):
        near = [service for place, service in names if place == namespace]
        first = number // NAMESPACES
        named = [f"svc/{near[(first + 2 * place) % len(near)]}" for place in range(RULES - 1)]
        annotations = {"loss": _rules([*named, f"svc/{COMMON}/{COMMON}"])}
        api.create(objects.pod(name, namespace, uid=uid, annotations=annotations))
    for number in range(CLUSTER_PODS - len(pods)):
        node = f"node-{2 + number % 9}"
        api.create(objects.pod(f"other-{number}", f"team-{number % NAMESPACES}", node=node))


def _rules(peers: Sequence[str]) -> str:
    return "; ".join(f"{place}% egress hook=cgroup peer={peer}" for place, peer in enumerate(peers, start=1))


def _move(api: ApiServer, namespace: str, name: str, address: str) -> None:
    """Its last endpoint is another one now."""
    path = ("endpointslices", namespace, f"{name}-a1b2c")
    there: list[Obj] = list(api.get(*path)["endpoints"])
    api.patch(*path, {"endpoints": [*there[:-1], {**there[-1], "addresses": [address]}]})


# Starting


def _starts(node: Node, rounds: int) -> list[Result]:
    cold = _start(node)
    again, warm = [], []
    for _ in range(rounds):
        again.append(_start(node))
        node.clean(node.pods[1:])  # the one that stays keeps the programs compiled
        warm.append(_start(node))
    return [
        Result("start, programs to compile", cold, "s"),
        Result(f"start, {PODS - 1} pods to attach", median(warm), "s"),
        Result("start, all in force already", median(again), "s"),
    ]


def _start(node: Node) -> float:
    seconds = node.start(*WORDS, seconds=START_SECONDS)
    assert all(len(pod.programs()) == RULES for pod in node.pods)
    return seconds


# Running


def _running(node: Node) -> list[Result]:
    with node.watch("--keep", *WORDS) as watch:
        watch.hears("in order", seconds=START_SECONDS)
        time.sleep(2.0)  # until it is quiet
        programs = [pod.programs() for pod in node.pods]
        memory = memory_mib(watch, "VmRSS")
        tables = _tables(node)
        assert len(tables) == SERVICES
        common = tables.pop((COMMON, COMMON))
        assert len(common) == PODS
        places = sorted(tables)
        turns = [(turn, places[turn % len(places)]) for turn in range(CHANGES)]
        some = [_moved(node, place, tables[place], turn) for turn, place in turns]
        all_pods = [_moved(node, (COMMON, COMMON), common, turn) for turn in range(COMMON_CHANGES)]
        most = memory_mib(watch, "VmHWM")
        assert programs == [pod.programs() for pod in node.pods]
    maps = _maps_mib(programs)
    pods = PODS * (RULES - 1) / (SERVICES - 1)
    return [
        Result(f"endpoint replaced, until in all maps of {pods:.0f} pods, p50", 1000 * median(some), "ms"),
        Result(
            f"endpoint replaced, until in all maps of {pods:.0f} pods, p99", 1000 * p99(some), "ms", 100.0
        ),
        Result(f"endpoint replaced, until in all maps of {PODS} pods, p50", 1000 * median(all_pods), "ms"),
        Result(f"endpoint replaced, until in all maps of {PODS} pods, p99", 1000 * p99(all_pods), "ms"),
        Result("memory of watch after its start (VmRSS)", memory, "MiB"),
        Result("memory of watch at most (VmHWM)", most, "MiB", 100.0),
        Result(f"memory of the maps of {PODS * RULES:,} programs", maps, "MiB"),
        Result("  of one program", 1024 * maps / PODS / RULES, "KiB"),
    ]


def _tables(node: Node) -> dict[tuple[str, str], list[str]]:
    """By the service that a rule names: the pins of what its programs look up."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in observe(node.settings)[0]:
        row = item.attachment
        assert row.rule is not None and row.pod is not None
        (peer,) = row.rule.match.peers
        found[peer.namespace or row.pod.namespace, peer.name].append(pin_of(node.settings, row).peers)
    return found


def _moved(node: Node, service: tuple[str, str], pins: list[str], turn: int) -> float:
    """Seconds from the event until all that name the service look up its new endpoint."""
    address = f"10.44.{turn // 256}.{turn % 256}"
    prefix = prefix_of(address)
    key = _PREFIX.pack(prefix.bits, prefix.address)
    with ExitStack() as stack:
        left = [stack.enter_context(PinnedMap(pin, _PREFIX.size, 8)) for pin in pins]
        at = node.ask("move", *service, address)

        def is_everywhere() -> bool:
            while left and _has(left[-1], key):
                left.pop()
            return not left

        soon(is_everywhere)
        seconds = time.time() - float(at)
    time.sleep(0.01)
    return seconds


def _has(table: PinnedMap, key: bytes) -> bool:
    try:
        table[key]
    except FileNotFoundError:
        return False
    return True


def _maps_mib(programs: Sequence[Sequence[int]]) -> float:
    """By the kernel's account, which has not all of what a map holds before Linux 6.4."""
    ours = {number for ids in programs for number in ids}
    rows = _bpftool("prog")
    maps = {number for row in rows if row["id"] in ours for number in row["map_ids"]}
    return sum(int(row["bytes_memlock"]) for row in _bpftool("map") if row["id"] in maps) / (1 << 20)


def _bpftool(what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(subprocess.check_output(["bpftool", "-j", what, "show"]))
    return found
