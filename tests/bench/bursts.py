"""The law of a limit: nine tenths of its rate whatever its burst, and no more than rate and burst.

Random pairs of rate and burst, both directions, one and eight flows of TCP, beside kernel tbf with the same
burst. What is carried counts from when the bucket is drained; what passes, from the start, by the rule's
own counters.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from podmgr.demo.throwaway import WIRE_PER_PAYLOAD
from tests.bench.bandwidth import CARRIED_SHARE
from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.bench.ways import qdisc
from tests.lab import Lab, lab, start_tcp

EFFORT = Effort(seconds=4, rounds=200)  # a round is a pair

SEED = 12
LEAST_RATE, MOST_RATE = 100_000, 2_000_000_000
LEAST_BURST, MOST_BURST = 1_514, 10_000_000
LEAST_PACKETS = 200
SETTLING_SECONDS = 2  # until the bucket is drained, and TCP has found its way
LEAST_SHARE = 0.9
MOST_OF_LAW = 1.02
TOGETHER = ((5_000_000, 8), (50_000_000, 4), (200_000_000, 2))  # up to a rate, so many labs at once

OURS, KERNEL = "podmgr tbf", "kernel tbf"


@dataclass(frozen=True)
class Pair:
    """A limit; rate in bits per second, burst in bytes."""

    rate: int
    burst: int
    direction: str
    flows: int

    def seconds(self, least: float) -> float:
        return max(least, LEAST_PACKETS * 1514 * 8 / self.rate)


@dataclass(frozen=True)
class Carried:
    """Shares of the rate that TCP carried, and of what the law lets pass."""

    pair: Pair
    ours: float
    kernel: float
    of_law: float


def pairs(count: int) -> list[Pair]:
    """The same at every run."""
    chance = random.Random(SEED)

    def between(least: int, most: int) -> int:
        return round(math.exp(chance.uniform(math.log(least), math.log(most))))

    return [
        Pair(
            between(LEAST_RATE, MOST_RATE),
            between(LEAST_BURST, MOST_BURST),
            chance.choice(("egress", "ingress")),
            chance.choice((1, 8)),
        )
        for _ in range(count)
    ]


def measure(effort: Effort) -> Findings:
    effort = effort.filled(EFFORT)
    assert effort.rounds is not None and effort.seconds is not None
    with ExitStack() as stack:
        labs = [stack.enter_context(lab()) for _ in range(max(count for _, count in TOGETHER))]
        most = {
            (direction, flows): CARRIED_SHARE * _unlimited(labs[0], direction, flows)
            for direction, flows in itertools.product(("egress", "ingress"), (1, 8))
        }
        chosen = pairs(effort.rounds)
        judged = [pair for pair in chosen if pair.rate <= most[pair.direction, pair.flows]]
        found: list[Carried] = []
        for group in _groups(judged):
            tell(f"{len(found)} of {len(judged)}: {len(group)} from {group[0].rate / 1e6:.3g} mbps")
            seconds = max(pair.seconds(effort.seconds) for pair in group)
            ours = _ours(labs, group, seconds)
            kernel = _kernel(labs, group, seconds)
            found += [
                Carried(pair, share, other, of_law)
                for pair, (share, of_law), other in zip(group, ours, kernel, strict=True)
            ]
    return _findings(found, len(chosen) - len(judged))


def _unlimited(made: Lab, direction: str, flows: int) -> float:
    done = start_tcp(made, 2, flows=flows, ingress=direction == "ingress", settling_seconds=1)()
    return done.bits_per_second * WIRE_PER_PAYLOAD


def _groups(judged: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Slow ones together: they leave the machine its time."""
    left = sorted(judged, key=lambda pair: pair.rate)
    while left:
        count = next((count for rate, count in TOGETHER if left[0].rate <= rate), 1)
        group, left = left[:count], left[count:]
        yield group


