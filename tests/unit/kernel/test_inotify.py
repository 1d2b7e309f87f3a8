"""What happens in folders is told, by the kernel itself: these are plain folders."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.errors import PodmgrError
from podmgr.kernel import inotify
from podmgr.kernel.inotify import MADE, MODIFIED, REMOVED, Event, FullError, Inotify
from tests.unit.samples import eventually

_QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


@pytest.fixture
def notify() -> Iterator[Inotify]:
    made = Inotify()
    yield made
    made.close()


def test_what_is_made_and_removed_in_a_folder_is_told_by_name(notify: Inotify, tmp_path: Path) -> None:
    number = notify.watch(tmp_path, MADE | REMOVED)
    (tmp_path / "ä b").mkdir()
    (tmp_path / "ä b").rmdir()
    told = [(event.watch, event.name, event.mask & (MADE | REMOVED)) for event in notify.read(10)]
    assert told == [(number, "ä b", MADE), (number, "ä b", REMOVED)]


def test_file_that_is_written_to_is_told(notify: Inotify, tmp_path: Path) -> None:
    path = tmp_path / "cgroup.events"
    path.write_text("populated 0\n")
    number = notify.watch(path, MODIFIED, is_folder=False)
    with path.open("r+") as file:
        file.write("populated 1\n")
    assert [(event.watch, event.name) for event in notify.read(10)] == [(number, "")]


def test_the_same_folder_is_watched_once(notify: Inotify, tmp_path: Path) -> None:
    assert notify.watch(tmp_path, MADE) == notify.watch(tmp_path, MADE)


def test_what_is_not_there_or_no_folder_is_not_watched(notify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert notify.watch(tmp_path / "nobody", MADE) is None
    assert notify.watch(tmp_path / "file", MADE) is None


def test_end_of_what_is_watched_is_told(notify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    number = notify.watch(tmp_path / "a", MADE)
    (tmp_path / "a").rmdir()
    (event,) = [event for event in notify.read(10) if event.is_end]
    assert event.watch == number


def test_what_is_forgotten_tells_nothing_any_more(notify: Inotify, tmp_path: Path) -> None:
    number = notify.watch(tmp_path, MADE)
    assert number is not None
    notify.forget(number)
    (tmp_path / "a").mkdir()
    assert all(event.is_end for event in notify.read(10))
    assert notify.read(0) == []


def test_queue_that_overflows_says_so(notify: Inotify, tmp_path: Path) -> None:
    notify.watch(tmp_path, MADE)
    for number in range(int(_QUEUE.read_text()) + 2):
        os.mkfifo(tmp_path / str(number))
    told: list[Event] = []
    while found := notify.read(0):
        told += found
    assert [event.is_overflow for event in told].count(True) == 1
    assert told[-1].is_overflow


def test_wake_ends_a_read(notify: Inotify) -> None:
    began = time.monotonic()
    ended: list[float] = []
    thread = threading.Thread(target=lambda: ended.append(len(notify.read(60))))
    thread.start()
    notify.wake()
    eventually(lambda: bool(ended))
    thread.join()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_the_kernels_limit_is_told_with_what_raises_it(
    notify: Inotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Libc:
        def inotify_add_watch(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(inotify, "_libc", Libc())
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    with pytest.raises(FullError, match="cannot watch") as caught:
        notify.watch(tmp_path, MADE)
    assert "max_user_watches" in (caught.value.tip or "")


def test_other_refusals_are_errors(notify: Inotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def inotify_add_watch(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(inotify, "_libc", Libc())
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EACCES)
    with pytest.raises(PodmgrError, match="Permission denied") as caught:
        notify.watch(tmp_path, MADE)
    assert not isinstance(caught.value, FullError)
