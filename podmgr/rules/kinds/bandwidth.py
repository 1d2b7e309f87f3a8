"""`bandwidth`: at most so many bits per second, by dropping (tbf) or by delaying (edt).

The programs are bpf/bandwidth.bpf.c and bpf/edt.bpf.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar

from podmgr.errors import Fail
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy.cel import NOTHING, first, has_option, option, says
from podmgr.rules.policy.patterns import amounts
from podmgr.rules.policy.text import Form, Option, Text, amount, choice_option, direction
from podmgr.rules.rule import DefaultHook, Direction, FqNeeds, Hook, Macros, Rule, Stage, Template
from podmgr.rules.units import (
    RATE_UNITS,
    SIZE_UNITS,
    format_duration,
    format_number,
    format_rate,
    format_size,
    parse_number,
    parse_quantity,
    scaled,
)
from podmgr.rules.words import NUMBER_AND_UNIT, Words, closest

MIN_RATE_BITS_PER_SECOND = 8_000
MAX_RATE_BITS_PER_SECOND = 400 * 10**9
MIN_BURST_BYTES = 1_514  # one full Ethernet frame
MAX_BURST_BYTES = 1_000_000_000

# What passes at once after a pause, unless the rule says it: 100 kB take their time at any rate.
_BURST_SECONDS = Fraction(1, 8)
# What is given back of the time that TCP waits after a refusal: twice its shortest timeout and some, or
# what it sends in one packet where that takes longer. bpf/bandwidth.bpf.c does so.
_STALL_SECONDS = Fraction(1, 4)
_STALL_FLOOR_BYTES = 49_152
# What a new bucket holds: a connection's first packets, too little to show in an average.
_INITIAL_SECONDS = Fraction(1, 10)
_INITIAL_CEILING_BYTES = 16_000
# A GSO packet has up to 64 KiB, and a TCP flow keeps two or three of them in the queue before it holds
# itself back (TCP small queues): on egress there is room for those of eight flows and more.
_HORIZON_BYTES = {Direction.EGRESS: 32 * 65_536, Direction.INGRESS: 2 * 65_536}
_HORIZON_FLOOR_NS = 50_000_000
_HORIZON_CEILING_NS = 8_000_000_000  # fq drops what departs more than 10 s ahead
_NS_PER_SECOND = 1_000_000_000

_RATE_ENDS = (MIN_RATE_BITS_PER_SECOND, MAX_RATE_BITS_PER_SECOND)
_FORM = 'RATE UNIT DIRECTION, such as "10 mbps egress" or "1.5 gbps ingress burst=64kb"'
_UNITS_ARE = f"units are {', '.join(RATE_UNITS)} (bits per second)"
_RATES_ARE = f"a rate from {' to '.join(map(format_rate, _RATE_ENDS))} (bits per second, powers of 1000)"
_SIZES_ARE = "burst=SIZE from 1514b to 1000mb, in b, kb or mb (bytes, powers of 1000)"
_ALGORITHMS_ARE = "tbf (drops, default) or edt (delays)"
_NO_BUCKET = ("burst belongs to algorithm=tbf; edt has no bucket", "burst or algorithm=edt, not both")
_LIKE_A_RATE = re.compile(r"([kmg]?)(?:ilo|ega|iga)?i?(?:b|bits?|bytes?)?(?:ps|/s|/sec)?", re.ASCII)

_TBF = Template(
    "bandwidth",
    Stage.RATE,
    {
        Direction.EGRESS: DefaultHook(
            Hook.CGROUP, Hook.CGROUP, "TCP is told of congestion at once, instead of losing packets"
        ),
        Direction.INGRESS: DefaultHook(
            Hook.CGROUP, Hook.CGROUP, "one bucket for all that the pod receives, on whatever interface"
        ),
    },
    second_choice=Hook.TC,
)
_EDT = Template(
    "edt",
    Stage.DEPARTURE,
    {
        Direction.EGRESS: DefaultHook(
            Hook.TC, Hook.CGROUP, "the fq qdisc of the interface holds each packet until its departure time"
        ),
        Direction.INGRESS: DefaultHook(
            Hook.TC,
            Hook.TC,
            "what arrives can be held before the pod alone: on the host's side of its veth",
        ),
    },
    needs_fq=True,
)


class Algorithm(StrEnum):
    """How a bandwidth rule limits: tbf drops what exceeds the bucket, edt delays it."""

    TBF = "tbf"
    EDT = "edt"


@dataclass(frozen=True, slots=True)
class Bandwidth(Rule):
    """At most `rate_bits_per_second` (8 000 to 4e11). `burst_bytes` None: chosen from the rate."""

    key: ClassVar[str] = "bandwidth"
    kind: ClassVar[str] = "bandwidth"
    without_fq: ClassVar[str] = "algorithm=tbf"
    rate_bits_per_second: int
    burst_bytes: int | None = None
    algorithm: Algorithm = Algorithm.TBF

    @property
    def words(self) -> list[str]:
        words = [format_rate(self.rate_bits_per_second), self.direction.value]
        if self.burst_bytes is not None:
            words.append(f"burst={format_size(self.burst_bytes)}")
        if self.algorithm is not Algorithm.TBF:
            words.append(f"algorithm={self.algorithm}")
        return words

    @property
    def program(self) -> str:
        return (_EDT if self.algorithm is Algorithm.EDT else _TBF).name

    @property
    def macros(self) -> Macros:
        rate = f"{self.rate_bits_per_second}ULL"
        if self.algorithm is Algorithm.EDT:
            return (("HORIZON", f"{horizon_ns(self)}ULL"), ("RATE", rate))
        burst, initial = f"{burst_bytes(self)}ULL", f"{initial_bytes(self)}ULL"
        return (("BURST", burst), ("INITIAL", initial), ("RATE", rate))

    @property
    def fq_needs(self) -> FqNeeds | None:
        return FqNeeds(0, horizon_ns(self)) if self.algorithm is Algorithm.EDT else None

    @property
    def on_egress_alone(self) -> Rule | None:
        """A profile's rate would be refused on ingress, and with it all that the profile is."""
        if self.algorithm is Algorithm.EDT and self.direction is Direction.INGRESS and self.of_profile:
            return replace(self, algorithm=Algorithm.TBF)
        return self

    @property
    def note_on_egress_alone(self) -> str:
        return (
            f"stands for '{self}' of profile {self.of_profile}: here what arrives cannot be delayed, so "
            "what exceeds the rate is dropped"
        )

    def explain(self) -> list[tuple[str, str]]:
        rate = self.rate_bits_per_second
        rows = [
            ("rate", f"{rate:,} bits/s = {format(Decimal(rate) / 8, ',f')} bytes/s"),
            ("counts", "bytes on the wire: 14 + the IP packet, for every segment of a GSO packet"),
        ]
        if self.algorithm is Algorithm.EDT:
            horizon = format_duration(Fraction(horizon_ns(self), _NS_PER_SECOND))
            return [
                *rows,
                ("over the rate", "delayed until its departure time, by the fq qdisc"),
                ("horizon", f"{horizon}: what would wait longer is dropped"),
                ("ECN", "flows that understand it are marked when they wait half as long"),
            ]
        burst, regained = burst_bytes(self), regained_bytes(self)
        return [
            *rows,
            ("burst", f"{burst:,} bytes = {format_duration(Fraction(burst * 8, rate))} of the rate"),
            ("starts with", f"{initial_bytes(self):,} bytes"),
            ("over the rate", "dropped"),
            ("after a drop", f"up to {regained:,} bytes that TCP left over meanwhile pass at once"),
        ]


