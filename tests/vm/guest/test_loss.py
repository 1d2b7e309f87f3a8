"""Loss is what netem makes of it, to TCP, UDP and ping. The long runs are `tests.bench.loss`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.loss import RTT_MS, compare, datagrams_lost, pings_lost
from tests.lab import Lab, lab

ROUNDS, SECONDS = 3, 5


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab(rtt_ms=RTT_MS) as made:
        yield made


def test_tcp_makes_of_it_what_it_makes_of_netems(made: Lab) -> None:
    """Short runs vary much. A drop that is no loss to TCP is off by a factor of ten, and more."""
    found = compare(made, "2", rounds=ROUNDS, seconds=SECONDS)
    print(found.throughput, found.retransmits)
    assert found.throughput.low <= 2
    assert found.throughput.high >= 0.5
    assert found.retransmits.low <= 3
    assert found.retransmits.high >= 0.3
    assert all(run.retransmits for run in found.ours)


def test_ping_sees_it(made: Lab) -> None:
    lost = pings_lost(made, "10", 2_000)
    assert lost.is_fair, lost


def test_udp_loses_it_and_its_sender_sees_no_error(made: Lab) -> None:
    lost = datagrams_lost(made, "2")
    assert lost.is_fair, lost
    assert lost.errors == 0
