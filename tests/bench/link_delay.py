"""How long a delayed packet takes one way, beside netem: what is asked for, to the microsecond.

Sender and receiver share one clock, and what arrives is stamped by the kernel. What a datagram takes without
a delay is measured before and after, and subtracted: it is the way itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from tests.bench.effort import Effort, tell
from tests.bench.findings import Claim, Findings, Table
from tests.lab import WORLD, Lab, lab
from tests.oneway import Journeys, journeys

EFFORT = Effort(seconds=5)

DELAYS_MS = (1, 10, 50, 100, 300, 2_000)
ROUND_TRIP_MS = 100
DIRECTIONS = ("egress", "ingress")
MEAN_US, DEVIATION_US = 30, 10
PODMGR, NETEM = "podmgr", "netem"

_APART_SECONDS = 0.001
_PINGS, _PINGS_APART_SECONDS = 100, 0.3


@dataclass(frozen=True)
class Delayed:
    """Datagrams under a delay."""

    way: str
    delay_ms: int
    direction: str
    found: Journeys
    baseline_seconds: float

    @property
    def off_us(self) -> float:
        """By how much the mean is off, beyond the way itself."""
        return 1e6 * (self.found.mean - self.baseline_seconds - self.delay_ms / 1e3)

    @property
    def deviation_us(self) -> float:
        return 1e6 * self.found.deviation

    @property
    def furthest_us(self) -> float:
        """How far from the mean one of them is."""
        return 1e6 * max(abs(delay - self.found.mean) for delay in self.found.delays)


@contextmanager
def delaying(made: Lab, way: str, delay_ms: float) -> Iterator[None]:
    """So long in each direction."""
    if way == PODMGR:
        with made.under(f"delay={delay_ms:g}ms both"):
            yield
    else:
        with made.under_netem("delay", f"{delay_ms:g}ms", both=True):
            yield


def measure(effort: Effort) -> Findings:
    count = round((effort.seconds or 1) / _APART_SECONDS)
    with lab() as made:
        before = _both_ways(made, count)
        journeys_of = {}
        for delay_ms in DELAYS_MS:
            for way in (PODMGR, NETEM):
                tell(f"{way}, {delay_ms} ms")
                with delaying(made, way, delay_ms):
                    journeys_of[way, delay_ms] = _both_ways(made, count)
        after = _both_ways(made, count)
        trips = _round_trips(made)
    baselines = [fmean((first.mean, last.mean)) for first, last in zip(before, after, strict=True)]
    found = [
        Delayed(way, delay_ms, direction, seen, baseline)
        for (way, delay_ms), both in journeys_of.items()
        for direction, seen, baseline in zip(DIRECTIONS, both, baselines, strict=True)
    ]
    return _findings(found, dict(zip(DIRECTIONS, before, strict=True)), trips)


def _both_ways(made: Lab, count: int) -> list[Journeys]:
    return [
        journeys(made, count, apart_seconds=_APART_SECONDS, ingress=direction == "ingress")
        for direction in DIRECTIONS
    ]


def _round_trips(made: Lab) -> dict[str, float]:
    """Milliseconds of a ping, on average: without a delay, and with half of it in each direction."""
    found = {"no delay": _ping_ms(made)}
    tell("round trips")
    with made.under(f"delay={ROUND_TRIP_MS}ms rtt"):
        found[PODMGR] = _ping_ms(made)
    with delaying(made, NETEM, ROUND_TRIP_MS / 2):
        found[NETEM] = _ping_ms(made)
    return found


def _ping_ms(made: Lab) -> float:
    argv = ["ping", "-q", "-c", str(_PINGS), "-i", str(_PINGS_APART_SECONDS), WORLD]
    output, _ = made.in_pod(argv).communicate()
    mean = re.search(r"= [\d.]+/([\d.]+)/", output)
    assert mean is not None, output
    return float(mean[1])


def _findings(found: Sequence[Delayed], bare: dict[str, Journeys], trips: dict[str, float]) -> Findings:
    ours = [item for item in found if item.way == PODMGR]
    added = trips[PODMGR] - trips["no delay"]
    return Findings(
        tables=(
            Table(
                f"{found[0].found.sent:,} datagrams one way, {_APART_SECONDS * 1e3:g} ms apart",
                (
                    "delay, ms",
                    "direction",
                    "by",
                    "mean off, us",
                    "sd, us",
                    "furthest, us",
                    "lost",
                    "overtaken",
                ),
                tuple(
                    (
                        item.delay_ms,
                        item.direction,
                        item.way,
                        item.off_us,
                        item.deviation_us,
                        item.furthest_us,
                        item.found.lost,
                        item.found.overtaken,
                    )
                    for item in sorted(found, key=lambda item: (item.delay_ms, item.direction))
                ),
                digits=1,
                note="Off what is asked for and the way itself: "
                + ", ".join(
                    f"{direction} {1e6 * seen.mean:.1f} us (sd {1e6 * seen.deviation:.1f})"
                    for direction, seen in bare.items()
                )
                + ".",
            ),
            Table(
                f"{_PINGS} pings, of {ROUND_TRIP_MS} ms in both directions together",
                ("by", "mean, ms"),
                tuple(trips.items()),
                digits=3,
            ),
        ),
        claims=(
            Claim("delay: most that a mean is off", max(abs(item.off_us) for item in ours), MEAN_US, " us"),
            Claim(
                "delay: largest standard deviation",
                max(item.deviation_us for item in ours),
                DEVIATION_US,
                " us",
            ),
            Claim(
                "delay: lost or overtaken", sum(item.found.lost + item.found.overtaken for item in ours), 0
            ),
            Claim(
                f"{ROUND_TRIP_MS} ms rtt: most that a ping is off",
                abs(1e3 * (added - ROUND_TRIP_MS)),
                2 * MEAN_US,
                " us",
            ),
        ),
    )
