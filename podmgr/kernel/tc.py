"""The traffic control of a network namespace: interfaces, their qdiscs, and filters of clsact.

What may be changed is the caller's business; whether it was done is read back by the caller.
The messages are those of linux/rtnetlink.h, linux/if_link.h and linux/pkt_sched.h.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from podmgr.kernel import bpf_syscall, netlink
from podmgr.kernel.netlink import RouteSocket, attribute, attributes, text
from podmgr.rules.rule import Direction

HOOKS = ("clsact", "ingress")  # listed as qdiscs, but they queue nothing

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_GETLINK, _GETROUTE = 18, 26

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, changed flags
_ROUTE = struct.Struct("=8BI")  # family, two prefix lengths, tos, table, protocol, scope, type, flags
_TC = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info

_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 5, 10, 18, 37
_IFLA_STATS64 = 23
_COUNTED = struct.Struct("=4Q")  # struct rtnl_link_stats64: packets received, sent, bytes received, sent
_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND = 1, 4
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_RTA_OIF, _RTA_MULTIPATH = 4, 9
_RTN_UNICAST, _RT_TABLE_MAIN = 1, 254

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_CLASSID, _TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 3, 6, 7, 8, 11
_BPF_DIRECT_ACTION = 1
_TCA_FQ_LIMIT, _TCA_FQ_FLOW_LIMIT, _TCA_FQ_TIMER_SLACK, _TCA_FQ_HORIZON = 1, 2, 13, 14

_LOOPBACK_INDEX = 1  # in each namespace
_NS_PER_US = 1_000
_TIMER_SLACK_NS = 1_000  # the kernel's 10 us would be the largest error of a delay

_ROOT = 0xFFFFFFFF
_CLSACT = 0xFFFFFFF1
_CLSACT_HANDLE = 0xFFFF0000
_SIDES = {Direction.INGRESS: 0xFFFFFFF2, Direction.EGRESS: 0xFFFFFFF3}
_ALL_PROTOCOLS = int.from_bytes((3).to_bytes(2, "big"), sys.byteorder)  # ETH_P_ALL


class Interface(NamedTuple):
    """An interface. `peer_index` and `peer_namespace_id` are a veth's other end, or what lies below.

    `peer_namespace_id` is None if that is in the same namespace, or nothing.
    """

    index: int  # type: ignore[assignment]  # a tuple's method of that name is not missed
    name: str
    kind: str
    is_up: bool
    is_loopback: bool
    master_index: int | None  # of the bridge or the bond that it is a port of, not of a VRF
    peer_index: int | None
    peer_namespace_id: int | None

    @property
    def is_port(self) -> bool:
        """Whether what passes it may pass a bridge or a bond too."""
        return self.master_index is not None


class FqLimits(NamedTuple):
    """How many packets an fq holds, altogether and of each flow, and how far in the future they may leave.

    The kernel counts the horizon in microseconds.
    """

    packets: int
    flow_packets: int
    horizon_ns: int


class Qdisc(NamedTuple):
    """`handle` "0:" is the kernel's own default. `limits` are those of an fq."""

    kind: str
    handle: str
    is_root: bool
    limits: FqLimits | None = None


class Filter(NamedTuple):
    """A filter of clsact; `program_id` None if it runs no BPF program."""

    priority: int
    handle: int
    program_id: int | None


class Traffic(NamedTuple):
    """What an interface has counted on one side; a GSO packet is one."""

    packets: int
    bytes: int


