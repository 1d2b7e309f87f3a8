"""What `podmgr watch` costs on a full node: 110 pods with three rules each, in a cluster of 1,000 pods.

The API server is a process of its own, so that its work is not taken for watch's. Cgroups and
programs are real; all are at the cgroup hook, since the pods' processes share this machine's
network. Programs are compiled already where it is not said otherwise: pods of a cluster share few
rules.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from podmgr.kernel import cgroup_life, cgroups
from podmgr.reconcile.observe import observe
from podmgr.settings import Settings
from tests.bench.effort import Effort
from tests.bench.findings import Claim, Findings, Table
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import NODE, RunningPod, eventually
from tests.kube.watching import Watching, podmgr

PODS, CLUSTER_PODS, SERVICES = 110, 1_000, 200
NAMESPACES = 10  # the pods of the node are in all of them
CHANGES, COLD_CHANGES, FLOOD = 330, 20, 10_000
IDLE_SECONDS = 10.0
RATES = range(1, 9)  # in Mbit/s; the first pods keep one each, so that its program stays compiled
RULES = 3  # on each pod

_TIMEOUT_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """One line. `goal` is the most that is allowed."""

    name: str
    value: float
    unit: str
    goal: float | None = None


EFFORT = Effort(rounds=3)


def measure(effort: Effort) -> Findings:
    """All results. Leaves nothing behind."""
    with _node() as node:
        results = [*_starts(node, effort.rounds or 1), *_running(node)]
    return Findings(
        tables=(
            Table(
                f"{PODS} pods of {CLUSTER_PODS:,}, {RULES} rules each, {SERVICES} services",
                ("what", "result", "unit", "goal"),
                tuple((item.name, float(item.value), item.unit, item.goal) for item in results),
            ),
        ),
        claims=tuple(
            Claim(item.name, item.value, item.goal, f" {item.unit}")
            for item in results
            if item.goal is not None
        ),
    )


# The cluster


@dataclass
class Node:
    """This machine, and the process of the API server behind `ask`."""

    settings: Settings
    kubeconfig: Path
    folder: Path
    pods: list[RunningPod]
    ask: Callable[..., Any]
    node: str = NODE
    rates: dict[str, int] = field(default_factory=dict)  # in Mbit/s, by pod
    _logs: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def watch(self, *words: str) -> Iterator[Watching]:
        watch = Watching(self, self.folder / f"log-{next(self._logs)}", *words)
        try:
            yield watch
        finally:
            if watch.process.poll() is None:
                watch.stop()


@contextmanager
def _node() -> Iterator[Node]:
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-bench-watch-{os.getpid()}")
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    pods: list[RunningPod] = []
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as name:
        folder = Path(name)
        server = spawning.Process(target=_serve, args=(theirs, folder), daemon=True)
        server.start()
        theirs.close()

        def ask(*words: object) -> Any:
            ours.send(words)
            return ours.recv()

        settings = Settings(
            folder / "state", Path(f"/sys/fs/bpf/podmgr-bench-watch-{os.getpid()}"), cgroup_root=root.path
        )
        node = Node(settings, folder / "kubeconfig", folder, pods, ask)
        try:
            pods += [_start_pod(root.path, number) for number in range(PODS)]
            node.rates |= {pod.name: RATES[number % len(RATES)] for number, pod in enumerate(pods)}
            ask("fill", [(pod.namespace, pod.name, pod.uid, node.rates[pod.name]) for pod in pods])
            yield node
            ask("stop")
        finally:
            podmgr(settings, "clean")
            server.kill()
            server.join()
            for pod in pods:
                for process in pod.processes:
                    process.kill()
                    process.wait()
            cgroup_life.kill(root)
            cgroup_life.remove(root)


def _start_pod(root: Path, number: int) -> RunningPod:
    uid = str(uuid.uuid4())
    pod = RunningPod(
        f"team-{number % NAMESPACES}", f"web-{number}", uid, cgroup_life.create(root, f"pod{uid}")
    )
    pod.processes.append(subprocess.Popen(["sleep", "10000"]))
    cgroup_life.join(pod.place, pod.processes[0].pid)
    return pod


def _serve(orders: Connection, folder: Path) -> None:
    """The API server's process: does as it is told, and says when it began to."""
    with ApiServer() as api:
        api.write_kubeconfig(folder / "kubeconfig")
        actions: dict[str, Callable[..., None]] = {"fill": _fill, "annotate": _annotate, "flood": _flood}
        while (order := orders.recv())[0] != "stop":
            now = time.time()
            actions[order[0]](api, *order[1:])
            orders.send(now)
        orders.send(None)


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
        podmgr(node.settings, "clean", *(f"cgroup/{pod.place.path.name}" for pod in node.pods[len(RATES) :]))
        warm.append(_start(node))
    return [
        Result("start, programs to compile", cold, "s"),
        Result(f"start, {PODS - len(RATES)} pods to attach", median(warm), "s", 2.0),
        Result("start, all in force already", median(again), "s", 2.0),
    ]


