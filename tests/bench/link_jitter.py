"""How delays vary: their distribution, order and correlation, against the target and beside netem.

Datagrams are so far apart that each has a draw of its own (`order=free`), or a few fall into each slot that
has one (`order=keep`), of which the last is taken: what comes right after a longer draw waits.
A distance is Kolmogorov's and Smirnov's: the largest between the distribution functions of sample and target.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import NormalDist, fmean, pstdev

from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.delay import Delay, slot_ns
from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.lab import Lab, lab
from tests.oneway import Journeys, journeys

EFFORT = Effort(seconds=50)

MEAN_MS, JITTER_MS = 50, 20
DISTRIBUTIONS = ("uniform", "normal")
CORRELATIONS = (0.5, 0.9)
FREE_DISTANCE, KEEP_DISTANCE, BEYOND_NETEM, CORRELATION_OFF = 0.03, 0.05, 0.01, 0.1
PODMGR, KEEP, NETEM = "podmgr", "podmgr, in order", "netem"

_APART_SECONDS = 0.005
_KEEP_APART_SECONDS = 0.061  # four in a slot, at ever other places of it
_SLOTS_PER_SECOND = 40  # of effort
_CURVE_POINTS = 60
_STANDARD_ERRORS = 4
_WAY_SECONDS = 9e-6  # what a datagram takes without a delay; a thousandth of the jitter would not show

_HEADINGS = (
    *("distribution", "correlation", "by", "draws", "mean, ms", "sd, ms"),
    *("distance", "lag-1", "overtaken, %", "lost"),
)

Cdf = Callable[[float], float]


@dataclass(frozen=True)
class Drawn:
    """Delays in ms, one a draw, in the order of the draws."""

    way: str
    distribution: str
    correlation: float
    found: Journeys
    draws: tuple[float, ...]

    @property
    def distance(self) -> float:
        return distance(self.draws, target(self.distribution))

    @property
    def lag1(self) -> float:
        return lag1(self.draws)


def target(distribution: str) -> Cdf:
    """Of a delay in ms, as it is asked for."""
    if distribution == "normal":
        return NormalDist(MEAN_MS, JITTER_MS).cdf
    return lambda ms: min(1.0, max(0.0, (ms - MEAN_MS + JITTER_MS) / (2 * JITTER_MS)))


def distance(sample: Sequence[float], cdf: Cdf) -> float:
    """Kolmogorov's and Smirnov's."""
    count = len(sample)
    return max(
        max(abs(cdf(value) - place / count), abs(cdf(value) - (place + 1) / count))
        for place, value in enumerate(sorted(sample))
    )


def lag1(values: Sequence[float]) -> float:
    """The correlation of each with the one before."""
    mean = fmean(values)
    return sum((one - mean) * (other - mean) for one, other in pairwise(values)) / sum(
        (value - mean) ** 2 for value in values
    )


def measure(effort: Effort) -> Findings:
    seconds = effort.seconds or 1
    asked = [*((name, 0.0) for name in DISTRIBUTIONS), *(("uniform", value) for value in CORRELATIONS)]
    with lab() as made:
        found = [
            drawn(made, distribution, correlation, seconds)
            for distribution, correlation in asked
            for drawn in (_free, _kept, _netem)
        ]
    return _findings(found)


def _words(distribution: str, correlation: float) -> str:
    rule = f"delay={MEAN_MS}ms egress jitter={JITTER_MS}ms distribution={distribution}"
    return rule + (f" correlation={correlation:.0%}" if correlation else "")


def _free(made: Lab, distribution: str, correlation: float, seconds: float) -> Drawn:
    rule = f"{_words(distribution, correlation)} order=free"
    tell(rule)
    with made.under(rule):
        return _each(made, PODMGR, distribution, correlation, seconds)


def _netem(made: Lab, distribution: str, correlation: float, seconds: float) -> Drawn:
    words = ["delay", f"{MEAN_MS}ms", f"{JITTER_MS}ms", *([f"{correlation:.0%}"] if correlation else [])]
    words += ["distribution", distribution] if distribution != "uniform" else []
    tell(f"netem {' '.join(words)}")
    with made.under_netem(*words):
        return _each(made, NETEM, distribution, correlation, seconds)


def _each(made: Lab, way: str, distribution: str, correlation: float, seconds: float) -> Drawn:
    seen = journeys(made, round(seconds / _APART_SECONDS), apart_seconds=_APART_SECONDS, quiet_seconds=1)
    draws = tuple(1e3 * (delay - _WAY_SECONDS) for _, delay in sorted(seen.arrived))
    return Drawn(way, distribution, correlation, seen, draws)


def _kept(made: Lab, distribution: str, correlation: float, seconds: float) -> Drawn:
    rule = _words(distribution, correlation)
    tell(f"{rule}, in order")
    (parsed,) = parse_rule_option(rule)
    assert isinstance(parsed, Delay)
    length_ns = slot_ns(parsed)
    count = round(seconds * _SLOTS_PER_SECOND * length_ns / 1e9 / _KEEP_APART_SECONDS)
    with made.under(rule):
        seen = journeys(made, count, apart_seconds=_KEEP_APART_SECONDS, quiet_seconds=1)
    last = {
        (seen.begun_ns + round(number * _KEEP_APART_SECONDS * 1e9)) // length_ns: 1e3 * (delay - _WAY_SECONDS)
        for number, delay in sorted(seen.arrived)
    }
    return Drawn(KEEP, distribution, correlation, seen, tuple(last[slot] for slot in sorted(last)))


# What it shows


def _findings(found: Sequence[Drawn]) -> Findings:
    plain = [item for item in found if not item.correlation]
    return Findings(
        tables=(
            Table(
                f"{MEAN_MS} ± {JITTER_MS} ms: distance to the target, order and correlation",
                _HEADINGS,
                tuple(_row(item) for item in found),
                digits=3,
                note="Mean and sd are of all datagrams, the distance and lag-1 are of draws.",
            ),
        ),
        charts=tuple(
            _chart(name, [item for item in plain if item.distribution == name]) for name in DISTRIBUTIONS
        ),
        claims=tuple(_claims(found)),
    )


def _row(item: Drawn) -> tuple[str | float | int, ...]:
    return (
        item.distribution,
        item.correlation,
        item.way,
        len(item.draws),
        1e3 * item.found.mean,
        1e3 * item.found.deviation,
        item.distance,
        item.lag1,
        100 * item.found.overtaken / item.found.sent,
        item.found.lost,
    )


def _chart(distribution: str, found: Sequence[Drawn]) -> Chart:
    return Chart(
        f"distribution-{distribution}",
        f"{MEAN_MS} ± {JITTER_MS} ms, {distribution}: how many are no longer",
        "delay, ms",
        "share",
        (
            _curve("target", target(distribution), distribution),
            *(_curve(item.way, partial(_share, sorted(item.draws)), distribution) for item in found),
        ),
    )


def _share(ordered: Sequence[float], ms: float) -> float:
    return bisect_right(ordered, ms) / len(ordered)


def _curve(name: str, cdf: Cdf, distribution: str) -> Series:
    reach = (1.1 if distribution == "uniform" else 2.5) * JITTER_MS
    x = tuple(MEAN_MS - reach + 2 * reach * point / _CURVE_POINTS for point in range(_CURVE_POINTS + 1))
    return Series(name, x, tuple(cdf(ms) for ms in x))


def _claims(found: Sequence[Drawn]) -> list[Claim]:
    by_key = {(item.way, item.distribution, item.correlation): item for item in found}
    claims = []
    for name in DISTRIBUTIONS:
        ours, kept, theirs = (by_key[way, name, 0.0] for way in (PODMGR, KEEP, NETEM))
        claims += [
            Claim(f"jitter, {name}, order=free: distance to the target", ours.distance, FREE_DISTANCE),
            Claim(f"jitter, {name}, order=keep: distance of draws", kept.distance, KEEP_DISTANCE),
            Claim(f"jitter, {name}, order=keep: overtaken", kept.found.overtaken, 0),
            Claim(
                f"jitter, {name}, order=free: distance beyond netem's",
                ours.distance - theirs.distance,
                BEYOND_NETEM,
            ),
            Claim(f"jitter, {name}, order=keep: mean is off", _off_ms(kept), _allowed_ms(kept), " ms"),
        ]
    claims += [
        Claim(
            f"correlation {item.correlation:.0%}, {item.way}: lag-1 is off",
            abs(item.lag1 - item.correlation),
            CORRELATION_OFF,
        )
        for item in found
        if item.correlation and item.way != NETEM
    ]
    claims.append(Claim("jitter: lost", sum(item.found.lost for item in found if item.way != NETEM), 0))
    return claims


def _off_ms(kept: Drawn) -> float:
    return abs(1e3 * kept.found.mean - MEAN_MS)


def _allowed_ms(kept: Drawn) -> float:
    """What waiting adds, half the variance of draws in a slot, and what chance may.

    Of uniform draws, whose variance is a third of the jitter's square, that is jitter^2 / 6 slots.
    """
    (rule,) = parse_rule_option(_words(kept.distribution, 0))
    assert isinstance(rule, Delay)
    slot_ms = slot_ns(rule) / 1e6
    deviation = pstdev(kept.draws)
    standard_error: float = deviation / len(kept.draws) ** 0.5
    return deviation * deviation / 2 / slot_ms + _STANDARD_ERRORS * standard_error
