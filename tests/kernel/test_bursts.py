"""Losses come in runs, of the length and as many as the rule says.

What is asked of a mean is to lie in the interval that holds 99.99 of 100 fair ones. Packets of a run hang
together, so an interval that took each for a draw of its own would be too narrow. It is made of parts that do
not hang together: of B batches with many runs each, or of the cycles of Gilbert's chain, a run and the gap
behind it, each of which begins anew. With x and y of each part (packets lost; packets, or runs) the mean is

    R = sum x / sum y,   of variance   s^2 = sum (x - R y)^2 / (B (B - 1)) / (mean y)^2,

and lies within t s, where t is the quantile of Student's distribution with B - 1 degrees of freedom.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import pytest

from podmgr import proc
from podmgr.demo.intervals import binomial_interval
from podmgr.kernel import bpf_syscall, bpftool, pins
from podmgr.programs.build import SpecMaker, compile_spec
from podmgr.rules.kinds.loss_bursts import LONGEST, BurstLoss, GilbertLoss, MarkovLoss
from podmgr.rules.markov import runs_of
from podmgr.rules.rule import Direction, Hook
from podmgr.settings import Settings
from tests.bench.frames import SMALL
from tests.kernel.conftest import run
from tests.lab import POD, WORLD, Lab, lab
from tests.unit.samples import parsed

BATCHES, RUNS = 50, 40_000
BURST = "loss=burst egress 5% length=5"
MODELS = [
    BURST,
    "loss=burst egress 50% length=1",
    "loss=gilbert egress p=2% r=15%",
    "loss=gilbert egress p=2% r=15% bad=60% good=0.5%",
    "loss=markov egress p13=2%",
    "loss=markov egress p13=2% p31=20% p32=30% p23=70% p14=1%",
]


@dataclass(frozen=True)
class Mean:
    """A mean, and how far it may stray by chance."""

    value: float
    strays: float

    def holds(self, expected: float) -> bool:
        return abs(self.value - expected) <= self.strays


def mean_of(parts: Sequence[tuple[float, float]]) -> Mean:
    """sum x / sum y over parts (x, y), see above."""
    count, whole = len(parts), sum(y for _, y in parts)
    ratio = sum(x for x, _ in parts) / whole
    squares = sum((x - ratio * y) ** 2 for x, y in parts)
    deviation = math.sqrt(squares / (count * (count - 1))) / (whole / count)
    return Mean(ratio, _student(count - 1) * deviation)


def _student(freedom: int, confidence: float = 0.9999) -> float:
    """The two-sided quantile of Student's distribution (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def test_quantiles_are_those_of_the_tables() -> None:
    assert _student(49) == pytest.approx(4.236, abs=0.005)
    assert _student(10**6) == pytest.approx(3.891, abs=0.001)


# On a packet of ours, many times in a row


@dataclass(frozen=True)
class Loaded:
    """The program of a rule, which hangs nowhere."""

    rule: BurstLoss | GilbertLoss | MarkovLoss
    pin: pins.Pin
    frame: Path

    def start(self, packets: int) -> subprocess.Popen[str]:
        argv = ["bpftool", "-j", "prog", "run", "pinned", self.pin.program, "data_in", str(self.frame)]
        return subprocess.Popen([*argv, "repeat", str(packets)], stdout=subprocess.PIPE, text=True)

    def counted(self) -> tuple[int, int, list[int]]:
        """Packets, packets lost, and figures."""
        counters = bpf_syscall.pinned_counters(self.pin.counters)
        assert counters is not None
        rows = json.loads(run("bpftool", "-j", "map", "dump", "pinned", f"{self.pin.maps}/podmgr_figures"))
        figures = [sum(_number(cpu["value"]) for cpu in row["values"]) for row in rows]
        return counters.passed_packets + counters.dropped_packets, counters.dropped_packets, figures


def _number(value: Sequence[str]) -> int:
    return int.from_bytes(bytes(int(byte, 16) for byte in value), sys.byteorder)


@pytest.fixture
def loaded(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Loaded]:
    text, hook = request.param
    rule = parsed(text)
    assert isinstance(rule, BurstLoss | GilbertLoss | MarkovLoss)
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    pins.make_owner(settings.bpffs, "test")
    spec = SpecMaker(settings).spec(rule, counts_loopback=True, hook=hook)
    path, frame = tmp_path / "object.o", tmp_path / "frame"
    path.write_bytes(compile_spec(spec, runner=proc.run).content)
    frame.write_bytes(SMALL.frame)
    pin = pins.Pin(settings.bpffs, "test", "0")
    run("bpftool", *bpftool.load(str(path), pin.program, pin.maps, hook, Direction.EGRESS))
    yield Loaded(rule, pin, frame)
    pins.remove(pin)
    pins.remove_empty_folders(settings.bpffs)


CASES = [(text, Hook.TC) for text in MODELS] + [(MODELS[3], Hook.CGROUP)]


