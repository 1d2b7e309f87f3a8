"""What holds for every unit test: hypothesis is quick, and fails nothing because the machine is busy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=60)
settings.load_profile("unit")


@pytest.fixture
def make_stranger() -> Iterator[Callable[[], int]]:
    """Starts processes, each in a network namespace of its own, and says their numbers."""
    with ExitStack() as stack:

        def make() -> int:
            argv = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(child.communicate)
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            return child.pid

        yield make


@pytest.fixture
def stranger(make_stranger: Callable[[], int]) -> int:
    """A process in a network namespace of its own."""
    return make_stranger()
