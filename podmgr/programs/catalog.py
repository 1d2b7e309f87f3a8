"""What program fulfils a rule: kind to template, macros, hook and order, and the numbers behind them.

Pure. A new kind of rule is one entry here plus one file in bpf/.
"""

from __future__ import annotations

import functools
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from podmgr.errors import PodmgrError
from podmgr.rules.rule import (
    Algorithm,
    Bandwidth,
    Custom,
    Direction,
    ExponentialLoss,
    Hook,
    Rule,
    UniformLoss,
)
from podmgr.rules.units import address_in_c, format_count, format_duration, is_address

BUILT_IN_PROGRAMS = frozenset({"bandwidth", "loss", "edt"})

DRAWS = 2**32  # values of a uniform 32-bit draw

# What passes at once after a pause, unless the rule says it: 100 kB take their time at any rate.
_BURST_SECONDS = Fraction(1, 8)
# What is given back of the time that TCP waits after a refusal: its shortest timeout and some, or what
# it sends in one packet where that takes longer; and half of it more. bpf/bandwidth.bpf.c does so.
_STALL_SECONDS = Fraction(1, 4)
_STALL_FLOOR_BYTES = 49_152
# What a new bucket holds: a connection's first packets, too little to show in an average.
_INITIAL_SECONDS = Fraction(1, 10)
_INITIAL_CEILING_BYTES = 16_000
_FULL_FRAME_BYTES = 1_514
# A GSO packet has up to 64 KiB, and a TCP flow keeps two or three of them in the queue before it holds
# itself back (TCP small queues): on egress there is room for those of eight flows and more.
_HORIZON_BYTES = {Direction.EGRESS: 32 * 65_536, Direction.INGRESS: 2 * 65_536}
_HORIZON_FLOOR_NS = 50_000_000
_HORIZON_CEILING_NS = 8_000_000_000  # fq drops what departs more than 10 s ahead
_NS_PER_SECOND = 1_000_000_000


class Recipe(NamedTuple):
    """Which template in bpf/ or program folder, with which macros; `order` is the place in a chain."""

    program: str
    macros: tuple[tuple[str, str | None], ...]
    order: int
    needs_fq: bool = False


# Where several programs of one hook see a packet. What delays comes behind all that drops.
_LOSS, CUSTOM, _BANDWIDTH, DELAYING = range(4)


def recipe(rule: Rule) -> Recipe:
    """The program for a rule. Where several see a packet the order is loss, custom, bandwidth."""
    return _recipe(rule)


@functools.lru_cache(maxsize=1024)  # a node has few rules many times
def _recipe(rule: Rule) -> Recipe:
    match rule:
        case UniformLoss() | ExponentialLoss():
            return Recipe("loss", (("THRESHOLD", f"{drop_threshold(rule)}ULL"),), _LOSS)
        case Custom(name="edt"):
            return Recipe(rule.name, rule.macros, DELAYING, needs_fq=True)
        case Custom():
            return Recipe(rule.name, tuple((name, _in_c(value)) for name, value in rule.macros), CUSTOM)
        case Bandwidth(algorithm=Algorithm.EDT):
            delay = (("HORIZON", f"{horizon_ns(rule)}ULL"), ("RATE", f"{rule.rate_bits_per_second}ULL"))
            return Recipe("edt", delay, DELAYING, needs_fq=True)
        case Bandwidth():
            macros = (
                ("BURST", f"{burst_bytes(rule)}ULL"),
                ("INITIAL", f"{initial_bytes(rule)}ULL"),
                ("RATE", f"{rule.rate_bits_per_second}ULL"),
            )
            return Recipe("bandwidth", macros, _BANDWIDTH)


def _in_c(value: str | None) -> str | None:
    """The value of a macro: an address becomes what it is in a packet."""
    return address_in_c(value) if value is not None and is_address(value) else value


class _Default(NamedTuple):
    """The hook of a rule that names none: on interfaces of the pod's own, and on shared ones."""

    own: Hook
    shared: Hook
    reason: str