def burst_bytes(rule: Bandwidth) -> int:
    """What passes at once after a pause: as written, or 125 ms of the rate and at least a full frame."""
    if rule.burst_bytes is not None:
        return rule.burst_bytes
    return max(int(_BURST_SECONDS * rule.rate_bits_per_second / 8), MIN_BURST_BYTES)


def regained_bytes(rule: Bandwidth) -> int:
    """What passes at once at most after TCP has waited because a packet of its own was refused."""
    stall = max(int(_STALL_SECONDS * rule.rate_bits_per_second / 8), _STALL_FLOOR_BYTES)
    return max(burst_bytes(rule), stall) * 2


def initial_bytes(rule: Bandwidth) -> int:
    """What the bucket holds at first: 100 ms of the rate, between one frame and 16 kB."""
    initial = int(_INITIAL_SECONDS * rule.rate_bits_per_second / 8)
    return min(burst_bytes(rule), max(MIN_BURST_BYTES, min(initial, _INITIAL_CEILING_BYTES)))


def horizon_ns(rule: Bandwidth) -> int:
    """How long algorithm=edt lets a packet wait at most: the time of so many bytes, 50 ms to 8 s.

    On egress TCP holds itself back once a few packets wait: the horizon is far enough for that,
    so that none is lost. What arrives knows no such limit, and would fill any.
    """
    queue_bytes = _HORIZON_BYTES[rule.direction]
    horizon = Fraction(queue_bytes * 8 * _NS_PER_SECOND, rule.rate_bits_per_second)
    return max(_HORIZON_FLOOR_NS, min(int(horizon), _HORIZON_CEILING_NS))


