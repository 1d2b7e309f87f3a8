"""Each of podmgr's own profiles on a pod: its rate, its round trip and its loss are what its figures say.

To start a process of Python's takes an emulated processor ten seconds and more. So datagrams are sent and
received here, each profile is applied in the place of the one before, and counters are read from their maps.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from statistics import linear_regression
from typing import NamedTuple

import pytest

from podmgr.demo.intervals import binomial_interval
from podmgr.kernel import bpf_syscall
from podmgr.kernel.netns_life import enter
from podmgr.reconcile import ledger
from podmgr.rules.profiles import Profile, built_in
from podmgr.rules.rule import Direction
from tests.lab import POD, WORLD, Lab, lab

pytestmark = pytest.mark.timeout(3600)
"""A clock that counts instructions leaps on while a disk is waited for: by minutes, as clang first starts."""

PINGS, APART_SECONDS = 20, 0.25
FULL_BYTES, LEAST_BYTES, HEADER_BYTES = 1514, 100, 42
OVER_THE_RATE = 1.2
PORT, QUIET_SECONDS = 9100, 2
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made
        made.podmgr("clean")


@pytest.mark.parametrize("profile", built_in().values(), ids=built_in())
def test_a_profile_is_what_its_figures_say(made: Lab, profile: Profile) -> None:
    words = ["apply", made.target, "--rule", f"profile={profile.name}"]
    if profile.jitter_ns:
        made.podmgr(*words, "--rule", "loss=uniform both 0%")
        check_jitter(made, profile)
    made.podmgr(*words)
    if not profile.jitter_ns:
        trips = pings(made)
        print(f"{profile.name}: round trip {trips}")
        assert trips.mean_ms == pytest.approx(profile.round_trip_ns / 1e6, abs=1)
        assert trips.least_ms >= profile.round_trip_ns / 1e6
    for direction in Direction:
        check_rate_and_loss(made, profile, direction)


def check_jitter(made: Lab, profile: Profile) -> None:
    """Pings took what the programs say they were delayed by, and all within the jitter."""
    trips = pings(made)
    means = re.findall(r"mean delay ([\d.]+) (ms|s)", made.podmgr("list", "-o", "wide"))
    given_ms = sum(float(mean) * (1 if unit == "ms" else 1e3) for mean, unit in means)
    middle_ms, jitter_ms = profile.round_trip_ns / 1e6, profile.jitter_ns / 1e6
    print(f"{profile.name}: round trip {trips}, delays given {given_ms:.3f} ms")
    assert (trips.received, len(means)) == (PINGS, 2)
    assert trips.mean_ms == pytest.approx(given_ms, abs=1)
    assert middle_ms - jitter_ms <= trips.least_ms <= trips.most_ms <= middle_ms + jitter_ms + 1


def check_rate_and_loss(made: Lab, profile: Profile, direction: Direction) -> None:
    """More datagrams than it carries: what arrives keeps the rate, and what is lost is counted, and fair."""
    rate = profile.rate_bits_per_second(direction)
    seconds, size, apart = train(profile, direction)
    before = counted(made, direction)
    count = round(seconds / apart)
    moments = arrivals(made, count, apart, size - HEADER_BYTES, ingress=direction is Direction.INGRESS)
    after = counted(made, direction)
    (lost, passed), (limited, _) = (
        [now - then for now, then in zip(after[kind], before[kind], strict=True)]
        for kind in ("loss", "bandwidth")
    )
    assert count - len(moments) == pytest.approx(lost + limited, abs=2)  # the kernel sends some of its own
    if rate is not None:
        bits = [8 * size * number for number in range(len(moments))]
        measured = linear_regression([moment - moments[0] for moment in moments], bits).slope
        print(f"{profile.name}: {direction} {measured / 1e3:.2f} kbps, {measured / rate - 1:+.2%}")
        # What arrives and is lost before the pod has had its time on the link; what is lost in it has not.
        is_counted = lost and direction is Direction.INGRESS
        carried = measured * (lost + passed) / passed if is_counted else measured
        assert carried == pytest.approx(rate, rel=0.02)
    if profile.loss_percent:
        low, high = fair(profile, lost + passed)
        print(f"{profile.name}: {direction} {lost} of {lost + passed} lost, fair are {low} to {high}")
        assert low <= lost <= high


def train(profile: Profile, direction: Direction) -> tuple[float, int, float]:
    """For how many seconds datagrams of how many bytes on the wire are sent, how many seconds apart.

    A hundred at least; for long enough that jitter, a draw for each slot, is far below 2 % of it.
    """
    rate = profile.rate_bits_per_second(direction) or 5_000_000
    seconds = max(1 if rate > 50e6 else 2, 200 * profile.jitter_ns / 2e9)
    size = min(FULL_BYTES, max(LEAST_BYTES, round(seconds * rate / 8 / 100)))
    seconds = max(seconds, 100 * size * 8 / rate)
    return seconds, size, size * 8 / (rate * OVER_THE_RATE)


def fair(profile: Profile, count: int) -> tuple[int, int]:
    """Between how many losses 99.99 % of all outcomes lie.

    In runs losses depend on each other, as if there were fewer packets: the variance is (1 + c) / (1 - c)
    times that of independent ones, with c the correlation of neighbours, 1 - p - r of Gilbert's model.
    """
    share = Fraction(profile.loss_percent) / 100
    ends = 1 / Fraction(profile.run_packets) if profile.run_packets else 1 - share
    neighbours = 1 - ends - share * ends / (1 - share)
    wider = float((1 + neighbours) / (1 - neighbours))
    low, high = binomial_interval(max(1, round(count / wider)), float(share))
    return math.floor(low * wider), math.ceil((high + 1) * wider) - 1 if wider > 1 else high


def arrivals(made: Lab, count: int, apart: float, payload_bytes: int, *, ingress: bool) -> list[float]:
    """When datagrams arrived that were sent so far apart, in seconds, as the kernel stamped them."""
    host, sender, receiver = (POD, made.world, made.pod) if ingress else (WORLD, made.pod, made.world)
    with udp_in(receiver) as receiving, udp_in(sender) as sending:
        receiving.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        receiving.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 128 << 20)
        receiving.bind((host, PORT))
        sending.connect((host, PORT))
        begin = time.monotonic()
        for number in range(count):
            if (wait := begin + number * apart - time.monotonic()) > 0:
                time.sleep(wait)
            sending.send(bytes(payload_bytes))
        receiving.settimeout(QUIET_SECONDS)
        moments = []
        with suppress(TimeoutError):
            while True:
                _, ((_, _, stamp),), _, _ = receiving.recvmsg(1, 128)
                seconds, ns = struct.unpack("=qq", stamp[:16])
                moments.append(seconds + ns / 1e9)
    return moments


def udp_in(pid: int) -> socket.socket:
    """A socket in the network of a process."""
    home, there = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", f"/proc/{pid}/ns/net"))
    try:
        enter(there)
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        enter(home)
        os.close(home)
        os.close(there)


class Trips(NamedTuple):
    """The pings that came back, and how long they took. ping tells of single ones in whole milliseconds."""

    received: int
    least_ms: float
    mean_ms: float
    most_ms: float

    def __str__(self) -> str:
        return f"{self.mean_ms:.3f} ms, {self.least_ms:.3f} to {self.most_ms:.3f}, {self.received} pings"


def pings(made: Lab) -> Trips:
    """Round trips of the pod to the world and back."""
    argv = ["ping", "-nq", "-c", str(PINGS), "-i", str(APART_SECONDS), "-W", "3", WORLD]
    output, _ = made.in_pod(argv).communicate()
    found = re.search(r" (\d+) received.* = ([\d.]+)/([\d.]+)/([\d.]+)/", output, re.DOTALL)
    assert found is not None, output
    return Trips(int(found[1]), *map(float, found.groups()[1:]))


def counted(made: Lab, direction: Direction) -> dict[str, tuple[int, int]]:
    """The packets that the profile's rule of each kind dropped and passed; none if there is no such rule."""
    counts = {"loss": (0, 0), "bandwidth": (0, 0)}
    for row in ledger.read(made.state_dir):
        path = made.bpffs / row.owner / f"{row.digest}-maps" / "podmgr_counters"
        if row.direction is direction and (counters := bpf_syscall.pinned_counters(path)):
            counts[row.kind] = (counters.dropped_packets, counters.passed_packets)
    return counts


def test_on_a_network_that_others_use_too_the_whole_delay_is_on_egress_and_the_rate_drops(made: Lab) -> None:
    made.podmgr("clean", made.target)
    other = made.beside_pod(["sleep", "1000"])
    try:
        with made.root("handle 7: fq limit 20000 flow_limit 20000"), made.under("profile=hspa"):
            trips = pings(made)
            rules = {row["rule"] for row in json.loads(made.podmgr("list", "-o", "json"))["attachments"]}
            again = made.podmgr("apply", made.target, "--rule", "profile=hspa").splitlines()
    finally:
        other.kill()
        other.wait()
    assert rules == {
        "bandwidth=2 mbps egress algorithm=edt",
        "bandwidth=4 mbps ingress",
        "delay=120ms egress",
        "loss=uniform egress 0.1%",
        "loss=uniform ingress 0.1%",
    }
    assert trips.mean_ms == pytest.approx(120, abs=1)
    assert len(again) == len(rules)
    assert all(line.endswith(" unchanged") for line in again)
