"""How often what is done at random, or again and again, is done: a little in CI, more where somebody asks."""

from __future__ import annotations

import os
import random

KILLS = int(os.environ.get("PODMGR_TEST_KILLS", "4"))  # of each command
ROUNDS = int(os.environ.get("PODMGR_TEST_ROUNDS", "50"))
_SEED = os.environ.get("PODMGR_TEST_SEED") or str(random.randrange(1 << 32))


def seeded(name: str) -> random.Random:
    """Chance, another one for each name; the seed is printed, and can be given."""
    print(f"PODMGR_TEST_SEED={_SEED}")
    return random.Random(f"{_SEED} {name}")
