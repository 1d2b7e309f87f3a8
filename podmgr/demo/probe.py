"""UDP in numbers: how many datagrams leave, and how many arrive. Used by `demo` and the tests.

`python probe.py receive PORT` counts until its standard input ends and nothing more
arrives; `python probe.py send HOST PORT COUNT [BYTES]` sends. `python probe.py time PORT` tells of each
datagram its number and how long it was on its way, in the order of arrival; `python probe.py stamp HOST
PORT COUNT GAP_MS` sends such. All print JSON.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time

_BUFFER_BYTES = 1 << 30  # so that the receiver's queue never drops: what is missing was lost before
_SO_RCVBUFFORCE = 33
_IDLE_SECONDS = 0.3
_SO_TIMESTAMPNS = 35
_STAMPED = struct.Struct("=Iq")  # the number, and when it was sent: nanoseconds since 1970
_KERNELS_STAMP = struct.Struct("=qq")  # struct timespec


def receive(port: int) -> dict[str, int]:
    """Count datagrams until standard input ends and the line is idle."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.bind(("::", port))
        sock.setblocking(False)
        print("ready", flush=True)
        received, ended = 0, False
        while True:
            wanted = [sock] if ended else [sock, sys.stdin]
            ready, _, _ = select.select(wanted, [], [], _IDLE_SECONDS if ended else None)
            if sock in ready:
                received += _drain(sock)
            elif not ready:
                return {"received": received}
            else:
                ended = True


def receive_timed(port: int) -> dict[str, list[tuple[int, float]]]:
    """The numbers of stamped datagrams and their milliseconds, as the kernel saw them arrive."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.bind(("::", port))
        print("ready", flush=True)
        arrivals, ended = [], False
        while True:
            wanted = [sock] if ended else [sock, sys.stdin]
            ready, _, _ = select.select(wanted, [], [], 1.0 if ended else None)
            if sock in ready:
                data, extra, _, _ = sock.recvmsg(2048, 128)
                seconds, ns = _KERNELS_STAMP.unpack_from(extra[0][2])
                number, sent_ns = _STAMPED.unpack_from(data)
                arrivals.append((number, (seconds * 10**9 + ns - sent_ns) / 1e6))
            elif not ready:
                return {"arrivals": arrivals}
            else:
                ended = True


def send_stamped(host: str, port: int, count: int, gap_ms: int) -> dict[str, int]:
    """Send `count` datagrams, one each `gap_ms` milliseconds; 0: as fast as it goes."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    errors, begin = 0, time.monotonic()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            if (wait := begin + number * gap_ms / 1e3 - time.monotonic()) > 0:
                time.sleep(wait)
            try:
                sock.sendto(_STAMPED.pack(number, time.time_ns()), address)
            except OSError:
                errors += 1
    return {"sent": count - errors, "errors": errors}


def _drain(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(65_535)
        except BlockingIOError:
            return count
        count += 1


def send(host: str, port: int, count: int, size_bytes: int = 32) -> dict[str, int]:
    """Send `count` datagrams of `size_bytes`; `errors` are those that sendto() refused."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    payload = bytes(size_bytes)
    errors = 0
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(count):
            try:
                sock.sendto(payload, address)
            except OSError:
                errors += 1
    return {"sent": count - errors, "errors": errors}


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb in ("receive", "time"):
        result: object = (receive if verb == "receive" else receive_timed)(int(words[0]))
    else:
        result = (send if verb == "send" else send_stamped)(words[0], *map(int, words[1:]))
    print(json.dumps(result), flush=True)
