"""Cgroups: where the root is, which one is meant by a path or a number, and how trees are walked.

Trees are made in a temporary folder; the real cgroup2 mount is only read.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr.attachment import Cgroup
from podmgr.errors import PermissionDeniedError, PodmgrError, UsageError
from podmgr.kernel import cgroups
from podmgr.kernel.mounts import Mount
from tests.unit.kernel.cgroup_tree import UID, at, directory

# The root


def test_root_is_the_first_cgroup2_mount() -> None:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounted = [line[4] for line in lines if line[line.index("-") + 1] == "cgroup2"]
    assert cgroups.find_root(None) == Path(mounted[0])
    assert (cgroups.find_root(None) / "cgroup.procs").is_file()


def test_configured_root_goes_before_the_mount_table(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert cgroups.find_root(link) == root


@pytest.mark.parametrize("path", ["/proc", "/no/such/folder", "/dev/null"])
def test_configured_root_that_is_no_cgroup2_is_refused(path: str) -> None:
    with pytest.raises(PodmgrError, match=f"{path} is not a cgroup v2 directory"):
        cgroups.find_root(Path(path))


def test_machine_without_cgroup2_is_an_error(mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[])
    with pytest.raises(PodmgrError, match="no cgroup v2 hierarchy is mounted"):
        cgroups.find_root(None)


# What a path means


@pytest.mark.parametrize(
    "path", ["kubepods", "kubepods/", "./system.slice/../kubepods", "{root}/kubepods", "//{root}//kubepods"]
)
def test_path_is_absolute_or_relative_to_the_mount(root: Path, path: str) -> None:
    found = cgroups.locate(root, path.format(root=root))
    assert found == at(root / "kubepods")


def test_symlink_to_a_cgroup_is_the_cgroup(root: Path) -> None:
    (root.parent / "web").symlink_to(root / "kubepods")
    assert cgroups.locate(root, str(root.parent / "web")) == at(root / "kubepods")


@pytest.mark.parametrize("path", ["", ".", "/", "kubepods/..", "{root}", "{root}/"])
def test_root_cgroup_is_refused(root: Path, path: str) -> None:
    if path == "/":
        path = str(root) + path
    with pytest.raises(UsageError, match="the root cgroup is the whole machine"):
        cgroups.locate(root, path.format(root=root))


@pytest.mark.parametrize("path", ["", ".", "/{root}"])
def test_root_of_the_real_mount_is_refused(path: str) -> None:
    mounted = cgroups.find_root(None)
    with pytest.raises(UsageError, match="the root cgroup is the whole machine"):
        cgroups.locate(mounted, path.format(root=mounted))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no-such", "cgroup no-such: No such file or directory"),
        ("kubepods/cgroup.procs", "kubepods/cgroup.procs is not a cgroup of"),
        ("/proc", "/proc is not a cgroup of"),
        ("../outside", r"cgroup \.\./outside is outside"),
        ("..", r"\.\. is not a cgroup of"),
        ("loop", "cgroup loop: "),
        ("a\0b", "cgroup a·b: embedded null byte"),
        ("x" * 5000, "File name too long"),
        ("\x1b[31m", r"cgroup ·\[31m: No such file or directory"),
    ],
)
def test_path_that_is_no_cgroup_is_refused_with_the_reason(root: Path, path: str, message: str) -> None:
    directory(root.parent / "outside")
    (root / "loop").symlink_to("loop")
    with pytest.raises(PodmgrError, match=message) as caught:
        cgroups.locate(root, path)
    assert caught.value.message.isprintable()


def test_missing_cgroup_of_the_real_mount_is_an_error() -> None:
    with pytest.raises(PodmgrError, match="cgroup podmgr-no-such: No such file or directory"):
        cgroups.locate(cgroups.find_root(None), "podmgr-no-such")


def test_not_being_allowed_to_look_is_not_being_absent(root: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.open", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionDeniedError, match="not allowed to use cgroup web: Permission denied"):
        cgroups.locate(root, "web")


@pytest.mark.parametrize("path", ["kubepods", f"kubepods/pod{UID}/a"])
def test_display_name_means_the_same_cgroup(root: Path, path: str) -> None:
    name = cgroups.display_name(root, cgroups.locate(root, path))
    assert name == f"cgroup/{path}"


# Descriptors


def test_opened_cgroup_is_the_directory(root: Path) -> None:
    with cgroups.opened(at(root / "kubepods")) as fd:
        assert fd is not None
        assert os.fstat(fd).st_ino == (root / "kubepods").stat().st_ino
        assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_vanished_cgroup_has_no_descriptor(root: Path) -> None:
    for path in (root / "gone", root / "cgroup.procs"):
        with cgroups.opened(Cgroup(path, 7)) as fd:
            assert fd is None


def test_cgroup_whose_name_another_has_taken_has_no_descriptor(root: Path) -> None:
    with cgroups.opened(Cgroup(root / "kubepods", (root / "system.slice").stat().st_ino)) as fd:
        assert fd is None


# Trees


def test_ancestors_are_nearest_first_and_end_with_the_root(root: Path) -> None:
    found = cgroups.ancestors(root, at(root / f"kubepods/pod{UID}/a"))
    assert found == [at(root / f"kubepods/pod{UID}"), at(root / "kubepods"), at(root)]


def test_walk_meets_every_cgroup_once(root: Path) -> None:
    found = list(cgroups.walk(root))
    assert sorted(cgroup.path for cgroup in found) == sorted(
        [root, *(path for path in root.rglob("*") if path.is_dir())]
    )
    assert all(cgroup == at(cgroup.path) for cgroup in found)


# Levels below the true root


@pytest.mark.parametrize(("path", "level"), [("", 0), ("kubepods", 1), (f"kubepods/pod{UID}/a", 3)])
def test_level_is_counted_from_the_true_root(
    root: Path, mocker: MockerFixture, path: str, level: int
) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(root, "cgroup2")])
    mocker.patch("podmgr.kernel.cgroups._ROOT_INODE", root.stat().st_ino)
    assert cgroups.has_true_root()
    assert cgroups.level(at(root / path)) == level


def test_mount_of_a_part_of_the_tree_is_no_true_root(root: Path, mocker: MockerFixture) -> None:
    """As in a container with a cgroup namespace: who counts from there is off by some."""
    table = [Mount(root / "kubepods", "cgroup2"), Mount(root, "tmpfs")]
    mocker.patch("podmgr.kernel.mounts.table", return_value=table)
    mocker.patch("podmgr.kernel.cgroups._ROOT_INODE", root.stat().st_ino)
    assert not cgroups.has_true_root()
    with pytest.raises(PodmgrError, match=r"the level of cgroup .* is not to be seen"):
        cgroups.level(at(root / f"kubepods/pod{UID}"))


def test_level_is_taken_from_the_mount_of_the_true_root(root: Path, mocker: MockerFixture) -> None:
    table = [Mount(root / "kubepods", "cgroup2"), Mount(root, "cgroup2")]
    mocker.patch("podmgr.kernel.mounts.table", return_value=table)
    mocker.patch("podmgr.kernel.cgroups._ROOT_INODE", root.stat().st_ino)
    assert cgroups.level(at(root / f"kubepods/pod{UID}")) == 2


def test_cgroup_outside_all_mounts_has_no_level(root: Path, mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(root / "kubepods", "cgroup2")])
    mocker.patch("podmgr.kernel.cgroups._ROOT_INODE", (root / "kubepods").stat().st_ino)
    with pytest.raises(PodmgrError, match="is not to be seen"):
        cgroups.level(at(root / "system.slice"))
