"""A limit on the wire: its rate, its first second, its worst 200 ms, against kernel and peers.

Packets are counted where they arrive: in the world for egress, in the pod for ingress. What drops
packets behind the pod's interface is judged by the payload that its processes receive, every 100 ms.
All figures are shares of the limit. `edt` needs fq; where the kernel lacks it, the virtual machine
shows it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copy

from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.lab import (
    WIRE_PER_TCP_PAYLOAD,
    WIRE_PER_UDP_PAYLOAD,
    Arrivals,
    Lab,
    Transfer,
    arrivals,
    lab,
    tcp,
    udp,
)

EFFORT = Effort(seconds=60, rounds=1)

LIMITS_MBPS = (1, 10, 50, 100, 200, 400, 600, 800, 1000)
PEER_LIMITS_MBPS = (10, 100, 400)
DIRECTIONS = ("egress", "ingress")
FLOWS = (1, 8, 0)  # of TCP; 0: UDP
UDP_OVERLOAD = 5
UDP_MOST_MBPS = 1_000

_EDGE_SECONDS = 0.2  # at both ends, where the measurement begins and stops
_DATA_BYTES = 1_000  # more than a handshake or iperf3's control connection sends at once


@dataclass(frozen=True)
class Way:
    """One way of limiting a pod: `limiting(made, mbps, direction)` holds it while a block runs."""

    name: str
    parameters: str
    limiting: Callable[[Lab, float, str], AbstractContextManager[None]]
    drops_behind_the_interface: bool = False


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
    lost_packets: int

    @property
    def load(self) -> str:
        return f"TCP × {self.flows}" if self.flows else "UDP"


def shape(made: Lab, way: Way, limit_mbps: float, direction: str, flows: int, *, seconds: float) -> Shaped:
    """One transfer under a limit."""
    tell(f"{way.name}, {limit_mbps:g} mbps {direction}, {f'{flows} flows' if flows else 'UDP'}")
    is_ingress = direction == "ingress"
    place = made.pod if is_ingress else made.world
    with way.limiting(made, limit_mbps, direction), arrivals(place, "eth0") as captured:
        if flows:
            done = tcp(made, seconds, flows=flows, ingress=is_ingress)
        else:
            offered = min(UDP_OVERLOAD * limit_mbps, UDP_MOST_MBPS + limit_mbps) * 1e6
            done = udp(made, seconds, offered, ingress=is_ingress)
    seen, least = captured[0], _DATA_BYTES
    if is_ingress and way.drops_behind_the_interface:
        seen, least = _delivered(done, WIRE_PER_TCP_PAYLOAD if flows else WIRE_PER_UDP_PAYLOAD), 0
    start = next(moment for moment, size in seen.seen if size > least)
    limit = limit_mbps * 1e6
    end = min(seen.seen[-1][0], start + seconds) - _EDGE_SECONDS
    return Shaped(
        way.name,
        limit_mbps,
        direction,
        flows,
        wire=seen.rate(start + _EDGE_SECONDS, end) / limit,
        first_second=seen.rate(start, start + 1) / limit,
        worst_window=seen.worst_window(start, end) / limit,
        retransmits=done.retransmits,
        lost_packets=done.lost_packets,
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
    with lab() as made, _seed_programs() as programs:
        ours = [way for way in (TBF, EDT) if _works(made, way, "egress")]
        own = [
            shape(made, way, mbps, direction, flows, seconds=seconds)
            for mbps, direction, flows, way in itertools.product(LIMITS_MBPS, DIRECTIONS, FLOWS, ours)
        ]
        peers = [
            *KERNEL,
            Way(
                "seed",
                "a full bucket of 1 s, no lock, return 0",
                partial(_seed, programs),
                drops_behind_the_interface=True,
            ),
        ]
        beside = [
            shape(made, way, mbps, direction, 1, seconds=seconds)
            for mbps, direction, way in itertools.product(PEER_LIMITS_MBPS, DIRECTIONS, peers)
            if _works(made, way, direction)
        ]
    return _findings(own, beside, [*ours, *peers])


# The ways


@contextmanager
def _podmgr(options: str, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    with made.under(f"bandwidth={mbps:g} mbps {direction}{options}"):
        yield


TBF = Way("podmgr tbf", "bandwidth=RATE DIRECTION", partial(_podmgr, ""), drops_behind_the_interface=True)
EDT = Way("podmgr edt", "bandwidth=RATE DIRECTION algorithm=edt", partial(_podmgr, " algorithm=edt"))


@contextmanager
def _seed(programs: Path, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    rule = f"ebpf-limit=seed {direction} -DRATE={int(mbps * 1e6)}ULL"
    with made.under(rule, options=["--program-dir", str(programs)]):
        yield


@contextmanager
def _seed_programs() -> Iterator[Path]:
    """A program folder that holds the seed, as podmgr wants it: nobody else can write to it."""
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as folder:
        copy(Path(__file__).with_name("seed.bpf.c"), folder)
        yield Path(folder)


@contextmanager
def _qdisc(words: str, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    """As the root of the interface that sends: the pod's, or the node's towards the pod."""
    pid, name = (made.node, "pod0") if direction == "ingress" else (made.pod, "eth0")
    for line in words.format(rate=f"{mbps:g}mbit", dev=name).split("; "):
        made.sh(pid, f"tc {line}")
    try:
        yield
    finally:
        made.sh(pid, f"tc qdisc del dev {name} root")


@contextmanager
def _plugin(burst: str, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    """The CNI bandwidth plugin's way: all on the node's side, egress through an ifb."""
    tbf = f"root tbf rate {mbps:g}mbit burst {burst} latency 25ms"
    if direction == "ingress":
        with _qdisc(f"qdisc add dev {{dev}} {tbf}", made, mbps, direction):
            yield
        return
    for line in (
        "ip link add bwp0 type ifb",
        "ip link set bwp0 up",
        f"tc qdisc add dev bwp0 {tbf}",
        "tc qdisc add dev pod0 clsact",
        f"tc filter add dev pod0 ingress protocol all {_ALL} action mirred egress redirect dev bwp0",
    ):
        made.sh(made.node, line)
    try:
        yield
    finally:
        made.sh(made.node, "tc qdisc del dev pod0 clsact")
        made.sh(made.node, "ip link del bwp0")


_ALL = "u32 match u32 0 0"
_TBF = "tbf rate {rate} burst 128kb latency 50ms"
_HTB = (
    "qdisc add dev {dev} root handle 1: htb default 1; "
    "class add dev {dev} parent 1: classid 1:1 htb rate {rate}"
)
KERNEL = (
    Way("kernel tbf", _TBF, partial(_qdisc, f"qdisc add dev {{dev}} root {_TBF}")),
    Way("kernel htb", "htb default 1, class rate RATE", partial(_qdisc, _HTB)),
    Way(
        "CNI plugin",
        "tbf rate RATE burst 536870911b latency 25ms: containerd's burst, 2^32 - 1 bits",
        partial(_plugin, "536870911b"),
    ),
    Way("CNI plugin, 128 KiB", "tbf rate RATE burst 128kb latency 25ms", partial(_plugin, "128kb")),
)


def _works(made: Lab, way: Way, direction: str) -> bool:
    """Whether this kernel has what it takes."""
    try:
        with way.limiting(made, 10, direction):
            return True
    except AssertionError:
        return False


# What it shows


def _findings(own: Sequence[Shaped], beside: Sequence[Shaped], ways: Sequence[Way]) -> Findings:
    has_fq = EDT in ways
    of_tcp = [found for found in own if found.flows]
    compared = [
        found for found in (*own, *beside) if found.limit_mbps in PEER_LIMITS_MBPS and found.flows == 1
    ]
    claims = [
        Claim(
            f"{way.name}, TCP: largest error of the rate",
            max(100 * abs(found.wire - 1) for found in of_tcp if found.way == way.name),
            2,
            " %",
        )
        for way in (TBF, EDT)
        if way in ways
    ]
    if has_fq:
        claims += [_best("first second", compared), _best("worst window", compared)]
    return Findings(
        tables=(
            Table(
                "ways, and their parameters",
                ("way", "parameters"),
                tuple((way.name, way.parameters.replace("{rate}", "RATE")) for way in ways),
            ),
            _table("podmgr's limits: shares of the limit, in %", own),
            _table(
                "beside others, TCP × 1: shares of the limit, in %",
                sorted(compared, key=lambda found: (found.limit_mbps, found.direction)),
            ),
        ),
        charts=(
            *(_rates(direction, of_tcp) for direction in DIRECTIONS),
            *(_beside(direction, compared) for direction in DIRECTIONS),
        ),
        claims=tuple(claims),
        notes=tuple(_missing(beside, ways)),
    )


def _missing(beside: Sequence[Shaped], ways: Sequence[Way]) -> Iterator[str]:
    if EDT not in ways:
        yield "This kernel has no fq: `edt` is measured in the virtual machine."
    measured = {(found.way, found.direction) for found in beside}
    for way, direction in itertools.product(ways, DIRECTIONS):
        if way not in (TBF, EDT) and (way.name, direction) not in measured:
            yield f"This kernel cannot do {way.name}, {direction}."


def _best(what: str, compared: Sequence[Shaped]) -> Claim:
    """That no peer's share is nearer to the limit, or below it, where edt's is above."""
    attribute = what.replace(" ", "_")
    better = 0
    for mbps, direction in itertools.product(PEER_LIMITS_MBPS, DIRECTIONS):
        shares = {
            found.way: getattr(found, attribute)
            for found in compared
            if (found.limit_mbps, found.direction) == (mbps, direction)
        }
        ours = max(shares.pop(EDT.name), 1)
        better += sum(share < ours for name, share in shares.items() if name != TBF.name)
    return Claim(f"{what}: peers that overshoot less than edt", better, 0)


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
        goal=100,
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
        goal=100,
    )