def _parse(words: Words) -> tuple[Rule, ...]:
    words.split_number()
    amount = words.number("the rate")
    unit = _rate_unit(words, amount)
    rate = scaled(amount, RATE_UNITS[unit])
    if not MIN_RATE_BITS_PER_SECOND <= rate <= MAX_RATE_BITS_PER_SECOND:
        raise words.error(
            f"{format_number(amount)} {unit} is out of range",
            expected=_RATES_ARE,
            back=2,
        )
    directions = words.directions()
    own, common = words.options({"burst": _size, "algorithm": _algorithm})
    burst, algorithm = own.get("burst"), own.get("algorithm", Algorithm.TBF)
    if burst is not None and algorithm is Algorithm.EDT:
        raise words.fail(*_NO_BUCKET, option="burst")
    return tuple(Bandwidth(direction, rate, burst, algorithm, **common._asdict()) for direction in directions)


def _rate_unit(words: Words, amount: Decimal) -> str:
    """The unit of a rate; for one of another tool, the error says what was probably meant."""
    word = words.take("the unit")
    unit = word.lower()
    if unit in RATE_UNITS:
        return unit
    meant = ""
    if unit == "%":
        meant = f"a percentage is a loss: loss=uniform egress {format_number(amount)}%; "
    elif like := _LIKE_A_RATE.fullmatch(unit):
        ours = f"{like[1]}bps"
        meant = f"did you mean {format_number(amount)} {ours}? "
        if "byte" in unit or re.search("B(?!its?|ps)", word):
            meant = f"did you mean {format_number(amount * 8)} {ours}, bits instead of bytes? "
    elif guess := closest(unit, RATE_UNITS):
        meant = f"did you mean {guess!r}? "
    raise words.fail(f"unknown unit {word!r}", f"{meant}{_UNITS_ARE}")


def _algorithm(text: str, fail: Fail) -> Algorithm:
    try:
        return Algorithm(text.lower())
    except ValueError:
        raise fail(f"unknown algorithm {text!r}", _ALGORITHMS_ARE) from None


def _size(text: str, fail: Fail) -> int:
    """The bytes of `burst=SIZE`."""
    match = NUMBER_AND_UNIT.fullmatch(text)
    if not match or match.group(2).lower() not in SIZE_UNITS:
        raise fail(f"{text!r} is not a size", _SIZES_ARE)
    try:
        number = parse_number(match.group(1))
    except ValueError as error:
        raise fail(f"burst is wrong: {error}", _SIZES_ARE) from error
    size = scaled(number, SIZE_UNITS[match.group(2).lower()])
    if not MIN_BURST_BYTES <= size <= MAX_BURST_BYTES:
        raise fail(f"burst {text} is out of range", _SIZES_ARE)
    return size


def _standard(direction: Direction) -> Callable[[str], Rule]:
    """Reads a Kubernetes quantity in bits per second, as the bandwidth plugin of CNI does."""

    def read(value: str) -> Rule:
        expected = "a Kubernetes quantity in bits per second from 8k to 400G, such as 10M"
        try:
            rate = parse_quantity(value)
        except ValueError as error:
            raise ValueError(str(error), expected) from error
        if not MIN_RATE_BITS_PER_SECOND <= rate <= MAX_RATE_BITS_PER_SECOND:
            raise ValueError(f"{value.strip()[:40]} is out of range", expected)
        return Bandwidth(direction, rate)

    return read


def _text() -> Text:
    is_edt = f"{has_option('w', 'burst')} && {option('w', 'algorithm')}.lowerAscii() == '{Algorithm.EDT}'"
    rate = amount("the rate", RATE_UNITS, _RATE_ENDS, _FORM, _UNITS_ARE, _RATES_ARE)
    sizes = amounts(SIZE_UNITS, MIN_BURST_BYTES, MAX_BURST_BYTES)
    return Text(
        (Form((rate, direction()), options=("burst", "algorithm")),),
        options=(
            Option("burst", sizes, _SIZES_ARE, is_number=True),
            choice_option("algorithm", Algorithm, _ALGORITHMS_ARE),
        ),
        checks=(first([(is_edt, says(*_NO_BUCKET))], NOTHING),),
    )


KIND = Kind(
    key=Bandwidth.key,
    form=_FORM,
    meaning="At most RATE; UNIT is bps, kbps, mbps or gbps, bits per second in powers of 1000. What "
    "exceeds it is dropped, or with algorithm=edt delayed.",
    example="bandwidth=10 mbps egress",
    parse=_parse,
    templates=(_TBF, _EDT),
    standard={
        "kubernetes.io/egress-bandwidth": _standard(Direction.EGRESS),
        "kubernetes.io/ingress-bandwidth": _standard(Direction.INGRESS),
    },
    text=_text,
)
