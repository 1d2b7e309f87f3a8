"""Sockets that say themselves when a packet is to leave, on a link of algorithm=edt.

A stamp is never left before, so what is asserted here holds on a busy machine too: medians, and shares that
other ways to book the link's time miss by far.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from statistics import mean, median

import pytest

from podmgr.demo.throwaway import WIRE_PER_PAYLOAD
from tests.capture import arrivals
from tests.lab import WORLD, Lab, lab, start_tcp
from tests.stamped import WIRE_BYTES

RATE = 10e6
EDT = "bandwidth=10 mbps egress algorithm=edt"
COUNT, PORT = 100, 4100
LINK_SECONDS = (COUNT - 1) * WIRE_BYTES * 8 / RATE  # from the first departure to the last: 98.4 ms
SECONDS = 4
PINGS = 100
RTT_MS = 20


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    """With a round trip of 20 ms: on a shorter one, since Linux 5.18, TCP sends 64 KiB in one packet whatever
    its pace (tcp_tso_rtt_log), which is 52 ms of this link.
    """
    with lab(rtt_ms=RTT_MS) as made:
        yield made


@pytest.fixture(scope="module")
def limited(made: Lab) -> Iterator[Lab]:
    """Under the rule, at tc."""
    with made.under(EDT):
        yield made


def _send(made: Lab, count: int, *, every_ms: int, ahead_ms: int) -> subprocess.Popen[str]:
    numbers = map(str, (PORT, count, every_ms, ahead_ms))
    return made.in_pod([sys.executable, "-m", "tests.stamped", WORLD, *numbers])


def _burst_seconds(made: Lab) -> float:
    """How long datagrams take to arrive that were sent at once, and stamped with the same moment."""
    with arrivals(made.world, "eth0") as seen:
        assert _send(made, COUNT, every_ms=0, ahead_ms=300).wait() == 0
    moments = [moment for moment, size in seen[0].seen if size == WIRE_BYTES]
    assert len(moments) == COUNT
    return moments[-1] - moments[0]


def test_a_burst_of_one_stamp_leaves_at_the_links_rate_at_the_cgroup_hook(made: Lab) -> None:
    """Before what keeps the rule at tc in place."""
    with made.root("fq"), made.under(f"{EDT} hook=cgroup"):
        took = [_burst_seconds(made) for _ in range(3)]
    print(took)
    assert 0.8 * LINK_SECONDS <= median(took) <= 2 * LINK_SECONDS


def test_a_burst_of_one_stamp_leaves_at_the_links_rate(limited: Lab) -> None:
    took = [_burst_seconds(limited) for _ in range(3)]
    print(took)
    assert 0.8 * LINK_SECONDS <= median(took) <= 2 * LINK_SECONDS


@pytest.mark.parametrize("flows", [1, 4])
def test_tcp_that_paces_itself_keeps_its_rate_beside_bulk(limited: Lab, flows: int) -> None:
    """Where the link is booked from each stamp on, 0.57 of it."""
    bulk = start_tcp(limited, SECONDS + 1, port=5203)
    paced = start_tcp(limited, SECONDS, flows=flows, pacing_bits_per_second=1e6)
    all_paced, others = (finish().bits_per_second * WIRE_PER_PAYLOAD / 1e6 for finish in (paced, bulk))
    print(all_paced / flows, others)
    assert all_paced / flows >= 0.8
    assert others >= 1


def test_a_sparse_flow_beside_bulk_waits_for_what_is_before_it(limited: Lab) -> None:
    bulk = start_tcp(limited, SECONDS)
    times_ms = _pings(limited, PINGS)
    bulk()
    print(mean(times_ms), median(times_ms))
    assert median(times_ms) <= RTT_MS + 50


def test_a_flow_with_stamps_delays_nobody_else(limited: Lab) -> None:
    """Half of the rate, 98 ms ahead: whoever waited until then would wait 98 ms."""
    sender = _send(limited, 1500, every_ms=2, ahead_ms=98)
    times_ms = _pings(limited, PINGS)
    assert sender.wait() == 0
    print(mean(times_ms), median(times_ms))
    assert median(times_ms) <= RTT_MS + 50


def _pings(made: Lab, count: int) -> list[float]:
    """Round trips in milliseconds, one every 20."""
    argv = ["ping", "-c", str(count), "-i", "0.02", "-W", "1", WORLD]
    times = re.findall(r"time=([\d.]+) ms", made.in_pod(argv).communicate()[0])
    assert len(times) >= count * 0.9
    return [float(time) for time in times]
