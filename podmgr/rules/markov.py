"""Markov chains of four states that lose packets, and what they come to. Pure, and exact.

Apart from `kinds.loss_bursts`, whose rules they are: what a chain comes to has nothing to do with words.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from podmgr.rules.chance import DRAWS

STATES = (1, 2, 3, 4)  # as in bpf/burst.bpf.c; a chain begins in the first
LOST = (3, 4)  # those that lose the packet

Cells = Mapping[tuple[int, int], Fraction]  # how probably a state leads to another


class Chain(NamedTuple):
    """How many of 2^32 draws lead from a state to each; those that it never comes to are left out."""

    rows: Mapping[int, Mapping[int, int]]


class Runs(NamedTuple):
    """What a chain comes to in the long run: the share of packets lost, 0 to 1; and how many packets the runs
    of losses, and the gaps between them, have on average, or None if they never end.
    """

    loss: Fraction
    run: Fraction | None
    gap: Fraction | None


def chain_of(cells: Cells) -> Chain:
    """The chain with these probabilities to leave a state, each rounded to the nearest of 2^32 draws."""
    rows: dict[int, dict[int, int]] = {}
    waiting = [STATES[0]]
    while waiting:
        state = waiting.pop()
        row = {to: round(cells.get((state, to), 0) * DRAWS) for to in STATES if to != state}
        if sum(row.values()) > DRAWS:  # by one at most: halves that were rounded up
            row[max(row, key=row.__getitem__)] -= sum(row.values()) - DRAWS
        rows[state] = row | {state: DRAWS - sum(row.values())}
        waiting += [to for to, draws in row.items() if draws and to not in (*rows, *waiting)]
    return Chain(dict(sorted(rows.items())))


def runs_of(chain: Chain) -> Runs:
    """Of the stationary distribution q: the loss L = q3 + q4; a run begins with probability
    B = sum of q_i p_ij, i received and j lost; so a run is of L / B packets and a gap of (1 - L) / B.
    """
    shares = _stationary(chain)
    loss = sum((share for state, share in shares.items() if state in LOST), Fraction(0))
    begins = sum(
        (
            share * Fraction(sum(chain.rows[state][to] for to in LOST), DRAWS)
            for state, share in shares.items()
            if state not in LOST
        ),
        Fraction(0),
    )
    return Runs(loss, loss / begins, (1 - loss) / begins) if begins else Runs(loss, None, None)


def _reached(chain: Chain, start: int) -> set[int]:
    found = {start}
    while more := {to for state in found for to, draws in chain.rows[state].items() if draws} - found:
        found |= more
    return found


def _stationary(chain: Chain) -> dict[int, Fraction]:
    """The share of packets in each state, by the elimination of Grassmann, Taksar and Heyman.

    In the end the chain is in states from which all others of them are reached again.
    """
    states = sorted(set.intersection(*(_reached(chain, start) for start in chain.rows)))
    p = {state: {to: Fraction(draws) for to, draws in chain.rows[state].items()} for state in states}
    for at in range(len(states) - 1, 0, -1):
        last, others = states[at], states[:at]
        leaves = sum((p[last][to] for to in others), Fraction(0))
        for state in others:
            p[state][last] /= leaves
            for to in others:
                p[state][to] += p[state][last] * p[last][to]
    weights = {states[0]: Fraction(1)}
    for state in states[1:]:
        weights[state] = sum((weight * p[other][state] for other, weight in weights.items()), Fraction(0))
    whole = sum(weights.values())
    return {state: weight / whole for state, weight in weights.items()}
