"""A sender that says of each datagram when it is to leave (SO_TXTIME), in a process of its own.

`python -m tests.stamped HOST PORT COUNT EVERY_MS AHEAD_MS`: a datagram every so often, or all at once (0),
each stamped so far ahead of the moment at which it is due to be sent.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
import time

PAYLOAD_BYTES = 1200
WIRE_BYTES = 14 + 20 + 8 + PAYLOAD_BYTES

_SO_TXTIME = _SCM_TXTIME = 61
_NS_PER_MS = 1_000_000


def _send(host: str, port: int, count: int, every_ns: int, ahead_ns: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TXTIME, struct.pack("=iI", time.CLOCK_MONOTONIC, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # what waits in fq is charged to it
        start_ns = time.monotonic_ns()
        for number in range(count):
            due_ns = start_ns + number * every_ns
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            stamp = struct.pack("=Q", due_ns + ahead_ns)
            control = [(socket.SOL_SOCKET, _SCM_TXTIME, stamp)]
            sock.sendmsg([bytes(PAYLOAD_BYTES)], control, 0, (host, port))
        while _waiting_bytes(sock):
            time.sleep(0.01)


def _waiting_bytes(sock: socket.socket) -> int:
    """What has not left yet."""
    return int(struct.unpack("=i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


if __name__ == "__main__":
    _host, *_numbers = sys.argv[1:]
    _port, _count, _every_ms, _ahead_ms = map(int, _numbers)
    _send(_host, _port, _count, _every_ms * _NS_PER_MS, _ahead_ms * _NS_PER_MS)
