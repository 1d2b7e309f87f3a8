"""How long datagrams take one way, in which order they arrive, and how many of each: measured in a lab.

Sender and receiver are processes of one machine, so that one clock serves both. What arrives is stamped by
the kernel, before the receiver is scheduled; and no other process comes between the sender's look at the
clock and its sending, which would look like a delay of a millisecond.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, pstdev

from tests.lab import POD, WORLD, Lab

PORT = 9100
_HEAD = struct.Struct("=IQ")
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33
_QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Journeys:
    """Each datagram that arrived, in the order of arrival: its number, and how long it took, in seconds.

    The first was sent at `begun_ns` of CLOCK_MONOTONIC, to which the draws of `order=keep` are bound.
    """

    sent: int
    errors: int
    arrived: tuple[tuple[int, float], ...]
    begun_ns: int = 0

    @property
    def delays(self) -> list[float]:
        return [delay for _, delay in self.arrived]

    @property
    def mean(self) -> float:
        return fmean(self.delays)

    @property
    def deviation(self) -> float:
        return pstdev(self.delays)

    @property
    def lost(self) -> int:
        return self.sent - len({number for number, _ in self.arrived})

    @property
    def copies(self) -> int:
        """How many arrived more than once."""
        return sum(count - 1 for count in Counter(number for number, _ in self.arrived).values())

    @property
    def overtaken(self) -> int:
        """How many arrived after one that was sent later."""
        latest, found = -1, 0
        for number, _ in self.arrived:
            found += number < latest
            latest = max(latest, number)
        return found

    def __str__(self) -> str:
        return (
            f"{len(self.arrived)} of {self.sent}: mean {self.mean * 1e3:.4f} ms, "
            f"sd {self.deviation * 1e6:.1f} us, "
            f"lost {self.lost}, copies {self.copies}, overtaken {self.overtaken}, errors {self.errors}"
        )


def journeys(
    made: Lab,
    count: int,
    *,
    apart_seconds: float,
    ingress: bool = False,
    payload_bytes: int = 100,
    port: int = PORT,
    quiet_seconds: float = _QUIET_SECONDS,
    from_outside: bool = False,
) -> Journeys:
    """Datagrams from the pod to the world, or the other way, each so long after the one before.

    `from_outside`: the sender is in the pod's network, and not in its cgroup.
    """
    start = made.in_world if ingress else made.beside_pod if from_outside else made.in_pod
    receive = made.in_pod if ingress else made.in_world
    host = POD if ingress else WORLD
    me = [sys.executable, "-m", "tests.oneway"]
    receiver = receive([*me, "receive", host, str(port), str(quiet_seconds)])
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "ready\n"
    sender = start([*me, "send", host, str(port), str(count), str(apart_seconds), str(payload_bytes)])
    errors, begun_ns = map(int, sender.communicate()[0].split())
    output, _ = receiver.communicate()
    arrived = tuple((number, delay / 1e9) for number, delay in json.loads(output))
    return Journeys(count, errors, arrived, begun_ns)


def _send(host: str, port: int, count: int, apart_seconds: float, payload_bytes: int) -> None:
    sending = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sending.connect((host, port))
    if apart_seconds:  # else the receiver would have no time
        with suppress(OSError):  # where a cgroup may not
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    filling = bytes(max(0, payload_bytes - _HEAD.size))
    errors, begin = 0, time.monotonic()
    for number in range(count):
        wait = begin + number * apart_seconds - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            sending.send(_HEAD.pack(number, time.time_ns()) + filling)
        except OSError:
            errors += 1
    print(errors, round(begin * 1e9))


def _receive(host: str, port: int, quiet_seconds: float) -> None:
    receiving = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    receiving.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    receiving.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    receiving.bind((host, port))
    print("ready", flush=True)
    receiving.settimeout(60)
    found = []
    try:
        while True:
            data, extra, _, _ = receiving.recvmsg(2048, 128)
            receiving.settimeout(quiet_seconds)
            ((_, _, stamp),) = extra
            seconds, ns = struct.unpack("=qq", stamp[:16])
            number, sent_ns = _HEAD.unpack_from(data)
            found.append((number, seconds * 10**9 + ns - sent_ns))
    except TimeoutError:
        pass
    print(json.dumps(found))


if __name__ == "__main__":
    words = sys.argv[2:]
    if sys.argv[1] == "send":
        _send(words[0], int(words[1]), int(words[2]), float(words[3]), int(words[4]))
    else:
        _receive(words[0], int(words[1]), float(words[2]))
