"""The bpf(2) system call, and what is read by it: what hangs on a cgroup, which program a pin holds.

`bpftool cgroup show` loads the kernel's BTF at every call (13 ms a cgroup); BPF_PROG_QUERY
answers in microseconds and with an errno, so "not allowed" is never mistaken for "nothing
there". Loading, attaching and detaching are bpftool's business; what is in a map, `map_contents` changes.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from pathlib import Path
from typing import NamedTuple

from podmgr.errors import PermissionDeniedError, PodmgrError, printable
from podmgr.refusals import failed
from podmgr.rules.rule import Direction

_SYSCALL_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "armv7l": 386,
    "i686": 357,
    "ppc64le": 361,
    "s390x": 351,
}

# enum bpf_cmd and enum bpf_attach_type of linux/bpf.h
_MAP_LOOKUP_ELEM = 1
_OBJ_GET = 7
_OBJ_GET_INFO_BY_FD = 15
_PROG_GET_FD_BY_ID = 13
_PROG_QUERY = 16
_ATTACH_TYPES = {Direction.INGRESS: 0, Direction.EGRESS: 1}

BPF_F_ALLOW_OVERRIDE = 1
BPF_F_ALLOW_MULTI = 2
_BPF_F_QUERY_EFFECTIVE = 1
MAX_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS: what a cgroup and a direction can hold
_MOST_EFFECTIVE = 64 * MAX_PROGRAMS

ATTR_BYTES = 64
_Attr = ctypes.c_char * ATTR_BYTES
_PROG_INFO_BYTES = 8  # struct bpf_prog_info begins with u32 type, u32 id
_PROG_NAME = slice(64, 80)
_FIGURE = struct.Struct("=Q")
_MAP_INFO_BYTES = 24  # struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags
_BPF_MAP_TYPE_PERCPU_ARRAY = 6
_COUNTERS = struct.Struct("=4Q")
_ROW = struct.Struct("=4Q8x4Q")  # struct podmgr_row of podmgr.h; before it was, the counters alone

_libc = ctypes.CDLL(None, use_errno=True)


class AttachedPrograms(NamedTuple):
    """What hangs on one cgroup in one direction. `flags` 0 or 1 with a program: exclusive."""

    program_ids: tuple[int, ...]
    flags: int

    @property
    def is_exclusive(self) -> bool:
        return bool(self.program_ids) and not self.flags & BPF_F_ALLOW_MULTI


class Counters(NamedTuple):
    """Packets and bytes on the wire, summed over all CPUs."""

    passed_packets: int
    passed_bytes: int
    dropped_packets: int
    dropped_bytes: int


def attached_programs(cgroup_fd: int, direction: Direction) -> AttachedPrograms:
    """The programs attached to the cgroup itself, not to its ancestors.

    Raises PermissionDeniedError without the right to look (CAP_NET_ADMIN).
    """
    return _query(cgroup_fd, direction, 0, MAX_PROGRAMS)


def effective_programs(cgroup_fd: int, direction: Direction) -> tuple[int, ...]:
    """The programs that see the cgroup's packets: its own, and those of ancestors that act on it.

    Raises PermissionDeniedError without the right to look.
    """
    return _query(cgroup_fd, direction, _BPF_F_QUERY_EFFECTIVE, _MOST_EFFECTIVE).program_ids


def _query(cgroup_fd: int, direction: Direction, query_flags: int, room: int) -> AttachedPrograms:
    ids = (ctypes.c_uint32 * room)()
    attr = bytearray(ATTR_BYTES)
    # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
    struct.pack_into(
        "=IIIIQI",
        attr,
        0,
        cgroup_fd,
        _ATTACH_TYPES[direction],
        query_flags,
        0,
        ctypes.addressof(ids),
        room,
    )
    try:
        call(_PROG_QUERY, attr, "look at a cgroup's programs")
    except PodmgrError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # removed since it was opened
            return AttachedPrograms((), 0)
        raise
    flags, _, count = struct.unpack_from("=IQI", attr, 12)
    return AttachedPrograms(tuple(ids[:count]), flags)


def program_name(program_id: int) -> str:
    """What a loaded program's author calls it, as far as the kernel keeps it; "" if it cannot be told."""
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=I", attr, 0, program_id)
    try:
        fd = call(_PROG_GET_FD_BY_ID, attr, "look at a program")
    except PodmgrError:
        return ""
    try:
        return printable(_info(fd, _PROG_NAME.stop)[_PROG_NAME].partition(b"\0")[0].decode(errors="replace"))
    finally:
        os.close(fd)


