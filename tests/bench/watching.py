"""What `podmgr watch` costs on a full node: 110 pods with three rules each, in a cluster of 1,000 pods.

Cgroups and programs are real; all are at the cgroup hook, since the pods' processes share this machine's
network. Programs are compiled already where it is not said otherwise: pods of a cluster share few rules.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from podmgr.reconcile.observe import observe
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
    time_of,
)
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import NODE
from tests.kube.watching import Watching

CHANGES, COLD_CHANGES, FLOOD = 330, 20, 10_000
IDLE_SECONDS = 10.0
RATES = range(1, 9)  # in Mbit/s; the first pods keep one each, so that its program stays compiled
RULES = 3  # on each pod

EFFORT = Effort(rounds=3)


def measure(effort: Effort) -> Findings:
    """All results. Leaves nothing behind."""
    with full_node("watch", {"fill": _fill, "annotate": _annotate, "flood": _flood}) as node:
        rates = {pod.name: RATES[number % len(RATES)] for number, pod in enumerate(node.pods)}
        node.ask("fill", [(pod.namespace, pod.name, pod.uid, rates[pod.name]) for pod in node.pods])
        results = [*_starts(node, effort.rounds or 1), *_running(node, rates)]
    return findings(f"{PODS} pods of {CLUSTER_PODS:,}, {RULES} rules each, {SERVICES} services", results)


# The cluster


def _fill(api: ApiServer, pods: list[tuple[str, str, str, int]]) -> None:
    api.create(objects.node(NODE))
    for number in range(NAMESPACES):
        api.create(objects.namespace(f"team-{number}"))
    for number in range(SERVICES):
        has_rule = number < NAMESPACES  # one in each namespace, for all pods of this node there
        annotations = {"loss": "uniform egress 1% hook=cgroup"} if has_rule else None
        selector = {"app": "web"} if has_rule else {"app": f"app-{number}"}
        namespace = f"team-{number % NAMESPACES}"
        api.create(objects.service(f"s-{number}", namespace, selector=selector, annotations=annotations))
    for namespace, name, uid, rate in pods:
        api.create(objects.pod(name, namespace, uid=uid, labels={"app": "web"}, annotations=_bandwidth(rate)))
    for number in range(CLUSTER_PODS - len(pods)):
        labels, node = {"app": f"app-{number % SERVICES}"}, f"node-{2 + number % 9}"
        api.create(objects.pod(f"other-{number}", f"team-{number % NAMESPACES}", labels=labels, node=node))


def _annotate(
    api: ApiServer, resource: str, namespace: str, name: str, annotations: Mapping[str, str]
) -> None:
    api.annotate(resource, namespace, name, dict(annotations))


def _flood(api: ApiServer, namespace: str, name: str, count: int) -> None:
    for number in range(count):
        api.annotate("pods", namespace, name, dict(_bandwidth(RATES[number % 2])))


def _bandwidth(rate: int) -> dict[str, str]:
    return {"bandwidth": f"{rate} mbps egress; 10 mbps ingress"}


# Starting


def _starts(node: Node, rounds: int) -> list[Result]:
    """From the start of the process: cold, with compiled programs, and with all in force already."""
    cold = _start(node)
    again, warm = [], []
    for _ in range(rounds):
        again.append(_start(node))
        # Those that stay keep the programs compiled.
        node.clean(node.pods[len(RATES) :])
        warm.append(_start(node))
    return [
        Result("start, programs to compile", cold, "s"),
        Result(f"start, {PODS - len(RATES)} pods to attach", median(warm), "s", 2.0),
        Result("start, all in force already", median(again), "s", 2.0),
    ]


def _start(node: Node) -> float:
    """Seconds until all pods are in order, which the kernel must bear out."""
    seconds = node.start()
    assert all(len(pod.programs()) == RULES for pod in node.pods)
    return seconds


# Running


def _running(node: Node, rates: dict[str, int]) -> list[Result]:
    with node.watch("--metrics-address", "127.0.0.1:0", "--resync", "1h") as watch:
        watch.is_in_order()
        time.sleep(2.0)  # until it is quiet
        idle = _idle_share(watch)
        seen, done = _changes(
            node, rates, watch, CHANGES, lambda rate: RATES[rate % len(RATES)]
        )  # the next one
        new_rates = itertools.count(100)
        compiled, _ = _changes(node, rates, watch, COLD_CHANGES, lambda _: next(new_rates))
        service = _service_change(node)
        before = watch.transactions()
        flood = _flood_of(node)
        transactions = watch.transactions() - before
        memory = memory_mib(watch, "VmHWM")
    return [
        Result(f"change until attached, p50 of {CHANGES}", 1000 * median(seen), "ms"),
        Result(f"change until attached, p99 of {CHANGES}", 1000 * p99(seen), "ms", 100.0),
        Result("  and the old one is gone, and it is told, p50", 1000 * median(done), "ms"),
        Result("  and the old one is gone, and it is told, p99", 1000 * p99(done), "ms"),
        Result(f"change that must be compiled, p50 of {COLD_CHANGES}", 1000 * median(compiled), "ms"),
        Result(
            f"change of a service, compiled, until on its {PODS // NAMESPACES} pods", 1000 * service, "ms"
        ),
        Result(f"flood of {FLOOD:,} changes, until in order", flood, "s"),
        Result(f"flood of {FLOOD:,} changes, transactions", transactions, "", 200.0),
        Result("memory at most (VmHWM)", memory, "MiB", 100.0),
        Result(f"idle, CPU over {IDLE_SECONDS:.0f} s", 100 * idle, "%", 1.0),
    ]


def _changes(
    node: Node, rates: dict[str, int], watch: Watching, count: int, next_rate: Callable[[int], int]
) -> tuple[list[float], list[float]]:
    """One change after the other, each on the next pod.

    Seconds from the event to the new program's attachment as the kernel has it, and to the line
    in watch's log that comes when all is read back.
    """
    sent: dict[int, float] = {}
    seen: list[float] = []
    for number in range(count):
        pod = node.pods[len(RATES) + number % (PODS - len(RATES))]
        before = set(pod.programs())
        rates[pod.name] = next_rate(rates[pod.name])
        at = node.ask("annotate", "pods", pod.namespace, pod.name, _bandwidth(rates[pod.name]))
        (new,) = soon(lambda pod=pod, before=before: set(pod.programs()) - before)  # type: ignore[misc]
        seen.append(time.time() - at)
        sent[new] = at
        soon(lambda pod=pod: len(pod.programs()) == RULES)  # type: ignore[misc]
        time.sleep(0.01)
    told = soon(lambda: _told(watch, sent))
    return seen, [told[new] - at for new, at in sent.items()]


def _told(watch: Watching, sent: Mapping[int, float]) -> dict[int, float]:
    """When watch said of these programs that they are attached; nothing before it has said all."""
    told = {line["program_id"]: time_of(line) for line in watch.said("attached|replaced")}
    return told if sent.keys() <= told.keys() else {}


def _service_change(node: Node) -> float:
    pods = [pod for pod in node.pods if pod.namespace == "team-0"]
    before = [set(pod.programs()) for pod in pods]
    at = node.ask("annotate", "services", "team-0", "s-0", {"loss": "uniform egress 2% hook=cgroup"})

    def are_done() -> bool:
        now = [set(pod.programs()) for pod in pods]
        return all(len(new) == RULES and new != old for new, old in zip(now, before, strict=True))

    soon(are_done)
    return time.time() - float(at)


def _flood_of(node: Node) -> float:
    pod = node.pods[-1]
    at = node.ask("flood", pod.namespace, pod.name, FLOOD)
    wanted = f"bandwidth={RATES[(FLOOD - 1) % 2]} mbps egress"

    def is_right() -> bool:
        rows = [item for item in observe(node.settings)[0] if item.attachment.owner == pod.uid]
        return len(rows) == RULES and wanted in [str(item.attachment.rule) for item in rows if item.is_active]

    soon(is_right)
    return time.time() - float(at)


def _idle_share(watch: Watching) -> float:
    """Of one CPU, by watch and the tools that it started."""
    before = _ticks(watch)
    time.sleep(IDLE_SECONDS)
    return (_ticks(watch) - before) / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS


def _ticks(watch: Watching) -> int:
    fields = Path(f"/proc/{watch.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5)
