"""How far a count may stray by chance: exact intervals of the binomial distribution. Pure.

Apart from `demonstrate` and the tests that judge by it: statistics need no kernel.
"""

from __future__ import annotations

import math


def binomial_interval(trials: int, probability: float, confidence: float = 0.9999) -> tuple[int, int]:
    """The counts between which `confidence` of all outcomes of `trials` draws lie, both included.

    Each tail holds at most (1 - confidence) / 2. `probability` is from 0 to 1.
    """
    if probability <= 0:
        return 0, 0
    if probability >= 1:
        return trials, trials
    tail = (1 - confidence) / 2
    log_p, log_q = math.log(probability), math.log1p(-probability)

    def mass(count: int) -> float:
        ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        return math.exp(ways + count * log_p + (trials - count) * log_q)

    low, below = 0, mass(0)
    while below <= tail:
        low += 1
        below += mass(low)
    high, above = trials, mass(trials)
    while above <= tail:
        high -= 1
        above += mass(high)
    return low, high
