"""One watch for each state folder, over real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from podmgr.errors import PodmgrError
from podmgr.settings import Settings
from podmgr.watch import lock

HOLD = """
import sys
from pathlib import Path
from podmgr.watch import lock
from podmgr.settings import LogFormat, Settings
with lock.held(Settings(state_dir=Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_watch_of_a_state_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    argv = [sys.executable, "-c", HOLD, str(settings.state_dir)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(PodmgrError, match="another podmgr watch runs on"), lock.held(settings):
            pass
        first.kill()  # what a crash leaves is taken over
        first.wait()
    with lock.held(settings):
        assert (settings.state_dir / "watch.lock").exists()
    assert not (settings.state_dir / "watch.lock").exists()


def test_two_state_folders_may_be_watched_at_once(tmp_path: Path) -> None:
    with (
        lock.held(Settings(state_dir=tmp_path / "a")),
        lock.held(Settings(state_dir=tmp_path / "b")),
    ):
        pass