class TrafficControl:
    """That of one namespace. What is asked of an interface that is not there has an empty answer."""

    def __init__(self, route: RouteSocket) -> None:
        self._route = route

    def interfaces(self) -> list[Interface]:
        """All interfaces of the namespace."""
        return [_interface(answer) for answer in self._route.dump(_GETLINK, bytes(_LINK.size))]

    def traffic(self) -> dict[tuple[int, Direction], Traffic]:
        """What each interface has received and sent, by its index."""
        found = {}
        for answer in self._route.dump(_GETLINK, bytes(_LINK.size)):
            _, _, index, _, _ = _LINK.unpack_from(answer)
            counted = attributes(answer, _LINK.size).get(_IFLA_STATS64)
            if counted is not None:
                received, sent, received_bytes, sent_bytes = _COUNTED.unpack_from(counted)
                found[index, Direction.INGRESS] = Traffic(received, received_bytes)
                found[index, Direction.EGRESS] = Traffic(sent, sent_bytes)
        return found

    def qdiscs(self) -> dict[int, list[Qdisc]]:
        """The qdiscs of each interface, by its index."""
        found: dict[int, list[Qdisc]] = {}
        for answer in self._route.dump(_GETQDISC, bytes(_TC.size)):
            _, index, handle, parent, _ = _TC.unpack_from(answer)
            told = attributes(answer, _TC.size)
            kind = text(told.get(_TCA_KIND, b""))
            limits = fq_limits(told.get(_TCA_OPTIONS, b"")) if kind == "fq" else None
            found.setdefault(index, []).append(Qdisc(kind, f"{handle >> 16:x}:", parent == _ROOT, limits))
        return found

    def filters(self, index: int, side: Direction) -> list[Filter]:
        """The filters of clsact on that side of the interface."""
        found = []
        for answer in self._route.dump(_GETTFILTER, _TC.pack(0, index, 0, _SIDES[side], 0)):
            *_, handle, _, info = _TC.unpack_from(answer)
            told = attributes(answer, _TC.size)
            if _TCA_OPTIONS in told:  # without, it is the head of a list of filters
                kind, options = text(told.get(_TCA_KIND, b"")), attributes(told[_TCA_OPTIONS])
                is_program = kind == "bpf" and _TCA_BPF_ID in options
                found.append(
                    Filter(info >> 16, handle, _number(options[_TCA_BPF_ID]) if is_program else None)
                )
        return found

    def add_filter(
        self, index: int, side: Direction, priority: int, handle: int, pin: Path, class_id: int = 0
    ) -> None:
        """A pinned program that gives the verdict itself. Never takes the place of another filter.

        The program finds `class_id`, a number of the filter's own, in `skb->tc_classid`.
        Raises RefusedError; PodmgrError if nothing is pinned there.
        """
        fd = bpf_syscall.open_pin(pin)
        try:
            options = (
                attribute(_TCA_BPF_FD, struct.pack("=I", fd))
                + attribute(_TCA_BPF_NAME, os.fsencode(pin.name) + b"\0")
                + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _BPF_DIRECT_ACTION))
                + (attribute(_TCA_BPF_CLASSID, struct.pack("=I", class_id)) if class_id else b"")
            )
            self._route.create(
                _NEWTFILTER, _filter(index, side, priority, handle) + attribute(_TCA_OPTIONS, options)
            )
        finally:
            os.close(fd)

    def delete_filter(self, index: int, side: Direction, priority: int, handle: int) -> None:
        """That filter alone. Raises RefusedError."""
        self._route.delete(_DELTFILTER, _filter(index, side, priority, handle))

    def add_clsact(self, index: int) -> None:
        """Raises RefusedError, also if it is there already."""
        self._route.create(_NEWQDISC, _qdisc(index, _CLSACT_HANDLE, _CLSACT, "clsact"))

    def delete_clsact(self, index: int) -> None:
        """With all filters on it. Raises RefusedError."""
        self._route.delete(_DELQDISC, _qdisc(index, _CLSACT_HANDLE, _CLSACT, "clsact"))

    def add_root(self, index: int, kind: str, handle: str, options: bytes = b"") -> None:
        """Fails where a root qdisc is that the kernel did not make by itself. Raises RefusedError."""
        self._route.create(_NEWQDISC, _root(index, kind, handle, options))

    def change_root(self, index: int, kind: str, handle: str, options: bytes) -> None:
        """Other options for the root qdisc, which keeps what waits in it. Raises RefusedError."""
        self._route.change(_NEWQDISC, _root(index, kind, handle, options))

    def delete_root(self, index: int) -> None:
        """Raises RefusedError."""
        self._route.delete(_DELQDISC, _TC.pack(0, index, 0, _ROOT, 0))

    def without_fq(self) -> dict[str, str]:
        """Interface to its root qdisc, for those that lead out of the namespace without fq.

        Those are the interfaces of the default routes, or all that are up.
        """
        up = [item for item in self.interfaces() if item.is_up and not item.is_loopback]
        defaults = self._default_interfaces()
        leading = [item for item in up if item.index in defaults] or up
        found = self.qdiscs()
        roots = {item.name: root_kind(found.get(item.index, ())) for item in leading}
        return {name: kind for name, kind in roots.items() if kind != "fq"}

    def _default_interfaces(self) -> set[int]:
        """The indexes of the interfaces that default routes lead through."""
        found = set()
        for answer in self._route.dump(_GETROUTE, bytes(_ROUTE.size)):
            _, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(answer)
            if (length, table, kind) == (0, _RT_TABLE_MAIN, _RTN_UNICAST):
                told = attributes(answer, _ROUTE.size)
                found |= {_number(told[_RTA_OIF])} if _RTA_OIF in told else set()
                found |= set(_next_hops(told.get(_RTA_MULTIPATH, b"")))
        return found


