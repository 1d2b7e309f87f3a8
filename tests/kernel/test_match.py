"""Which packets a rule hits: on real packets of both families, at both hooks, in both directions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from podmgr.kernel import bpf_syscall
from podmgr.kernel.bpf_syscall import Counters
from tests.answers import ALL, ICMP, OTHER, OTHER6, TCP, Packet, answering, unanswered
from tests.lab import WORLD, WORLD6, Lab, lab

Hits = Callable[[Packet], bool]

MATCHES: dict[str, Hits] = {
    f"peer={WORLD}": lambda packet: packet.peer == WORLD,
    f"peer={OTHER6},{WORLD}": lambda packet: packet.peer in (OTHER6, WORLD),
    "peer=198.18.0.0/15": lambda packet: ":" not in packet.peer,
    "peer=::/0": lambda packet: ":" in packet.peer,
    f"peer=fd00:db8:1::/64 except={OTHER6}": lambda packet: packet.peer == WORLD6,
    "port=80": lambda packet: packet.port == 80,
    "port=50-60,8000-8100": lambda packet: packet.port in (53, 8080),
    "local-port=6001": lambda packet: packet.local_port == 6001,
    "proto=tcp": lambda packet: packet.protocol == TCP,
    "proto=icmp": lambda packet: packet.protocol == ICMP,
    "proto=udp,tcp port=80 local-port=6000": lambda packet: (packet.port, packet.local_port) == (80, 6000),
    "peer=dns": lambda packet: packet.port == 53,
    f"peer=198.18.1.0/24 port=80 proto=tcp except={WORLD}": lambda packet: (
        (packet.peer, packet.protocol, packet.port) == (OTHER, TCP, 80)
    ),
}


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made):
        assert unanswered(made) == set()
        yield made


def _counted(made: Lab) -> list[Counters]:
    found = [
        bpf_syscall.pinned_counters(path)
        for path in (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters")
    ]
    return [counters for counters in found if counters is not None]


@pytest.mark.parametrize("hook", ["tc", "cgroup"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
@pytest.mark.parametrize("match", MATCHES)
def test_what_matches_is_hit_and_nothing_else(made: Lab, match: str, direction: str, hook: str) -> None:
    hit = {packet for packet in ALL if MATCHES[match](packet)}
    with made.under(f"loss=100% {direction} {match} hook={hook}"):
        assert unanswered(made) == hit
        (counted,) = _counted(made)
    assert counted.passed_packets == 0
    assert counted.dropped_packets >= len(hit)


SEVERAL: dict[tuple[str, ...], Hits] = {
    ("100% egress", f"0% egress peer={WORLD}"): lambda packet: packet.peer != WORLD,
    ("0% egress", "100% egress port=80", f"0% egress peer={WORLD}"): lambda packet: (
        packet.port == 80 and packet.peer != WORLD
    ),
    ("0% egress port=80", "100% egress port=50-90"): lambda packet: packet.port == 53,
    ("0% egress proto=udp", "100% egress port=53"): lambda packet: packet.port == 53,
    ("100% egress local-port=6000", "0% egress proto=tcp"): lambda packet: packet.local_port == 6000,
    ("100% egress", f"0% egress peer=198.18.1.0/24 except={OTHER}"): lambda packet: packet.peer != WORLD,
    ("100% egress", "0% egress port=80 mode=shadow"): bool,
    ("100% egress", "0% egress port=80 after=1h"): bool,
}


@pytest.mark.parametrize("rules", SEVERAL)
def test_the_most_specific_alone_acts(made: Lab, rules: tuple[str, ...]) -> None:
    hit = {packet for packet in ALL if SEVERAL[rules](packet)}
    with made.under(f"loss={'; '.join(rules)}"):
        assert unanswered(made) == hit
        counted = _counted(made)
    assert sum(item.dropped_packets for item in counted) >= len(hit)


def test_a_rule_that_comes_or_goes_changes_no_other_program(made: Lab) -> None:
    """The limit's rest is another program once it has rules beside it, and from then on the same."""
    rest, first, other = "loss=0% egress", f"loss=1% egress peer={WORLD}", f"loss=2% egress peer={OTHER}"
    with made.under(rest, first):
        before = {path.name for path in (made.bpffs / str(made.cgroup.id)).iterdir()}
        made.podmgr("apply", made.target, "--rule", rest, "--rule", first, "--rule", other)
        between = {path.name for path in (made.bpffs / str(made.cgroup.id)).iterdir()}
        made.podmgr("apply", made.target, "--rule", rest, "--rule", first)
        assert between > before
        assert before == {path.name for path in (made.bpffs / str(made.cgroup.id)).iterdir()}


@pytest.mark.parametrize("host", [WORLD, WORLD6])
def test_a_datagram_in_pieces_is_hit_whole(made: Lab, host: str) -> None:
    """Its first piece alone has ports; the others follow it."""
    with made.under("loss=100% egress port=53 proto=udp hook=tc"):
        _send(made, host, 54, 4_000)
        (others,) = _counted(made)
        _send(made, host, 53, 4_000)
        (whole,) = _counted(made)
    assert others.dropped_packets == 0
    assert whole.dropped_packets == 3


def _send(made: Lab, host: str, port: int, size: int) -> None:
    code = (
        "import socket, sys\n"
        f"sock = socket.socket(socket.{'AF_INET6' if ':' in host else 'AF_INET'}, socket.SOCK_DGRAM)\n"
        f"sock.sendto(bytes({size}), ('{host}', {port}))\n"
    )
    made.in_pod([sys.executable, "-c", code]).communicate()
