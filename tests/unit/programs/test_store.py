"""The store of checked objects: found by digest, kept whole or not at all, pruned to some spares."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PodmgrError
from podmgr.programs.store import ObjectStore, StoredObject


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


def aged(store: ObjectStore, count: int) -> list[str]:
    """Digests of that many objects, the oldest first."""
    digests = [f"{number:016x}" for number in range(count)]
    for age, digest in enumerate(digests):
        os.utime(store.add(digest, "cgroup", b"").path, ns=(0, age * 10**9))
    return digests


def kept(store: ObjectStore) -> list[str]:
    return sorted(path.name.split(".")[0] for path in store.folder.iterdir())


def test_added_object_is_found_by_its_digest(store: ObjectStore) -> None:
    added = store.add("abc", "tc", b"content")
    assert added == StoredObject(store.folder / "abc.tc.bpf.o", "abc", "tc")
    assert store.find("abc") == added
    assert added.path.read_bytes() == b"content"


@pytest.mark.parametrize("digest", ["ab", "abcd", "abd"])
def test_other_digests_are_not_found(store: ObjectStore, digest: str) -> None:
    assert store.find(digest) is None
    store.add("abc", "cgroup", b"")
    assert store.find(digest) is None


def test_object_is_for_its_owner_alone(store: ObjectStore) -> None:
    store.add("abc", "cgroup", b"")
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_object_that_is_added_again_replaces_the_first(store: ObjectStore) -> None:
    store.add("abc", "cgroup", b"one")
    assert store.add("abc", "cgroup", b"two").path.read_bytes() == b"two"
    assert len(list(store.folder.iterdir())) == 1


@pytest.mark.parametrize("call", ["os.replace", "Path.write_bytes"])
def test_full_disk_leaves_no_half_object(store: ObjectStore, mocker: MockerFixture, call: str) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    mocker.patch(f"podmgr.programs.store.{call}", side_effect=full)
    with pytest.raises(PodmgrError, match=r"cannot keep an object .* No space left on device"):
        store.add("abc", "cgroup", b"content")
    assert store.find("abc") is None
    assert list(store.folder.iterdir()) == []


def test_half_object_of_a_crash_is_not_found(store: ObjectStore, mocker: MockerFixture) -> None:
    mocker.patch("podmgr.programs.store.os.replace", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        store.add("abc", "cgroup", b"content")
    assert len(list(store.folder.iterdir())) == 1
    assert store.find("abc") is None


def test_no_state_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PodmgrError, match="No such file or directory"):
        ObjectStore(tmp_path / "gone").add("abc", "cgroup", b"")


def test_without_a_used_object_nothing_stays(store: ObjectStore) -> None:
    aged(store, 3)
    store.prune(())
    assert not store.folder.exists()


def test_used_objects_stay_however_old(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podmgr.programs.store.SPARE_OBJECTS", 0)
    digests = aged(store, 5)
    store.prune(digests[:2])
    assert kept(store) == digests[:2]


def test_newest_unused_objects_stay_as_spares(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podmgr.programs.store.SPARE_OBJECTS", 2)
    digests = aged(store, 6)
    store.prune([digests[1]])
    assert kept(store) == [digests[1], *digests[-2:]]


@pytest.mark.parametrize("used", [(), ("abc",)])
def test_pruning_a_store_that_is_not_there_is_fine(store: ObjectStore, used: tuple[str, ...]) -> None:
    store.prune(used)
    assert not store.folder.exists()


def test_files_of_others_stay(store: ObjectStore) -> None:
    store.folder.mkdir(exist_ok=True)
    (store.folder / "mine").mkdir()
    (store.folder / "program.bpf.o").write_text("precious")
    store.prune(())
    assert {path.name for path in store.folder.iterdir()} == {"mine", "program.bpf.o"}
