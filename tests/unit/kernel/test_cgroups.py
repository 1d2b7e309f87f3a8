"""Cgroups: which directory is a pod's, which is meant by a path, and how trees are walked and taken down.

Trees are made in a temporary folder; the real cgroup2 mount is only read.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PermissionDeniedError, PodmgrError, UsageError
from podmgr.kernel import cgroups
from podmgr.kernel.cgroups import Cgroup, PodIndex
from podmgr.kernel.mounts import Mount

UID = "846f24d4-50e1-452e-91c0-7dfcee8503e9"
UNDERSCORED = UID.replace("-", "_")
HASH = "f87be1b7b104c9de4fc88b23866881f2"  # a static pod's
CONTAINER = "ea6fc248452b70a1430fb77692cff44f0521e2d1bcc1448eeade1ce4e70c1454"


def directory(path: Path, *, pids: str = "") -> Path:
    """A directory that looks like a cgroup."""
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text(pids)
    return path


def at(path: Path) -> Cgroup:
    return Cgroup(path, path.stat().st_ino)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small tree: kubepods/podUID/a and system.slice, with the root's file of controllers."""
    made = directory(tmp_path / "cgroup")
    (made / "cgroup.controllers").write_text("cpu\n")
    directory(made / "kubepods", pids="")
    directory(made / f"kubepods/pod{UID}", pids="11\n")
    directory(made / f"kubepods/pod{UID}/a", pids="12\n13\n")
    directory(made / "system.slice")
    return made


# Names of pods' directories, as recorded on real nodes


@pytest.mark.parametrize(
    ("name", "uid"),
    [
        (f"pod{UID}", UID),
        (f"pod{HASH}", HASH),
        (f"kubepods-pod{UNDERSCORED}.slice", UID),
        (f"kubepods-besteffort-pod{UNDERSCORED}.slice", UID),
        (f"kubepods-burstable-pod{UNDERSCORED}.slice", UID),
        (f"kubepods-burstable-pod{HASH}.slice", HASH),
        (f"kubelet-kubepods-burstable-pod{UNDERSCORED}.slice", UID),
    ],
)
def test_pods_directory_carries_its_uid(name: str, uid: str) -> None:
    assert Cgroup(Path("/kubepods") / name, 7).pod_uid == uid


@pytest.mark.parametrize(
    "name",
    [
        "kubepods",
        "kubepods.slice",
        "kubepods-burstable.slice",
        "besteffort",
        CONTAINER,
        f"cri-containerd-{CONTAINER}.scope",
        f"docker-{CONTAINER}.scope",
        f"libpod-{CONTAINER}.scope",
        f"pod{UID}.scope",
        f"pod{UID}-x",
        f"pod{UID[:-1]}",
        f"pod{UID}0",
        f"pod{HASH}0",
        f"pod-{UID}",
        UID,
        "pod",
        f"pod{UID.upper()}",
        f"pod{UID.replace('8', 'g')}",
    ],
)
def test_other_directories_are_no_pods(name: str) -> None:
    assert Cgroup(Path("/kubepods") / name, 7).pod_uid is None


def test_directory_below_a_pods_is_not_the_pods() -> None:
    assert Cgroup(Path(f"/kubepods/pod{UID}/{CONTAINER}"), 7).pod_uid is None


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


def test_processes_below_the_cgroup_count(root: Path) -> None:
    assert sorted(cgroups.processes(at(root / "kubepods"))) == [11, 12, 13]
    assert cgroups.processes(at(root / "system.slice")) == []


def test_vanished_cgroup_has_no_processes(root: Path) -> None:
    assert cgroups.processes(Cgroup(root / "gone", 7)) == []


def test_this_process_is_in_the_real_root() -> None:
    assert os.getpid() in cgroups.processes(at(cgroups.find_root(None)))


def test_created_cgroup_is_below_the_root(root: Path) -> None:
    assert cgroups.create(root, "podmgr-x") == at(root / "podmgr-x")


def test_cgroup_that_exists_is_not_created(root: Path) -> None:
    with pytest.raises(PodmgrError, match="kubepods: File exists"):
        cgroups.create(root, "kubepods")


