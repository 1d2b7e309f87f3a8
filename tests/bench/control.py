"""What control costs: apply, list and clean on 110 cgroups with three rules each, and start-up.

A node runs 110 pods by default. Commands run as a user's would: as processes of their own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from podmgr import cgroups
from podmgr.cgroups import Cgroup

PODS = 110
RULES = ("bandwidth=10 mbps egress", "bandwidth=20 mbps ingress", "loss=uniform egress 1%")
CHANGED = ("bandwidth=11 mbps egress", "bandwidth=21 mbps ingress", "loss=uniform egress 2%")
ROUNDS = 3

# What the work must take at most, in seconds.
LIMITS = {"apply 110, warm": 1.0, "list 110": 0.4, "--help": 0.25}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: the seconds of each round."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def limit(self) -> float | None:
        return LIMITS.get(self.name)

    @property
    def is_met(self) -> bool:
        return self.limit is None or self.median < self.limit


def measure() -> list[Figure]:
    """All figures. Leaves nothing behind."""
    seconds: dict[str, list[float]] = {}
    with _cgroups(PODS) as pods, _paths() as environment:
        targets = [f"cgroup/{cgroup.path.name}" for cgroup in pods]

        def timed(name: str, *words: str) -> str:
            started = time.monotonic()
            argv = [sys.executable, "-m", "podmgr", *words]
            done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
            seconds.setdefault(name, []).append(time.monotonic() - started)
            return done.stdout

        for _ in range(ROUNDS):
            timed("--help", "--help")
            rules = [word for rule in RULES for word in ("--rule", rule)]
            changed = [word for rule in CHANGED for word in ("--rule", rule)]
            timed("apply 110, cold", "apply", *targets, *rules)
            timed("apply 110, unchanged", "apply", *targets, *rules)
            rows = json.loads(timed("list 110", "list", "-o", "json"))["attachments"]
            assert len(rows) == PODS * len(RULES)
            assert all(row["state"] == "active" for row in rows)
            timed("list 110, table", "list")
            timed("change 110, cold", "apply", *targets, *changed)
            timed("clean 109 of 110", "clean", *targets[1:])
            timed("apply 110, warm", "apply", *targets, *changed)
            timed("clean 110", "clean")
    return [Figure(name, tuple(values)) for name, values in seconds.items()]


@contextmanager
def _cgroups(count: int) -> Iterator[list[Cgroup]]:
    root = cgroups.find_root(None)
    made: list[Cgroup] = []
    try:
        for number in range(count):
            made.append(cgroups.create(root, f"podmgr-bench-{os.getpid()}-pod{number}"))
        yield made
    finally:
        for cgroup in made:
            cgroups.remove(cgroup)


@contextmanager
def _paths() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as folder:
        own = {
            "PODMGR_STATE_DIR": str(Path(folder) / "state"),
            "PODMGR_BPFFS": f"/sys/fs/bpf/podmgr-bench-{os.getpid()}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        yield dict(os.environ) | own
