"""block on real packets: what both ends see of it, in a table, and that nothing passes where it blocks."""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from podmgr.demo.throwaway import inside
from podmgr.kernel import bpf_syscall
from tests.endpoints import PATIENCE_SECONDS, End, Seen, arrived, ends, seen
from tests.lab import WORLD, Lab, lab

AT_ONCE_MS = 100  # on a busy machine; the round trip is 0.1 ms
NEXT_SYN_MS = (900, 1_400)
DATAGRAMS = 5
_numbers = itertools.count(4_711)  # of pings
UNREACHABLE = {False: "EHOSTUNREACH", True: "EACCES"}

# Each direction and each family, in half of the time that all pairs take.
WAYS = [pytest.param("egress", False, id="egress-ipv4"), pytest.param("ingress", True, id="ingress-ipv6")]

Table = list[tuple[str, ...]]
HEADINGS = ("rule", "IP", "connect()", "open TCP", "its other end", "UDP", "UDP back", "connect() back")


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """What was seen, printed in the end: pytest -s shows it."""
    rows: Table = []
    yield rows
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    for row in (HEADINGS, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@dataclass
class Case:
    """Sockets at both ends, made before there is a rule: of who sends what is blocked, and of the other."""

    sender: End
    other: End

    def __post_init__(self) -> None:
        self.there, self.back = self.other.listener(), self.sender.listener()
        self.open, self.other_open = self.sender.connected(self.other)
        self.datagrams = self.other.bound(socket.SOCK_DGRAM)
        self.datagrams_back = self.sender.bound(socket.SOCK_DGRAM)

    def send_in_open(self) -> Seen:
        def exchange() -> bytes:
            self.open.sendall(b"sent")
            return self.open.recv(16)

        return seen(exchange)


@contextlib.contextmanager
def case(made: Lab, direction: str, *, is_ipv6: bool) -> Iterator[Case]:
    with ends(made, is_ipv6=is_ipv6) as (pod, world):
        yield Case(pod, world) if direction == "egress" else Case(world, pod)


def send_datagrams(sender: socket.socket, receiver: socket.socket) -> Seen:
    """What a connected socket sees, of which each datagram has time to be answered."""
    sender.connect(receiver.getsockname())

    def send() -> None:
        for _ in range(DATAGRAMS):
            sender.send(b"datagram")
            time.sleep(0.01)

    return seen(send)


def figures(made: Lab) -> dict[str, int]:
    """What the one rule on the pod has done, as `list -o wide` tells."""
    shown = made.podmgr("list", "-o", "wide")
    return {name: int(value) for name, value in re.findall(r"(RSTs sent|ICMPs sent|cut) (\d+)", shown)}


def sent_packets(made: Lab, pid: int, *, is_ipv6: bool) -> int:
    """That the namespace has sent."""
    name = "Ip6OutRequests" if is_ipv6 else "IpOutRequests"
    return int(re.findall(rf"{name}\s+(\d+)", made.sh(pid, f"nstat -asz {name}"))[0])


@pytest.mark.parametrize(("direction", "is_ipv6"), WAYS)
@pytest.mark.parametrize("cut", ["", " cut=yes"], ids=["", "cut"])
@pytest.mark.parametrize("reply", ["none", "rst", "icmp"])
def test_what_both_ends_see(
    made: Lab, table: Table, reply: str, cut: str, direction: str, is_ipv6: bool
) -> None:
    rule = f"block={direction} reply={reply}{cut}".replace(" reply=none", "")
    with case(made, direction, is_ipv6=is_ipv6) as it, made.under(rule):
        sent_before = sent_packets(made, it.sender.pid, is_ipv6=is_ipv6)
        connect = it.sender.connect(it.there, PATIENCE_SECONDS if reply != "icmp" else 1.5)
        opened = it.send_in_open()
        other_opened = seen(lambda: it.other_open.recv(16))
        udp = send_datagrams(it.sender.make(socket.SOCK_DGRAM), it.datagrams)
        there = arrived(it.datagrams)
        back = send_datagrams(it.other.make(socket.SOCK_DGRAM), it.datagrams_back)
        back_there = arrived(it.datagrams_back)
        connect_back = it.other.connect(it.back)
        sent = sent_packets(made, it.sender.pid, is_ipv6=is_ipv6) - sent_before
        dropped, told = made.counters().dropped_packets, figures(made)
        with pytest.raises(TimeoutError):
            it.there.accept()
    shown = (connect, opened, other_opened, udp, f"{back.what}, {back_there} arrived", connect_back.what)
    table.append((rule, "6" if is_ipv6 else "4", *map(str, shown)))

    unreachable = UNREACHABLE[is_ipv6]
    assert connect.what == {"none": "silence", "rst": "ECONNREFUSED", "icmp": unreachable}[reply]
    if reply == "rst":
        assert connect.milliseconds < AT_ONCE_MS
    if reply == "icmp":  # TCP drops an error that comes while connect() is still at work
        assert connect.milliseconds < AT_ONCE_MS or NEXT_SYN_MS[0] < connect.milliseconds < NEXT_SYN_MS[1]
    assert opened.what == ("ECONNRESET" if cut or reply == "rst" else "silence")
    assert other_opened.what == ("ECONNRESET" if cut else "silence")
    if cut or reply == "rst":
        assert opened.milliseconds < AT_ONCE_MS
    assert udp.what == (unreachable if reply == "icmp" else "done")
    assert there == 0
    # The other way all passes, but what it asks for does not come back.
    assert (back.what, back_there) == ("done", DATAGRAMS)
    assert connect_back.what == "silence"
    # Counters agree with what the sender's kernel says, but for what it sends by itself meanwhile, of which
    # neighbour discovery passes.
    assert abs(sent - dropped) <= 4
    assert ("RSTs sent" in told) == bool(cut or reply == "rst")
    assert ("ICMPs sent" in told) == (reply == "icmp")
    if cut:
        assert told["cut"] == 1


@pytest.mark.parametrize(("direction", "is_ipv6"), WAYS)
@pytest.mark.parametrize("reply", ["none", "rst", "icmp"])
def test_only_what_begins_is_blocked(
    made: Lab, table: Table, reply: str, direction: str, is_ipv6: bool
) -> None:
    rule = f"block={direction} reply={reply} state=new".replace(" reply=none", "")
    with case(made, direction, is_ipv6=is_ipv6) as it, made.under(rule):
        connect = it.sender.connect(it.there, PATIENCE_SECONDS if reply != "icmp" else 1.5)
        it.other_open.sendall(b"lives")
        assert it.open.recv(16) == b"lives"
        it.open.sendall(b"on")
        other_opened = seen(lambda: it.other_open.recv(16))
        udp = send_datagrams(it.sender.make(socket.SOCK_DGRAM), it.datagrams)
        there = arrived(it.datagrams)
        connect_back = it.other.connect(it.back)
        # What the other end asks for is answered: that began the other way.
        asker = it.other.make(socket.SOCK_DGRAM)
        asker.connect(it.datagrams_back.getsockname())
        asker.send(b"question")
        _, address = it.datagrams_back.recvfrom(64)
        it.datagrams_back.sendto(b"answer", address)
        answer = asker.recv(64)
    shown = (connect, "lives on", f"{other_opened.what} came", udp, f"{answer.decode()} came", connect_back)
    table.append((rule, "6" if is_ipv6 else "4", *map(str, shown)))

    assert connect.what == {"none": "silence", "rst": "ECONNREFUSED", "icmp": UNREACHABLE[is_ipv6]}[reply]
    assert other_opened.what == "on"
    assert udp.what == (UNREACHABLE[is_ipv6] if reply == "icmp" else "done")
    assert there == 0
    assert connect_back.what == "done"
    assert answer == b"answer"


@pytest.mark.parametrize("is_ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_pings_pass_the_way_that_is_not_blocked(made: Lab, is_ipv6: bool) -> None:
    with ends(made, is_ipv6=is_ipv6) as (pod, world):
        ways = [(world, pod), (pod, world)]
        with made.under("block=ingress state=new"):
            assert [_answers_ping(*way) for way in ways] == [False, True]
        with made.under("block=egress state=new"):
            assert [_answers_ping(*way) for way in ways] == [True, False]
        with made.under("block=egress"):
            assert [_answers_ping(*way) for way in ways] == [False, False]


def _answers_ping(asker: End, host: End) -> bool:
    is_ipv6 = asker.family == socket.AF_INET6
    raw = asker.make(socket.SOCK_RAW, 58 if is_ipv6 else 1)
    raw.settimeout(0.3)
    raw.sendto(_echo(is_ipv6, next(_numbers)), (host.host, 0))
    with contextlib.suppress(TimeoutError):
        while True:
            came = raw.recv(2048)
            if came[0 if is_ipv6 else 20] == (129 if is_ipv6 else 0):
                return True
    return False


def _echo(is_ipv6: bool, number: int) -> bytes:
    """A ping without payload; of IPv6 the kernel makes the checksum."""
    kind = 128 if is_ipv6 else 8
    checksum = 0 if is_ipv6 else 0xFFFF - (kind << 8) - number
    return struct.pack(">BBHHH", kind, 0, checksum, number, 0)


@pytest.mark.parametrize(("direction", "is_ipv6"), WAYS)
@pytest.mark.parametrize("from_sender", [True, False], ids=["sending", "receiving"])
def test_connection_is_cut_while_it_carries_much(
    made: Lab, direction: str, is_ipv6: bool, from_sender: bool
) -> None:
    """GSO packets one way, acknowledgements the other: whichever of them is blocked."""
    with case(made, direction, is_ipv6=is_ipv6) as it:
        sending, receiving = (it.open, it.other_open) if from_sender else (it.other_open, it.open)
        found: list[Seen] = []

        def send() -> None:
            sending.settimeout(3)
            block = bytes(1 << 20)
            while True:
                sending.sendall(block)

        def receive() -> None:
            receiving.settimeout(3)
            while receiving.recv(1 << 20):
                pass

        threads = [
            threading.Thread(target=lambda call=call: found.append(seen(call))) for call in (send, receive)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        with made.under(f"block={direction} cut=yes"):
            for thread in threads:
                thread.join()
            told = figures(made)
    assert {item.what for item in found} == {"ECONNRESET"}
    assert told["cut"] == 1


def test_block_of_both_directions_lets_its_own_answers_through(made: Lab) -> None:
    for is_ipv6 in (False, True):
        for direction in ("egress", "ingress"):
            with case(made, direction, is_ipv6=is_ipv6) as it, made.under("block=both reply=rst"):
                assert it.sender.connect(it.there).what == "ECONNREFUSED"
                assert it.other.connect(it.back).what == "ECONNREFUSED"
                assert it.send_in_open().what == "ECONNRESET"
                send_datagrams(it.sender.make(socket.SOCK_DGRAM), it.datagrams)
                assert arrived(it.datagrams) == 0


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_answers_are_no_other_rules_business(made: Lab, direction: str) -> None:
    other = "ingress" if direction == "egress" else "egress"
    rules = [f"block={direction} reply=rst", f"loss=100% {other}", f"bandwidth=8 kbps {other} hook=tc"]
    with case(made, direction, is_ipv6=False) as it, made.under(*rules):
        assert it.sender.connect(it.there).what == "ECONNREFUSED"


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_block_is_before_loss(made: Lab, direction: str) -> None:
    with (
        case(made, direction, is_ipv6=False) as it,
        made.under(f"loss=100% {direction}", f"block={direction} reply=rst"),
    ):
        assert it.sender.connect(it.there).what == "ECONNREFUSED"


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_options_and_extension_headers_are_passed_over(made: Lab, direction: str) -> None:
    """40 bytes of options that do nothing, and 64 of an unknown one, before TCP."""
    for is_ipv6, option in ((False, (0, 4, b"\x01" * 40)), (True, (41, 59, b"\x00\x07\x1e\x3c" + bytes(60)))):
        with case(made, direction, is_ipv6=is_ipv6) as it:
            for state in ("", " state=new"):
                with made.under(f"block={direction} reply=rst{state}"):
                    client = it.sender.make()
                    client.setsockopt(*option)
                    found = client.connect_ex(it.there.getsockname())
                    assert errno.errorcode[found] == "ECONNREFUSED"


@pytest.mark.parametrize("is_ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_datagram_in_fragments_is_answered_once(made: Lab, direction: str, is_ipv6: bool) -> None:
    with case(made, direction, is_ipv6=is_ipv6) as it, made.under(f"block={direction} reply=icmp"):
        before = figures(made)["ICMPs sent"], made.counters().dropped_packets
        for _ in range(DATAGRAMS):
            it.sender.make(socket.SOCK_DGRAM).sendto(bytes(5_000), it.datagrams.getsockname())
        assert figures(made)["ICMPs sent"] - before[0] == DATAGRAMS
        assert DATAGRAMS * 4 <= made.counters().dropped_packets - before[1] <= DATAGRAMS * 4 + 2
        assert arrived(it.datagrams) == 0


@pytest.mark.parametrize("is_ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_errors_and_groups_are_never_answered(made: Lab, is_ipv6: bool) -> None:
    with ends(made, is_ipv6=is_ipv6) as (pod, world), made.under("block=egress reply=icmp"):
        closed = pod.bound(socket.SOCK_DGRAM)
        address = closed.getsockname()
        closed.close()
        before = figures(made)["ICMPs sent"]
        world.make(socket.SOCK_DGRAM).sendto(b"nobody", address)  # the pod's kernel says so: an error
        group = pod.make(socket.SOCK_DGRAM)
        group.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if is_ipv6:
            group.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, _index_of_eth0(made))
            group.sendto(b"all", ("ff02::1", 4000))
        else:
            group.sendto(b"all", ("224.0.0.1", 4000))
            group.sendto(b"all", ("198.18.0.255", 4000))
        time.sleep(0.1)
        assert figures(made)["ICMPs sent"] == before
        assert made.counters().dropped_packets >= 2


def _index_of_eth0(made: Lab) -> int:
    return int(made.sh(made.pod, "ip -o link show eth0").partition(":")[0])


@pytest.mark.parametrize("rule", ["block=both reply=icmp", "block=both"])
def test_neighbours_are_found_through_it(made: Lab, rule: str) -> None:
    """ARP, and neighbour discovery; a ping makes the kernel look, though it does not pass."""
    node = {False: "198.18.0.1", True: "fd00:db8:0::1"}
    for is_ipv6, address in node.items():
        made.sh(made.pod, f"ip neigh del {address} dev eth0")
        try:
            with ends(made, is_ipv6=is_ipv6) as (pod, _), made.under(rule):
                raw = pod.make(socket.SOCK_RAW, 58 if is_ipv6 else 1)
                with contextlib.suppress(OSError):
                    raw.sendto(_echo(is_ipv6, next(_numbers)), (address, 0))
                time.sleep(0.3)
                shown = made.sh(made.pod, f"ip neigh show {address} dev eth0")
        finally:
            made.sh(made.pod, f"ip neigh replace {address} lladdr 02:00:00:00:00:01 nud permanent dev eth0")
        assert "lladdr 02:00:00:00:00:01" in shown


def test_silence_at_the_cgroup_hook(made: Lab) -> None:
    with made.under("block=egress hook=cgroup"):
        (path,) = (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters")
        asking = made.in_pod(["timeout", "0.5", "bash", "-c", "echo > /dev/udp/198.18.1.2/4000; sleep 0.1"])
        asking.communicate()
        counters = bpf_syscall.pinned_counters(path)
        assert counters is not None and counters.dropped_packets >= 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("rule", ["block=egress reply=rst", "block=egress reply=rst cut=yes"])
def test_on_shared_interfaces_the_cgroups_packets_are_answered_and_no_others(
    made: Lab, rule: str, host: str
) -> None:
    """Also on loopback, where what is sent arrives."""
    family = "AF_INET6" if ":" in host else "AF_INET"
    connecting = (
        "import errno, socket\n"
        f"server = socket.create_server(({host!r}, 0), family=socket.{family})\n"
        f"client = socket.socket(socket.{family})\n"
        "client.settimeout(1)\n"
        "found = client.connect_ex(server.getsockname())\n"
        "print(errno.errorcode.get(found, found))\n"
    )
    command = [sys.executable, "-c", connecting]
    assert made.podmgr("run", "-q", "--rule", rule, "--", *command).strip() == "ECONNREFUSED"
    other = subprocess.run(inside(made.node, command), capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "0"


def test_in_the_shadow_nothing_is_blocked_or_answered(made: Lab) -> None:
    rule = "block=egress reply=rst cut=yes mode=shadow"
    with case(made, "egress", is_ipv6=False) as it, made.under(rule):
        assert it.sender.connect(it.there).what == "done"
        assert it.send_in_open().what == "silence"
        assert it.other_open.recv(16) == b"sent"
        told = figures(made)
        assert made.counters().dropped_packets > 0
    assert told["cut"] >= 1


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_one_peer_and_port_are_blocked_and_others_not(made: Lab, direction: str) -> None:
    with case(made, direction, is_ipv6=False) as it:
        port = it.there.getsockname()[1]
        others = it.other.listener()
        match = f"peer={WORLD} port={port}" if direction == "egress" else f"peer={WORLD} local-port={port}"
        with made.under(f"block={direction} reply=rst cut=yes {match}"):
            assert it.sender.connect(it.there).what == "ECONNREFUSED"
            assert it.sender.connect(others).what == "done"
            assert it.send_in_open().what == "silence"
            assert it.other_open.recv(16) == b"sent"
