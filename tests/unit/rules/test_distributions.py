"""Tables of quantiles: standard deviations that are one, tails that end, files that are read or refused."""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import pytest

from podmgr.rules.distributions import BUILT_IN, END, SCALE, STEPS, ends, quantile, quantiles, read_table


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_drawn_has_mean_0_and_deviation_1(name: str) -> None:
    table = [value / SCALE for value in quantiles(name)]
    pairs = list(pairwise(table))
    mean = sum((low + high) / 2 for low, high in pairs) / STEPS
    square = sum((low * low + low * high + high * high) / 3 for low, high in pairs) / STEPS
    assert len(table) == STEPS + 1
    assert mean == pytest.approx(0, abs=1e-3)
    assert square == pytest.approx(1, abs=2e-3)
    assert table == sorted(table)
    assert all(-END < value < END for value in table)
    assert ends(quantiles(name)) == (table[0], table[-1])


@pytest.mark.parametrize("percent", [1, 5, 25, 50, 75, 95, 99])
def test_normal_is_normal(percent: int) -> None:
    exact = NormalDist().inv_cdf(percent / 100)
    assert quantile(quantiles("normal"), percent / 100) == pytest.approx(exact, abs=0.01)


def test_pareto_has_its_tail_above() -> None:
    table = quantiles("pareto")
    low, high = ends(table)
    assert -1 < low < 0
    assert high > 6
    assert quantile(table, 0.5) < 0 < quantile(table, 0.75)


def test_a_table_of_ones_own_is_sorted_and_made_as_long_as_others() -> None:
    table = read_table("# a step\n8192 -8192\n  0 # the middle\n")
    assert len(table) == STEPS + 1
    assert (table[0], table[STEPS // 2], table[-1]) == (-SCALE, 0, SCALE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has 0 numbers, and not 2 to 65,536"),
        ("5", "it has 1 numbers"),
        ("1\n2 x", "line 2: 'x' is not a whole number"),
        ("1 1.5", "line 1: '1.5' is not a whole number"),
        ("1 32768", "line 1: 32768 is not between -32768 and 32767"),
        ("1 -32769", "line 1: -32769 is not between"),
        ("1 " * 65_537, "it has 65,537 numbers"),
        ("#" * (1 << 21), "characters"),
        ("1\0 2", "is not a whole number"),
    ],
)
def test_a_malformed_table_is_refused_with_the_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_table(text)
