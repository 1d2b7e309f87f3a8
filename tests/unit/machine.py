"""A machine without a kernel: namespaces with interfaces, qdiscs and filters, and a `tc` for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podmgr.cgroups import Cgroup
from podmgr.netns import Namespaces
from podmgr.proc import Completed
from podmgr.tc import Filter, Qdisc
from tests.unit.samples import said

FIRST_FD = 1000  # a namespace's descriptor is its number and this

DEFAULT = Qdisc("noqueue", "0:", None, True)
CLSACT = Qdisc("clsact", "ffff:", "ffff:fff1", False)


@dataclass
class Device:
    """An interface; filters by side."""

    name: str
    qdiscs: list[Qdisc] = field(default_factory=lambda: [DEFAULT])
    filters: dict[str, list[Filter]] = field(default_factory=dict)


@dataclass
class Machine(Namespaces):
    """Namespaces by number, each with interfaces by number. A program's pin holds its number.

    `refusals`: what tc says of a command that begins with these words. `meanwhile` is done
    before the next commands that change something.
    """

    namespaces: dict[int, dict[int, Device]]
    refusals: dict[str, str] = field(default_factory=dict)
    meanwhile: Callable[[], None] = lambda: None
    changes: list[tuple[int, str]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    near: dict[int, Cgroup | None] = field(default_factory=dict)
    fds: list[tuple[int, ...]] = field(default_factory=list)

    def descriptor(self, inode: int, near: Cgroup | None = None) -> int | None:
        self.near.setdefault(inode, near)
        return FIRST_FD + inode if inode in self.namespaces else None

    def all(self) -> list[int]:
        return list(self.namespaces)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", pass_fds: Sequence[int] = ()) -> Completed:
        fd = pass_fds[0]
        assert list(argv[:2]) == ["nsenter", f"--net=/proc/self/fd/{fd}"]
        namespace, command = fd - FIRST_FD, " ".join(argv[2:])
        devices = self.namespaces[namespace]
        if command == "ip -j -d link show":
            return said(json.dumps([{"ifindex": key, "ifname": item.name} for key, item in devices.items()]))
        if command == "tc -j qdisc show":
            return said(
                json.dumps([_told(item.name, qdisc) for item in devices.values() for qdisc in item.qdiscs])
            )
        lines = stdin.decode().splitlines()
        if command == "tc -force -j -batch -":
            self.asked.append(namespace)
            return said("".join(json.dumps(self._filters(devices, line)) + "\n" for line in lines))
        assert command == "tc -force -batch -"
        self.meanwhile()
        self.fds.append(tuple(pass_fds))
        stderr = ""
        for number, line in enumerate(lines, start=1):
            self.changes.append((namespace, re.sub(r"/proc/self/fd/\d+/", "BPFFS/", line)))
            reason = self._change(devices, line.split())
            stderr += f"{reason}\nCommand failed -:{number}\n" if reason else ""
        return said("", code=1 if stderr else 0, stderr=stderr)

    def _filters(self, devices: dict[int, Device], line: str) -> list[dict[str, Any]]:
        name, side = re.fullmatch(r"filter show dev (\S+) (egress|ingress)", line).groups()  # type: ignore[union-attr]
        device = _named(devices, name)
        return [
            {
                "pref": item.priority,
                "options": {"handle": hex(item.handle)}
                | ({"prog": {"id": item.program_id}} if item.program_id is not None else {}),
            }
            for item in (device.filters.get(side, []) if device else [])
        ]

    def _change(self, devices: dict[int, Device], words: list[str]) -> str:
        """Why it cannot be done; "" if it is."""
        line = " ".join(words)
        for start, reason in self.refusals.items():
            if line.startswith(start):
                return reason
        device = _named(devices, words[3])
        if device is None:
            return "RTNETLINK answers: No such device"
        if words[0] == "qdisc":
            return _change_qdisc(device, words[1], words[4:])
        named = dict(zip(words[5::2], words[6::2], strict=False))
        there = device.filters.setdefault(words[4], [])
        key = (int(named["prio"]), int(named["handle"], 16))
        found = [item for item in there if (item.priority, item.handle) == key]
        if not any(item.kind == "clsact" for item in device.qdiscs):
            return "Error: Parent Qdisc doesn't exists."
        if words[1] == "del":
            if not found:
                return "Error: Filter with specified priority/protocol not found."
            there.remove(found[0])
            return ""
        if found:
            return "RTNETLINK answers: File exists"
        pin = Path(words[-1])
        if not pin.exists():
            return f"Couldn't retrieve pinned program '{pin}'"
        there.append(Filter(*key, int(pin.read_text())))
        return ""


def _named(devices: dict[int, Device], name: str) -> Device | None:
    return next((device for device in devices.values() if device.name == name), None)


def _told(name: str, qdisc: Qdisc) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": qdisc.kind, "handle": qdisc.handle, "dev": name}
    row |= {"parent": qdisc.parent} if qdisc.parent else {}
    return row | ({"root": True} if qdisc.is_root else {})


def _change_qdisc(device: Device, verb: str, words: list[str]) -> str:
    if verb == "del":
        doomed = [item for item in device.qdiscs if item.is_root if words == ["root"]]
        doomed += [item for item in device.qdiscs if words == [item.kind] and not item.is_root]
        for item in doomed:
            device.qdiscs.remove(item)
        if words == ["clsact"]:
            device.filters.clear()
        if words == ["root"]:
            device.qdiscs.append(DEFAULT)
        return "" if doomed else "Error: Invalid handle."
    if words == ["clsact"]:
        if any(item.kind in ("clsact", "ingress") for item in device.qdiscs):
            return "Error: Exclusivity flag on, cannot modify."
        device.qdiscs.append(CLSACT)
        return ""
    if any(item.is_root and item.handle != "0:" for item in device.qdiscs):
        return "Error: Exclusivity flag on, cannot modify."
    assert words[:2] == ["root", "handle"]
    device.qdiscs = [item for item in device.qdiscs if not item.is_root]
    device.qdiscs.append(Qdisc(words[3], words[2], None, True))
    return ""
