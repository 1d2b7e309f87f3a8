"""Whether as many packets are lost as the rule says: UDP datagrams, counted where they arrive.

Each point is measured once; what is asked of it is to lie within the interval that holds 99.99 of
100 fair losses. Beside it the ways that others lose packets, where this kernel has them: netem
on the pod's interface, and the statistic match of iptables where the node forwards.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction

from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import PROBE, inside
from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.lab import POD, WORLD, Lab, lab

EFFORT = Effort(rounds=1)

PERCENTS = ("0.1", "0.5", "1", "2", "5", "10", "20", "30", "50", "75", "90", "99")
THRESHOLDS = tuple(range(0, 1001, 50))
DATAGRAMS = 100_000
DIRECTIONS = ("egress", "ingress")
PORT = 4000


@dataclass(frozen=True)
class Lost:
    """How many of how many packets were lost, and how many a fair loss takes, 99.99 % of the time."""

    lost: int
    sent: int
    probability: float
    errors: int = 0

    @property
    def fair(self) -> tuple[int, int]:
        return binomial_interval(self.sent, self.probability)

    @property
    def is_fair(self) -> bool:
        low, high = self.fair
        return low <= self.lost <= high

    @property
    def deviation(self) -> float:
        """From what was expected, in halves of the interval: beyond 1 it is not by chance."""
        low, high = self.fair
        return (self.lost - self.sent * self.probability) / max((high - low) / 2, 1)


def pings_lost(made: Lab, percent: str, count: int) -> Lost:
    """Of pings from the pod, under the rule."""
    argv = ["ping", "-q", "-c", str(count), "-i", "0.002", "-W", "1", WORLD]
    with made.under(f"loss=uniform egress {percent}%"):
        output, _ = made.in_pod(argv).communicate()
    sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", output)[0])
    return Lost(sent - received, sent, float(percent) / 100)


def datagrams_lost(
    made: Lab,
    probability: float,
    count: int,
    *,
    ingress: bool = False,
    host: str = WORLD,
    port: int = PORT,
) -> Lost:
    """Of UDP datagrams from the pod or to it; one that sendto(2) refused is an error and is lost."""
    host, receiving = (POD, made.pod) if ingress else (host, made.world)
    argv = inside(receiving, [*PROBE, "receive", str(port)])
    receiver = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        sending = [*PROBE, "send", host, str(port), str(count)]
        sender = made.in_world(sending) if ingress else made.in_pod(sending)
        sent = json.loads(sender.communicate()[0])
        received = json.loads(receiver.communicate("")[0])["received"]
    finally:
        receiver.kill()
        receiver.wait()
    return Lost(count - received, count, probability, sent["errors"])


def measure(_: Effort) -> Findings:
    with lab() as made:
        peers = [peer for peer in _PEERS if _works(made, peer)]
        uniform = [_uniform(made, percent, peers) for percent in PERCENTS]
        exponential = [_exponential(made, threshold) for threshold in THRESHOLDS]
    ours = [found for row in uniform for found in row.ours] + [
        found for row in exponential for found in row.ours
    ]
    outside = sum(not found.is_fair for found in ours)
    missing = [peer.name for peer in _PEERS if peer not in peers]
    return Findings(
        tables=(
            _table(f"uniform, {DATAGRAMS:,} datagrams each", "loss, %", uniform, peers),
            _table(f"exponential, {DATAGRAMS:,} datagrams each", "T", exponential, []),
        ),
        charts=(_chart("uniform", "loss, %", uniform, peers), _chart("exponential", "T", exponential, [])),
        claims=(Claim(f"points outside their interval, of {len(ours)}", outside, 0),),
        notes=(f"Not on this kernel or machine: {', '.join(missing)}.",) if missing else (),
    )


@dataclass(frozen=True)
class _Row:
    """One point: podmgr's egress and ingress, and the peers' egress."""

    x: float
    ours: tuple[Lost, ...]
    peers: tuple[Lost, ...] = ()


def _uniform(made: Lab, percent: str, peers: list[_Peer]) -> _Row:
    tell(f"uniform, {percent} %")
    probability = float(Fraction(percent) / 100)
    found = _ours(made, f"uniform {{}} {percent}%", probability)
    theirs = []
    for peer in peers:
        with peer.losing(made, percent):
            theirs.append(datagrams_lost(made, probability, DATAGRAMS))
    return _Row(float(percent), found, tuple(theirs))


def _exponential(made: Lab, threshold: int) -> _Row:
    """An exponential variate whose 98 % quantile is 1000 exceeds T with the probability 50^(-T/1000)."""
    tell(f"exponential, T = {threshold}")
    return _Row(threshold, _ours(made, f"exponential {{}} {threshold}", 50 ** (-threshold / 1000)))


def _ours(made: Lab, rule: str, probability: float) -> tuple[Lost, ...]:
    found = []
    for direction in DIRECTIONS:
        with made.under(f"loss={rule.format(direction)}"):
            found.append(datagrams_lost(made, probability, DATAGRAMS, ingress=direction == "ingress"))
    return tuple(found)


def _table(title: str, x: str, rows: list[_Row], peers: list[_Peer]) -> Table:
    names = (*DIRECTIONS, *(peer.name for peer in peers))
    return Table(
        title,
        (x, "expected", "fair", *names, "send errors"),
        tuple(
            (
                f"{row.x:g}",
                round(row.ours[0].sent * row.ours[0].probability),
                "{} to {}".format(*row.ours[0].fair),
                *(found.lost for found in (*row.ours, *row.peers)),
                sum(found.errors for found in row.ours),
            )
            for row in rows
        ),
        note="Lost packets; fair is what 99.99 % of fair losses take. Send errors are podmgr's.",
    )


def _chart(name: str, x: str, rows: list[_Row], peers: list[_Peer]) -> Chart:
    names = (*DIRECTIONS, *(peer.name for peer in peers))
    columns = zip(*((*row.ours, *row.peers) for row in rows), strict=True)
    return Chart(
        name,
        f"{name} loss: distance from what was asked for",
        x,
        "halves of the 99.99 % interval",
        tuple(
            Series(label, tuple(row.x for row in rows), tuple(found.deviation for found in column))
            for label, column in zip(names, columns, strict=True)
        ),
        log_x=name == "uniform",
        goals=(-1, 1),
        has_lines=False,
    )


# The ways of others, on what leaves the pod


@dataclass(frozen=True)
class _Peer:
    name: str
    losing: Callable[[Lab, str], AbstractContextManager[None]]


def _netem(made: Lab, percent: str) -> AbstractContextManager[None]:
    return made.under_netem("loss", f"{percent}%")


@contextmanager
def _statistic(made: Lab, percent: str) -> Iterator[None]:
    probability = format(float(Fraction(percent) / 100), ".9f")
    rule = f"FORWARD -i pod0 -m statistic --mode random --probability {probability} -j DROP"
    made.sh(made.node, f"{_IPTABLES} -A {rule}")
    try:
        yield
    finally:
        made.sh(made.node, f"{_IPTABLES} -D {rule}")


_IPTABLES = "iptables"
_PEERS = (_Peer("netem", _netem), _Peer("iptables statistic", _statistic))


def _works(made: Lab, peer: _Peer) -> bool:
    if peer.losing is _statistic and shutil.which(_IPTABLES) is None:
        return False
    try:
        with peer.losing(made, "1"):
            return True
    except AssertionError:  # the kernel lacks it
        return False
