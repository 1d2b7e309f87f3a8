"""Growing pauses between attempts, with jitter so that many nodes do not knock at once."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """The n-th pause is uniform in [b/4, b], where b = min(most_seconds, first_seconds * 2^n)."""

    first_seconds: float
    most_seconds: float
    _failures: int = 0

    def next_seconds(self) -> float:
        """The pause before the next attempt."""
        bound = min(self.most_seconds, self.first_seconds * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return random.uniform(bound / 4, bound)

    def reset(self) -> None:
        """It works again: the next pause is a short one."""
        self._failures = 0
