"""Names in rules as `podmgr watch` follows them: on the packets of a pod that talks to two services.

The API server is the tests' own, the rest is real: the pod's cgroup and network, the programs, the packets.
Loss stands for all kinds: a name's addresses are a table beside the program, whatever that does.
"""

from __future__ import annotations

import math
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from podmgr.settings import Settings
from tests.answers import TCP, answering, unanswered
from tests.kernel.shop import (
    ADDRESSES,
    ALL,
    ALL_OF_DB,
    CACHE_POD,
    DB,
    DB6,
    DB_NEW,
    DB_POD,
    DB_POD6,
    LATE,
    Shop,
    Watch,
    pairs,
    shop,
    watching_of,
)
from tests.kube.cluster import eventually
from tests.lab import Lab, lab

CHANGES = 100
HIT = "loss=uniform egress 100% peer=svc/db"


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made, *ADDRESSES):
        assert unanswered(made, ALL) == set()
        yield made


@pytest.fixture
def place(made: Lab, settings: Settings, tmp_path: Path) -> Iterator[Shop]:
    with shop(made, settings, tmp_path) as place:
        yield place


@pytest.fixture
def watching(place: Shop, tmp_path: Path) -> Iterator[Watch]:
    with watching_of(place, tmp_path) as start:
        yield start


def test_a_service_is_hit_before_and_after_the_translation_and_its_neighbour_is_not(
    place: Shop, watching: Watch
) -> None:
    place.annotate("100% egress peer=svc/db")
    watching()
    place.cluster.settles(place.pod, {HIT: "pod"})
    assert place.hit() == ALL_OF_DB
    (row,) = place.cluster.observed(place.pod)
    assert row.counters is not None
    assert row.counters.passed_packets == 0
    assert row.counters.dropped_packets >= len(ALL_OF_DB)


def test_services_come_and_go(place: Shop, watching: Watch) -> None:
    place.annotate("100% egress peer=svc/late", "100% egress peer=svc/db port=80")
    watching()
    eventually(lambda: len(place.program_ids()) == 2)
    programs = place.program_ids()
    port_80 = {packet for packet in ALL_OF_DB if packet.protocol == TCP}
    assert place.hit() == port_80
    place.service("late", LATE)
    place.becomes(port_80 | pairs(LATE))
    place.endpoints("late", CACHE_POD)
    place.becomes(port_80 | pairs(LATE, CACHE_POD))
    place.cluster.api.delete("services", "shop", "late")
    place.becomes(port_80)
    place.cluster.api.delete("endpointslices", "shop", "db-v4")
    place.becomes({packet for packet in port_80 if packet.peer != DB_POD})
    assert place.program_ids() == programs


# A packet each 2 ms to each address; says when that begins to be answered, or ends to.
_ASKING = """
import select, socket, sys, time
QUIET = 0.1  # what is not answered so long was lost
clock = time.monotonic
asked, edges, number = dict(), dict(), 0
for peer in sys.argv[2:]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((peer, int(sys.argv[1])))
    sock.setblocking(False)
    asked[peer] = (sock, dict())
def saw(peer, passes, moment):  # what is older than the last edge says nothing of now
    before, since = edges.get(peer, (None, 0))
    if passes is not before and moment > since:
        edges[peer] = (passes, moment)
        print(peer, int(passes), moment, flush=True)
while True:
    for sock, sent in asked.values():
        sent[number] = clock()
        sock.send(b"%d" % number)
    number += 1
    end = clock() + 0.002
    while (left := end - clock()) > 0:
        for sock in select.select([sock for sock, _ in asked.values()], [], [], left)[0]:
            peer = sock.getpeername()[0]
            moment = asked[peer][1].pop(int(sock.recv(100)), None)
            if moment is not None:
                saw(peer, True, moment)
    for peer, (_, sent) in asked.items():
        for key in [key for key, moment in sent.items() if moment < clock() - QUIET]:
            saw(peer, False, sent.pop(key))
"""


