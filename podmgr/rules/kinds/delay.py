"""`delay`: every packet leaves so much later. The program is bpf/delay.bpf.c, with the `fq` qdisc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import partial
from math import ceil, floor
from statistics import fmean, pstdev
from typing import ClassVar

from podmgr.errors import Fail
from podmgr.rules import distributions
from podmgr.rules.chance import threshold_of
from podmgr.rules.kinds import delay_text
from podmgr.rules.kinds.delay_text import ORDERS_ARE, RTT, SHORT_TRIP, UNIFORM, WAYS
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.programs import is_program_name
from podmgr.rules.rule import Direction, Figure, FqNeeds, Hook, Macros, Rule, Stage, Template
from podmgr.rules.units import (
    format_count,
    format_duration,
    format_number,
    format_time,
)
from podmgr.rules.waiting import (
    HOOKS,
    MAX_WAIT_NS,
    MIN_WAIT_NS,
    NS_PER_SECOND,
    explained,
    fq_needs,
    waiting_bytes,
)
from podmgr.rules.words import Words, percent_option, time_option

MIN_DELAY_NS, MAX_DELAY_NS = MIN_WAIT_NS, MAX_WAIT_NS  # the most is that of the longest draw

_SAMPLES = 4_096
# A slot of a delay that keeps order: long enough to be one draw, short enough that many make a distribution.
# What comes right after a longer delay waits, which makes the mean larger: `_order` says by how much.
_LEAST_SLOT_NS = 100_000_000
_JITTERS_PER_SLOT = 10  # more than the draws lie apart
_BUCKETS = 256  # of the delays given; the same is in the program

_DELAY = Template("delay", Stage.DELAY, HOOKS, needs_fq=True, frees=True)


class Order(StrEnum):
    """Whether packets with different delays may overtake each other."""

    KEEP = "keep"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Delay(Rule):
    """Every packet leaves `time_ns` later (1000 to 1e10), on average, by `distribution` and `jitter_ns`.

    `round_trip_ns` and its jitter are those of `rtt`, of which this rule is a half; 0 for none.
    """

    key: ClassVar[str] = "delay"
    kind: ClassVar[str] = "delay"
    at_cgroup: ClassVar[str] = ""
    time_ns: int
    jitter_ns: int = 0
    distribution: str = UNIFORM
    correlation_percent: Decimal = Decimal(0)
    order: Order = Order.KEEP
    round_trip_ns: int = field(default=0, compare=False)
    round_trip_jitter_ns: int = field(default=0, compare=False)

    @property
    def words(self) -> list[str]:
        words = [format_time(self.time_ns), self.direction.value]
        if self.jitter_ns:
            words.append(f"jitter={format_time(self.jitter_ns)}")
        if self.distribution != UNIFORM:
            words.append(f"distribution={self.distribution}")
        if self.correlation_percent:
            words.append(f"correlation={format_number(self.correlation_percent)}%")
        if self.order is not Order.KEEP:
            words.append(f"order={self.order}")
        return words

    @property
    def program(self) -> str:
        return _DELAY.name

    @property
    def table(self) -> str:
        is_own = self.distribution not in (UNIFORM, *distributions.BUILT_IN)
        return self.distribution if self.jitter_ns and is_own else ""

    @property
    def macros(self) -> Macros:
        macros = [("TIME", f"{self.time_ns}ULL"), ("MOST_BYTES", f"{waiting_bytes(most_ns(self))}ULL")]
        if self.jitter_ns:
            macros += [
                ("JITTER", f"{self.jitter_ns}ULL"),
                ("LEAST", f"{least_ns(self)}ULL"),
                ("MOST", f"{most_ns(self)}ULL"),
                ("CORRELATION", f"{threshold_of(self.correlation_percent)}ULL"),
                ("IS_ORDERED", str(int(self.order is Order.KEEP))),
                ("SLOT_SHIFT", str(slot_ns(self).bit_length() - 1)),
            ]
        if self.jitter_ns and self.distribution in distributions.BUILT_IN:
            macros.append(distributions.quantiles_macro(distributions.quantiles(self.distribution)))
        return tuple(sorted(macros))

    @property
    def fq_needs(self) -> FqNeeds | None:
        return fq_needs(most_ns(self))

    @property
    def on_egress_alone(self) -> Rule | None:
        if not self.round_trip_ns:
            return self
        if self.direction is not Direction.EGRESS:
            return None
        return replace(
            self,
            time_ns=self.round_trip_ns,
            jitter_ns=self.round_trip_jitter_ns,
            round_trip_ns=0,
            round_trip_jitter_ns=0,
        )

    @property
    def note_on_egress_alone(self) -> str:
        said = f"the delay of profile {self.of_profile}" if self.of_profile else f"'{self.key}=... rtt'"
        return f"stands for {said}: here only what leaves can be delayed, by the whole time"

    def explain(self) -> list[tuple[str, str]]:
        whole = f"{_time(self.round_trip_ns)} more, with the other direction's"
        here = f"{_time(self.time_ns)} more, of this direction"
        rows = [("one way", _spread(self)), ("round trip", whole if self.round_trip_ns else here)]
        if self.jitter_ns:
            rows += [("percentiles", _percentiles(self)), ("order", _order(self))]
        if self.correlation_percent:
            of_what = "slots" if self.order is Order.KEEP else "packets"
            rows.append(
                (
                    "correlation",
                    f"{format_number(self.correlation_percent)}% of {of_what} have the draw before",
                )
            )
        round_trip_ns = self.round_trip_ns or self.time_ns
        reach = ", ".join(
            f"{name} {format_count(Fraction(size * 8 * 1000, round_trip_ns))} Mbit/s"
            for name, size in (("64 KiB", 2**16), ("6 MiB", 6 * 2**20))
        )
        return [
            *rows,
            ("TCP carries", f"a window for each round trip: of {reach} at most"),
            explained(most_ns(self), "dropped"),
        ]

    def figures(self, counted: Sequence[int]) -> list[Figure]:
        count, sum_ns, *buckets = counted
        if not count:
            return []
        mean = Figure("mean delay", sum_ns / count / NS_PER_SECOND, "seconds")
        if not self.jitter_ns:
            return [mean]
        # A bucket is so wide that all hold what lies between the ends; the same is in the program.
        width_ns = 1 << ((most_ns(self) - least_ns(self)) // _BUCKETS | 1).bit_length()
        left, place = 0.99 * sum(buckets), 0
        while place < len(buckets) - 1 and left > buckets[place]:
            left, place = left - buckets[place], place + 1
        inside = left / buckets[place] if buckets[place] else 0
        delay_ns = least_ns(self) + (place + inside) * width_ns
        return [mean, Figure("p99 delay", delay_ns / NS_PER_SECOND, "seconds")]


def least_ns(rule: Delay) -> int:
    """The shortest delay that is drawn: never less than none."""
    return max(0, rule.time_ns + floor(_ends(rule.distribution)[0] * rule.jitter_ns))


def most_ns(rule: Delay) -> int:
    """The longest delay that is drawn."""
    return rule.time_ns + ceil(_ends(rule.distribution)[1] * rule.jitter_ns)


def _ends(distribution: str) -> tuple[float, float]:
    """The least and the most that is drawn, in jitters."""
    if distribution == UNIFORM:
        return -1, 1
    if distribution in distributions.BUILT_IN:
        return distributions.ends(distributions.quantiles(distribution))
    return distributions.FILE_ENDS


def slot_ns(rule: Delay) -> int:
    """How long one draw holds, where order is kept: a power of two."""
    least = max(_LEAST_SLOT_NS, _JITTERS_PER_SLOT * rule.jitter_ns)
    return 1 << (least - 1).bit_length()


def _time(time_ns: float) -> str:
    return format_duration(Fraction(time_ns) / NS_PER_SECOND)


def _spread(rule: Delay) -> str:
    if not rule.jitter_ns:
        return _time(rule.time_ns)
    if rule.distribution == UNIFORM:
        return f"{_time(rule.time_ns)} ± {_time(rule.jitter_ns)}, uniform"
    spread = f"{_time(rule.time_ns)}, standard deviation {_time(rule.jitter_ns)}, {rule.distribution}"
    if least_ns(rule) or rule.table:
        return spread
    draws = [max(0, _draw_ns(rule, (number + 0.5) / _SAMPLES)) for number in range(_SAMPLES)]
    return f"{spread}; cut at 0, which makes them {_time(fmean(draws))} and {_time(pstdev(draws))}"


def _draw_ns(rule: Delay, probability: float) -> float:
    """The delay below which so many draws are, before it is cut."""
    if rule.distribution == UNIFORM:
        return rule.time_ns + (2 * probability - 1) * rule.jitter_ns
    table = distributions.quantiles(rule.distribution)
    return rule.time_ns + distributions.quantile(table, probability) * rule.jitter_ns


def _percentiles(rule: Delay) -> str:
    if rule.table:
        return f"as {rule.distribution}.dist of the program folder says"
    return ", ".join(f"{percent}%: {_time(max(0, _draw_ns(rule, percent / 100)))}" for percent in (1, 50, 99))


def _order(rule: Delay) -> str:
    if rule.order is Order.FREE:
        return "a draw for each packet: they overtake each other"
    # What comes right after a longer delay waits: E[(d - d')+ ^ 2] / 2T, of two draws of the distribution.
    larger = Fraction(rule.jitter_ns**2, (6 if rule.distribution == UNIFORM else 2) * slot_ns(rule))
    return (
        f"kept: a draw for each {_time(slot_ns(rule))}, the same for all flows; none overtakes, which makes "
        f"the mean {_time(float(larger))} larger"
    )


def _parse(words: Words) -> tuple[Rule, ...]:
    time_ns = words.time_ns(MIN_DELAY_NS, MAX_DELAY_NS)
    direction = words.choice(WAYS, "direction")
    own, common = words.options(
        {
            "jitter": time_option("jitter"),
            "distribution": _distribution,
            "correlation": _correlation,
            "order": _order_of,
        },
        hooks=(Hook.TC,),
    )
    jitter_ns = own.pop("jitter", 0)
    for name in own:
        if not jitter_ns:
            raise words.fail(f"{name} belongs to a jitter", f"jitter=TIME {name}=...", option=name)
    distribution = own.get("distribution", UNIFORM)
    drawn = (own.get("correlation", Decimal(0)), own.get("order", Order.KEEP))
    if jitter_ns > time_ns:
        raise words.fail(
            f"a jitter of {format_time(jitter_ns)} is larger than the delay",
            f"a jitter up to {format_time(time_ns)}: no packet leaves before it was sent",
            option="jitter",
        )
    whole = Delay(Direction.EGRESS, time_ns, jitter_ns, distribution)
    if most_ns(whole) > MAX_DELAY_NS:
        expected = f"{format_time(MAX_DELAY_NS)} at most, with all jitter"
        raise words.fail(f"the longest delay is {_time(most_ns(whole))}", expected)
    if direction != RTT:
        return tuple(
            Delay(way, time_ns, jitter_ns, distribution, *drawn, **common._asdict())
            for way in (Direction if direction == "both" else (Direction(direction),))
        )
    half = time_ns // 2
    # Of independent halves the deviations add up by their squares; the widths of uniform ones as they are.
    jitter_half = round(jitter_ns / 2 if distribution == UNIFORM else jitter_ns / 2**0.5)
    if half < MIN_DELAY_NS:
        raise words.fail(*SHORT_TRIP)
    if jitter_half > half:
        raise words.fail(
            f"a jitter of {format_time(jitter_ns)} is too large for two halves of {format_time(half)}",
            f"a jitter up to {format_time(int(half * 2**0.5))}: each half has {distribution} of its own",
            option="jitter",
        )
    return tuple(
        Delay(
            way,
            time,
            jitter_half,
            distribution,
            *drawn,
            round_trip_ns=time_ns,
            round_trip_jitter_ns=jitter_ns,
            **common._asdict(),
        )
        for way, time in ((Direction.EGRESS, time_ns - half), (Direction.INGRESS, half))
    )


def _distribution(text: str, fail: Fail) -> str:
    known = (UNIFORM, *distributions.BUILT_IN)
    if text.lower() in known:
        return text.lower()
    if not is_program_name(text):
        raise fail(f"unknown distribution {text[:40]!r}", f"{', '.join(known)}, or NAME of a file NAME.dist")
    return text


def _correlation(text: str, fail: Fail) -> Decimal:
    percent = percent_option(text, fail)
    if percent == 100:
        raise fail("all draws would be the first", "correlation=P%, less than 100%")
    return percent


def _order_of(text: str, fail: Fail) -> Order:
    try:
        return Order(text.lower())
    except ValueError:
        raise fail(f"unknown order {text[:40]!r}", ORDERS_ARE) from None


KIND = Kind(
    key=Delay.key,
    form=delay_text.FORM,
    meaning="Every packet leaves TIME later; rtt: half of it in each direction. Options: jitter=TIME, "
    "distribution=uniform|normal|pareto|paretonormal|NAME, correlation=P%, order=keep|free.",
    example="delay=100ms egress",
    parse=_parse,
    templates=(_DELAY,),
    text=partial(delay_text.text, Order),
)
