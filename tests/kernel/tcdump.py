"""The programs on interfaces, asked of the kernel itself: fast enough to look all the while."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from podmgr.rules.rule import Direction

_CLONE_NEWNET = 0x40000000
_RTM_GETTFILTER = 46
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_PARENTS = {Direction.EGRESS: 0xFFFFFFF3, Direction.INGRESS: 0xFFFFFFF2}
_TCA_OPTIONS, _TCA_BPF_ID = 2, 11

_libc = ctypes.CDLL(None, use_errno=True)


class Interfaces:
    """A look into one network namespace, given by its file, such as /proc/PID/ns/net."""

    def __init__(self, path: Path) -> None:
        self._indexes: list[int] = []
        self._error: OSError | None = None
        self._asking = threading.Lock()
        thread = threading.Thread(target=self._enter, args=(path,))  # a thread has a namespace of its own
        thread.start()
        thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._socket.close()

    def programs(self, direction: Direction | None = None) -> tuple[int, ...]:
        """The ids of all programs there, of one direction or both, each once."""
        sides = Direction if direction is None else [direction]
        with self._asking:
            asked = [(index, _PARENTS[side]) for side in sides for index in self._indexes]
            found = [id for index, parent in asked for id in self._dump(index, parent)]
        return tuple(dict.fromkeys(found))

    def _enter(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                self._socket.bind((0, 0))
                self._indexes = [index for index, _ in socket.if_nameindex()]
            finally:
                os.close(fd)
        except OSError as error:
            self._error = error

    def _dump(self, index: int, parent: int) -> Iterator[int]:
        body = struct.pack("=BxxxiIII", 0, index, 0, parent, 0)
        head = struct.pack("=IHHII", 16 + len(body), _RTM_GETTFILTER, _NLM_F_REQUEST_DUMP, 1, 0)
        self._socket.send(head + body)
        while True:
            data = self._socket.recv(1 << 16)
            offset = 0
            while offset < len(data):
                size, kind = struct.unpack_from("=IH", data, offset)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                for name, start, end in _attributes(data, offset + 36, offset + size):
                    if name == _TCA_OPTIONS:
                        inner = _attributes(data, start, end)
                        yield from (
                            struct.unpack_from("=I", data, at)[0]
                            for option, at, _ in inner
                            if option == _TCA_BPF_ID
                        )
                offset += (size + 3) & ~3


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, and where the value begins and ends."""
    while start + 4 <= end:
        size, kind = struct.unpack_from("=HH", data, start)
        yield kind & 0x3FFF, start + 4, start + size
        start += max((size + 3) & ~3, 4)
