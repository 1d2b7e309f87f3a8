"""What a run has made is written down, and found by others only when its podmgr is gone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from podmgr.errors import PermissionDeniedError
from podmgr.reconcile import lease

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def abandon(state: Path, name: str, *notes: str) -> None:
    """By a process that is killed."""
    script = (
        "import os, sys; from pathlib import Path; from podmgr.reconcile import lease\n"
        "held = lease.take(Path(sys.argv[1]), sys.argv[2])\n"
        "for note in sys.argv[3:]: held.note(*note.split())\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(state), name, *notes], cwd=ROOT, check=False)
    assert done.returncode == -9


def test_who_is_alive_is_not_found(state: Path) -> None:
    held = lease.take(state, "one")
    held.note("cgroup", "/a b")
    assert list(lease.abandoned(state)) == []
    assert held.notes() == {"cgroup": "/a b"}
    held.end()
    assert os.listdir(state) == []


def test_who_was_killed_is_found_with_what_he_has_made(state: Path) -> None:
    abandon(state, "one", "cgroup /x", "id 7")
    held = lease.take(state, "two")
    (found,) = lease.abandoned(state)
    assert found.notes() == {"cgroup": "/x", "id": "7"}
    assert list(lease.abandoned(state)) == []  # somebody is at it
    found.let_go()
    (found,) = lease.abandoned(state)
    found.end()
    assert list(lease.abandoned(state)) == []
    held.end()
    assert os.listdir(state) == []


def test_a_line_that_was_cut_off_is_of_nothing(state: Path) -> None:
    abandon(state, "one", "cgroup /x")
    with (state / "runs/one").open("a") as file:
        file.write("id 12")
    (found,) = lease.abandoned(state)
    assert found.notes() == {"cgroup": "/x"}
    found.end()


def test_a_lease_that_another_has_taken_for_abandoned_is_taken_anew(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its locking it looks as if its podmgr were gone."""
    lock = fcntl.flock
    taken: list[int] = []

    def slow(fd: int, how: int) -> None:
        if not taken:
            taken.append(fd)
            monkeypatch.setattr(fcntl, "flock", lock)
            for found in lease.abandoned(state):
                found.end()
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    held = lease.take(state, "one")
    assert taken
    assert held.path.exists()
    assert list(lease.abandoned(state)) == []
    held.end()


def test_without_a_state_folder_there_is_none(state: Path) -> None:
    assert list(lease.abandoned(state)) == []
    assert not state.exists()


@pytest.mark.parametrize("folder", [".", "runs"])
def test_what_others_could_have_written_is_not_believed(state: Path, folder: str) -> None:
    abandon(state, "one", "cgroup /x")
    (state / folder).chmod(0o777)
    with pytest.raises(PermissionDeniedError, match="others may write"):
        list(lease.abandoned(state))