class Asking:
    """When packets to each address began to pass, or to be hit: the last edge of each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.edges: dict[str, tuple[bool, float]] = {}

    def hears(self, hit: str, free: str, since: float) -> tuple[float, float]:
        """Wait until it is so; the seconds from then on to each."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + 20
        while not (self._is(hit, False, since) and self._is(free, True, since)):
            assert time.monotonic() < deadline, self.edges
            assert select.select([self._process.stdout], [], [], 20)[0]
            peer, passes, moment = self._process.stdout.readline().split()
            self.edges[peer] = (passes == "1", float(moment))
        return self.edges[hit][1] - since, self.edges[free][1] - since

    def _is(self, peer: str, passes: bool, since: float) -> bool:
        there = self.edges.get(peer)
        return there is not None and there[0] is passes and there[1] >= since


@contextmanager
def asking(made: Lab, port: int, *peers: str) -> Iterator[Asking]:
    process = made.in_pod([sys.executable, "-c", _ASKING, str(port), *peers])
    try:
        yield Asking(process)
    finally:
        process.kill()
        process.wait()


def test_an_endpoint_that_is_replaced_is_hit_at_once_by_the_same_program(
    place: Shop, watching: Watch, record_property: Callable[[str, Any], None]
) -> None:
    place.annotate("100% egress peer=svc/db")
    watching()
    place.cluster.settles(place.pod, {HIT: "pod"})
    programs = place.program_ids()
    hit, freed = [], []
    with asking(place.made, 80, DB_POD, DB_NEW) as asked:
        asked.hears(DB_POD, DB_NEW, 0)
        old, new = DB_POD, DB_NEW
        for _ in range(CHANGES):
            event = time.monotonic()
            place.move("db", new)
            until_hit, until_free = asked.hears(new, old, event)
            hit.append(until_hit)
            freed.append(until_free)
            old, new = new, old
    assert place.program_ids() == programs
    figures = [
        f"{name} p50 {1000 * median(found):.0f} ms, p99 {1000 * p99(found):.0f} ms"
        for name, found in (("new one hit", hit), ("old one free", freed))
    ]
    print(f"{CHANGES} endpoints replaced, from the event on: {'; '.join(figures)}")
    record_property("figures", figures)
    assert max(median(hit), median(freed)) < 0.1


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def test_a_rule_whose_time_is_over_is_told_and_swept_once(place: Shop, watching: Watch) -> None:
    place.annotate("100% egress peer=svc/db for=1s", "0% ingress")
    watching("--resync", "1s")
    eventually(lambda: place.told("RuleOver"))
    rest = {"loss=uniform ingress 0%": "pod"}
    place.cluster.settles(place.pod, rest)
    assert place.hit() == set()
    time.sleep(3)  # resyncs
    place.move("db", DB_NEW)
    place.cluster.annotate("pods", "web", {"other": "1"})
    time.sleep(1)
    assert len(place.told("RuleOver")) == 1
    assert place.cluster.rules(place.pod) == rest
    assert place.hit() == set()


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_start_outlives_a_restart_of_watch(place: Shop, watching: Watch, is_killed: bool) -> None:
    place.annotate("100% egress peer=svc/db for=1h")
    watch = watching("--keep")
    began, programs = place.starts(), place.program_ids()
    assert len(began) == len(programs) == 1
    if is_killed:
        watch.kill()
    else:
        assert watch.stop() == 0
    place.move("db", DB_NEW)
    watching()
    place.becomes(pairs(DB, DB_NEW) | pairs(DB6, DB_POD6))
    assert (place.starts(), place.program_ids()) == (began, programs)


def test_what_was_over_before_a_restart_of_watch_does_not_start_again(place: Shop, watching: Watch) -> None:
    place.annotate("100% egress peer=svc/db for=1s")
    watch = watching("--keep")
    watch.kill()
    time.sleep(1)
    watching("--resync", "1s")
    time.sleep(2)
    assert place.cluster.rules(place.pod) == {}
    assert place.hit() == set()
    assert len(place.told("RuleOver")) == 1
    assert place.starts()  # by which it is known not to be new
    place.cluster.api.delete("pods", "shop", "web")
    eventually(lambda: not place.starts())
