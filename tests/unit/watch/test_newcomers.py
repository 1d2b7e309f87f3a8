"""What is heard of kubelet's folders: the kernel tells of plain folders as it does of cgroups."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podmgr.attachment import Cgroup
from podmgr.kernel import inotify
from podmgr.kernel.inotify import Event, FullError, Inotify
from podmgr.settings import LogFormat
from podmgr.watch.journal import Journal
from podmgr.watch.newcomers import Newcomers
from tests.unit.samples import eventually

UIDS = [f"{number:08d}-50e1-452e-91c0-7dfcee8503e9" for number in range(9)]


@dataclass
class Node:
    root: Path
    heard: list[str] = field(default_factory=list)
    log: io.StringIO = field(default_factory=io.StringIO)
    stopping: threading.Event = field(default_factory=threading.Event)
    newcomers: Newcomers | None = None

    def hear(self, uid: str, cgroup: Cgroup) -> None:
        assert cgroup.path.stat().st_ino == cgroup.id
        self.heard.append(uid)

    def start(self, **more: Any) -> None:
        self.journal = Journal(LogFormat.JSON, self.log)
        self.newcomers = Newcomers(self.root, self.hear, self.journal, self.stopping, **more)
        self.newcomers.start()

    def pod(self, uid: str, below: str = "kubepods") -> Path:
        path = self.root / below / f"pod{uid}"
        path.mkdir(parents=True)
        (path / "cgroup.events").write_text("populated 0\n")
        return path

    def become(self, *uids: str) -> None:
        """Wait until exactly these were heard, in this order."""
        eventually(lambda: self.heard == list(uids))

    def said(self) -> list[str]:
        self.journal.flush(2)
        return [json.loads(line)["message"] for line in self.log.getvalue().splitlines()]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    root = tmp_path / "cgroup"
    (root / "kubepods/burstable").mkdir(parents=True)
    made = Node(root)
    yield made
    made.stopping.set()


def populate(pod: Path) -> None:
    with (pod / "cgroup.events").open("r+") as file:
        file.write("populated 1\n")


@pytest.mark.parametrize("below", ["kubepods", "kubepods/burstable"])
def test_pod_that_is_made_is_heard(node: Node, below: str) -> None:
    node.start()
    node.pod(UIDS[0], below)
    node.become(UIDS[0])


def test_pods_that_are_there_already_are_not_new(node: Node) -> None:
    node.pod(UIDS[0])
    node.start()
    node.pod(UIDS[1])
    node.become(UIDS[1])


def test_first_process_of_a_pod_is_heard_also_of_one_that_was_there(node: Node) -> None:
    pod = node.pod(UIDS[0])
    node.start()
    populate(pod)
    node.become(UIDS[0])


def test_folder_of_kubelets_that_comes_later_is_listened_to(node: Node) -> None:
    node.start()
    node.pod(UIDS[0], "kubepods.slice/kubepods-besteffort.slice")
    node.become(UIDS[0])
    node.pod(UIDS[1], "kubepods.slice/kubepods-besteffort.slice")
    node.become(UIDS[0], UIDS[1])


def test_folder_that_vanishes_and_comes_back_is_listened_to(node: Node) -> None:
    """As when kubelet is installed anew."""
    node.start()
    for uid in UIDS[:3]:
        node.pod(uid, "kubepods/burstable")
        eventually(lambda uid=uid: uid in node.heard)  # type: ignore[misc]
        shutil.rmtree(node.root / "kubepods")
    node.become(*UIDS[:3])
    assert node.said() == []


def test_other_folders_are_not_heard(node: Node) -> None:
    node.start()
    (node.root / "system.slice/cron.service").mkdir(parents=True)
    (node.root / "kubepods/pod-x").mkdir()
    node.pod(UIDS[0])
    node.become(UIDS[0])


def test_what_was_dropped_is_looked_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()
    read = Inotify.read

    def losing(notify: Inotify, seconds: float) -> list[Event]:
        found = read(notify, seconds)
        if found and not lost.is_set():
            lost.set()
            return [Event(-1, 0x4000, "")]
        return found

    monkeypatch.setattr(Inotify, "read", losing)
    node.start()
    node.pod(UIDS[0])
    eventually(lambda: UIDS[0] in node.heard and lost.is_set())
    node.pod(UIDS[1])
    eventually(lambda: UIDS[1] in node.heard)


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (lambda path: path.name == "cgroup.events", [UIDS[0]]),  # no room for pods
        (lambda path: path.name == "burstable", []),  # nor for folders
    ],
)
def test_the_kernels_limit_is_said_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, refused: Callable[[Path], bool], left: list[str]
) -> None:
    watch = Inotify.watch

    def limited(notify: Inotify, path: Path, mask: int, *, is_folder: bool = True) -> int | None:
        if refused(path):
            raise FullError("cannot watch it: no space")
        return watch(notify, path, mask, is_folder=is_folder)

    monkeypatch.setattr(Inotify, "watch", limited)
    node.start()
    node.pod(UIDS[0], "kubepods/burstable")
    node.pod(UIDS[1], "kubepods/burstable")
    node.pod(UIDS[2])
    eventually(lambda: UIDS[2] in node.heard)
    assert set(left) <= set(node.heard)
    eventually(lambda: len(node.said()) == 1)
    assert "pods are looked for every two seconds instead" in node.said()[0]


def test_what_is_listened_to_is_bounded(node: Node) -> None:
    for uid in UIDS[:3]:
        node.pod(uid)
    node.start(most_folders=3, most_pods=2)  # the root, and two
    node.pod(UIDS[3])
    node.become(UIDS[3])
    node.pod(UIDS[4], "kubepods/besteffort")  # one folder too many
    eventually(lambda: len(node.said()) == 2)
    assert {message.partition(";")[0] for message in node.said()} == {
        f"{node.root}/kubepods/besteffort is not listened to: there are too many such folders",
        "there are too many pods to listen to",
    }


def test_where_the_kernel_gives_no_descriptor_that_is_said(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        def inotify_init1(self, _: int) -> int:
            return -1

    monkeypatch.setattr(inotify, "_libc", Libc())
    node.start()
    assert "looked for every two seconds instead" in node.said()[0]
