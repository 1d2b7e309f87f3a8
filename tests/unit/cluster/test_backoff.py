"""Pauses: each bound twice the one before, never above the most, and spread so that nodes differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.cluster.backoff import Backoff


def longest(backoff: Backoff, monkeypatch: pytest.MonkeyPatch, count: int) -> list[float]:
    """The longest that each of the next pauses can be."""
    with monkeypatch.context() as patch:
        patch.setattr("random.uniform", max)
        return [backoff.next_seconds() for _ in range(count)]


@given(st.floats(0.001, 10), st.floats(1, 1000), st.integers(0, 50))
def test_nth_pause_is_between_a_quarter_of_its_bound_and_the_bound(
    first: float, factor: float, failures: int
) -> None:
    backoff = Backoff(first, first * factor)
    for n in range(failures + 1):
        bound = min(first * factor, first * 2.0**n)
        assert bound / 4 <= backoff.next_seconds() <= bound


def test_bound_doubles_up_to_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest(Backoff(0.5, 3.0), monkeypatch, 5) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_shortest_pause_is_a_quarter_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", min)
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next_seconds() for _ in range(3)] == [0.125, 0.25, 0.5]


def test_reset_begins_with_a_short_pause_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = Backoff(0.5, 15.0)
    longest(backoff, monkeypatch, 4)
    backoff.reset()
    assert longest(backoff, monkeypatch, 2) == [0.5, 1.0]


def test_pauses_of_many_nodes_differ() -> None:
    assert len({Backoff(0.5, 15.0).next_seconds() for _ in range(100)}) > 90


def test_years_of_failures_are_no_overflow() -> None:
    backoff = Backoff(0.5, 15.0)
    assert all(backoff.next_seconds() <= 15.0 for _ in range(2000))
