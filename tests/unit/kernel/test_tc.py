"""Interfaces, qdiscs and filters: messages as the kernel sends them, and for real in a namespace."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from podmgr.errors import PodmgrError
from podmgr.kernel import bpf_syscall, netlink
from podmgr.kernel.netlink import RefusedError, RouteSocket, attribute
from podmgr.kernel.tc import Filter, FqLimits, Interface, Qdisc, TrafficControl, fq_options
from tests.unit.samples import EGRESS, HEADERS, INGRESS, LICENCE, PROGRAM, bpf_object

UP, LOOPBACK = 0x1, 0x8
ROOT = 0xFFFFFFFF


def number(value: int) -> bytes:
    return struct.pack("=i", value)


def link(index: int, name: str, *attributes: bytes, flags: int = UP) -> bytes:
    """linux/rtnetlink.h, struct ifinfomsg; IFLA_IFNAME."""
    head = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    return head + attribute(3, os.fsencode(name) + b"\0") + b"".join(attributes)


def kind(name: str, slave: str = "") -> bytes:
    """IFLA_LINKINFO with IFLA_INFO_KIND and IFLA_INFO_SLAVE_KIND."""
    told = attribute(1, name.encode() + b"\0") if name else b""
    return attribute(18, told + (attribute(4, slave.encode() + b"\0") if slave else b""))


def route(*attributes: bytes, length: int = 0, table: int = 254, kind: int = 1) -> bytes:
    """struct rtmsg: a default route of the main table, unless it is said otherwise."""
    return struct.pack("=8BI", 2, length, 0, 0, table, 3, 0, kind, 0) + b"".join(attributes)


def qdisc(index: int, name: str, handle: int, parent: int) -> bytes:
    """struct tcmsg; TCA_KIND."""
    return struct.pack("=BxxxiIII", 0, index, handle, parent, 2) + attribute(1, name.encode() + b"\0")


def root(index: int, name: str) -> bytes:
    return qdisc(index, name, 0x80010000, ROOT)


def child(index: int, name: str, number: int) -> bytes:
    return qdisc(index, name, 0, 0x10000 | number)


def tc_filter(name: str, priority: int, handle: int, *options: bytes, has_options: bool = True) -> bytes:
    head = struct.pack("=BxxxiIII", 0, 2, handle, 0xFFFFFFF3, priority << 16 | 0x0300)
    told = attribute(2, b"".join(options)) if has_options else b""
    return head + attribute(1, name.encode() + b"\0") + told


LO = link(1, "lo", flags=UP | LOOPBACK)
ETH0 = link(2, "eth0", attribute(5, number(9)), kind("veth"), attribute(37, number(0)))
ETH1 = link(3, "eth1")
VIA_ETH0, VIA_ETH1 = (route(attribute(4, number(index))) for index in (2, 3))
OVER_TWO = route(attribute(9, b"".join(struct.pack("=HBBi", 8, 0, 0, index) for index in (2, 3))))
LO_ROOT = qdisc(1, "noqueue", 0, ROOT)


class Recorded(RouteSocket):
    """A socket that gives the same answers, by the type of the message, and keeps what it was asked."""

    def __init__(self, answers: dict[int, Sequence[bytes]]) -> None:
        self.answers = answers
        self.asked: list[tuple[int, bytes]] = []

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        self.asked.append((kind, body))
        return list(self.answers.get(kind, ()))


def answering(
    links: Sequence[bytes] = (),
    routes: Sequence[bytes] = (),
    qdiscs: Sequence[bytes] = (),
    filters: Sequence[bytes] = (),
) -> TrafficControl:
    return TrafficControl(Recorded({18: links, 26: routes, 38: qdiscs, 46: filters}))


# Interfaces


def test_interface_is_read_with_its_other_end() -> None:
    port = link(9, "cali1", attribute(10, number(4)), kind("veth"), flags=0)
    assert answering(links=[LO, ETH0, port]).interfaces() == [
        Interface(1, "lo", "", True, True, None, None, None),
        Interface(2, "eth0", "veth", True, False, None, 9, 0),
        Interface(9, "cali1", "veth", False, False, 4, None, None),
    ]


@pytest.mark.parametrize(
    ("more", "is_port"),
    [
        ([], False),
        ([attribute(10, number(4))], True),
        ([attribute(10, number(4)), kind("", "bridge")], True),
        ([attribute(10, number(4)), kind("", "vrf")], False),
    ],
)
def test_port_of_a_bridge_is_not_the_end_of_the_way_but_a_vrf_is_no_device(
    more: list[bytes], is_port: bool
) -> None:
    (found,) = answering(links=[link(3, "eth1", *more)]).interfaces()
    assert found.is_port is is_port


@pytest.mark.parametrize("name", ["a b", "x\x01y", "#x", 'a"b', "\udcff"])
def test_name_may_be_whatever_the_kernel_allows(name: str) -> None:
    assert [item.name for item in answering(links=[link(2, name)]).interfaces()] == [name]


def test_limits_of_an_fq_are_read_as_they_are_written() -> None:
    limits = FqLimits(250_000, 1_000, 30 * 10**9)
    row = root(2, "fq") + attribute(2, fq_options(limits) + attribute(3, number(3028)))
    assert answering(qdiscs=[row]).qdiscs() == {2: [Qdisc("fq", "8001:", True, limits)]}


def test_options_that_are_changed_are_those_of_the_root(namespace: int, control: TrafficControl) -> None:
    one, limit = index_of(control, "one"), struct.pack("=I", 77)  # struct tc_fifo_qopt
    with pytest.raises(RefusedError):
        control.change_root(one, "pfifo", "7ab0:", limit)
    control.add_root(one, "pfifo", "7ab0:")
    control.change_root(one, "pfifo", "7ab0:", limit)
    assert "limit 77p" in inside(namespace, "tc", "qdisc", "show", "dev", "one")


def test_qdiscs_are_by_interface() -> None:
    rows = [root(2, "mq"), child(2, "fq", 1), LO_ROOT, qdisc(3, "clsact", 0xFFFF0000, 0xFFFFFFF1)]
    assert answering(qdiscs=rows).qdiscs() == {
        2: [Qdisc("mq", "8001:", True), Qdisc("fq", "0:", False)],
        1: [Qdisc("noqueue", "0:", True)],
        3: [Qdisc("clsact", "ffff:", False)],
    }


# fq


@pytest.mark.parametrize(
    ("links", "routes", "qdiscs", "lacking"),
    [
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT, root(2, "fq")], {}),
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT, root(2, "noqueue")], {"eth0": "noqueue"}),
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT, root(2, "fq_codel")], {"eth0": "fq_codel"}),
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT], {"eth0": "none"}),
        ([LO, ETH0], [VIA_ETH0], [root(2, "htb"), child(2, "fq", 1)], {"eth0": "htb"}),
        (
            [LO, ETH0],
            [VIA_ETH0],
            [root(2, "mq"), child(2, "fq", 1), child(2, "fq", 2)],
            {},
        ),
        (
            [LO, ETH0],
            [VIA_ETH0],
            [root(2, "mq"), child(2, "fq", 1), child(2, "pfifo_fast", 2)],
            {"eth0": "mq"},
        ),
        ([LO, ETH0], [VIA_ETH0], [root(2, "mq")], {"eth0": "mq"}),
        ([LO, ETH0, ETH1], [VIA_ETH0], [root(2, "fq"), root(3, "noqueue")], {}),
        ([LO, ETH0, ETH1], [VIA_ETH0], [root(2, "noqueue"), root(3, "fq")], {"eth0": "noqueue"}),
        ([LO, ETH0, ETH1], [], [root(2, "fq"), root(3, "noqueue")], {"eth1": "noqueue"}),
        ([LO, ETH0, ETH1], [OVER_TWO], [root(2, "fq"), root(3, "fq")], {}),
        ([LO, ETH0, link(3, "eth1", flags=0)], [], [root(2, "fq"), root(3, "noqueue")], {}),
        ([LO], [], [LO_ROOT], {}),
        ([], [], [], {}),
    ],
    ids=[
        "fq",
        "a veth's noqueue",
        "another qdisc",
        "no qdisc",
        "fq below another qdisc",
        "fq on every queue",
        "fq on some queues",
        "queues without qdiscs",
        "only the default route's interface counts",
        "the default route's interface lacks it",
        "without a default route all count",
        "a default route over several interfaces",
        "what is down does not count",
        "only loopback",
        "nothing",
    ],
)
def test_interfaces_that_leave_the_namespace_without_fq_are_named(
    links: list[bytes], routes: list[bytes], qdiscs: list[bytes], lacking: dict[str, str]
) -> None:
    assert answering(links=links, routes=routes, qdiscs=qdiscs).without_fq() == lacking


@pytest.mark.parametrize("hook", ["clsact", "ingress"])
def test_hooks_beside_the_queues_do_not_count(hook: str) -> None:
    qdiscs = [root(2, "mq"), child(2, "fq", 1), child(2, "fq", 2)]
    qdiscs.append(qdisc(2, hook, 0xFFFF0000, 0xFFFFFFF1))
    assert answering(links=[ETH0], routes=[VIA_ETH0], qdiscs=qdiscs).without_fq() == {}


@pytest.mark.parametrize(
    "other",
    [
        route(attribute(4, number(3)), length=24),
        route(attribute(4, number(3)), table=255),
        route(attribute(4, number(3)), kind=7),
        route(),
    ],
    ids=["to a network", "of another table", "unreachable", "without an interface"],
)
def test_routes_that_do_not_lead_out_do_not_count(other: bytes) -> None:
    qdiscs = [root(2, "fq"), root(3, "noqueue")]
    assert answering([ETH0, ETH1], [VIA_ETH0, other], qdiscs).without_fq() == {}
    assert answering([ETH0, ETH1], [VIA_ETH0, VIA_ETH1], qdiscs).without_fq() == {"eth1": "noqueue"}


# Filters. A list of filters has a row of its own, without options, before them.


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([tc_filter("bpf", 7, 0, has_options=False)], []),
        ([tc_filter("bpf", 7, 5, attribute(11, number(92)))], [Filter(7, 5, 92)]),
        ([tc_filter("bpf", 7, 5, attribute(7, b"bytecode\0"))], [Filter(7, 5, None)]),
        ([tc_filter("u32", 8, 0x80000000, attribute(11, number(92)))], [Filter(8, 0x80000000, None)]),
        ([tc_filter("matchall", 0xC000, 1)], [Filter(0xC000, 1, None)]),
    ],
    ids=[
        "none",
        "a head",
        "a program",
        "classic BPF",
        "another kind, with an option of that number",
        "matchall",
    ],
)
def test_filter_is_known_by_its_program(rows: list[bytes], expected: list[Filter]) -> None:
    assert answering(filters=rows).filters(2, EGRESS) == expected


@pytest.mark.parametrize(("side", "parent"), [(EGRESS, 0xFFFFFFF3), (INGRESS, 0xFFFFFFF2)])
def test_filters_are_asked_for_by_interface_and_side(side: Any, parent: int) -> None:
    recorded = Recorded({})
    TrafficControl(recorded).filters(2, side)
    assert recorded.asked == [(46, struct.pack("=BxxxiIII", 0, 2, 0, parent, 0))]


# For real, in a network namespace of its own


@pytest.fixture
def namespace(stranger: int) -> Iterator[int]:
    """A namespace with a veth pair, of which `one` is up; its descriptor."""
    fd = os.open(f"/proc/{stranger}/ns/net", os.O_RDONLY)
    inside(fd, "ip", "link", "add", "one", "type", "veth", "peer", "name", "other")
    inside(fd, "ip", "link", "set", "one", "up")
    yield fd
    os.close(fd)


@pytest.fixture
def control(namespace: int) -> Iterator[TrafficControl]:
    with netlink.opened(namespace) as route:
        yield TrafficControl(route)


@pytest.fixture
def pin(tmp_path: Path) -> Iterator[Path]:
    """A pinned program for tc."""
    (tmp_path / "x.o").write_bytes(bpf_object(HEADERS + LICENCE + PROGRAM.replace("cgroup_skb/egress", "tc")))
    pin = Path(f"/sys/fs/bpf/podmgr-test-tc-{os.getpid()}")
    subprocess.run(["bpftool", "prog", "load", tmp_path / "x.o", pin, "type", "classifier"], check=True)
    yield pin
    pin.unlink()


def inside(fd: int, *argv: str) -> str:
    command = ["nsenter", f"--net=/proc/self/fd/{fd}", *argv]
    return subprocess.run(command, check=True, pass_fds=[fd], capture_output=True, text=True).stdout


def index_of(control: TrafficControl, name: str) -> int:
    (found,) = [item.index for item in control.interfaces() if item.name == name]
    return found


def test_real_interfaces_are_read(control: TrafficControl) -> None:
    found = {item.name: item for item in control.interfaces()}
    assert {"lo", "one", "other"} <= found.keys()
    assert (found["lo"].is_loopback, found["lo"].kind) == (True, "")
    assert (found["one"].is_up, found["other"].is_up) == (True, False)
    assert found["one"].kind == found["other"].kind == "veth"
    assert found["one"].peer_namespace_id is None


def test_real_port_of_a_bridge_is_one(namespace: int, control: TrafficControl) -> None:
    inside(namespace, "ip", "link", "add", "br0", "type", "bridge")
    inside(namespace, "ip", "link", "set", "one", "master", "br0")
    assert {item.name for item in control.interfaces() if item.is_port} == {"one"}


def test_real_veth_says_where_its_other_end_is(
    namespace: int, control: TrafficControl, make_stranger: Any
) -> None:
    inside(namespace, "ip", "link", "set", "other", "netns", str(make_stranger()))
    (one,) = [item for item in control.interfaces() if item.name == "one"]
    assert one.peer_index is not None
    assert one.peer_namespace_id is not None


def test_real_default_route_says_what_leads_out(namespace: int, control: TrafficControl) -> None:
    inside(namespace, "ip", "link", "set", "other", "up")
    assert control.without_fq() == {"one": "noqueue", "other": "noqueue"}
    inside(namespace, "ip", "address", "add", "10.9.9.1/24", "dev", "one")
    inside(namespace, "ip", "route", "add", "default", "via", "10.9.9.2")
    assert control.without_fq() == {"one": "noqueue"}
    inside(namespace, "ip", "-6", "route", "add", "default", "dev", "other")
    assert control.without_fq() == {"one": "noqueue", "other": "noqueue"}


def test_real_clsact_is_made_once_and_removed(control: TrafficControl) -> None:
    one = index_of(control, "one")

    def kinds() -> list[str]:
        return sorted(item.kind for item in control.qdiscs()[one])

    assert kinds() == ["noqueue"]
    control.add_clsact(one)
    assert kinds() == ["clsact", "noqueue"]
    with pytest.raises(RefusedError, match="Exclusivity flag on"):
        control.add_clsact(one)
    control.delete_clsact(one)
    assert kinds() == ["noqueue"]
    with pytest.raises(RefusedError):
        control.delete_clsact(one)


def test_real_root_is_made_under_its_handle_where_there_is_none(
    namespace: int, control: TrafficControl
) -> None:
    one, other = index_of(control, "one"), index_of(control, "other")
    inside(namespace, "tc", "qdisc", "add", "dev", "other", "root", "handle", "5:", "pfifo")
    control.add_root(one, "pfifo", "7ab0:")
    assert control.qdiscs()[one] == [Qdisc("pfifo", "7ab0:", True)]
    with pytest.raises(RefusedError):
        control.add_root(other, "pfifo", "7ab0:")
    assert control.qdiscs()[other] == [Qdisc("pfifo", "5:", True)]
    control.delete_root(one)
    assert control.qdiscs()[one] == [Qdisc("noqueue", "0:", True)]


def test_real_qdisc_that_there_is_not_is_refused_in_the_kernels_words(control: TrafficControl) -> None:
    with pytest.raises(RefusedError, match="Specified qdisc kind is unknown") as caught:
        control.add_root(index_of(control, "one"), "nosuch", "7ab0:")
    assert caught.value.errno == 2


def test_real_interface_that_there_is_not_has_nothing_and_takes_nothing(control: TrafficControl) -> None:
    assert control.filters(99, EGRESS) == []
    assert 99 not in control.qdiscs()
    with pytest.raises(RefusedError):
        control.add_clsact(99)


def test_real_filter_is_told_by_its_program_and_taken_off_alone(
    namespace: int, control: TrafficControl, pin: Path
) -> None:
    one, program_id = index_of(control, "one"), bpf_syscall.pinned_program_id(pin)
    control.add_clsact(one)
    control.add_filter(one, EGRESS, 100, 5, pin)
    control.add_filter(one, EGRESS, 100, 6, pin)
    assert control.filters(one, INGRESS) == []
    assert sorted(control.filters(one, EGRESS)) == [Filter(100, 5, program_id), Filter(100, 6, program_id)]
    shown = inside(namespace, "tc", "filter", "show", "dev", "one", "egress")
    assert f"protocol all pref 100 bpf chain 0 handle 0x5 {pin.name} direct-action" in shown
    with pytest.raises(RefusedError):
        control.add_filter(one, EGRESS, 100, 5, pin)
    control.delete_filter(one, EGRESS, 100, 5)
    assert control.filters(one, EGRESS) == [Filter(100, 6, program_id)]
    with pytest.raises(RefusedError):
        control.delete_filter(one, EGRESS, 100, 5)


def test_real_filters_that_tc_made_are_read_like_our_own(
    namespace: int, control: TrafficControl, pin: Path
) -> None:
    one, program_id = index_of(control, "one"), bpf_syscall.pinned_program_id(pin)
    inside(namespace, "tc", "qdisc", "add", "dev", "one", "clsact")
    words = f"filter add dev one ingress protocol all prio 7 handle 5 bpf direct-action object-pinned {pin}"
    inside(namespace, "tc", *words.split())
    words = "filter add dev one ingress protocol ip prio 9 u32 match u32 0 0 classid 1:1"
    inside(namespace, "tc", *words.split())
    found = control.filters(one, INGRESS)
    assert found[0] == Filter(7, 5, program_id)
    assert {(item.priority, item.program_id) for item in found[1:]} == {(9, None)}
    control.delete_filter(one, INGRESS, 7, 5)
    assert Filter(7, 5, program_id) not in control.filters(one, INGRESS)


def test_pin_that_is_gone_is_an_error_and_leaves_no_descriptor(
    control: TrafficControl, tmp_path: Path
) -> None:
    control.add_clsact(index_of(control, "one"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PodmgrError):
        control.add_filter(index_of(control, "one"), EGRESS, 100, 5, tmp_path / "nothing")
    assert os.listdir("/proc/self/fd") == before


def test_real_programs_descriptor_is_closed(control: TrafficControl, pin: Path) -> None:
    control.add_clsact(index_of(control, "one"))
    before = os.listdir("/proc/self/fd")
    control.add_filter(index_of(control, "one"), EGRESS, 100, 5, pin)
    assert os.listdir("/proc/self/fd") == before