def test_not_being_allowed_to_create_is_told_apart(root: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(Path, "mkdir", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionDeniedError, match="not allowed to use cgroup"):
        cgroups.create(root, "podmgr-x")


def test_joining_names_the_process_itself(root: Path) -> None:
    cgroups.join(at(root / "system.slice"))
    assert (root / "system.slice/cgroup.procs").read_text() == "0"


def test_evicted_processes_go_one_level_up(root: Path) -> None:
    assert cgroups.evict(at(root / f"kubepods/pod{UID}/a")) == 2
    assert (root / f"kubepods/pod{UID}/cgroup.procs").read_text() == "13"


def test_killing_ends_every_process(root: Path, mocker: MockerFixture) -> None:
    children = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(2)]
    pids = [child.pid for child in children]
    mocker.patch("podmgr.kernel.cgroups.processes", side_effect=[pids, pids[:1], []])
    assert cgroups.kill(at(root / "kubepods")) == 2
    for child in children:
        child.communicate()
        assert child.returncode == -9


def test_removing_takes_everything_below_along(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/d").mkdir()
    cgroup = at(tmp_path / "a")
    cgroups.remove(cgroup)
    assert not cgroup.path.exists()
    cgroups.remove(cgroup)


def test_busy_cgroup_is_tried_again(tmp_path: Path, mocker: MockerFixture) -> None:
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    rmdir = mocker.patch("podmgr.kernel.cgroups.os.rmdir", side_effect=[busy, busy, None])
    cgroups.remove(at(tmp_path))
    assert rmdir.call_count == 3


@pytest.mark.parametrize(
    ("number", "seconds"), [(errno.EBUSY, -1.0), (errno.EPERM, 5.0)], ids=["busy for too long", "not allowed"]
)
def test_cgroup_that_cannot_be_removed_is_an_error(
    root: Path, mocker: MockerFixture, number: int, seconds: float
) -> None:
    mocker.patch("podmgr.kernel.cgroups._REMOVE_SECONDS", seconds)
    mocker.patch("podmgr.kernel.cgroups.os.rmdir", side_effect=OSError(number, os.strerror(number)))
    with pytest.raises(PodmgrError, match=f"cannot remove cgroup .*: {os.strerror(number)}"):
        cgroups.remove(at(root / "kubepods"))


# The index of pods

OTHER_UID = "11111111-50e1-452e-91c0-7dfcee8503e9"


def pod_directory(
    root: Path, uid: str = UID, *, below: str = "kubepods", is_populated: bool = True
) -> Cgroup:
    """A pod's directory as it is in a tree with the cgroupfs driver."""
    made = directory(root / below / f"pod{uid}")
    (made / "cgroup.events").write_text(f"populated {int(is_populated)}\nfrozen 0\n")
    return at(made)


@pytest.fixture
def tree(root: Path, mocker: MockerFixture) -> Path:
    """An empty tree. Its inode numbers may be those of real cgroups, so none is looked for by number."""
    mocker.patch("podmgr.kernel.cgroups._open_by_id", return_value=None)
    shutil.rmtree(root / f"kubepods/pod{UID}")
    return root


@pytest.fixture
def listings(mocker: MockerFixture) -> MagicMock:
    """Counts how often the tree is walked."""
    spy: MagicMock = mocker.patch("podmgr.kernel.cgroups.pods", side_effect=cgroups.pods)
    return spy


def test_pods_are_found_in_the_order_in_which_they_are_asked_for(tree: Path) -> None:
    one, other = pod_directory(tree), pod_directory(tree, OTHER_UID, below="kubepods/burstable")
    index = PodIndex(tree)
    assert index.find([(OTHER_UID,), (UID,)]) == [other, one]
    assert index.find([(UID,), ("no-such",), (OTHER_UID,)]) == [one, None, other]
    assert index.find([]) == []


def test_static_pod_is_found_by_its_hash(tree: Path) -> None:
    found = pod_directory(tree, HASH)
    assert PodIndex(tree).find([(UID, HASH)]) == [found]


def test_uid_goes_before_the_hash(tree: Path) -> None:
    pod_directory(tree, HASH)
    own = pod_directory(tree)
    assert PodIndex(tree).find([(UID, HASH)]) == [own]


def test_known_pods_are_not_listed_again(tree: Path, listings: MagicMock) -> None:
    pod_directory(tree), pod_directory(tree, OTHER_UID)
    index = PodIndex(tree)
    for _ in range(3):
        assert None not in index.find([(UID,), (OTHER_UID,)])
    assert listings.call_count == 1


def test_many_pods_that_are_not_there_are_listed_for_once(tree: Path, listings: MagicMock) -> None:
    index = PodIndex(tree)
    assert index.find([(f"uid-{number}",) for number in range(50)]) == [None] * 50
    assert listings.call_count == 1


def test_pod_that_starts_is_found(tree: Path) -> None:
    index = PodIndex(tree)
    assert index.find([(UID,)]) == [None]
    found = pod_directory(tree, is_populated=False)
    assert index.find([(UID,)]) == [None]
    (found.path / "cgroup.events").write_text("populated 1\n")
    assert index.find([(UID,)]) == [found]


def test_pod_that_is_gone_is_not_found(tree: Path, listings: MagicMock) -> None:
    found, other = pod_directory(tree), pod_directory(tree, OTHER_UID)
    index = PodIndex(tree)
    index.find([(UID,)])
    shutil.rmtree(found.path)
    assert index.find([(UID,), (OTHER_UID,)]) == [None, other]
    assert listings.call_count == 2


def test_directory_that_was_made_again_is_another_cgroup(tree: Path) -> None:
    index = PodIndex(tree)
    old = pod_directory(tree)
    index.find([(UID,)])
    old.path.rename(tree / "system.slice/old")  # its number is not given to the new one
    new = pod_directory(tree)
    assert new.id != old.id
    assert index.find([(UID,)]) == [new]


def test_empty_directory_beside_the_real_one_is_passed_over(tree: Path) -> None:
    pod_directory(tree, below="kubepods/besteffort", is_populated=False)
    real = pod_directory(tree, below="kubepods")
    pod_directory(tree, below="system.slice", is_populated=False)
    assert PodIndex(tree).find([(UID,)]) == [real]


@pytest.mark.parametrize(
    ("is_there", "asked", "message"),
    [(True, UID, "has no processes"), (True, OTHER_UID, "no cgroup of this pod"), (False, UID, "cgroup v1")],
)
def test_pod_without_a_cgroup_is_told_why(tree: Path, is_there: bool, asked: str, message: str) -> None:
    if is_there:
        pod_directory(tree, is_populated=False)
    index = PodIndex(tree)
    assert index.find([(asked,)]) == [None]
    assert message in index.why_none([asked]).message
    assert "--cgroup " not in f"{index.why_none([asked]).tip} "
    named = index.why_none([asked], may_be_named=True).tip or ""
    assert "--cgroup" in named.replace("--cgroup-root", "") and "--node-name" not in named


def test_what_a_pod_makes_below_its_own_cgroup_is_not_the_pod(tree: Path) -> None:
    """A container may make cgroups of any name below its own."""
    real = pod_directory(tree)
    pod_directory(tree, below=f"kubepods/pod{UID}/a/{CONTAINER}")
    other = pod_directory(tree, OTHER_UID, below="kubepods/zzz")
    pod_directory(tree, OTHER_UID, below=f"kubepods/pod{UID}/b")
    assert PodIndex(tree).find([(UID,)]) == [real]
    assert PodIndex(tree).find([(OTHER_UID,)]) == [other]


@pytest.mark.parametrize(("mine", "others"), [("a", "b"), ("b", "a")])
def test_what_a_pod_makes_below_its_own_cgroup_is_no_other_pod(tree: Path, mine: str, others: str) -> None:
    """Whichever folder is met first, and however deep the other pod's own lies."""
    own = pod_directory(tree, below=f"kubepods/{mine}")
    pod_directory(tree, OTHER_UID, below=f"kubepods/{mine}/pod{UID}")
    other = pod_directory(tree, OTHER_UID, below=f"kubepods/{others}/x/y/z")
    assert cgroups.pods(tree).found == {UID: own, OTHER_UID: other}


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
