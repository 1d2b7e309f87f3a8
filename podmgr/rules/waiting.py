"""What waits in fq on nobody's account, since it was freed from its socket: how much, at most. Pure.

The programs keep to it by `may_wait` of bpf/freeing.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from podmgr.rules.rule import DefaultHook, Direction, FqNeeds, Hook
from podmgr.rules.units import format_count

NS_PER_SECOND = 10**9
MIN_WAIT_NS = 1_000
MAX_WAIT_NS = 10 * NS_PER_SECOND  # a rate, a delay and a lateness stay together below fq's horizon

HOOKS: Mapping[Direction, DefaultHook] = {
    Direction.EGRESS: DefaultHook(
        Hook.TC, Hook.TC, "the fq qdisc of the interface holds each packet until its departure time"
    ),
    Direction.INGRESS: DefaultHook(
        Hook.TC, Hook.TC, "what arrives can be held before the pod alone: on the host's side of its veth"
    ),
}

_NOMINAL_BITS_PER_SECOND = 10 * 10**9
_LEAST_BYTES, _MOST_BYTES = 16 * 2**20, 256 * 10**6  # memory has an end
_LEAST_FLOW_PACKETS = 1_000
_FLOW_BITS_PER_SECOND, _PACKET_BYTES = 100 * 10**6, 1_500


def waiting_bytes(longest_ns: int) -> int:
    """How many bytes may wait at once: what 10 Gbit/s bring in the longest wait, 16 MiB to 256 MB."""
    nominal = longest_ns * _NOMINAL_BITS_PER_SECOND // (8 * NS_PER_SECOND)
    return max(_LEAST_BYTES, min(nominal, _MOST_BYTES))


def fq_needs(longest_ns: int) -> FqNeeds:
    """Room for full packets of one flow of 100 Mbit/s, 1,000 at least, and for so long."""
    waiting_bits = longest_ns * _FLOW_BITS_PER_SECOND // NS_PER_SECOND
    return FqNeeds(max(_LEAST_FLOW_PACKETS, -(-waiting_bits // (8 * _PACKET_BYTES))), longest_ns)


def explained(longest_ns: int, of_more: str) -> tuple[str, str]:
    """A row of the explanation; `of_more` says what becomes of what is more."""
    size = format_count(Fraction(waiting_bytes(longest_ns), 10**6))
    return "may wait", f"{size} MB on the wire, in memory up to twice that; what is more is {of_more}"
