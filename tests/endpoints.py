"""Sockets at both ends of the lab, made by this process, and what they see: an error, or silence."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.lab import POD, POD6, WORLD, WORLD6, Lab

PATIENCE_SECONDS = 0.7

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def socket_in(pid: int, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of the namespace of a process. setns(2) moves one thread: it is one that ends at once."""
    made: list[socket.socket] = []

    def make() -> None:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if _libc.setns(fd, _CLONE_NEWNET) == 0:
                made.append(socket.socket(family, kind, protocol))
        finally:
            os.close(fd)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@dataclass(frozen=True)
class Seen:
    """The name of an error, "silence", or what came: and after how many milliseconds."""

    what: str
    milliseconds: float

    def __str__(self) -> str:
        return self.what if self.what == "silence" else f"{self.what} {self.milliseconds:.1f} ms"


def seen(call: Callable[[], object]) -> Seen:
    """What a call on a socket ends with."""
    start = time.monotonic()
    try:
        result = call()
        what = result.decode() if isinstance(result, bytes) else "done"
    except TimeoutError as error:
        what = "silence" if error.errno is None else errno.errorcode[error.errno]
    except BlockingIOError:  # of a call that SO_SNDTIMEO ends
        what = "silence"
    except OSError as error:
        what = errno.errorcode[error.errno or 0]
    return Seen(what, (time.monotonic() - start) * 1000)


@dataclass
class End:
    """One of the two ends: makes its sockets, and closes them."""

    pid: int
    host: str
    stack: ExitStack

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def make(self, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        return self.kept(socket_in(self.pid, self.family, kind, protocol))

    def kept(self, made: socket.socket) -> socket.socket:
        """Closed in the end, without a word more than one."""
        self.stack.enter_context(contextlib.closing(made))
        if made.type == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.settimeout(PATIENCE_SECONDS)
        return made

    def bound(self, kind: int, port: int = 0) -> socket.socket:
        made = self.make(kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.host, port))
        return made

    def listener(self) -> socket.socket:
        made = self.bound(socket.SOCK_STREAM)
        made.listen()
        return made

    def connect(self, server: socket.socket, seconds: float = PATIENCE_SECONDS) -> Seen:
        """What a new connection to a listener sees."""
        client = self.make()
        client.settimeout(None)  # as most programs call it, and so that an error is told as to them
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        )
        found = seen(lambda: client.connect(server.getsockname()))
        client.close()
        return found

    def connected(self, other: End) -> tuple[socket.socket, socket.socket]:
        """An open connection of TCP to the other end, over which bytes have gone both ways."""
        server, client = other.listener(), self.make()
        client.connect(server.getsockname())
        accepted = self.kept(server.accept()[0])
        for one, two in ((client, accepted), (accepted, client)):
            one.sendall(b"x")
            two.recv(1)
        return client, accepted


@contextmanager
def ends(made: Lab, *, is_ipv6: bool) -> Iterator[tuple[End, End]]:
    """The pod and the world."""
    pod, world = (POD6, WORLD6) if is_ipv6 else (POD, WORLD)
    with ExitStack() as stack:
        yield End(made.pod, pod, stack), End(made.world, world, stack)


def arrived(receiver: socket.socket) -> int:
    """How many datagrams wait, or come soon."""
    count = 0
    receiver.settimeout(0.15)
    with contextlib.suppress(TimeoutError):
        while receiver.recv(1 << 16):
            count += 1
    return count
