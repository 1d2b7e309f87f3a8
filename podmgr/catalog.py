"""What program fulfils a rule: kind to template, macros and order, and the numbers behind them.

Pure. A new kind of rule is one entry here plus one file in bpf/.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from podmgr.rules import (
    Algorithm,
    Bandwidth,
    Custom,
    Direction,
    ExponentialLoss,
    Rule,
    UniformLoss,
)

BUILT_IN_PROGRAMS = frozenset({"bandwidth", "loss", "edt"})

DRAWS = 2**32  # values of a uniform 32-bit draw

# Depth of a dropping bucket: less stalls TCP below its limit, more lets bursts through.
_BURST_SECONDS = Fraction(1, 4)
_BURST_FLOOR_BYTES = 128 * 1024
# What a new bucket holds: a connection's first packets, too little to show in an average.
_INITIAL_SECONDS = Fraction(1, 10)
_INITIAL_CEILING_BYTES = 16_000
_FULL_FRAME_BYTES = 1_514


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which template in bpf/ or program folder, with which macros; `order` is the place in a chain."""

    program: str
    macros: tuple[tuple[str, str | None], ...]
    order: int
    needs_fq: bool = False


def recipe(rule: Rule) -> Recipe:
    """The program for a rule. Where several see a packet the order is loss, custom, bandwidth."""
    match rule:
        case UniformLoss() | ExponentialLoss():
            return Recipe("loss", (("THRESHOLD", f"{drop_threshold(rule)}ULL"),), order=0)
        case Custom():
            return Recipe(rule.name, rule.macros, order=1, needs_fq=rule.name == "edt")
        case Bandwidth(algorithm=Algorithm.EDT):
            return Recipe("edt", (("RATE", f"{rule.rate_bits_per_second}ULL"),), order=2, needs_fq=True)
        case Bandwidth():
            macros = (
                ("BURST", f"{burst_bytes(rule)}ULL"),
                ("INITIAL", f"{initial_bytes(rule)}ULL"),
                ("RATE", f"{rule.rate_bits_per_second}ULL"),
            )
            return Recipe("bandwidth", macros, order=2)


def drop_threshold(rule: UniformLoss | ExponentialLoss) -> int:
    """How many of 2^32 equally likely draws drop the packet.

    uniform: P / 100. exponential: P(drop) = P(variate > T) = 50^(-T/1000), since the variate's
    98 % quantile is 1000.
    """
    if isinstance(rule, UniformLoss):
        return round(Fraction(rule.percent) / 100 * DRAWS)
    return int((Decimal(50) ** (-rule.threshold / 1000) * DRAWS).to_integral_value())


def burst_bytes(rule: Bandwidth) -> int:
    """The bucket's depth: as written, or 250 ms of the rate and at least 128 KiB."""
    if rule.burst_bytes is not None:
        return rule.burst_bytes
    return max(int(_BURST_SECONDS * rule.rate_bits_per_second / 8), _BURST_FLOOR_BYTES)


def initial_bytes(rule: Bandwidth) -> int:
    """What the bucket holds at first: 100 ms of the rate, between one frame and 16 kB."""
    initial = int(_INITIAL_SECONDS * rule.rate_bits_per_second / 8)
    return min(burst_bytes(rule), max(_FULL_FRAME_BYTES, min(initial, _INITIAL_CEILING_BYTES)))


def explain(rule: Rule) -> list[tuple[str, str]]:
    """What the rule means in numbers, as (label, text) rows."""
    match rule:
        case UniformLoss() | ExponentialLoss():
            threshold = drop_threshold(rule)
            one_in = f"1 in {DRAWS / threshold:,.6g}" if threshold else "never"
            return [
                ("drop probability", f"{threshold / DRAWS:.10g} = {threshold} / 2^32, {one_in}"),
                ("decides", "per packet as the hook sees it; a GSO packet is one, as with netem"),
            ]
        case Custom():
            macros = " ".join(
                f"-D{name}" + ("" if value is None else f"={value}") for name, value in rule.macros
            )
            return [("custom program", rule.name), ("macros", macros or "none")]
        case Bandwidth():
            rate = rule.rate_bits_per_second
            rows = [
                ("rate", f"{rate:,} bits/s = {format(Decimal(rate) / 8, ',f')} bytes/s"),
                ("counts", "bytes on the wire: 14 + the IP packet, for every segment of a GSO packet"),
            ]
            if rule.algorithm is Algorithm.EDT:
                return [*rows, ("over the rate", "delayed until its departure time, by the fq qdisc")]
            burst = burst_bytes(rule)
            return [
                *rows,
                ("burst", f"{burst:,} bytes = {burst * 8_000 / rate:,.6g} ms of the rate"),
                ("starts with", f"{initial_bytes(rule):,} bytes"),
                ("over the rate", "dropped"),
            ]


def caveats(rule: Rule) -> list[str]:
    """What the rule's effect is not, one line each: what a user would otherwise believe wrongly."""
    match rule:
        case UniformLoss() | ExponentialLoss() if rule.direction is Direction.EGRESS:
            return [
                "loss egress at the cgroup hook is not loss to TCP: UDP datagrams are lost, but TCP "
                "sees congestion, sends the segment again and counts no retransmit"
            ]
        case _ if recipe(rule).needs_fq and rule.direction is Direction.INGRESS:
            return ["nothing can be delayed on ingress at the cgroup hook: podmgr apply refuses this rule"]
        case Bandwidth(burst_bytes=int(burst)) if burst < 65_550:
            return [f"burst={burst}b is smaller than a 64 KiB GSO packet: TCP's larger packets never pass"]
    return []
