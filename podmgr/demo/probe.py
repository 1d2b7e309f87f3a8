"""UDP in numbers: how many datagrams leave, and how many arrive. Used by `demo` and the tests.

`python probe.py receive PORT` counts until its standard input ends and nothing more
arrives; `python probe.py send HOST PORT COUNT [BYTES]` sends. Both print JSON.
"""

from __future__ import annotations

import json
import select
import socket
import sys

_BUFFER_BYTES = 1 << 30  # so that the receiver's queue never drops: what is missing was lost before
_SO_RCVBUFFORCE = 33
_IDLE_SECONDS = 0.3


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
    result = receive(int(words[0])) if verb == "receive" else send(words[0], *map(int, words[1:]))
    print(json.dumps(result), flush=True)