def open_pin(pin: str | Path) -> int:
    """A descriptor of what is pinned there. Raises PodmgrError if nothing is."""
    fd = _open_pin(pin)
    if fd is None:
        raise PodmgrError(f"nothing is pinned at {pin}", tip="apply again")
    return fd


def pinned_program_id(pin: str | Path) -> int | None:
    """The id of the program pinned at `pin`; None if nothing is pinned there."""
    fd = _open_pin(pin)
    if fd is None:
        return None
    try:
        info = _info(fd, _PROG_INFO_BYTES)
        return int(struct.unpack_from("=I", info, 4)[0])
    finally:
        os.close(fd)


def pinned_counters(pin: str | Path, position: int = 0) -> Counters | None:
    """The sums of a pinned counter map, of the rule at that position; None if there is none.

    So it is if its layout is not the shared one.
    """
    fd = _open_pin(pin)
    if fd is None:
        return None
    try:
        kind, _, key_size, value_size, entries, *_ = struct.unpack("=6I", _info(fd, _MAP_INFO_BYTES))
        row = {layout.size: layout for layout in (_ROW, _COUNTERS)}.get(value_size)
        if row is None or (kind, key_size) != (_BPF_MAP_TYPE_PERCPU_ARRAY, 4) or position >= entries:
            return None
        sums = _sums(fd, position, row)
        count = len(Counters._fields)
        return Counters(*(sum(sums[number::count]) for number in range(count)))
    finally:
        os.close(fd)


def pinned_figures(pin: str | Path) -> list[int]:
    """The numbers of a pinned map of figures, each of all CPUs together; none if there is no such map."""
    fd = _open_pin(pin)
    if fd is None:
        return []
    try:
        kind, _, key_size, value_size, entries, *_ = struct.unpack("=6I", _info(fd, _MAP_INFO_BYTES))
        if (kind, key_size, value_size) != (_BPF_MAP_TYPE_PERCPU_ARRAY, 4, _FIGURE.size):
            return []
        return [_sums(fd, index, _FIGURE)[0] for index in range(entries)]
    finally:
        os.close(fd)


def _sums(fd: int, index: int, row: struct.Struct) -> list[int]:
    """An entry of a per-CPU array: each number of the row, of all CPUs together."""
    key = ctypes.c_uint32(index)
    values = ctypes.create_string_buffer(row.size * possible_cpus())
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IxxxxQQ", attr, 0, fd, ctypes.addressof(key), ctypes.addressof(values))
    call(_MAP_LOOKUP_ELEM, attr, "read a counter map")
    return [sum(column) for column in zip(*row.iter_unpack(values.raw), strict=True)]


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map holds for a key: CPUs that could ever be, not those online."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.split(",")[-1].split("-")[-1]) + 1


def is_available() -> bool:
    """Whether the kernel has bpf(2) at all, allowed or not."""
    try:
        call(_OBJ_GET, bytearray(ATTR_BYTES), "probe")
    except PermissionDeniedError:
        return True
    except PodmgrError as error:
        cause = error.__cause__
        return not (isinstance(cause, OSError) and cause.errno == errno.ENOSYS)
    return True


def _open_pin(pin: str | Path) -> int | None:
    path = ctypes.create_string_buffer(os.fsencode(pin))
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=QII", attr, 0, ctypes.addressof(path), 0, 0)
    try:
        return call(_OBJ_GET, attr, f"open the pin {pin}")
    except PodmgrError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, fd, size, ctypes.addressof(info))
    call(_OBJ_GET_INFO_BY_FD, attr, "ask for a program's id")
    return info.raw


def call(command: int, attr: bytearray, purpose: str) -> int:
    """bpf(2). The answer is written into `attr`. Raises with the OSError as the cause."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise PodmgrError(
            f"no bpf system call number known for {platform.machine()}",
            tip="report the machine type; podmgr knows " + ", ".join(_SYSCALL_NUMBERS),
        )
    buffer = _Attr.from_buffer(attr)
    result = int(_libc.syscall(number, command, buffer, len(attr)))
    if result >= 0:
        return result
    cause = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    raise failed(
        purpose,
        cause,
        tip="it takes the capabilities BPF and NET_ADMIN, which not every root has; podmgr doctor",
    ) from cause
