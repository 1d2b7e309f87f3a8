"""What chains come to: by Gilbert's formula, and by what a long walk does."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given

from podmgr.rules.chance import DRAWS
from podmgr.rules.kinds.loss_bursts import LONGEST, BurstLoss, GilbertLoss, MarkovLoss
from podmgr.rules.markov import LOST, STATES, Runs, chain_of, runs_of
from podmgr.rules.rule import Figure
from tests.unit.samples import burst_losses, chained_losses, parsed


def chained(option: str) -> BurstLoss | GilbertLoss | MarkovLoss:
    rule = parsed(option)
    assert isinstance(rule, BurstLoss | GilbertLoss | MarkovLoss)
    return rule


@given(chained_losses)
def test_draws_of_a_state_are_2_to_the_32_and_each_is_the_nearest(
    rule: BurstLoss | GilbertLoss | MarkovLoss,
) -> None:
    for state, row in rule.chain.rows.items():
        assert sum(row.values()) == DRAWS
        for to in STATES:
            assert row[to] >= 0
            if to != state:
                assert abs(row[to] - rule.cells.get((state, to), Fraction(0)) * DRAWS) <= Fraction(3, 2)


@given(chained_losses)
def test_runs_and_gaps_make_the_loss(rule: BurstLoss | GilbertLoss | MarkovLoss) -> None:
    loss, run, gap = runs_of(rule.chain)
    assert 0 <= loss <= 1
    if run is None or gap is None:
        assert loss in (0, 1)
    else:
        assert run >= 1
        assert loss == run / (run + gap)


@given(burst_losses)
def test_a_burst_has_the_loss_and_the_length_that_are_written(rule: BurstLoss) -> None:
    """To what 2^-32 makes of it: half a draw of the few that begin and end a run."""
    loss, run, _ = runs_of(rule.chain)
    if run is not None:
        begins = rule.cells[1, 3]
        assert abs(run / Fraction(rule.length) - 1) <= Fraction(rule.length) / DRAWS
        off = (Fraction(rule.length) + 1 / begins) / DRAWS
        assert abs(loss / Fraction(rule.percent) * 100 - 1) <= off


def test_gilberts_formula_holds_exactly() -> None:
    """Loss p / (p + r), runs of 1 / r."""
    chain = chain_of({(1, 3): Fraction(1, 16), (3, 1): Fraction(1, 4)})
    assert runs_of(chain) == Runs(Fraction(1, 5), Fraction(4), Fraction(16))


def test_gilbert_elliotts_formula_holds_exactly() -> None:
    """Loss (r good + p bad) / (p + r)."""
    rule = chained("loss=gilbert egress p=12.5% r=37.5% bad=75% good=25%")
    assert runs_of(rule.chain).loss == Fraction(3, 4) * Fraction(1, 4) + Fraction(1, 4) * Fraction(3, 4)


def test_bad_and_good_alike_lose_each_packet_for_itself() -> None:
    """Whatever the states: runs of 1 / (1 - P)."""
    rule = chained("loss=gilbert egress p=12.5% r=50% bad=25% good=25%")
    assert runs_of(rule.chain) == Runs(Fraction(1, 4), Fraction(4, 3), Fraction(4))


def test_an_isolated_loss_is_alone() -> None:
    rule = chained("loss=markov egress p13=0% p14=100%")
    assert runs_of(rule.chain) == Runs(Fraction(1, 2), Fraction(1), Fraction(1))


@pytest.mark.parametrize(
    "option",
    [
        "loss=burst egress 20% length=4",
        "loss=gilbert egress p=10% r=30% bad=60% good=5%",
        "loss=markov egress p13=10% p31=30% p32=40% p23=60% p14=5%",
    ],
)
def test_a_walk_of_the_chain_comes_to_the_same(option: str) -> None:
    """200,000 steps: within 5 %, which is some six standard deviations."""
    chain, source = chained(option).chain, random.Random(1)
    state, lost, runs = 1, 0, 0
    for _ in range(200_000):
        row = chain.rows[state]
        (to,) = source.choices(STATES, [row[other] for other in STATES])
        runs += to in LOST and state not in LOST
        lost += to in LOST
        state = to
    loss, run, _ = runs_of(chain)
    assert run is not None
    assert lost / 200_000 == pytest.approx(float(loss), rel=0.05)
    assert lost / runs == pytest.approx(float(run), rel=0.05)


def test_states_that_are_never_reached_are_not_there() -> None:
    assert set(chained("loss=gilbert egress p=1% r=20%").chain.rows) == {1, 3}
    assert set(chained("loss=gilbert egress p=0% r=20% good=1%").chain.rows) == {1, 4}
    assert set(chained("loss=burst egress 0% length=2").chain.rows) == {1}


def test_figures_are_the_runs_and_what_those_lost_that_have_ended() -> None:
    rule = chained("loss=burst egress 1% length=5")
    nothing = [0] * (2 + LONGEST)
    assert rule.figures(nothing) == [Figure("runs", 0)]
    counted = [4, 1, 1, *[0] * (LONGEST - 3), 1, 33]  # one is not over
    assert rule.figures(counted) == [Figure("runs", 4), Figure("mean run", 11, "packets")]
