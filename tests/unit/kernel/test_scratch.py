"""Cgroups that podmgr makes for itself: named after their maker, and swept once it is gone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from podmgr.kernel import scratch

GONE = 4_194_305  # above the largest process id


def test_scratch_cgroup_is_named_after_its_maker(tmp_path: Path) -> None:
    cgroup = scratch.create(tmp_path, "run")
    assert re.fullmatch(rf"podmgr-run-{os.getpid()}-[0-9]+", cgroup.path.name)
    assert cgroup.path.is_dir()


def test_cgroup_of_a_living_maker_is_not_swept(tmp_path: Path) -> None:
    cgroup = scratch.create(tmp_path, "demo")
    assert scratch.sweep(tmp_path) == []
    assert cgroup.path.is_dir()


def test_cgroup_of_a_dead_maker_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"podmgr-run-{GONE}-5/below").mkdir(parents=True)
    assert [cgroup.path.name for cgroup in scratch.sweep(tmp_path)] == [f"podmgr-run-{GONE}-5"]
    assert list(tmp_path.iterdir()) == []


def test_cgroup_with_processes_of_another_pid_namespace_is_left(tmp_path: Path) -> None:
    """Their maker may live there too, under a number that is not seen from here."""
    cgroup = tmp_path / f"podmgr-run-{GONE}-5"
    cgroup.mkdir()
    (cgroup / "cgroup.procs").write_text("0\n0\n")
    assert scratch.sweep(tmp_path) == []


def test_process_that_has_got_the_makers_number_is_not_the_maker(tmp_path: Path) -> None:
    (tmp_path / f"podmgr-run-{os.getpid()}-1").mkdir()
    assert len(scratch.sweep(tmp_path)) == 1


def test_maker_that_has_ended_but_is_not_waited_for_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as maker:
        started = Path(f"/proc/{maker.pid}/stat").read_text().split()[21]
        (tmp_path / f"podmgr-run-{maker.pid}-{started}").mkdir()
        assert scratch.sweep(tmp_path) == []
        maker.kill()
        os.waitid(os.P_PID, maker.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert len(scratch.sweep(tmp_path)) == 1


def test_cgroups_of_others_are_not_swept(tmp_path: Path) -> None:
    for name in (
        "podmgr",
        f"podmgr-{GONE}-5",
        f"podmgr-run-{GONE}",
        f"my-podmgr-run-{GONE}-5",
        "podmgr-run-x-5",
    ):
        (tmp_path / name).mkdir()
    assert scratch.sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 5
