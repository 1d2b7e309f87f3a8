"""Loss is what netem makes of it, to TCP, UDP and ping. The long runs are the benchmark `tcp-loss`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.loss import datagrams_lost, pings_lost
from tests.bench.tcploss import JUDGED_RTT_MS, Comparison, compare
from tests.lab import Lab, lab

ROUNDS, SECONDS = 2, 5


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab(rtt_ms=JUDGED_RTT_MS) as made:
        yield made


def test_tcp_makes_of_it_what_it_makes_of_netems(made: Lab) -> None:
    """Short runs vary. A drop that is no loss to TCP is off by a factor of ten, and more."""
    found = Comparison(made, JUDGED_RTT_MS, "2")
    compare([found], rounds=ROUNDS, seconds=SECONDS)
    print(found.throughput, found.retransmits)
    assert 0.4 <= found.throughput.value <= 2.5
    assert 0.3 <= found.retransmits.value <= 3
    assert all(run.retransmits for run in found.ours)


def test_ping_sees_it(made: Lab) -> None:
    lost = pings_lost(made, "10", 2_000)
    assert lost.is_fair, lost


def test_udp_loses_it_and_its_sender_sees_no_error(made: Lab) -> None:
    with made.under("loss=uniform egress 2%"):
        lost = datagrams_lost(made, 0.02, 20_000)
    assert lost.is_fair, lost
    assert lost.errors == 0
