"""How long a benchmark measures, and how often; and how far it is."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Seconds of one measurement, and rounds in which all are repeated; None: the benchmark's own."""

    seconds: float | None = None
    rounds: int | None = None

    def filled(self, default: Effort) -> Effort:
        return Effort(
            default.seconds if self.seconds is None else self.seconds,
            default.rounds if self.rounds is None else self.rounds,
        )


def tell(step: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)
