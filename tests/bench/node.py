"""This machine as a full node of a cluster, for `podmgr watch`: real cgroups, and an API server.

The API server is a process of its own, so that its work is not taken for watch's.
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
from typing import Any, TypeVar

from podmgr.kernel import cgroup_life, cgroups
from podmgr.settings import Settings
from tests.bench.findings import Claim, Findings, Table
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import NODE, RunningPod, eventually
from tests.kube.watching import Watching, podmgr

PODS, CLUSTER_PODS, SERVICES = 110, 1_000, 200
NAMESPACES = 10  # the pods of the node are in all of them

_TIMEOUT_SECONDS = 60.0

T = TypeVar("T")
Actions = Mapping[str, Callable[..., None]]  # each is given the API server, and what it is asked with


@dataclass(frozen=True, slots=True)
class Result:
    """One line. `goal` is the most that is allowed."""

    name: str
    value: float
    unit: str
    goal: float | None = None


def findings(title: str, results: list[Result]) -> Findings:
    """A table of them, and what is claimed."""
    rows = tuple((item.name, float(item.value), item.unit, item.goal) for item in results)
    return Findings(
        tables=(Table(title, ("what", "result", "unit", "goal"), rows),),
        claims=tuple(
            Claim(item.name, item.value, item.goal, f" {item.unit}")
            for item in results
            if item.goal is not None
        ),
    )


@dataclass
class Node:
    """This machine, and the API server's process behind `ask`, which says when it began to do as asked."""

    settings: Settings
    kubeconfig: Path
    folder: Path
    pods: list[RunningPod]
    ask: Callable[..., Any]
    node: str = NODE
    _logs: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def watch(self, *words: str) -> Iterator[Watching]:
        watch = Watching(self, self.folder / f"log-{next(self._logs)}", *words)
        try:
            yield watch
        finally:
            if watch.process.poll() is None:
                watch.stop()

    def clean(self, pods: list[RunningPod]) -> None:
        """Take from these pods what they have."""
        podmgr(self.settings, "clean", *(f"cgroup/{pod.place.path.name}" for pod in pods))

    def start(self, *words: str, seconds: float = _TIMEOUT_SECONDS) -> float:
        """Seconds from the start of the process until all pods are in order, by watch's own word."""
        started = time.time()
        with self.watch("--keep", *words) as watch:
            watch.hears("in order", seconds=seconds)
            assert not watch.said("not in order"), watch.tail()
            return time_of(watch.said("in order")[0]) - started


@contextmanager
def full_node(name: str, actions: Actions) -> Iterator[Node]:
    """The pods run, the API server has no objects; when the block ends nothing is left."""
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-bench-{name}-{os.getpid()}")
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    pods: list[RunningPod] = []
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as place:
        folder = Path(place)
        server = spawning.Process(target=_serve, args=(theirs, folder, actions), daemon=True)
        server.start()
        theirs.close()

        def ask(*words: object) -> Any:
            ours.send(words)
            return ours.recv()

        settings = Settings(
            folder / "state", Path(f"/sys/fs/bpf/podmgr-bench-{name}-{os.getpid()}"), cgroup_root=root.path
        )
        try:
            pods += [_start_pod(root.path, number) for number in range(PODS)]
            yield Node(settings, folder / "kubeconfig", folder, pods, ask)
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


def _serve(orders: Connection, folder: Path, actions: Actions) -> None:
    """The API server's process: does as it is told, and says when it began to."""
    with ApiServer() as api:
        api.write_kubeconfig(folder / "kubeconfig")
        while (order := orders.recv())[0] != "stop":
            now = time.time()
            actions[order[0]](api, *order[1:])
            orders.send(now)
        orders.send(None)


def soon(check: Callable[[], T]) -> T:
    """What the check gives once it is true. It looks often: this is what is measured."""
    return eventually(check, seconds=_TIMEOUT_SECONDS, pause=0.001)


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def time_of(line: Mapping[str, Any]) -> float:
    """When a line of the log was written, to the millisecond."""
    return datetime.fromisoformat(line["time"]).timestamp()


def memory_mib(watch: Watching, key: str) -> float:
    """Of watch's process: `VmHWM` at most, or `VmRSS` now."""
    status = Path(f"/proc/{watch.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) / 1024
