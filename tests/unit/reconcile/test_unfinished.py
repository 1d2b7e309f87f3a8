"""A transaction that was begun and never ended is seen by the next, and by who only looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podmgr.reconcile import ledger, unfinished

GONE = "4194305-5"  # above the largest process id


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_one_that_has_ended_is_none(state: Path) -> None:
    for _ in range(2):
        with ledger.locked(state) as held:
            assert not unfinished.begin(held)
            assert not unfinished.is_left(state)  # it is ours, and we are alive
            unfinished.end(held)
    assert not unfinished.is_left(state)


@pytest.mark.parametrize("mark", [GONE, "?", "x-y-z"])
def test_one_whose_podmgr_is_gone_is_left(state: Path, mark: str) -> None:
    with ledger.locked(state) as held:
        os.pwrite(held.lock, mark.encode(), 0)
    assert unfinished.is_left(state)
    with ledger.locked(state) as held:
        assert unfinished.begin(held)
        unfinished.end(held)
    assert not unfinished.is_left(state)


def test_without_a_state_folder_there_is_none(state: Path) -> None:
    assert not unfinished.is_left(state)
