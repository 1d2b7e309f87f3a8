"""What a delay means in numbers: how it is read, split over a round trip, drawn, bounded and shown."""

from __future__ import annotations

import pytest
from hypothesis import given

from podmgr.rules.distributions import STEPS
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.delay import Delay, Order, least_ns, most_ns, slot_ns
from podmgr.rules.rule import Direction
from podmgr.rules.waiting import waiting_bytes
from tests.unit.samples import EGRESS, INGRESS, delays

MS = 10**6


def rule(text: str) -> Delay:
    (found,) = parse_rule_option(f"delay={text}")
    assert isinstance(found, Delay)
    return found


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("100ms egress", Delay(EGRESS, 100 * MS)),
        ("100 MS  Ingress", Delay(INGRESS, 100 * MS)),
        ("1.5s egress", Delay(EGRESS, 1500 * MS)),
        ("0.25 us egress", None),
        ("1us egress", Delay(EGRESS, 1000)),
        ("50ms egress jitter=10MS", Delay(EGRESS, 50 * MS, 10 * MS)),
        ("50ms egress jitter=0ms", Delay(EGRESS, 50 * MS)),
        ("50ms egress jitter=50ms order=Free", Delay(EGRESS, 50 * MS, 50 * MS, order=Order.FREE)),
        ("50ms egress order=keep jitter=5ms distribution=NORMAL", Delay(EGRESS, 50 * MS, 5 * MS, "normal")),
        ("50ms egress jitter=5ms distribution=Mine-1", Delay(EGRESS, 50 * MS, 5 * MS, "Mine-1")),
    ],
)
def test_delay_is_read(text: str, meant: Delay | None) -> None:
    if meant is None:
        with pytest.raises(Exception, match="out of range"):
            rule(text)
    else:
        assert rule(text) == meant


def test_a_round_trip_is_halved_and_its_jitter_so_that_both_make_the_whole() -> None:
    plain, back = parse_rule_option("delay=81us rtt")
    assert [str(plain), str(back)] == ["delay=40.5us egress", "delay=40.5us ingress"]
    uniform, _ = parse_rule_option("delay=80ms rtt jitter=10ms")
    assert str(uniform) == "delay=40ms egress jitter=5ms"
    normal, _ = parse_rule_option("delay=80ms rtt jitter=10ms distribution=normal")
    assert str(normal) == "delay=40ms egress jitter=7.071068ms distribution=normal"


def test_where_only_what_leaves_can_be_delayed_the_whole_round_trip_is_on_egress() -> None:
    leaving, arriving = parse_rule_option("delay=80ms rtt jitter=10ms order=free")
    assert str(leaving.on_egress_alone) == "delay=80ms egress jitter=10ms order=free"
    assert arriving.on_egress_alone is None
    for plain in parse_rule_option("delay=80ms both"):
        assert plain.on_egress_alone is plain


@given(delays)
def test_what_is_drawn_lies_between_its_ends_and_in_order_within_a_slot(delay: Delay) -> None:
    assert 0 <= least_ns(delay) <= delay.time_ns <= most_ns(delay)
    if delay.jitter_ns:
        assert most_ns(delay) - least_ns(delay) <= slot_ns(delay)
        assert slot_ns(delay) >= 100 * MS


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1ms egress", 16 * 2**20), ("100ms egress", 125 * 10**6), ("10s egress", 256 * 10**6)],
)
def test_what_may_wait_follows_from_the_delay_and_has_an_end(text: str, size_bytes: int) -> None:
    assert waiting_bytes(most_ns(rule(text))) == size_bytes


def test_its_program_has_the_table_of_its_distribution() -> None:
    macros = dict(rule("50ms egress jitter=5ms distribution=pareto").macros)
    assert len((macros["QUANTILES"] or "").split(",")) == STEPS + 1
    assert "QUANTILES" not in dict(rule("50ms egress jitter=5ms").macros)
    own = rule("50ms egress jitter=5ms distribution=mine")
    assert own.table == "mine"
    assert "QUANTILES" not in dict(own.macros)


def test_it_is_explained_in_numbers() -> None:
    rows = dict(rule("100ms egress jitter=10ms distribution=normal").explain())
    assert rows["one way"] == "100 ms, standard deviation 10 ms, normal"
    assert rows["percentiles"].startswith("1%: 76.7")
    assert "50%: 100 ms" in rows["percentiles"]
    assert "none overtakes" in rows["order"]
    assert "6 MiB 503.316 Mbit/s" in rows["TCP carries"]
    assert "on the wire" in rows["may wait"]


def test_its_figures_are_the_mean_and_the_99th_percentile() -> None:
    plain = rule("100ms egress")
    assert plain.figures([0, 0, *[0] * 256]) == []
    assert plain.figures([4, 400 * MS, *[0] * 256]) == [("mean delay", 0.1, "seconds")]
    wide = rule("100ms egress jitter=64ms")
    width_ns = 1 << ((most_ns(wide) - least_ns(wide)) // 256 | 1).bit_length()
    counted = [0] * 256
    counted[10], counted[20] = 90, 10
    mean, late = wide.figures([100, 100 * 90 * MS, *counted])
    assert mean.value == pytest.approx(0.09)
    assert late.value == pytest.approx((least_ns(wide) + 20.9 * width_ns) / 1e9)


@pytest.mark.parametrize("direction", Direction)
def test_figures_of_all_draws_stay_in_the_buckets(direction: Direction) -> None:
    for delay in (Delay(direction, 10**9, 10**9), Delay(direction, 1000, 3), Delay(direction, 10**9, 255)):
        width_ns = 1 << ((most_ns(delay) - least_ns(delay)) // 256 | 1).bit_length()
        assert (most_ns(delay) - least_ns(delay)) // width_ns < 256