# Shared are the interfaces of host-network pods, cgroup/PATH and run.
_HOOKS = {
    ("loss", Direction.EGRESS): _Default(
        Hook.TC, Hook.TC, "TCP takes a drop at the cgroup hook for congestion; at the interface it is loss"
    ),
    ("loss", Direction.INGRESS): _Default(
        Hook.TC,
        Hook.CGROUP,
        "on its own interfaces a pod also loses what the kernel would answer, such as pings; what "
        "arrives on shared ones belongs to no cgroup yet",
    ),
    ("bandwidth", Direction.EGRESS): _Default(
        Hook.CGROUP, Hook.CGROUP, "TCP is told of congestion at once, instead of losing packets"
    ),
    ("bandwidth", Direction.INGRESS): _Default(
        Hook.CGROUP, Hook.CGROUP, "one bucket for all that the pod receives, on whatever interface"
    ),
    ("edt", Direction.EGRESS): _Default(
        Hook.TC, Hook.CGROUP, "the fq qdisc of the interface holds each packet until its departure time"
    ),
    ("edt", Direction.INGRESS): _Default(
        Hook.TC, Hook.TC, "what arrives can be held before the pod alone: on the host's side of its veth"
    ),
}


def chosen_hook(rule: Rule, *, is_shared: bool) -> tuple[Hook, str] | None:
    """The hook of a rule, and why; None for a program whose ELF section says it.

    `is_shared`: the target's interfaces are also others'.
    """
    default = _HOOKS.get((recipe(rule).program, rule.direction))
    if default is None:
        return None
    if rule.place.hook is not None:
        return rule.place.hook, "hook= says so"
    if rule.place.interfaces:
        return Hook.TC, "interface= says so"
    return default.shared if is_shared else default.own, default.reason


def require_possible(rule: Rule, hook: Hook) -> None:
    """Raise PodmgrError for a rule that can act at this hook of no target."""
    if hook is not Hook.CGROUP:
        return
    if rule.place.interfaces:
        raise PodmgrError(
            f"'{rule}' is for the cgroup hook, which knows no interfaces",
            tip='leave interface= out, or use SEC("tc")',
        )
    if recipe(rule).needs_fq and rule.direction is Direction.INGRESS:
        raise PodmgrError(
            f"'{rule}' cannot delay what arrives: the cgroup hook has no departure times on ingress",
            tip=f"limit ingress with {without_delay(rule)}",
        )


def without_delay(rule: Rule) -> str:
    """What to write, of a rule that delays, for one that drops and needs no fq."""
    return "algorithm=tbf" if isinstance(rule, Bandwidth) else f"bandwidth=RATE {rule.direction}"


def at_cgroup(rule: Rule) -> str:
    """What to write for the same at the cgroup hook; "" if it cannot be had."""
    if recipe(rule).needs_fq and (isinstance(rule, Custom) or rule.direction is Direction.INGRESS):
        return ""
    return 'SEC("cgroup_skb/" INTERFACE)' if isinstance(rule, Custom) else "hook=cgroup"


def drop_threshold(rule: UniformLoss | ExponentialLoss) -> int:
    """How many of 2^32 equally likely draws drop the packet.

    uniform: P / 100. exponential: P(drop) = P(variate > T) = 50^(-T/1000), since the variate's
    98 % quantile is 1000.
    """
    if isinstance(rule, UniformLoss):
        return round(Fraction(rule.percent) / 100 * DRAWS)
    return int((Decimal(50) ** (-rule.threshold / 1000) * DRAWS).to_integral_value())


def burst_bytes(rule: Bandwidth) -> int:
    """What passes at once after a pause: as written, or 125 ms of the rate and at least a full frame."""
    if rule.burst_bytes is not None:
        return rule.burst_bytes
    return max(int(_BURST_SECONDS * rule.rate_bits_per_second / 8), _FULL_FRAME_BYTES)


