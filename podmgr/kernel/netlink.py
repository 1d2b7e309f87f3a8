"""rtnetlink(7): asking and changing the network of a namespace, through a socket that was made in it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from podmgr.errors import PermissionDeniedError, PodmgrError

if TYPE_CHECKING:
    from socket import socket

_CLONE_NEWNET = 0x40000000

# linux/netlink.h
_REQUEST, _ACK, _DUMP_INTERRUPTED, _DUMP = 0x1, 0x4, 0x10, 0x300
_EXCLUSIVE, _CREATE = 0x200, 0x400
_CAPPED, _ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_MSG_TRUNC = 0x20
_KERNEL = (0, 0)  # its port, and no multicast group
_TYPE_BITS = 0x3FFF  # of an attribute's type, without the flags for nesting and byte order

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_MOST_BYTES = 1 << 16  # the kernel sends a dump in pieces of 32 KiB at most
_TRIES = 10

_libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(PodmgrError):
    """The kernel refuses a request. `errno` says why, and the message in its own words."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message or os.strerror(number))
        self.errno = number


class RouteSocket:
    """A route socket of one namespace. Answers come at once: the kernel makes them while it is asked."""

    def __init__(self, made: socket) -> None:
        self._socket = made
        self._sequence = 0

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all messages that answer.

        A dump into which a change has fallen is asked for again. Raises PodmgrError if that does
        not end, RefusedError.
        """
        for _ in range(_TRIES):
            found, was_interrupted = [], False
            for flags, answer in self._answers(kind, _DUMP, body):
                was_interrupted = was_interrupted or bool(flags & _DUMP_INTERRUPTED)
                found.append(answer)
            if not was_interrupted:
                return found
        raise PodmgrError("the network changes faster than it can be looked at", tip="try again")

    def ask(self, kind: int, body: bytes) -> bytes:
        """The body of the one message that answers. Raises RefusedError."""
        return b"".join([answer for _, answer in self._answers(kind, _ACK, body)][:1])

    def create(self, kind: int, body: bytes) -> None:
        """Make something that is not there yet. Raises RefusedError."""
        list(self._answers(kind, _ACK | _CREATE | _EXCLUSIVE, body))

    def change(self, kind: int, body: bytes) -> None:
        """Change something that is there. Raises RefusedError."""
        list(self._answers(kind, _ACK, body))

    def delete(self, kind: int, body: bytes) -> None:
        """Remove something. Raises RefusedError."""
        list(self._answers(kind, _ACK, body))

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Flags and body of each message, until the kernel says that it was the last one."""
        self._sequence += 1
        head = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.sendto(head + body, _KERNEL)
        while True:
            data, _, received, _ = self._socket.recvmsg(_MOST_BYTES)
            if received & _MSG_TRUNC:
                raise PodmgrError("the kernel tells more of an interface than there is room for")
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, answer, how, sequence, _ = _HEADER.unpack_from(data, offset)
                payload = data[offset + _HEADER.size : offset + length]
                offset += max(_aligned(length), _HEADER.size)
                if sequence != self._sequence:  # of a dump that nobody read to its end
                    continue
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    _check(answer, how, payload)
                    return
                yield how, payload


def opened(namespace_fd: int | None) -> RouteSocket:
    """A route socket of that namespace; None for one that is made, and is gone when the socket is closed.

    Raises PermissionDeniedError where the namespace may not be entered, PodmgrError where there
    are too many open files.
    """
    try:
        return RouteSocket(_made_in(namespace_fd))
    except PermissionError as error:
        raise PermissionDeniedError(
            "not allowed to enter a network namespace", tip="it takes the capability SYS_ADMIN; podmgr doctor"
        ) from error
    except OSError as error:
        raise PodmgrError(
            f"cannot ask the kernel for interfaces: {error.strerror}", tip="podmgr doctor"
        ) from error


def here() -> RouteSocket:
    """A route socket of the namespace that we live in. Raises PodmgrError where it cannot be had."""
    try:
        return RouteSocket(_socket())
    except OSError as error:
        raise PodmgrError(
            f"cannot ask the kernel for interfaces: {error.strerror}", tip="podmgr doctor"
        ) from error


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, with what aligns the next."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The values by their types, of attributes in a row."""
    found = {}
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        found[kind & _TYPE_BITS] = data[start + _ATTRIBUTE.size : start + length]
        start += max(_aligned(length), _ATTRIBUTE.size)
    return found


def text(value: bytes) -> str:
    """A string of the kernel's, which a zero ends. What is no UTF-8 stays as the file system has it."""
    return os.fsdecode(value.partition(b"\0")[0])


def _made_in(namespace_fd: int | None) -> socket:
    """setns(2) and unshare(2) move one thread: it is one that ends at once."""
    from threading import Thread  # 9 ms with sockets, and few rules need them

    made: list[socket | OSError] = []

    def make() -> None:
        try:
            entered = (
                _libc.unshare(_CLONE_NEWNET)
                if namespace_fd is None
                else _libc.setns(namespace_fd, _CLONE_NEWNET)
            )
            if entered:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.append(_socket())
        except OSError as error:
            made.append(error)

    thread = Thread(target=make)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


def _socket() -> socket:
    from socket import AF_NETLINK, SOCK_RAW, socket

    made = socket(AF_NETLINK, SOCK_RAW, 0)
    made.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    made.bind((0, 0))
    return made


def _check(answer: int, flags: int, payload: bytes) -> None:
    """Raise RefusedError if the last message of an answer tells of an error."""
    number = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
    if not number:
        return
    start = 4
    if answer == _NLMSG_ERROR:  # the request's header follows, or all of it
        length = _HEADER.unpack_from(payload, 4)[0]
        start += _HEADER.size if flags & _CAPPED else _aligned(length)
    told = attributes(payload, start) if flags & _ACK_TLVS else {}
    raise RefusedError(number, text(told.get(_NLMSGERR_ATTR_MSG, b"")))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
