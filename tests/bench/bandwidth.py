"""A limit on the wire: its rate, its first second, its worst 200 ms, against kernel and peers.

Packets are counted where they arrive: in the world for egress, in the pod for ingress. Of what drops
packets behind the pod's interface the rule's counters are read every 5 ms, or, where there are none,
the payload that arrives every 100 ms. All figures are shares of the limit. Where the kernel has
fq, as in the virtual machine, `edt` is measured at all limits, else `tbf`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from podmgr.demo.throwaway import WIRE_PER_PAYLOAD
from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.bench.ways import EDT, KERNEL, NO_LIMIT, TBF, Way, lacking, seed_programs, seed_way
from tests.capture import Arrivals, arrivals
from tests.lab import UDP_PAYLOAD_BYTES, Lab, Transfer, admissions, lab, start_tcp, start_udp

EFFORT = Effort(seconds=60, rounds=1)

# Those of a group at once: together they are far from what the machine can.
GROUPS_MBPS = ((1, 10), (50,), (100,), (200,), (400,), (600,), (800,), (1000,))
LARGE_MBPS = (5_000, 10_000)  # where the machine can: shown, not judged
UDP_GROUPS_MBPS = ((1, 10), (50,), (100,))  # beyond that, a sender needs a CPU of its own
PEER_GROUPS_MBPS = ((10,), (100,), (400,))
PEER_LIMITS_MBPS = tuple(itertools.chain(*PEER_GROUPS_MBPS))
DIRECTIONS = ("egress", "ingress")
TCP_FLOWS = (1, 8)
UDP_OVERLOAD = 5
LARGEST_ERROR = 0.02
LEAST_PACKETS = 100  # of 64 KiB: one more or less must not show
CARRIED_SHARE = 0.7  # of what the machine carries without a limit: beyond it the machine is the limit

_TOLERANCE = 0.01
_EDGE_SECONDS = 0.2  # at both ends, where the measurement begins and stops
_WIRE_PER_UDP_PAYLOAD = (UDP_PAYLOAD_BYTES + 42) / UDP_PAYLOAD_BYTES  # Ethernet, IPv4 and UDP
_DATA_BYTES = 1_000  # more than a handshake or iperf3's control connection sends at once


@dataclass(frozen=True)
class Shaped:
    """What a limit made of a transfer; rates are shares of the limit."""

    way: str
    limit_mbps: float
    direction: str
    flows: int
    wire: float
    first_second: float
    worst_window: float
    retransmits: int

    @property
    def load(self) -> str:
        return f"TCP × {self.flows}" if self.flows else "UDP"


def shape(made: Lab, way: Way, limit_mbps: float, direction: str, flows: int, *, seconds: float) -> Shaped:
    """One transfer under a limit."""
    return shape_at_once([(made, limit_mbps)], way, direction, flows, seconds=seconds)[0]


def shape_at_once(
    limited: Sequence[tuple[Lab, float]], way: Way, direction: str, flows: int, *, seconds: float
) -> list[Shaped]:
    """Transfers at the same time, each in a lab of its own under a limit in mbps of its own."""
    limits = ", ".join(f"{mbps:g}" for _, mbps in limited)
    tell(f"{way.name}, {limits} mbps {direction}, {f'TCP × {flows}' if flows else 'UDP'}")
    with ExitStack() as stack:
        for made, mbps in limited:
            stack.enter_context(way.limiting(made, mbps, direction))
        seen = [stack.enter_context(_seen(made, way, direction)) for made, _ in limited]
        running = [_start(made, mbps, direction, flows, seconds) for made, mbps in limited]
        done = [finish() for finish in running]
    return [
        _shaped(way, mbps, direction, flows, seconds, view[0] if view else None, transfer)
        for (_, mbps), view, transfer in zip(limited, seen, done, strict=True)
    ]


def _start(
    made: Lab, limit_mbps: float, direction: str, flows: int, seconds: float
) -> Callable[[], Transfer]:
    is_ingress = direction == "ingress"
    if flows:
        return start_tcp(made, seconds, flows=flows, ingress=is_ingress)
    return start_udp(made, seconds, UDP_OVERLOAD * limit_mbps * 1e6, ingress=is_ingress)


def _seen(made: Lab, way: Way, direction: str) -> AbstractContextManager[list[Arrivals]]:
    """Packets where they arrive; or what a rule that drops behind the interface lets pass, if it counts."""
    if direction == "egress":
        return arrivals(made.world, "eth0")
    if not way.drops_behind_the_interface:
        return arrivals(made.pod, "eth0")
    return admissions(made) if way.counts else nullcontext([])


def _shaped(
    way: Way,
    limit_mbps: float,
    direction: str,
    flows: int,
    seconds: float,
    seen: Arrivals | None,
    done: Transfer,
) -> Shaped:
    least_bytes = _DATA_BYTES
    if seen is None:
        seen = _delivered(done, WIRE_PER_PAYLOAD if flows else _WIRE_PER_UDP_PAYLOAD)
        least_bytes = 1
    shares = shares_of_limit(seen, limit_mbps * 1e6, seconds=seconds, least_bytes=least_bytes)
    return Shaped(way.name, limit_mbps, direction, flows, *shares, done.retransmits)


def shares_of_limit(
    seen: Arrivals, bits_per_second: float, *, seconds: float, least_bytes: int
) -> tuple[float, float, float]:
    """Of the whole transfer, of its first second, and of its worst window.

    It begins with a packet of at least so many bytes: what is smaller is a handshake.
    """
    start = next(moment for moment, size in seen.seen if size >= least_bytes)
    end = min(seen.seen[-1][0], start + seconds) - _EDGE_SECONDS
    return (
        seen.rate(start + _EDGE_SECONDS, end) / bits_per_second,
        seen.rate(start, start + 1) / bits_per_second,
        seen.worst_window(start, end) / bits_per_second,
    )


def _delivered(done: Transfer, wire_per_payload: float) -> Arrivals:
    """What came in 100 ms, as if it had come evenly."""
    return Arrivals(
        tuple(
            (start + number / 100, round(size * wire_per_payload / 10))
            for start, size in done.payload
            for number in range(10)
        )
    )


def measure(effort: Effort) -> Findings:
    seconds = effort.seconds or 1
    with ExitStack() as stack, seed_programs() as programs:
        labs = [stack.enter_context(lab()) for _ in range(max(map(len, GROUPS_MBPS)))]
        ways = (TBF, EDT, *KERNEL, seed_way(programs))
        missing = {
            (way.name, direction): why
            for way, direction in itertools.product(ways, DIRECTIONS)
            if (why := lacking(labs[0], way, direction))
        }
        own = TBF if (EDT.name, "egress") in missing else EDT

        carried = {
            (direction, flows): shape(labs[0], NO_LIMIT, 1, direction, flows, seconds=seconds).wire
            for direction, flows in itertools.product(DIRECTIONS, TCP_FLOWS)
        }

        def long_enough(limits: Sequence[float]) -> float:
            return max(seconds, LEAST_PACKETS * 65_536 * 8 / (1e6 * min(limits)))

        def shapes(
            groups: Sequence[Sequence[float]], loads: Sequence[int], ways: Sequence[Way]
        ) -> list[Shaped]:
            return [
                found
                for limits, direction, flows, way in itertools.product(groups, DIRECTIONS, loads, ways)
                if (way.name, direction) not in missing
                for found in shape_at_once(
                    list(zip(labs, limits, strict=False)),
                    way,
                    direction,
                    flows,
                    seconds=long_enough(limits),
                )
            ]

        large = [(mbps,) for mbps in LARGE_MBPS if mbps <= CARRIED_SHARE * min(carried.values())]
        found = shapes((*GROUPS_MBPS, *large), TCP_FLOWS, [own]) + shapes(UDP_GROUPS_MBPS, (0,), [own])
        beside = shapes(PEER_GROUPS_MBPS, (1,), [way for way in ways if way is not own])
    return _findings(own, found, beside, ways, missing, carried)


# What it shows


def _findings(
    own: Way,
    found: Sequence[Shaped],
    beside: Sequence[Shaped],
    ways: Sequence[Way],
    missing: Mapping[tuple[str, str], str],
    carried: Mapping[tuple[str, int], float],
) -> Findings:
    of_tcp = [item for item in found if item.flows]
    compared = [item for item in (*found, *beside) if item.limit_mbps in PEER_LIMITS_MBPS and item.flows == 1]
    judged = [
        item
        for item in of_tcp
        if item.limit_mbps <= CARRIED_SHARE * carried[item.direction, item.flows]
        and item.limit_mbps not in LARGE_MBPS
    ]
    error = max(100 * abs(item.wire - 1) for item in judged)
    most_mbps = max(item.limit_mbps for item in judged)
    claims = [
        Claim(
            f"{own.name}, TCP: largest error of the rate, up to {most_mbps:g} mbps",
            error,
            100 * LARGEST_ERROR,
            " %",
        ),
        Claim(
            f"{own.name}, UDP at {UDP_OVERLOAD} times the limit: most that passes",
            max(100 * item.wire for item in found if not item.flows),
            102,
            " %",
        ),
    ]
    if own is EDT:
        claims += [_best("first second", compared), _best("worst window", compared)]
    return Findings(
        tables=(
            Table(
                "ways, and their parameters",
                ("way", "parameters"),
                tuple((way.name, way.parameters.replace("{rate}", "RATE")) for way in ways),
            ),
            Table(
                "without a limit, Mbit/s on the wire",
                ("direction", "load", "rate"),
                tuple((direction, f"TCP × {flows}", rate) for (direction, flows), rate in carried.items()),
                digits=0,
                note=f"Limits beyond {CARRIED_SHARE:.0%} of that show the machine: they are not judged.",
            ),
            _table(f"{own.name}: shares of the limit, in %", found),
            _table(
                "beside others, TCP × 1: shares of the limit, in %",
                sorted(compared, key=lambda item: (item.limit_mbps, item.direction)),
            ),
        ),
        charts=(
            *(_rates(direction, of_tcp) for direction in DIRECTIONS),
            *(_beside(direction, compared) for direction in DIRECTIONS),
        ),
        claims=tuple(claims),
        notes=tuple(
            f"{name}, {direction}, is missing here: {why}" for (name, direction), why in missing.items()
        ),
    )


def _best(what: str, compared: Sequence[Shaped]) -> Claim:
    """How often a peer that keeps the rate is above the limit by less, to one in a hundred."""
    attribute = what.replace(" ", "_")
    better = 0
    for mbps, direction in itertools.product(PEER_LIMITS_MBPS, DIRECTIONS):
        found = {
            item.way: item for item in compared if (item.limit_mbps, item.direction) == (mbps, direction)
        }
        ours = max(getattr(found[EDT.name], attribute), 1)
        better += sum(
            max(getattr(item, attribute), 1) + _TOLERANCE < ours
            for name, item in found.items()
            if name not in (EDT.name, TBF.name) and item.wire >= 1 - LARGEST_ERROR
        )
    return Claim(f"cases in which a peer's {what} overshoots less than edt's", better, 0)


def _table(title: str, rows: Sequence[Shaped]) -> Table:
    return Table(
        title,
        ("mbps", "direction", "load", "way", "rate", "first second", "worst 200 ms", "retransmits"),
        tuple(
            (
                f"{found.limit_mbps:g}",
                found.direction,
                found.load,
                found.way,
                100 * found.wire,
                100 * found.first_second,
                100 * found.worst_window,
                found.retransmits if found.flows else None,
            )
            for found in rows
        ),
        digits=1,
    )


def _rates(direction: str, rows: Sequence[Shaped]) -> Chart:
    names = sorted({(found.way, found.load) for found in rows})
    return Chart(
        f"rate-{direction}",
        f"rate on the wire, {direction}",
        "limit, Mbit/s",
        "% of the limit",
        tuple(
            Series(
                f"{way}, {load}",
                tuple(found.limit_mbps for found in chosen),
                tuple(100 * found.wire for found in chosen),
            )
            for way, load in names
            for chosen in [
                [
                    found
                    for found in rows
                    if (found.way, found.load, found.direction) == (way, load, direction)
                ]
            ]
        ),
        log_x=True,
        goals=(100,),
    )


def _beside(direction: str, rows: Sequence[Shaped]) -> Chart:
    names = list(dict.fromkeys(found.way for found in rows))
    return Chart(
        f"worst-{direction}",
        f"worst 200 ms, {direction}, one flow of TCP",
        "limit, Mbit/s",
        "% of the limit",
        tuple(
            Series(
                name,
                tuple(f"{found.limit_mbps:g}" for found in chosen),
                tuple(100 * found.worst_window for found in chosen),
            )
            for name in names
            for chosen in [[found for found in rows if (found.way, found.direction) == (name, direction)]]
        ),
        log_y=True,
        goals=(100,),
    )
