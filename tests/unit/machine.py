"""A machine without a kernel: namespaces with interfaces, qdiscs and filters."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from podmgr.attachment import Cgroup
from podmgr.kernel.netlink import RefusedError
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.tc import Filter, Interface, Qdisc, TrafficControl, fq_limits
from podmgr.rules.rule import Direction

DEFAULT = Qdisc("noqueue", "0:", True)
CLSACT = Qdisc("clsact", "ffff:", False)


@dataclass
class Device:
    """An interface; filters by side."""

    name: str
    qdiscs: list[Qdisc] = field(default_factory=lambda: [DEFAULT])
    filters: dict[str, list[Filter]] = field(default_factory=dict)


@dataclass
class Machine(Namespaces):
    """Namespaces by number, each with interfaces by number. A program's pin holds its number.

    `refusals`: what the kernel says of a change that begins with these words, which are tc's.
    `meanwhile` is done before every change.
    """

    namespaces: dict[int, dict[int, Device]]
    refusals: dict[str, RefusedError] = field(default_factory=dict)
    meanwhile: Callable[[], None] = lambda: None
    changes: list[tuple[int, str]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    near: dict[int, Cgroup | None] = field(default_factory=dict)

    def traffic_control(self, inode: int, near: Cgroup | None = None) -> TrafficControl | None:
        self.near.setdefault(inode, near)
        self.asked.append(inode)
        return Control(self, inode) if inode in self.namespaces else None

    def all(self) -> list[int]:
        return list(self.namespaces)


class Control(TrafficControl):
    """That of one of its namespaces; it refuses as the kernel does."""

    def __init__(self, machine: Machine, namespace: int) -> None:
        self._machine = machine
        self._namespace = namespace
        self._devices = machine.namespaces[namespace]

    def interfaces(self) -> list[Interface]:
        return [
            Interface(index, item.name, "veth", True, False, None, None, None)
            for index, item in self._devices.items()
        ]

    def qdiscs(self) -> dict[int, list[Qdisc]]:
        return {index: list(item.qdiscs) for index, item in self._devices.items()}

    def filters(self, index: int, side: Direction) -> list[Filter]:
        return list(self._devices[index].filters.get(side, ())) if index in self._devices else []

    def add_filter(
        self, index: int, side: Direction, priority: int, handle: int, pin: Path, class_id: int = 0
    ) -> None:
        place = f"{side} prio {priority} handle {handle}" + (f" class {class_id}" if class_id else "")
        device = self._changed("filter add", index, f"{place} {pin.parent.name}/{pin.name}")
        there = device.filters.setdefault(side, [])
        if not any(item.kind == "clsact" for item in device.qdiscs):
            raise RefusedError(errno.EINVAL, "Parent Qdisc doesn't exists")
        if any((item.priority, item.handle) == (priority, handle) for item in there):
            raise RefusedError(errno.EEXIST, "")
        there.append(Filter(priority, handle, int(pin.read_text())))

    def delete_filter(self, index: int, side: Direction, priority: int, handle: int) -> None:
        device = self._changed("filter del", index, f"{side} prio {priority} handle {handle}")
        there = device.filters.setdefault(side, [])
        found = [item for item in there if (item.priority, item.handle) == (priority, handle)]
        if not found:
            raise RefusedError(errno.ENOENT, "Filter with specified priority/protocol not found")
        there.remove(found[0])

    def add_clsact(self, index: int) -> None:
        device = self._changed("qdisc add", index, "clsact")
        if any(item.kind in ("clsact", "ingress") for item in device.qdiscs):
            raise RefusedError(errno.EEXIST, "Exclusivity flag on, cannot modify")
        device.qdiscs.append(CLSACT)

    def delete_clsact(self, index: int) -> None:
        device = self._changed("qdisc del", index, "clsact")
        device.qdiscs.remove(CLSACT)
        device.filters.clear()

    def add_root(self, index: int, kind: str, handle: str, options: bytes = b"") -> None:
        device = self._changed("qdisc add", index, f"root {handle} {kind}")
        assert options
        if any(item.is_root and item.handle != "0:" for item in device.qdiscs):
            raise RefusedError(errno.EEXIST, "Exclusivity flag on, cannot modify")
        device.qdiscs = [item for item in device.qdiscs if not item.is_root]
        device.qdiscs.append(Qdisc(kind, handle, True, fq_limits(options)))

    def change_root(self, index: int, kind: str, handle: str, options: bytes) -> None:
        device = self._changed("qdisc change", index, f"root {handle} {kind}")
        found = [item for item in device.qdiscs if item.is_root]
        if [(item.kind, item.handle) for item in found] != [(kind, handle)] or handle == "0:":
            raise RefusedError(errno.ENOENT, "No such file or directory")
        changed = found[0]._replace(limits=fq_limits(options))
        device.qdiscs = [changed if item.is_root else item for item in device.qdiscs]

    def delete_root(self, index: int) -> None:
        device = self._changed("qdisc del", index, "root")
        device.qdiscs = [item for item in device.qdiscs if not item.is_root]
        device.qdiscs.append(DEFAULT)

    def _changed(self, verb: str, index: int, words: str) -> Device:
        """The device that is about to change."""
        self._machine.meanwhile()
        device = self._devices.get(index)
        line = f"{verb} {device.name if device else index} {words}"
        self._machine.changes.append((self._namespace, line))
        for start, refusal in self._machine.refusals.items():
            if line.startswith(start):
                raise refusal
        if device is None:
            raise RefusedError(errno.ENODEV, "")
        return device