@pytest.mark.parametrize("loaded", CASES, indirect=True, ids=[f"{text}, {hook}" for text, hook in CASES])
def test_loss_and_runs_are_those_of_the_chain(loaded: Loaded) -> None:
    loss, length, gap = runs_of(loaded.rule.chain)
    assert length is not None
    assert gap is not None
    counted = [loaded.counted()]
    for _ in range(BATCHES):
        loaded.start(round(RUNS * (length + gap) / BATCHES)).communicate()
        counted.append(loaded.counted())
    losses, runs = [], []
    for (before, lost_before, was), (after, lost_after, now) in pairwise(counted):
        losses.append((lost_after - lost_before, after - before))
        ended = sum(now[1 : 1 + LONGEST]) - sum(was[1 : 1 + LONGEST])
        runs.append((now[1 + LONGEST] - was[1 + LONGEST], ended))
    mean_loss, mean_run = mean_of(losses), mean_of(runs)
    print(f"{loaded.rule}: loss {float(loss):.5f} {mean_loss}, run {float(length):.4f} {mean_run}")

    _, lost, figures = counted[-1]
    ended = sum(figures[1 : 1 + LONGEST])
    assert ended >= 30_000
    assert figures[0] - ended in (0, 1)  # one may not be over
    assert (lost - figures[1 + LONGEST] > 0) == (figures[0] > ended)
    assert mean_loss.holds(float(loss)), mean_loss
    assert mean_run.holds(float(length)), mean_run
    assert mean_loss.strays <= 0.06 * loss  # or it would prove nothing
    assert mean_run.strays <= 0.03 * length
    by_name = {figure.name: figure.value for figure in loaded.rule.figures(figures)}
    assert by_name == {"runs": figures[0], "mean run": pytest.approx(mean_run.value)}


@pytest.mark.parametrize("loaded", [(BURST, Hook.TC)], indirect=True, ids=[BURST])
def test_lengths_of_runs_are_those_of_gilbert(loaded: Loaded) -> None:
    """Of k packets with probability (1 - r)^(k - 1) r, each run for itself; the last are 16 and more."""
    loaded.start(RUNS * 100).communicate()  # so many packets have a run and its gap
    _, _, figures = loaded.counted()
    lengths = figures[1 : 1 + LONGEST]
    probabilities = [0.2 * 0.8 ** (length - 1) for length in range(1, LONGEST)] + [0.8 ** (LONGEST - 1)]
    for length, (found, probability) in enumerate(zip(lengths, probabilities, strict=True), 1):
        low, high = binomial_interval(sum(lengths), probability)
        assert low <= found <= high, (length, lengths)


@pytest.mark.parametrize("loaded", [("loss=burst egress 10% length=5", Hook.TC)], indirect=True, ids=["10%"])
def test_mean_loss_stays_when_all_cpus_send_at_once(loaded: Loaded) -> None:
    """Each takes its step alone: neither the mean nor the runs know how many CPUs there are."""
    senders = [loaded.start(10_000_000) for _ in range(max(2, os.cpu_count() or 2))]
    for sender in senders:
        sender.communicate()
    packets, lost, figures = loaded.counted()
    ended = sum(figures[1 : 1 + LONGEST])
    print(f"loss {lost / packets:.5f}, runs of {lost / figures[0]:.4f}, counted {figures[17] / ended:.4f}")
    assert lost / packets == pytest.approx(0.1, rel=0.015)  # 400,000 runs: 7 standard errors
    assert figures[17] / ended == pytest.approx(5, rel=0.015)
    assert 0 <= figures[0] - ended <= 1


# Real packets

DATAGRAMS, PORT = 100_000, 4000
SEND = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
errors = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for number in range(count):
        try:
            sock.sendto(number.to_bytes(4, "big") + bytes(60), (host, port))
        except OSError:
            errors += 1
print(errors)
"""
RECEIVE = """
import json, socket, sys
SO_RCVBUFFORCE = 33
numbers = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 30)
    sock.bind(("", int(sys.argv[1])))
    print("ready", flush=True)
    sock.settimeout(30)
    try:
        while True:
            numbers.append(int.from_bytes(sock.recv(100)[:4], "big"))
            sock.settimeout(2)
    except TimeoutError:
        pass
print(json.dumps(numbers))
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.mark.parametrize(
    "rule", ["loss=burst egress 10% length=5", "loss=burst ingress 10% length=5 hook=cgroup"]
)
def test_datagrams_are_lost_in_runs_and_their_sender_sees_no_error(made: Lab, rule: str) -> None:
    is_ingress = parsed(rule).direction is Direction.INGRESS
    start_sender, start_receiver = (
        (made.in_world, made.in_pod) if is_ingress else (made.in_pod, made.in_world)
    )
    with made.under(rule):
        receiver = start_receiver([sys.executable, "-I", "-c", RECEIVE, str(PORT)])
        try:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            sending = [sys.executable, "-I", "-c", SEND, POD if is_ingress else WORLD, str(PORT)]
            errors = int(start_sender([*sending, str(DATAGRAMS)]).communicate()[0])
            received = sorted(json.loads(receiver.communicate()[0]))
        finally:
            receiver.kill()
            receiver.wait()
        dropped = made.counters().dropped_packets
    assert errors == 0
    assert len(set(received)) == len(received)
    assert dropped - (DATAGRAMS - len(received)) in range(20)  # also a few packets of the namespace's own

    # Between two that are received one after another lies a run; with the gap before it, it is a cycle.
    cycles, gap = [], 0
    for before, after in pairwise(received):
        gap += 1
        if after - before > 1:
            cycles.append((after - before - 1, gap))
            gap = 0
    mean_loss = mean_of([(lost, lost + gap) for lost, gap in cycles])
    mean_run = mean_of([(lost, 1) for lost, _ in cycles])
    print(f"{rule}: {len(cycles)} runs, loss {mean_loss}, run {mean_run}")
    assert len(cycles) >= 1_000
    assert mean_loss.holds(0.1), mean_loss
    assert mean_run.holds(5), mean_run
