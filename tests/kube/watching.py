"""`podmgr watch` as a process of its own, with what it says; and a look at programs all the while."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from podmgr.errors import EXIT_DONE, EXIT_FAILED
from podmgr.settings import Settings
from tests.kernel.conftest import assert_nothing_left, assert_unloaded
from tests.kube.cluster import SECONDS, RunningPod, eventually, lines_of

STOP_SECONDS = 20.0
_ROOT = Path(__file__).parents[2]
_PAUSE = 0.001  # between two looks
_Key = tuple[tuple[str, str], ...]


def environment_of(settings: Settings) -> dict[str, str]:
    """What makes a podmgr process use these settings."""
    own = {
        "PYTHONPATH": str(_ROOT),
        "PODMGR_STATE_DIR": str(settings.state_dir),
        "PODMGR_BPFFS": str(settings.bpffs),
        "PODMGR_PROGRAM_DIR": str(settings.program_dir),
    }
    root = {"PODMGR_CGROUP_ROOT": str(settings.cgroup_root)} if settings.cgroup_root else {}
    return os.environ | own | root


def podmgr(settings: Settings, *words: str) -> None:
    """Run a command that must succeed, with these settings whatever the environment says."""
    argv = [sys.executable, "-m", "podmgr", *words]
    subprocess.run(argv, env=environment_of(settings), capture_output=True, check=True)


class Place(Protocol):
    """Which cluster is watched, on which node, and where what belongs to it is kept."""

    settings: Settings
    kubeconfig: Path
    node: str


class Watching:
    """A watch of a cluster, until it is stopped. It logs JSON, so every line of it is read back."""

    def __init__(
        self,
        place: Place,
        log: Path,
        *words: str,
        names_node: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = place.settings
        self.log = log
        self.keeps_rules = "--keep" in words
        argv = [sys.executable, "-m", "podmgr", "watch", "--kubeconfig", str(place.kubeconfig)]
        argv += ["--node-name", place.node] if names_node else []
        argv += [] if "--log-format" in words else ["--log-format", "json"]
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*argv, *words],
                env=environment_of(place.settings) | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        return lines_of(self.log)

    def said(self, pattern: str) -> list[dict[str, Any]]:
        """The lines whose message has the pattern in it."""
        return [line for line in self.lines if re.search(pattern, line["message"])]

    def hears(self, pattern: str, *, times: int = 1, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait until so many lines have the pattern; the last of them."""
        eventually(
            lambda: len(self.said(pattern)) >= times or self.process.poll() is not None,
            seconds=seconds,
            why=lambda: f"no {pattern!r} in {self.tail()}",
        )
        found = self.said(pattern)
        assert len(found) >= times, f"ended without {pattern!r}: {self.tail()}"
        return found[-1]

    def is_in_order(self) -> None:
        """Wait until all pods were brought in order once."""
        self.hears("in order")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and wait; the exit code."""
        self.send(number)
        return self.ended()

    def kill(self) -> None:
        """As if by the kernel, for want of memory."""
        self.process.kill()  # nothing, if it has ended
        self.process.wait()

    def program_ids(self) -> set[int]:
        """All programs that it says to have attached or detached."""
        return {line["program_id"] for line in self.lines if line.get("program_id") is not None}

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-20:])

    @property
    def port(self) -> int:
        """Where its metrics are."""
        return int(self.hears("metrics, healthz and readyz")["port"])

    def probe(self, path: str) -> int:
        """The status of /healthz or /readyz."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def metrics(self) -> dict[str, dict[_Key, float]]:
        """Name to labels to value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples: dict[str, dict[_Key, float]] = {}
        for family in families:
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return samples

    def transactions(self) -> int:
        """How many times pods were brought in order."""
        return int(self.metrics()["podmgr_reconcile_duration_seconds_count"][()])


def assert_all_gone(watches: Sequence[Watching]) -> None:
    """No pin, no ledger, no object, no lock, and none of their programs."""
    for settings in {watch.settings for watch in watches}:
        assert_nothing_left(settings)
        last = [watch.process.returncode for watch in watches if watch.settings == settings][-1]
        # One that was killed could not take its lock away; the next one does.
        assert last not in (EXIT_DONE, EXIT_FAILED) or not (settings.state_dir / "watch.lock").exists()
    assert_unloaded(sorted({id for watch in watches for id in watch.program_ids()}))


def end(watches: Sequence[Watching]) -> None:
    """Stop them, and see that nothing is left but what was meant to be. Whatever is, is taken away."""
    try:
        codes = [watch.stop() for watch in watches if watch.process.poll() is None]
        assert set(codes) <= {EXIT_DONE}, [watch.tail() for watch in watches]
        if watches and (watches[-1].keeps_rules or watches[-1].process.returncode not in (0, 1)):
            podmgr(watches[-1].settings, "clean")
        assert not [watch.tail() for watch in watches for line in watch.lines if "this is a bug" in str(line)]
        assert_all_gone(watches)
    finally:
        for watch in watches:
            watch.kill()
        for settings in {watch.settings for watch in watches if watch.settings.bpffs.exists()}:
            podmgr(settings, "clean")


class Sampler:
    """What hangs on pods at every moment, as far as a look each few milliseconds can tell."""

    def __init__(self, *pods: RunningPod) -> None:
        self._pods = pods
        self._ending = threading.Event()
        self.samples: list[tuple[frozenset[int], ...]] = []
        self.times: list[float] = []

    def run(self) -> None:
        while not self._ending.wait(_PAUSE):
            self.times.append(time.monotonic())
            self.samples.append(tuple(frozenset(pod.programs()) for pod in self._pods))

    def end(self) -> None:
        self._ending.set()

    def fewest(self) -> int:
        """The smallest number of programs that one of the pods ever had, over samples that were dense."""
        assert median(later - earlier for earlier, later in pairwise(self.times)) < 0.005
        return min(len(programs) for sample in self.samples for programs in sample)

    def distinct(self) -> set[tuple[frozenset[int], ...]]:
        """All states that were seen."""
        return set(self.samples)


@contextmanager
def sampled(*pods: RunningPod) -> Iterator[Sampler]:
    """Look all the while the block runs."""
    sampler = Sampler(*pods)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(sampler.run)
        try:
            yield sampler
        finally:
            sampler.end()
        looking.result()