def _transfers(labs: Sequence[Lab], group: Sequence[Pair], seconds: float) -> list[float]:
    running = [
        start_tcp(
            made,
            seconds,
            flows=pair.flows,
            ingress=pair.direction == "ingress",
            settling_seconds=SETTLING_SECONDS,
        )
        for made, pair in zip(labs, group, strict=False)
    ]
    return [
        finish().bits_per_second * WIRE_PER_PAYLOAD / pair.rate
        for finish, pair in zip(running, group, strict=True)
    ]


def _ours(labs: Sequence[Lab], group: Sequence[Pair], seconds: float) -> list[tuple[float, float]]:
    with ExitStack() as stack:
        for made, pair in zip(labs, group, strict=False):
            stack.enter_context(made.under(f"bandwidth={pair.rate} bps {pair.direction} burst={pair.burst}b"))
        started, before = time.monotonic(), [made.counters().passed_bytes for made in labs[: len(group)]]
        shares = _transfers(labs, group, seconds)
        passed = [made.counters().passed_bytes - start for made, start in zip(labs, before, strict=False)]
        took = time.monotonic() - started
    return [
        (share, size / (pair.rate / 8 * took + max(pair.burst, LEAST_BURST)))
        for share, size, pair in zip(shares, passed, group, strict=True)
    ]


def _kernel(labs: Sequence[Lab], group: Sequence[Pair], seconds: float) -> list[float]:
    with ExitStack() as stack:
        for made, pair in zip(labs, group, strict=False):
            words = f"qdisc add dev {{dev}} root tbf rate {{rate}} burst {pair.burst}b latency 50ms"
            stack.enter_context(qdisc(words, made, pair.rate / 1e6, pair.direction))
        return _transfers(labs, group, seconds)


# What it shows


def _findings(found: Sequence[Carried], beyond: int) -> Findings:
    starved = [item for item in found if item.ours < LEAST_SHARE and item.kernel >= LEAST_SHARE]
    worst = sorted(found, key=lambda item: item.ours)[:20]
    return Findings(
        tables=(
            Table(
                "of the rate that TCP carries, in %",
                ("way", "pairs", "least", "median", "most", "under 90 %"),
                tuple(
                    (
                        name,
                        len(shares),
                        100 * min(shares),
                        100 * median(shares),
                        100 * max(shares),
                        sum(share < LEAST_SHARE for share in shares),
                    )
                    for name, shares in (
                        (OURS, [item.ours for item in found]),
                        (KERNEL, [item.kernel for item in found]),
                    )
                ),
                digits=1,
                note=f"{beyond} pairs are beyond {CARRIED_SHARE:.0%} of what the machine carries.",
            ),
            Table(
                f"the {len(worst)} pairs of which podmgr carries least, in % of the rate",
                ("rate, mbps", "burst, bytes", "direction", "load", OURS, KERNEL),
                tuple(
                    (
                        f"{item.pair.rate / 1e6:.3g}",
                        f"{item.pair.burst}",
                        item.pair.direction,
                        f"TCP × {item.pair.flows}",
                        100 * item.ours,
                        100 * item.kernel,
                    )
                    for item in worst
                ),
                digits=1,
            ),
        ),
        charts=(
            Chart(
                "shares",
                "what TCP carries of a limit, by its burst",
                "burst, bytes",
                "% of the rate",
                tuple(
                    Series(
                        name,
                        tuple(float(item.pair.burst) for item in found),
                        tuple(100 * share for share in shares),
                    )
                    for name, shares in (
                        (KERNEL, [item.kernel for item in found]),
                        (OURS, [item.ours for item in found]),
                    )
                ),
                log_x=True,
                goals=(90, 100),
                has_lines=False,
            ),
        ),
        claims=(
            Claim(f"pairs under {LEAST_SHARE:.0%} of their rate where kernel tbf is above", len(starved), 0),
            Claim(
                "most that passes, of rate × time + burst",
                max(item.of_law for item in found),
                MOST_OF_LAW,
            ),
        ),
    )
