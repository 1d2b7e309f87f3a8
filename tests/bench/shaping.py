"""algorithm=edt on the wire: rate, first second, worst window, retransmits, fairness, UDP overload.

    python -m tests.vm -- python3 -m tests.bench.shaping [--seconds 10] [MBPS/DIRECTION/FLOWS…]

Needs fq. Packets are counted where they arrive: on the node for egress, in the pod for ingress.
0 flows is UDP at five times the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Lab, arrivals, lab, tcp, udp

CASES = tuple(
    f"{mbps}/{direction}/{flows}"
    for direction in ("egress", "ingress")
    for mbps in (1, 10, 100, 500)
    for flows in (1, 8, 0)
)
UDP_OVERLOAD = 5

_EDGE_SECONDS = 0.2  # at both ends, where the measurement begins and stops
_DATA_BYTES = 1_000  # more than a handshake or iperf3's control connection sends at once


@dataclass(frozen=True)
class Shaped:
    """What a limit made of a transfer; rates are shares of the limit."""

    limit_mbps: float
    direction: str
    flows: int
    wire: float
    first_second: float
    worst_window: float
    retransmits: int
    lost_packets: int

    def __str__(self) -> str:
        kind = f"tcp {self.flows}" if self.flows else f"udp ×{UDP_OVERLOAD}"
        shares = f"{self.wire:>7.1%} {self.first_second:>8.1%} {self.worst_window:>8.1%}"
        name = f"{self.limit_mbps:>5g} mbps {self.direction:7} {kind:7}"
        return f"{name} {shares} {self.retransmits:>6} {self.lost_packets:>8}"


HEADING = "LIMIT                         WIRE  1ST SEC   WORST   RETRANS   LOST"


def shape(
    made: Lab, limit_mbps: float, direction: str, flows: int, *, seconds: float, more: Sequence[str] = ()
) -> Shaped:
    """One transfer under `bandwidth … algorithm=edt`, and under `more` rules."""
    is_ingress = direction == "ingress"
    place = (made.pod, "eth0") if is_ingress else (made.node, "pod0")
    rule = f"bandwidth={limit_mbps:g} mbps {direction} algorithm=edt"
    with made.under(rule, *more), arrivals(*place) as captured:
        if flows:
            done = tcp(made, seconds, flows=flows, ingress=is_ingress)
        else:
            done = udp(made, seconds, UDP_OVERLOAD * limit_mbps * 1e6, ingress=is_ingress)
    seen = captured[0]
    start = next(moment for moment, size in seen.seen if size > _DATA_BYTES)
    limit = limit_mbps * 1e6
    end = min(seen.seen[-1][0], start + seconds) - _EDGE_SECONDS
    return Shaped(
        limit_mbps,
        direction,
        flows,
        wire=seen.rate(start + _EDGE_SECONDS, end) / limit,
        first_second=seen.rate(start, start + 1) / limit,
        worst_window=seen.worst_window(start, end) / limit,
        retransmits=done.retransmits,
        lost_packets=done.lost_packets,
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="MBPS/DIRECTION/FLOWS")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args(words)
    print(HEADING)
    found = []
    with lab() as made:
        for case in options.cases:
            mbps, direction, flows = case.split("/")
            found.append(shape(made, float(mbps), direction, int(flows), seconds=options.seconds))
            print(found[-1], flush=True)
    if (folder := Path("/results")).is_dir():
        (folder / "shaping.json").write_text(json.dumps([vars(item) for item in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
