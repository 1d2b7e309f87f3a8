"""Which directory is a pod's: by names as recorded on real nodes, in trees of a temporary folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from pytest_mock import MockerFixture

from podmgr.attachment import Cgroup
from podmgr.kernel import pod_cgroups
from podmgr.kernel.pod_cgroups import FRESH_SECONDS, PodIndex, container_cgroups, uid_of
from tests.unit.kernel.cgroup_tree import UID, at, directory

OTHER_UID = "11111111-50e1-452e-91c0-7dfcee8503e9"
UNDERSCORED = UID.replace("-", "_")
HASH = "f87be1b7b104c9de4fc88b23866881f2"  # a static pod's
CONTAINER = "ea6fc248452b70a1430fb77692cff44f0521e2d1bcc1448eeade1ce4e70c1454"


# Names


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
    assert uid_of(f"/kubepods/{name}") == uid


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
    assert uid_of(f"/kubepods/{name}") is None


def test_directory_below_a_pods_is_not_the_pods() -> None:
    assert uid_of(f"/kubepods/pod{UID}/{CONTAINER}") is None


# The index


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
    spy: MagicMock = mocker.patch("podmgr.kernel.pod_cgroups.pods", side_effect=pod_cgroups.pods)
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
    assert pod_cgroups.pods(tree).found == {UID: own, OTHER_UID: other}


FOLDERS = ("{}", "cri-containerd-{}.scope", "crio-{}.scope", "docker-{}.scope", "crio-{}")


@pytest.mark.parametrize("form", FOLDERS)
def test_a_container_has_the_cgroup_that_runtimes_name_after_its_id(tmp_path: Path, form: str) -> None:
    folder = form.format(CONTAINER)
    others = (f"crio-conmon-{CONTAINER}.scope", f"cri-containerd-{CONTAINER[::-1]}.scope", "app", "x-")
    for name in (folder, *others):
        (tmp_path / name).mkdir()
    pod = Cgroup(tmp_path, tmp_path.stat().st_ino)
    ids = {"app": CONTAINER, "later": "", "gone": "a" * 64}
    found = container_cgroups(pod, ["app", "later", "gone", "unknown"], ids)
    assert found == {"app": (tmp_path / folder).stat().st_ino}


def test_without_a_cluster_a_container_is_a_cgroup_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "x-other").mkdir()
    pod = Cgroup(tmp_path, tmp_path.stat().st_ino)
    assert container_cgroups(pod, ["app", "other"], None) == {"app": (tmp_path / "app").stat().st_ino}
    assert container_cgroups(Cgroup(tmp_path / "gone", 1), ["app"], None) == {}


# What is seen being made


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("kubepods", True),
        ("kubepods.slice", True),
        ("kubepods.slice/kubepods-burstable.slice", True),
        ("kubepods.slice/kubepods-besteffort.slice", True),
        ("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice", True),
        ("kubepods/burstable", True),
        ("kubepods/besteffort", True),
        ("burstable", False),
        ("system.slice", False),
        (f"kubepods/pod{UID}", False),
        ("kubepodsx", False),
    ],
)
def test_kubelets_folders_are_known_by_their_names(tree: Path, name: str, is_so: bool) -> None:
    folder = tree / name
    folder.mkdir(parents=True, exist_ok=True)
    assert pod_cgroups.is_kubelets(folder) is is_so
    assert (folder in pod_cgroups.kubelets(tree)) is is_so


def test_folder_that_others_can_write_to_is_not_kubelets(tree: Path) -> None:
    (tree / "user.slice/kubepods").mkdir(parents=True)
    (tree / "user.slice").chmod(0o777)
    (tree / "kubepods").chmod(0o777)
    assert list(pod_cgroups.kubelets(tree)) == []


def test_pod_that_was_seen_being_made_is_early_until_a_process_comes(tree: Path, listings: MagicMock) -> None:
    index = PodIndex(tree)
    made = pod_directory(tree, is_populated=False)
    index.sighted(UID, made)
    assert index.find([(UID,)]) == [None]
    assert index.early([UID]) == made
    (made.path / "cgroup.events").write_text("populated 1\n")
    assert index.find([(UID,)]) == [made]
    assert index.early([UID]) is None
    assert listings.call_count == 0


def test_pod_that_loses_its_processes_is_not_early_again(tree: Path) -> None:
    index = PodIndex(tree)
    made = pod_directory(tree)
    index.sighted(UID, made)
    assert index.find([(UID,)]) == [made]
    (made.path / "cgroup.events").write_text("populated 0\n")
    assert index.find([(UID,)]) == [made]
    assert index.early([UID]) is None


def test_empty_directory_that_nobody_saw_being_made_is_not_early(tree: Path) -> None:
    index = PodIndex(tree)
    pod_directory(tree, is_populated=False)
    assert index.find([(UID,)]) == [None]
    assert index.early([UID]) is None


def test_early_pod_that_stays_so_is_looked_for_elsewhere(tree: Path) -> None:
    """Its real directory may be another."""
    index = PodIndex(tree, clock := Clock())
    index.sighted(UID, pod_directory(tree, is_populated=False))
    real = pod_directory(tree, below="kubepods/burstable")
    assert index.find([(UID,)]) == [None]
    clock.now += FRESH_SECONDS
    assert index.find([(UID,)]) == [real]
    assert index.early([UID]) is None


def test_directory_that_was_seen_and_is_gone_is_not_early(tree: Path) -> None:
    index = PodIndex(tree, clock := Clock())
    made = pod_directory(tree, is_populated=False)
    index.sighted(UID, made)
    shutil.rmtree(made.path)
    assert index.early([UID]) is None
    clock.now += FRESH_SECONDS
    assert index.find([(UID,)]) == [None]


def test_static_pod_that_is_made_again_is_early_again(tree: Path) -> None:
    index = PodIndex(tree)
    old = pod_directory(tree, HASH)
    assert index.find([(UID, HASH)]) == [old]
    old.path.rename(tree / "system.slice/old")
    new = pod_directory(tree, HASH, is_populated=False)
    index.sighted(HASH, new)
    assert index.find([(UID, HASH)]) == [None]
    assert index.early([UID, HASH]) == new


def test_pod_is_likely_to_be_beside_another(tree: Path) -> None:
    index = PodIndex(tree)
    assert index.likely(UID).parent.name == "kubepods-burstable.slice"
    index.sighted(OTHER_UID, pod_directory(tree, OTHER_UID, below="kubepods/besteffort"))
    assert index.likely(UID) == tree / f"kubepods/besteffort/pod{UID}"
