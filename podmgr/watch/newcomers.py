"""Pods' cgroups are heard of when kubelet makes them, and again when their first process comes.

Owns the thread that listens, and which folders it listens to: kubelet's, and those above, in which they
come back when somebody has removed them. The list that the index makes every two seconds of what it misses
stays: what is not heard here is found there.

Apart from `loop`, which alone uses it: it has a thread, and knows nothing of the cluster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel import inotify, pod_cgroups
from podmgr.kernel.cgroup_life import is_populated
from podmgr.kernel.inotify import Inotify
from podmgr.watch.journal import Journal

MOST_FOLDERS, MOST_PODS = 128, 2048  # what is watched at once: some 1 kB of the kernel's memory each
LOOK_SECONDS = 60.0  # between two looks for what was not heard
_WAIT_SECONDS = 1.0

Hear = Callable[[str, Cgroup], None]


@dataclass(frozen=True, slots=True)
class _Pod:
    """A pod's directory. `watch` None: its first process is not listened for."""

    uid: str
    cgroup: Cgroup
    watch: int | None


class Newcomers:
    """`hear` is given the UID in a directory's name, and the directory, by a thread of its own."""

    def __init__(
        self,
        root: Path,
        hear: Hear,
        journal: Journal,
        stopping: threading.Event,
        *,
        most_folders: int = MOST_FOLDERS,
        most_pods: int = MOST_PODS,
    ) -> None:
        self._root = root
        self._hear = hear
        self._journal = journal
        self._stopping = stopping
        self._most_folders, self._most_pods = most_folders, most_pods
        self._folders: dict[int, Path] = {}
        self._pods: dict[Path, _Pod] = {}
        self._waiting: dict[int, _Pod] = {}  # by the number of what is watched
        self._told: set[str] = set()
        self._notify: Inotify | None = None

    def start(self) -> None:
        """Listen from now on. Where the kernel does not let us, say so: the list finds them later."""
        try:
            self._notify = Inotify()
            self._look(is_first=True)
        except PodmgrError as error:
            self._say_once(error)
        if self._notify is not None:
            threading.Thread(target=self._run, args=[self._notify], name="newcomers", daemon=True).start()

    def _run(self, notify: Inotify) -> None:
        looked_at = time.monotonic()
        while not self._stopping.is_set():
            try:
                for event in notify.read(_WAIT_SECONDS):
                    self._take(event)
                if time.monotonic() - looked_at > LOOK_SECONDS:
                    looked_at = time.monotonic()
                    self._look()
            except Exception as problem:  # the next look makes it good
                self._say_once(problem)
                self._stopping.wait(_WAIT_SECONDS)
        notify.close()

    def _take(self, event: inotify.Event) -> None:
        if event.is_overflow:
            self._look()
            for pod in list(self._pods.values()):
                self._hear(pod.uid, pod.cgroup)
        elif event.watch in self._waiting:
            pod = self._waiting[event.watch]
            if event.is_end:
                del self._waiting[event.watch]
            elif is_populated(pod.cgroup):
                self._hear(pod.uid, pod.cgroup)
        elif event.watch in self._folders:
            folder = self._folders[event.watch]
            if event.is_end:
                del self._folders[event.watch]
            elif event.mask & inotify.REMOVED:
                self._leave(folder / event.name)
            elif event.name:
                self._enter_made(folder / event.name)

    def _enter_made(self, path: Path) -> None:
        if (found := pod_cgroups.pod_at(path)) is not None:
            self._meet(*found, is_first=False)
        elif pod_cgroups.uid_of(path.name) is None:  # or kubelet's, or one that may come to hold kubelet's
            for folder in pod_cgroups.kubelets(path):
                self._enter([*_above(folder, path), folder])

    def _look(self, *, is_first: bool = False) -> None:
        """What is there, and is not known. Of what was there at the beginning nothing is told."""
        folders = list(pod_cgroups.kubelets(self._root))
        above = {self._root, *(path for folder in folders for path in _above(folder, self._root))}
        self._enter([*sorted(above), *folders], is_first=is_first)

    def _enter(self, folders: Iterable[Path], *, is_first: bool = False) -> None:
        """Listen to these folders, and only then see what is in them."""
        assert self._notify is not None
        for folder in folders:
            if len(self._folders) >= self._most_folders and folder not in self._folders.values():
                self._say_once(PodmgrError(f"{folder} is not listened to: there are too many such folders"))
                continue
            number = self._notify.watch(folder, inotify.MADE | inotify.REMOVED)
            if number is None:
                continue
            self._folders[number] = folder
            if pod_cgroups.is_kubelets(folder):
                for uid, cgroup in pod_cgroups.pods_in(folder):
                    self._meet(uid, cgroup, is_first=is_first)

    def _meet(self, uid: str, cgroup: Cgroup, *, is_first: bool) -> None:
        known = self._pods.get(cgroup.path)
        if known is not None and known.cgroup == cgroup:
            return
        if known is not None:  # another has taken its place
            self._leave(cgroup.path)
        pod = _Pod(uid, cgroup, self._wait_for(cgroup))
        self._pods[cgroup.path] = pod
        if pod.watch is not None:
            self._waiting[pod.watch] = pod
        if not is_first:
            self._hear(uid, cgroup)

    def _wait_for(self, cgroup: Cgroup) -> int | None:
        """Listen for its first process."""
        assert self._notify is not None
        if len(self._waiting) >= self._most_pods:
            self._say_once(PodmgrError("there are too many pods to listen to"))
            return None
        try:
            return self._notify.watch(cgroup.path / "cgroup.events", inotify.MODIFIED, is_folder=False)
        except PodmgrError as error:
            self._say_once(error)
            return None

    def _leave(self, path: Path) -> None:
        """It is gone, with all that was in it; the kernel does not say so of each."""
        assert self._notify is not None
        for number, folder in list(self._folders.items()):
            if folder.is_relative_to(path):
                del self._folders[number]
                self._notify.forget(number)
        gone = [other for other in self._pods if other.is_relative_to(path)]
        for watch in (self._pods.pop(other).watch for other in gone):
            if watch is not None and self._waiting.pop(watch, None) is not None:
                self._notify.forget(watch)

    def _say_once(self, problem: Exception) -> None:
        if str(problem) not in self._told:
            self._told.add(str(problem))
            self._journal.failure(problem, after="; pods are looked for every two seconds instead")


def _above(folder: Path, top: Path) -> list[Path]:
    """The folders between, and `top` itself, highest first."""
    return [path for path in reversed(folder.parents) if path.is_relative_to(top)]
