"""The life of a cgroup: made, joined, emptied, killed and taken down; directories stand for cgroups."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import cgroup_life, cgroups, scratch
from tests.unit.kernel.cgroup_tree import UID, at


def test_processes_below_the_cgroup_count(root: Path) -> None:
    assert sorted(cgroup_life.processes(at(root / "kubepods"))) == [11, 12, 13]
    assert cgroup_life.processes(at(root / "system.slice")) == []


def test_vanished_cgroup_has_no_processes(root: Path) -> None:
    assert cgroup_life.processes(Cgroup(root / "gone", 7)) == []


def test_this_process_is_in_the_real_root() -> None:
    assert os.getpid() in cgroup_life.processes(at(cgroups.find_root(None)))


def test_created_cgroup_is_below_the_root(root: Path) -> None:
    assert cgroup_life.create(root, "podmgr-x") == at(root / "podmgr-x")


def test_cgroup_that_exists_is_not_created(root: Path) -> None:
    with pytest.raises(PodmgrError, match="kubepods: File exists"):
        cgroup_life.create(root, "kubepods")


def test_not_being_allowed_to_create_is_told_apart(root: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(Path, "mkdir", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionDeniedError, match="not allowed to use cgroup"):
        cgroup_life.create(root, "podmgr-x")


def test_joining_names_the_process_itself(root: Path) -> None:
    cgroup_life.join(at(root / "system.slice"))
    assert (root / "system.slice/cgroup.procs").read_text() == "0"


def test_evicted_processes_go_one_level_up(root: Path) -> None:
    assert cgroup_life.evict(at(root / f"kubepods/pod{UID}/a")) == 2
    assert (root / f"kubepods/pod{UID}/cgroup.procs").read_text() == "13"


def test_killing_ends_every_process(root: Path, mocker: MockerFixture) -> None:
    children = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(2)]
    pids = [child.pid for child in children]
    mocker.patch("podmgr.kernel.cgroup_life.processes", side_effect=[pids, pids, pids[:1], []])
    assert cgroup_life.kill(at(root / "kubepods")) == 2
    for child in children:
        child.communicate()
        assert child.returncode == -9


def test_removing_takes_everything_below_along(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/d").mkdir()
    cgroup = at(tmp_path / "a")
    cgroup_life.remove(cgroup)
    assert not cgroup.path.exists()
    cgroup_life.remove(cgroup)


def test_busy_cgroup_is_tried_again(tmp_path: Path, mocker: MockerFixture) -> None:
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    rmdir = mocker.patch("podmgr.kernel.cgroup_life.os.rmdir", side_effect=[busy, busy, None])
    cgroup_life.remove(at(tmp_path))
    assert rmdir.call_count == 3


@pytest.mark.parametrize(
    ("number", "seconds"), [(errno.EBUSY, -1.0), (errno.EPERM, 5.0)], ids=["busy for too long", "not allowed"]
)
def test_cgroup_that_cannot_be_removed_is_an_error(
    root: Path, mocker: MockerFixture, number: int, seconds: float
) -> None:
    mocker.patch("podmgr.kernel.cgroup_life._REMOVE_SECONDS", seconds)
    mocker.patch("podmgr.kernel.cgroup_life.os.rmdir", side_effect=OSError(number, os.strerror(number)))
    with pytest.raises(PodmgrError, match=f"cannot remove cgroup .*: {os.strerror(number)}"):
        cgroup_life.remove(at(root / "kubepods"))


def test_one_process_may_be_spared(tmp_path: Path) -> None:
    """It neither counts nor is waited for."""
    with subprocess.Popen(["sleep", "60"]) as spared:
        (tmp_path / "cgroup.procs").write_text(f"{spared.pid}\n")
        assert cgroup_life.kill(at(tmp_path), spared=spared.pid) == 0
        assert spared.poll() is None
        spared.kill()


@pytest.fixture
def multiplying() -> Iterator[Cgroup]:
    """A real cgroup whose processes start others as fast as they can."""
    mount = cgroups.find_root(None)
    cgroup = cgroup_life.create(mount, f"podmgr-test-{scratch.maker()}")
    script = 'while :; do sleep 0.001 & sleep 0.001 & wait; exec sh -c "$0" "$0"; done'
    argv = ["sh", "-c", f"{script} & {script}", script]
    with proc.start(argv, prepare=lambda: cgroup_life.join(cgroup)) as process:
        yield cgroup
        cgroup_life.kill(cgroup)
        process.wait()
    cgroup_life.remove(cgroup)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a cgroup")
@pytest.mark.parametrize("is_new", [True, False], ids=["at once", "as Linux 5.10 can"])
def test_processes_that_multiply_are_killed(
    multiplying: Cgroup, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    if not is_new:
        take = cgroup_life._set
        monkeypatch.setattr(
            cgroup_life,
            "_set",
            lambda cgroup, name, value: name != "cgroup.kill" and take(cgroup, name, value),
        )
    assert cgroup_life.kill(multiplying) > 0
    assert cgroup_life.processes(multiplying) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a cgroup")
def test_who_is_spared_goes_on(multiplying: Cgroup) -> None:
    with proc.start(["sleep", "60"], prepare=lambda: cgroup_life.join(multiplying)) as spared:
        cgroup_life.kill(multiplying, spared=spared.pid)
        assert cgroup_life.processes(multiplying) == [spared.pid]
        assert "frozen 0" in (multiplying.path / "cgroup.events").read_text()
        spared.terminate()
        assert spared.wait(10) == -15
