"""How the benchmark `link` judges draws and runs: against what is known beforehand."""

from __future__ import annotations

import random

import pytest

from tests.bench import link_chance, link_jitter
from tests.bench.link_chance import Lost

CHANCE = random.Random(1)
COUNT = 4_000


def test_a_sample_of_the_target_is_near_it_and_another_is_not() -> None:
    cdf = link_jitter.target("uniform")
    assert link_jitter.distance([CHANCE.uniform(30, 70) for _ in range(COUNT)], cdf) < 0.03
    assert link_jitter.distance([CHANCE.uniform(40, 60) for _ in range(COUNT)], cdf) == pytest.approx(
        0.25, abs=0.03
    )


def test_correlation_is_that_of_each_with_the_one_before() -> None:
    values = [0.0]
    for _ in range(COUNT):
        values.append(values[-1] if CHANCE.random() < 0.9 else CHANCE.random())
    assert link_jitter.lag1(values) == pytest.approx(0.9, abs=0.05)
    assert link_jitter.lag1([CHANCE.random() for _ in range(COUNT)]) == pytest.approx(0, abs=0.08)


def test_losses_are_counted_in_runs_and_what_is_off_in_standard_errors() -> None:
    is_lost = tuple(map(bool, map(int, "0110001000" * 400)))
    found = Lost("rule", "podmgr", is_lost, wanted_loss=0.3, wanted_run=1.5)
    assert found.runs[:3] == [2, 1, 2]
    assert found.loss == pytest.approx(0.3)
    assert found.run_errors == pytest.approx(0)
    assert Lost("rule", "podmgr", is_lost, 0.3, wanted_run=2).run_errors > link_chance.MOST_ERRORS