def require_qdisc(kind: str) -> None:
    """Raise PodmgrError if the kernel lacks the qdisc, or we may not make it.

    Tried on the loopback interface of a namespace that is gone a moment later.
    """
    try:
        with netlink.opened(None) as route:
            TrafficControl(route).add_root(_LOOPBACK_INDEX, kind, "1:")
    except netlink.RefusedError as error:
        if error.errno != errno.EINVAL:  # which netem says: it must be told a delay
            raise


def fq_options(limits: FqLimits) -> bytes:
    """As options of a qdisc, which then wakes as exactly as it can."""
    packets, flow_packets, horizon_ns = limits
    numbers = {
        _TCA_FQ_LIMIT: packets,
        _TCA_FQ_FLOW_LIMIT: flow_packets,
        _TCA_FQ_TIMER_SLACK: _TIMER_SLACK_NS,
        _TCA_FQ_HORIZON: horizon_ns // _NS_PER_US,
    }
    return b"".join(attribute(kind, struct.pack("=I", number)) for kind, number in numbers.items())


def fq_limits(options: bytes) -> FqLimits | None:
    """What the options of an fq say; None if not all of it."""
    told = attributes(options)
    if not {_TCA_FQ_LIMIT, _TCA_FQ_FLOW_LIMIT, _TCA_FQ_HORIZON} <= told.keys():
        return None
    return FqLimits(
        _number(told[_TCA_FQ_LIMIT]),
        _number(told[_TCA_FQ_FLOW_LIMIT]),
        _number(told[_TCA_FQ_HORIZON]) * _NS_PER_US,
    )


def root_kind(found: Iterable[Qdisc]) -> str:
    """ "fq" also for a multi-queue interface with nothing but fq."""
    kind, children = "none", set()
    for qdisc in found:
        if qdisc.is_root:
            kind = qdisc.kind
        elif qdisc.kind not in HOOKS:
            children.add(qdisc.kind)
    return "fq" if kind == "mq" and children == {"fq"} else kind


def _interface(answer: bytes) -> Interface:
    _, _, index, flags, _ = _LINK.unpack_from(answer)
    told = attributes(answer, _LINK.size)
    info = attributes(told.get(_IFLA_LINKINFO, b""))
    peer, namespace = told.get(_IFLA_LINK), told.get(_IFLA_LINK_NETNSID)
    is_port = _IFLA_MASTER in told and text(info.get(_IFLA_INFO_SLAVE_KIND, b"")) != "vrf"
    return Interface(
        index=index,
        name=text(told[_IFLA_IFNAME]),
        kind=text(info.get(_IFLA_INFO_KIND, b"")),
        is_up=bool(flags & _IFF_UP),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        master_index=_number(told[_IFLA_MASTER]) if is_port else None,
        peer_index=None if peer is None else _number(peer),
        peer_namespace_id=None if namespace is None else int(struct.unpack("=i", namespace)[0]),
    )


def _filter(index: int, side: Direction, priority: int, handle: int) -> bytes:
    head = _TC.pack(0, index, handle, _SIDES[side], priority << 16 | _ALL_PROTOCOLS)
    return head + attribute(_TCA_KIND, b"bpf\0")


def _qdisc(index: int, handle: int, parent: int, kind: str) -> bytes:
    return _TC.pack(0, index, handle, parent, 0) + attribute(_TCA_KIND, kind.encode() + b"\0")


def _root(index: int, kind: str, handle: str, options: bytes) -> bytes:
    body = _qdisc(index, int(handle.rstrip(":"), 16) << 16, _ROOT, kind)
    return body + (attribute(_TCA_OPTIONS, options) if options else b"")


def _next_hops(data: bytes) -> Iterator[int]:
    """The interfaces of struct rtnexthop in a row."""
    offset = 0
    while offset + 8 <= len(data):
        length, index = struct.unpack_from("=Hxxi", data, offset)
        yield index
        offset += max((length + 3) & ~3, 8)


def _number(value: bytes) -> int:
    return int(struct.unpack_from("=I", value)[0])
