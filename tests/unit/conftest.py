"""What holds for every unit test: hypothesis is quick, and fails nothing because the machine is busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=60)
settings.load_profile("unit")
