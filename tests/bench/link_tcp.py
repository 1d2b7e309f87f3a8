"""What TCP carries over a delay, beside what it carries over netem's.

What waits must be on nobody's account, or TCP stops: see bpf/freeing.h. A node that routes takes a packet's
socket away itself, one that is a bridge does not: both are measured. Half of the delay is in each direction,
so that the round trip is longer by all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil

from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.bench.link_delay import NETEM, PODMGR, delaying
from tests.lab import Lab, lab, start_tcp

EFFORT = Effort(seconds=3)  # iperf3 takes whole ones

ROUND_TRIP_MS = 100
CURVE_MS = (1, 10, 50, 100, 300)  # in the direction of the data
FLOWS = (1, 8)
DIRECTIONS = ("egress", "ingress")
FQ, NOTHING = "fq alone", "nothing"
LEAST_SHARE, LEAST_SHARE_OF_FQ = 0.9, 0.9
RATE_MBPS, RATE_DELAY_MS, RATE_LEAST_MBPS = 10, 50, 9.3

_SETTLING_ROUND_TRIPS = 20


@dataclass(frozen=True)
class Carried:
    """Payload of TCP, in Mbit/s."""

    node: str
    direction: str
    flows: int
    way: str
    mbps: float


def measure(effort: Effort) -> Findings:
    seconds = effort.seconds or 1
    with lab() as made:
        carried = _compared(made, "routes", seconds)
        curve = _curve(made, seconds)
        bare = {}
        for name, under in ((NOTHING, nullcontext()), (FQ, made.root("fq"))):
            tell(name)
            with under:
                bare[name] = _mbps(made, seconds)
        rated = _rated(made, seconds)
    with lab(is_bridged=True) as made:
        carried += _compared(made, "is a bridge", seconds)
    return _findings(carried, curve, bare, rated)


def _compared(made: Lab, node: str, seconds: float) -> list[Carried]:
    found = []
    for way in (PODMGR, NETEM):
        with delaying(made, way, ROUND_TRIP_MS / 2):
            for direction in DIRECTIONS:
                for flows in FLOWS:
                    tell(f"a node that {node}: {way}, {direction}, {flows} flows")
                    mbps = _mbps(made, seconds, ROUND_TRIP_MS, flows, direction == "ingress")
                    found.append(Carried(node, direction, flows, way, mbps))
    return found


def _curve(made: Lab, seconds: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {PODMGR: [], NETEM: []}
    for delay_ms in CURVE_MS:
        for way, under in (
            (PODMGR, made.under(f"delay={delay_ms}ms egress")),
            (NETEM, made.under_netem("delay", f"{delay_ms}ms")),
        ):
            tell(f"{way}, {delay_ms} ms")
            with under:
                found[way].append(_mbps(made, seconds, delay_ms))
    return found


def _rated(made: Lab, seconds: float) -> dict[str, float]:
    """A rate and a delay together."""
    found = {}
    rules = f"bandwidth={RATE_MBPS} mbps egress algorithm=edt", f"delay={RATE_DELAY_MS}ms egress"
    netem = ("delay", f"{RATE_DELAY_MS}ms", "rate", f"{RATE_MBPS}mbit")
    for way, under in ((PODMGR, made.under(*rules)), (NETEM, made.under_netem(*netem))):
        tell(f"{way}, {RATE_MBPS} mbps and {RATE_DELAY_MS} ms")
        with under:
            found[way] = _mbps(made, 3 * seconds, RATE_DELAY_MS)
    return found


def _mbps(made: Lab, seconds: float, delay_ms: float = 0, flows: int = 1, is_ingress: bool = False) -> float:
    settling_seconds = max(1, ceil(_SETTLING_ROUND_TRIPS * delay_ms / 1e3))
    run = start_tcp(made, seconds, flows=flows, ingress=is_ingress, settling_seconds=settling_seconds)
    return run().bits_per_second / 1e6


# What it shows


def _findings(
    carried: Sequence[Carried], curve: dict[str, list[float]], bare: dict[str, float], rated: dict[str, float]
) -> Findings:
    pairs = [
        (ours, theirs)
        for ours in carried
        for theirs in carried
        if (ours.node, ours.direction, ours.flows) == (theirs.node, theirs.direction, theirs.flows)
        and (ours.way, theirs.way) == (PODMGR, NETEM)
    ]
    return Findings(
        tables=(
            Table(
                f"TCP over a round trip of {ROUND_TRIP_MS} ms, half in each direction: Mbit/s of payload",
                ("the node", "direction", "flows", PODMGR, NETEM, "ratio"),
                tuple(
                    (ours.node, ours.direction, ours.flows, ours.mbps, theirs.mbps, ours.mbps / theirs.mbps)
                    for ours, theirs in pairs
                ),
            ),
            Table(
                "One flow from the pod against the delay of its packets: Mbit/s of payload",
                ("delay, ms", PODMGR, NETEM, "ratio"),
                tuple(
                    (delay_ms, ours, theirs, ours / theirs)
                    for delay_ms, ours, theirs in zip(CURVE_MS, curve[PODMGR], curve[NETEM], strict=True)
                ),
                note="Without a delay: "
                + ", ".join(f"{name} {mbps:.0f}" for name, mbps in bare.items())
                + ". At 1 ms it is what the machine computes, beyond that a window for each round trip.",
            ),
            Table(
                f"{RATE_MBPS} mbps (edt) and {RATE_DELAY_MS} ms together: Mbit/s of payload",
                ("by", "one flow"),
                tuple(rated.items()),
            ),
        ),
        charts=(
            Chart(
                "throughput",
                "One flow of TCP from the pod, against the delay of its packets",
                "delay, ms",
                "Mbit/s",
                tuple(Series(way, tuple(map(float, CURVE_MS)), tuple(curve[way])) for way in (PODMGR, NETEM)),
                log_x=True,
                log_y=True,
            ),
        ),
        claims=(
            *(
                Claim(
                    f"TCP, {ROUND_TRIP_MS} ms, a node that {ours.node}, {ours.direction}, "
                    f"{ours.flows} flow{'s' * (ours.flows > 1)}: share of netem's",
                    ours.mbps / theirs.mbps,
                    LEAST_SHARE,
                    is_least=True,
                )
                for ours, theirs in pairs
            ),
            Claim(
                "TCP, 1 ms: share of netem's", curve[PODMGR][0] / curve[NETEM][0], LEAST_SHARE, is_least=True
            ),
            Claim(
                "TCP, 1 ms: share of fq alone", curve[PODMGR][0] / bare[FQ], LEAST_SHARE_OF_FQ, is_least=True
            ),
            Claim(
                f"{RATE_MBPS} mbps edt and {RATE_DELAY_MS} ms: TCP",
                rated[PODMGR],
                RATE_LEAST_MBPS,
                " Mbit/s",
                is_least=True,
            ),
        ),
    )
