"""What befalls packets by chance: how many are lost, in which runs, how many are sent twice or are late.

Each beside netem's way of saying the same. A share or a mean is judged by its standard error: that of a mean
of runs by their deviation, that of a loss, whose packets are not independent, by the means of blocks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, pstdev

from podmgr.demo.intervals import binomial_interval
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.loss_bursts import BurstLoss, GilbertLoss, MarkovLoss
from podmgr.rules.markov import runs_of
from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.lab import Lab, lab
from tests.oneway import Journeys, journeys

EFFORT = Effort(rounds=50)  # what the receiver has no time for waits in its socket

DATAGRAMS_PER_ROUND = 1_000
PODMGR, NETEM = "podmgr", "netem"
MOST_ERRORS = 4.0

LOSSES = (
    ("loss=burst egress 2% length=5", "loss gemodel 0.40816% 20%"),
    ("loss=gilbert egress p=1% r=10% bad=50%", "loss gemodel 1% 10% 50% 0%"),
    ("loss=markov egress p13=1% p31=20% p32=10% p23=30% p14=0.5%", "loss state 1% 20% 10% 30% 0.5%"),
)
SINGLE = (  # rule, what netem calls the same, what is counted, and with which probability
    ("duplicate=5% egress", "duplicate 5%", "copies", 0.05),
    ("reorder=5% egress by=10ms", "delay 10ms reorder 95%", "late", 0.05),
)

_LATE_SECONDS = 0.005
_SINGLE_APART_SECONDS = 0.0002
_BLOCKS = 40
_LONGEST = 12


@dataclass(frozen=True)
class Lost:
    """Which of so many datagrams were lost, under one rule."""

    rule: str
    way: str
    is_lost: tuple[bool, ...]
    wanted_loss: float
    wanted_run: float

    @property
    def runs(self) -> list[int]:
        """How many losses each run has."""
        return [len(list(group)) for is_lost, group in groupby(self.is_lost) if is_lost]

    @property
    def loss(self) -> float:
        return fmean(self.is_lost)

    @property
    def loss_errors(self) -> float:
        """How many standard errors the loss is off."""
        size = len(self.is_lost) // _BLOCKS
        blocks = [fmean(self.is_lost[place * size : (place + 1) * size]) for place in range(_BLOCKS)]
        return _errors(blocks, self.wanted_loss)

    @property
    def run_errors(self) -> float:
        return _errors(self.runs, self.wanted_run)


@dataclass(frozen=True)
class Counted:
    """How many of `sent` something befell, and how many by chance may."""

    rule: str
    way: str
    what: str
    count: int
    sent: int
    fair: tuple[int, int]
    overtaken: int

    @property
    def is_fair(self) -> bool:
        return self.fair[0] <= self.count <= self.fair[1]


def _errors(values: Sequence[float], wanted: float) -> float:
    error: float = pstdev(values) / len(values) ** 0.5
    return abs(fmean(values) - wanted) / max(error, 1e-12)


def measure(effort: Effort) -> Findings:
    count = DATAGRAMS_PER_ROUND * (effort.rounds or 1)
    with lab() as made:
        lost = [
            found
            for rule, words in LOSSES
            for found in (_lost(made, rule, words, way, count) for way in _WAYS)
        ]
        counted = [
            found for row in SINGLE for found in (_counted(made, *row, way, count // 4) for way in _WAYS)
        ]
    return _findings(lost, counted)


_WAYS = (PODMGR, NETEM)


def _seen(made: Lab, rule: str, words: str, way: str, count: int, apart_seconds: float = 0) -> Journeys:
    tell(rule if way == PODMGR else f"netem {words}")
    with made.under(rule) if way == PODMGR else made.under_netem(words):
        return journeys(made, count, apart_seconds=apart_seconds, quiet_seconds=1)


def _lost(made: Lab, rule: str, words: str, way: str, count: int) -> Lost:
    (parsed,) = parse_rule_option(rule)
    assert isinstance(parsed, BurstLoss | GilbertLoss | MarkovLoss)
    wanted = runs_of(parsed.chain)
    arrived = {number for number, _ in _seen(made, rule, words, way, count).arrived}
    is_lost = tuple(number not in arrived for number in range(count))
    return Lost(rule, way, is_lost, float(wanted.loss), float(wanted.run or 0))


def _counted(
    made: Lab, rule: str, words: str, what: str, probability: float, way: str, count: int
) -> Counted:
    seen = _seen(made, rule, words, way, count, _SINGLE_APART_SECONDS)
    late = sum(delay >= _LATE_SECONDS for delay in seen.delays)
    found = seen.copies if what == "copies" else late
    return Counted(rule, way, what, found, count, binomial_interval(count, probability), seen.overtaken)


# What it shows


def _findings(lost: Sequence[Lost], counted: Sequence[Counted]) -> Findings:
    tables = (
        Table(
            f"{len(lost[0].is_lost):,} datagrams: losses and their runs",
            ("rule", "by", "lost, %", "asked, %", "off, s.e.", "mean run", "asked", "off, s.e."),
            tuple(
                (
                    item.rule,
                    item.way,
                    100 * item.loss,
                    100 * item.wanted_loss,
                    item.loss_errors,
                    fmean(item.runs),
                    item.wanted_run,
                    item.run_errors,
                )
                for item in lost
            ),
            note="netem is asked for the same: " + "; ".join(f"`{words}`" for _, words in LOSSES) + ".",
        ),
        Table(
            f"{counted[0].sent:,} datagrams: copies, and those that are late",
            ("rule", "by", "what", "count", "fair", "overtaken"),
            tuple(
                (
                    item.rule,
                    item.way,
                    item.what,
                    item.count,
                    "{} to {}".format(*item.fair),
                    item.overtaken,
                )
                for item in counted
            ),
            note="netem is asked for the same: " + "; ".join(f"`{row[1]}`" for row in SINGLE) + ".",
        ),
    )
    ours = [item for item in lost if item.way == PODMGR]
    return Findings(
        tables=tables,
        charts=(_chart(lost[:2]),),
        claims=(
            *(
                Claim(f"{item.rule}: {what} is off, in standard errors", errors, MOST_ERRORS)
                for item in ours
                for what, errors in (("loss", item.loss_errors), ("mean run", item.run_errors))
            ),
            Claim(
                "copies and lateness that are not fair",
                sum(not item.is_fair for item in counted if item.way == PODMGR),
                0,
            ),
        ),
    )


def _chart(lost: Sequence[Lost]) -> Chart:
    """How many runs have how many losses, of the first rule: its runs end with one probability."""
    lengths = range(1, _LONGEST + 1)
    ends = 1 / lost[0].wanted_run
    series = [
        Series("target", tuple(map(str, lengths)), tuple(ends * (1 - ends) ** (n - 1) for n in lengths))
    ]
    for item in lost:
        low, high = zip(*(_interval(item.runs, length) for length in lengths), strict=True)
        shares = tuple(item.runs.count(length) / len(item.runs) for length in lengths)
        series.append(Series(item.way, tuple(map(str, lengths)), shares, low, high))
    return Chart("runs", f"{lost[0].rule}: runs of losses", "losses in a row", "share of runs", tuple(series))


def _interval(runs: Sequence[int], length: int) -> tuple[float, float]:
    """Of the share of runs of a length: 95 % by bootstrap, with a fixed seed."""
    chance = random.Random(1)
    shares = sorted(chance.choices(runs, k=len(runs)).count(length) / len(runs) for _ in range(400))
    return shares[10], shares[-11]
