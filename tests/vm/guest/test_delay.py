"""delay through fq: as long as it was asked for, in order, and TCP over it carries what it can.

Short runs, of what holds on a busy machine too. The figures are the benchmark's, `link`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from podmgr.demo.intervals import binomial_interval
from podmgr.kernel import bpf_syscall
from tests.lab import Lab, lab, tcp
from tests.oneway import journeys

COUNT = 500
SEVERAL_CPUS = 0.02
"""What they reorder behind fq, each with a backlog of its own, on a busy machine; one reorders none."""


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_every_datagram_is_so_much_later_and_none_is_lost(made: Lab, direction: str) -> None:
    with made.under(f"delay=20ms {direction}"):
        found = journeys(made, COUNT, apart_seconds=0.002, ingress=direction == "ingress", quiet_seconds=1)
        assert made.counters().passed_packets == COUNT
    print(found)
    assert (found.lost, found.copies, found.errors) == (0, 0, 0)
    assert found.overtaken <= SEVERAL_CPUS * COUNT
    assert min(found.delays) >= 0.02
    assert sorted(found.delays)[COUNT // 2] == pytest.approx(0.02, rel=0.15)


def test_jitter_keeps_order_and_list_tells_of_it(made: Lab) -> None:
    with made.under("delay=100ms egress jitter=50ms"):
        found = journeys(made, 2000, apart_seconds=0.002, quiet_seconds=1)
        shown = made.podmgr("list", "-o", "wide")
    print(found, shown)
    assert found.lost == 0
    assert found.overtaken <= SEVERAL_CPUS * 2000
    assert min(found.delays) >= 0.05
    assert sorted(found.delays)[len(found.delays) // 2] <= 0.16
    assert found.deviation > 0.001
    mean = re.search(r"mean delay ([\d.]+) ms, p99 delay ([\d.]+) ms", shown)
    assert mean is not None, shown
    assert 50 <= float(mean[1]) <= found.mean * 1e3 * 1.02
    assert float(mean[1]) <= float(mean[2]) <= 151


def test_free_jitter_lets_packets_overtake(made: Lab) -> None:
    with made.under("delay=50ms egress jitter=20ms distribution=normal order=free"):
        found = journeys(made, COUNT, apart_seconds=0.002, quiet_seconds=1)
    print(found)
    assert found.lost == 0
    assert found.overtaken > COUNT / 4
    assert found.deviation > 0.01


def test_tcp_waits_on_nobodys_account(made: Lab) -> None:
    """With a stamp alone TCP carries half a megabit per second over 100 ms."""
    with made.under("delay=50ms both"):
        carried = tcp(made, 4).bits_per_second
    print(carried)
    assert carried > 10e6


def test_rate_and_delay_are_one_departure_time(made: Lab) -> None:
    with made.under("delay=20ms egress", "bandwidth=10 mbps egress algorithm=edt"):
        carried = tcp(made, 4).bits_per_second
        found = journeys(made, 200, apart_seconds=0.01, quiet_seconds=1)
    print(carried, found)
    assert 7e6 < carried < 10e6
    assert min(found.delays) >= 0.02


def test_a_change_of_one_rule_leaves_the_others_state(made: Lab) -> None:
    loss = "loss=uniform egress 0%"
    with made.under(loss, "delay=10ms egress"):
        journeys(made, 100, apart_seconds=0.001, quiet_seconds=1)
        made.podmgr("apply", made.target, "--rule", loss, "--rule", "delay=30ms egress")
        found = journeys(made, 100, apart_seconds=0.001, quiet_seconds=1)
        counted = [
            counters.passed_packets
            for path in (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters")
            if (counters := bpf_syscall.pinned_counters(path))
        ]
    assert min(found.delays) >= 0.03
    new, kept = sorted(counted)
    assert 100 <= new < 150  # beside the datagrams, the kernel's own packets
    assert 200 <= kept < 250


def test_on_a_network_that_others_use_too_only_the_cgroups_packets_are_delayed(made: Lab) -> None:
    """What is freed from its socket still belongs to its cgroup; and loss before it acts once."""
    rules = ("delay=20ms rtt", "loss=uniform egress 30%")
    with beside(made), made.root("handle 7: fq limit 20000 flow_limit 20000"), made.under(*rules):
        theirs = journeys(made, 200, apart_seconds=0.002, quiet_seconds=1, from_outside=True)
        ours = journeys(made, 2 * COUNT, apart_seconds=0.002, quiet_seconds=1)
        shown = made.podmgr("list")
    print(theirs, ours, shown)
    assert theirs.lost == 0
    assert sorted(theirs.delays)[100] < 0.01
    assert min(ours.delays) >= 0.02
    low, high = binomial_interval(2 * COUNT, 0.3)
    assert low <= ours.lost <= high
    assert "delay=20ms egress" in shown
    assert "ingress" not in shown


@contextmanager
def beside(made: Lab) -> Iterator[None]:
    """Somebody else lives in the pod's network."""
    other = made.beside_pod(["sleep", "1000"])
    try:
        yield
    finally:
        other.kill()
        other.wait()
