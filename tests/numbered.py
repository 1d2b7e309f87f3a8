"""UDP datagrams with a number each: which arrive, how often, in which order, and with how many wrong bits.

Run as a program it receives or sends them, in a namespace of the lab.
"""

from __future__ import annotations

import collections
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from podmgr.demo.throwaway import inside
from tests.lab import POD, POD6, WORLD, WORLD6, Lab

PORT = 4100
_WORDS = 16  # the number is written so often, that it can be read though a bit is wrong
_BUFFER_BYTES = 64 << 20
_SO_RCVBUFFORCE = 33


@dataclass(frozen=True)
class Arrived:
    """Of `sent` datagrams: how many arrived how often, with how many wrong bits, and how many overtaken."""

    sent: int
    times: dict[int, int]
    wrong_bits: dict[int, int]
    overtaken: int

    @property
    def total(self) -> int:
        """Of datagrams, copies included."""
        return sum(times * count for times, count in self.times.items())


def exchange(
    made: Lab,
    count: int,
    *,
    ingress: bool = False,
    is_ipv6: bool = False,
    pause_us: int = 20,
    words: int = _WORDS,
) -> Arrived:
    """Send so many from the pod to the world, or the other way, and wait until no more arrive."""
    pod, world = (POD6, WORLD6) if is_ipv6 else (POD, WORLD)
    host, receiving = (pod, made.pod) if ingress else (world, made.world)
    own = [sys.executable, str(Path(__file__))]
    receiver = subprocess.Popen(
        inside(receiving, [*own, "receive", str(int(is_ipv6))]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        sending = [*own, "send", host, str(count), str(pause_us), str(words)]
        sender = made.in_world(sending) if ingress else made.in_pod(sending)
        sender.communicate()
        assert sender.returncode == 0
        document = json.loads(receiver.communicate("")[0])
    finally:
        receiver.kill()
        receiver.wait()
    times, wrong_bits = (
        {int(key): value for key, value in document[name].items()} for name in ("times", "wrong_bits")
    )
    return Arrived(count, times, wrong_bits, document["overtaken"])


def _receive(is_ipv6: bool) -> None:
    """Until standard input ends and half a second brings nothing."""
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        receiver.bind(("", PORT))
        receiver.settimeout(0.5)
        print("ready", flush=True)
        sys.stdin.read()
        seen: collections.Counter[int] = collections.Counter()
        wrong: collections.Counter[int] = collections.Counter()
        last, overtaken = -1, 0
        while True:
            try:
                data = receiver.recv(65536)
            except TimeoutError:
                break
            words = [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]
            number = collections.Counter(words).most_common(1)[0][0]
            wrong[sum((word ^ number).bit_count() for word in words)] += 1
            seen[number] += 1
            overtaken += number < last
            last = max(last, number)
    times = collections.Counter(seen.values())
    print(json.dumps({"times": times, "wrong_bits": wrong, "overtaken": overtaken}))


def _send(host: str, count: int, pause_us: int, words: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sender.connect((host, PORT))
        due = time.monotonic()
        for number in range(count):
            sender.send(number.to_bytes(4, "big") * words)
            due += pause_us / 1e6
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        _receive(sys.argv[2] == "1")
    else:
        _send(sys.argv[2], *map(int, sys.argv[3:6]))
