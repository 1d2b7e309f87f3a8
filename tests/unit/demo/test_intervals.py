"""Exact binomial intervals: they hold what they should, against the definition in whole fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.demo.intervals import binomial_interval


def mass(trials: int, probability: Fraction, counts: range) -> Fraction:
    """P(the count lies in `counts`), exactly."""
    return sum(
        (
            comb(trials, count) * probability**count * (1 - probability) ** (trials - count)
            for count in counts
        ),
        Fraction(0),
    )


@given(st.integers(1, 60), st.integers(1, 99))
def test_each_tail_holds_at_most_half_of_what_is_left(trials: int, percent: int) -> None:
    probability, tail = Fraction(percent, 100), Fraction(5, 1000)
    low, high = binomial_interval(trials, float(probability), confidence=0.99)
    slack = Fraction(1, 10**9)  # the function computes with floats
    assert 0 <= low <= high <= trials
    assert mass(trials, probability, range(low)) <= tail + slack
    assert mass(trials, probability, range(low + 1)) >= tail - slack
    assert mass(trials, probability, range(high + 1, trials + 1)) <= tail + slack
    assert mass(trials, probability, range(high, trials + 1)) >= tail - slack


@pytest.mark.parametrize(("probability", "count"), [(0.0, 0), (1.0, 1000)])
def test_certainty_allows_one_count_only(probability: float, count: int) -> None:
    assert binomial_interval(1000, probability) == (count, count)


@given(st.integers(1, 500), st.floats(0.01, 0.99))
def test_interval_of_the_opposite_is_the_mirror_image(trials: int, probability: float) -> None:
    low, high = binomial_interval(trials, probability)
    other_low, other_high = binomial_interval(trials, 1 - probability)
    assert abs(trials - other_high - low) <= 1
    assert abs(trials - other_low - high) <= 1


def test_two_percent_of_a_hundred_thousand() -> None:
    low, high = binomial_interval(100_000, 0.02)
    spread = 3.8906 * (100_000 * 0.02 * 0.98) ** 0.5  # the normal distribution's 99.99 %
    assert abs(low - (2_000 - spread)) < 5
    assert abs(high - (2_000 + spread)) < 5
