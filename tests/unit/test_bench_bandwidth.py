"""How packets become a rate, a first second and a worst window; how losses are judged."""

from __future__ import annotations

import pytest

from tests.bench.bandwidth import shares_of_limit
from tests.bench.loss import Lost
from tests.capture import Arrivals

STEADY = Arrivals(tuple((number / 100, 12_500) for number in range(1_000)))  # 10 Mbit/s for 10 s


def test_a_steady_flow_has_no_burst() -> None:
    assert STEADY.rate(1, 9) == pytest.approx(10e6, rel=0.01)
    assert STEADY.worst_window(0, 10) == pytest.approx(10e6, rel=0.06)  # one packet more


def test_a_burst_shows_in_its_window() -> None:
    burst = Arrivals((*STEADY.seen[:500], (5.0, 250_000), *STEADY.seen[500:]))
    assert burst.worst_window(0, 10) == pytest.approx(20e6, rel=0.06)
    assert burst.worst_window(6, 10) == pytest.approx(10e6, rel=0.06)


def test_shares_leave_out_the_handshake_and_the_edges() -> None:
    late = Arrivals(((0.0, 74), *((moment + 2, size) for moment, size in STEADY.seen)))
    wire, first_second, worst = shares_of_limit(late, 10e6, seconds=10, least_bytes=1_000)
    assert wire == pytest.approx(1, rel=0.01)
    assert first_second == pytest.approx(1, rel=0.02)
    assert worst == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize(("lost", "is_fair"), [(2_000, True), (2_170, True), (2_180, False), (1_820, False)])
def test_a_loss_is_judged_by_its_interval(lost: int, is_fair: bool) -> None:
    found = Lost(lost, 100_000, 0.02)
    assert found.is_fair is is_fair
    assert (abs(found.deviation) <= 1) is is_fair