def regained_bytes(rule: Bandwidth) -> int:
    """What passes at once at most after TCP has waited because a packet of its own was refused."""
    stall = max(int(_STALL_SECONDS * rule.rate_bits_per_second / 8), _STALL_FLOOR_BYTES)
    return max(burst_bytes(rule), stall) * 3 // 2


def initial_bytes(rule: Bandwidth) -> int:
    """What the bucket holds at first: 100 ms of the rate, between one frame and 16 kB."""
    initial = int(_INITIAL_SECONDS * rule.rate_bits_per_second / 8)
    return min(burst_bytes(rule), max(_FULL_FRAME_BYTES, min(initial, _INITIAL_CEILING_BYTES)))


def horizon_ns(rule: Bandwidth) -> int:
    """How long algorithm=edt lets a packet wait at most: the time of so many bytes, 50 ms to 8 s.

    On egress TCP holds itself back once a few packets wait: the horizon is far enough for that,
    so that none is lost. What arrives knows no such limit, and would fill any.
    """
    queue_bytes = _HORIZON_BYTES[rule.direction]
    horizon = Fraction(queue_bytes * 8 * _NS_PER_SECOND, rule.rate_bits_per_second)
    return max(_HORIZON_FLOOR_NS, min(int(horizon), _HORIZON_CEILING_NS))


def explain(rule: Rule) -> list[tuple[str, str]]:
    """What the rule means in numbers, as (label, text) rows."""
    match rule:
        case UniformLoss() | ExponentialLoss():
            threshold = drop_threshold(rule)
            one_in = f"1 in {format_count(Fraction(DRAWS, threshold))}" if threshold else "never"
            return [
                ("drop probability", f"{threshold / DRAWS:.10g} = {threshold} / 2^32, {one_in}"),
                ("decides", "per packet as the hook sees it; a GSO packet is one, as with netem"),
            ]
        case Custom():
            rows = [("custom program", rule.name), ("macros", rule.macro_words.strip() or "none")]
            return rows + [
                (f"-D{name} is", _in_c(value) or "") for name, value in rule.macros if _in_c(value) != value
            ]
        case Bandwidth():
            rate = rule.rate_bits_per_second
            rows = [
                ("rate", f"{rate:,} bits/s = {format(Decimal(rate) / 8, ',f')} bytes/s"),
                ("counts", "bytes on the wire: 14 + the IP packet, for every segment of a GSO packet"),
            ]
            if rule.algorithm is Algorithm.EDT:
                horizon = format_duration(Fraction(horizon_ns(rule), _NS_PER_SECOND))
                return [
                    *rows,
                    ("over the rate", "delayed until its departure time, by the fq qdisc"),
                    ("horizon", f"{horizon}: what would wait longer is dropped"),
                    ("ECN", "flows that understand it are marked when they wait half as long"),
                ]
            burst, regained = burst_bytes(rule), regained_bytes(rule)
            return [
                *rows,
                ("burst", f"{burst:,} bytes = {format_duration(Fraction(burst * 8, rate))} of the rate"),
                ("starts with", f"{initial_bytes(rule):,} bytes"),
                ("over the rate", "dropped"),
                (
                    "after a drop",
                    f"up to {regained:,} bytes of what the rate makes while TCP waits pass at once",
                ),
            ]


def caveats(rule: Rule, hook: str) -> list[str]:
    """What the rule's effect at that hook is not, one line each: what a user would otherwise believe."""
    lines = []
    if isinstance(rule, UniformLoss) and drop_threshold(rule) == 0 < rule.percent:
        lines.append(f"'{rule}' drops nothing: the least that is not 0 is one packet in 2^32")
    if isinstance(rule, UniformLoss) and drop_threshold(rule) == DRAWS and rule.percent < 100:
        lines.append(f"'{rule}' drops all: the most that is not all leaves one packet in 2^32")
    if recipe(rule).program == "loss" and rule.direction is Direction.EGRESS and hook == Hook.CGROUP:
        lines.append(
            "loss egress at the cgroup hook is not loss to TCP: UDP datagrams are lost, but TCP "
            "sees congestion, sends the segment again and counts no retransmit"
        )
    return lines