def _start(node: Node) -> float:
    """Seconds until all pods are in order, by watch's own word, which the kernel must bear out."""
    started = time.time()
    with node.watch("--keep") as watch:
        watch.is_in_order()
        assert all(len(pod.programs()) == RULES for pod in node.pods), watch.tail()
        return _time_of(watch.said("in order")[0]) - started


# Running


def _running(node: Node) -> list[Result]:
    with node.watch("--metrics-address", "127.0.0.1:0", "--resync", "1h") as watch:
        watch.is_in_order()
        time.sleep(2.0)  # until it is quiet
        idle = _idle_share(watch)
        seen, done = _changes(node, watch, CHANGES, lambda rate: RATES[rate % len(RATES)])  # the next one
        new_rates = itertools.count(100)
        compiled, _ = _changes(node, watch, COLD_CHANGES, lambda _: next(new_rates))
        service = _service_change(node)
        before = watch.transactions()
        flood = _flood_of(node)
        transactions = watch.transactions() - before
        memory = _high_water_mib(watch)
    return [
        Result(f"change until attached, p50 of {CHANGES}", 1000 * median(seen), "ms"),
        Result(f"change until attached, p99 of {CHANGES}", 1000 * _p99(seen), "ms", 100.0),
        Result("  and the old one is gone, and it is told, p50", 1000 * median(done), "ms"),
        Result("  and the old one is gone, and it is told, p99", 1000 * _p99(done), "ms"),
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
    node: Node, watch: Watching, count: int, next_rate: Callable[[int], int]
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
        node.rates[pod.name] = next_rate(node.rates[pod.name])
        at = node.ask("annotate", "pods", pod.namespace, pod.name, _bandwidth(node.rates[pod.name]))
        (new,) = _soon(lambda pod=pod, before=before: set(pod.programs()) - before)  # type: ignore[misc]
        seen.append(time.time() - at)
        sent[new] = at
        _soon(lambda pod=pod: len(pod.programs()) == RULES)  # type: ignore[misc]
        time.sleep(0.01)
    told = _soon(lambda: _told(watch, sent))
    return seen, [told[new] - at for new, at in sent.items()]


def _told(watch: Watching, sent: Mapping[int, float]) -> dict[int, float]:
    """When watch said of these programs that they are attached; nothing before it has said all."""
    told = {line["program_id"]: _time_of(line) for line in watch.said("attached|replaced")}
    return told if sent.keys() <= told.keys() else {}


def _service_change(node: Node) -> float:
    pods = [pod for pod in node.pods if pod.namespace == "team-0"]
    before = [set(pod.programs()) for pod in pods]
    at = node.ask("annotate", "services", "team-0", "s-0", {"loss": "uniform egress 2% hook=cgroup"})

    def are_done() -> bool:
        now = [set(pod.programs()) for pod in pods]
        return all(len(new) == RULES and new != old for new, old in zip(now, before, strict=True))

    _soon(are_done)
    return time.time() - float(at)


def _flood_of(node: Node) -> float:
    pod = node.pods[-1]
    at = node.ask("flood", pod.namespace, pod.name, FLOOD)
    wanted = f"bandwidth={RATES[(FLOOD - 1) % 2]} mbps egress"

    def is_right() -> bool:
        rows = [item for item in observe(node.settings)[0] if item.attachment.owner == pod.uid]
        return len(rows) == RULES and wanted in [str(item.attachment.rule) for item in rows if item.is_active]

    _soon(is_right)
    return time.time() - float(at)


def _soon(check: Callable[[], T]) -> T:
    """What the check gives once it is true. It looks often: this is what is measured."""
    return eventually(check, seconds=_TIMEOUT_SECONDS, pause=0.001)


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def _time_of(line: Mapping[str, Any]) -> float:
    """When a line of the log was written, to the millisecond."""
    return datetime.fromisoformat(line["time"]).timestamp()


def _high_water_mib(watch: Watching) -> float:
    status = Path(f"/proc/{watch.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def _idle_share(watch: Watching) -> float:
    """Of one CPU, by watch and the tools that it started."""
    before = _ticks(watch)
    time.sleep(IDLE_SECONDS)
    return (_ticks(watch) - before) / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS


def _ticks(watch: Watching) -> int:
    fields = Path(f"/proc/{watch.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5)
