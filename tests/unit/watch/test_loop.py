"""The loop, with a real API server: what is brought in order and when, what is said, and how it ends.

What reaches the kernel is shown elsewhere: here `PodSync` only writes down what it is asked.
"""

from __future__ import annotations

import io
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podmgr.attachment import PodRef
from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.cluster.this_machine import this_machine
from podmgr.errors import EXIT_DONE, EXIT_FAILED, PodmgrError
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.reconcile.refresh import Moved
from podmgr.rules.rule import Rule
from podmgr.settings import LogFormat, Settings
from podmgr.watch.journal import Journal
from podmgr.watch.loop import Watch
from podmgr.watch.options import Options
from podmgr.watch.podsync import Synced
from podmgr.watch.ruled import RuledPod
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.unit.samples import Script, eventually, parsed, said

LOSS = parsed("loss=uniform egress 1%")
REMOVED = Outcome("pod/web", LOSS, Action.DETACHED, pod=PodRef("shop", "web", "u-1"))


@dataclass
class Sync:
    """What `PodSync` was asked, and what it shall answer."""

    asked: list[set[str]] = field(default_factory=list)
    wanted: list[Mapping[str, RuledPod]] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    error: Exception | None = None
    is_disturbed: bool = False
    removed: int = 0
    hand: dict[str, list[Rule]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def traces(self) -> set[str]:
        return self.left

    def was_disturbed(self) -> bool:
        was_disturbed, self.is_disturbed = self.is_disturbed, False
        return was_disturbed

    def look_for_bypassed(self) -> None: ...

    def by_hand(self) -> dict[str, list[Rule]]:
        return self.hand

    def sync(self, wanted: Mapping[str, RuledPod]) -> Synced:
        self.asked.append(set(wanted))
        self.wanted.append(wanted)
        if self.error is not None:
            raise self.error
        return Synced(failed=self.failing & wanted.keys())

    def remove_all(self) -> list[Outcome]:
        self.removed += 1
        if self.error is not None:
            raise self.error
        return self.outcomes


@dataclass
class Watched:
    """A watch in a thread, its API server, and what came of it."""

    server: ApiServer
    settings: Settings
    kubeconfig: Path
    sync: Sync
    stop: Callable[[], None] = lambda: None
    log: io.StringIO = field(default_factory=io.StringIO)
    codes: list[int] = field(default_factory=list)
    thread: threading.Thread | None = None
    refreshed: list[dict[str, dict[str, int]]] = field(default_factory=list)

    def refresh(self, changes: Mapping[str, Moved]) -> None:
        """Addresses by pod and peer, how many."""
        found = {
            uid: {str(peer): len(known) for peer, known in moved.now.items()}
            for uid, moved in changes.items()
        }
        self.refreshed.append(found)

    def pods(self, *uids: str) -> None:
        for uid in uids:
            self.server.create(objects.pod(f"pod-{uid}", node="here", uid=uid))

    def start(self, options: Options | None = None) -> None:
        access = Access(str(self.kubeconfig))
        journal = Journal(LogFormat.JSON, self.log)
        options = options or Options(node="here", posts_events=False)
        watch = Watch(
            Api(access),
            access,
            options,
            self.settings,
            journal,
            runner=Script(said("")),
            refresh=self.refresh,
        )
        self.thread = threading.Thread(target=lambda: self.codes.append(watch.run()), daemon=True)
        self.thread.start()

    def end(self) -> int:
        """Stop it as a signal would; the exit code."""
        assert self.thread is not None
        self.stop()
        self.thread.join(10)
        (code,) = self.codes
        return code

    def lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in self.log.getvalue().splitlines(keepends=True) if line[-1] == "\n"
        ]

    def hears(self, text: str) -> dict[str, Any]:
        """The first line with this text, waited for."""
        eventually(lambda: any(text in line["message"] for line in self.lines()))
        return next(line for line in self.lines() if text in line["message"])


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    sync = Sync()
    monkeypatch.setattr("podmgr.watch.loop.PodSync", lambda *_, **__: sync)
    with ApiServer() as server:
        settings = Settings(tmp_path / "state", tmp_path / "bpffs")
        made = Watched(server, settings, server.write_kubeconfig(tmp_path / "kubeconfig"), sync)

        def on_first_and_second(first: Callable[[], None], _: Callable[[], None]) -> None:
            made.stop = first

        monkeypatch.setattr("podmgr.watch.signals.on_first_and_second", on_first_and_second)
        yield made
        made.stop()
        server.end_watches()
        if made.thread is not None:
            made.thread.join(10)


# What is brought in order


def test_at_the_start_it_is_all_pods_and_what_others_left(watched: Watched) -> None:
    watched.pods("a", "b")
    watched.sync.left = {"gone"}
    watched.start()
    assert watched.hears("in order")["message"].startswith("2 pods in order after 0.")
    assert watched.sync.asked == [{"a", "b", "gone"}]
    assert watched.hears("watching the pods")["node"] == "here"


def test_what_names_stand_for_reaches_the_maps_without_a_reconcile(watched: Watched) -> None:
    watched.server.create(objects.service("db"))
    watched.server.create(objects.endpoint_slice("db", addresses=["10.42.0.1"]))
    loss = {"loss": "1% egress peer=svc/db; 2% egress peer=svc/far/db"}
    watched.server.create(
        objects.pod("web", node="here", uid="a", annotations={"loss": "1% egress peer=svc/db"})
    )
    watched.server.create(objects.pod("far", node="here", uid="b", annotations=loss))
    watched.start()
    watched.hears("in order")
    (item,) = (wanted["a"] for wanted in watched.sync.wanted if "a" in wanted)
    assert [len(known) for known in item.peers.values()] == [2]
    (refused,) = watched.sync.wanted[0]["b"].rules.errors
    assert "svc/far/db is of another namespace" in refused.message
    eventually(lambda: watched.server.watching("endpointslices") == 1)
    watched.server.replace(objects.endpoint_slice("db", addresses=["10.42.0.1", "10.42.0.2"]))
    eventually(lambda: watched.refreshed == [{"a": {"svc/db": 3}}])
    assert len(watched.sync.asked) == 1


def test_what_the_command_line_named_is_followed_too(watched: Watched) -> None:
    watched.pods("a")
    watched.sync.hand = {"a": [parsed("loss=1% egress peer=svc/far/db")]}
    watched.start()
    watched.hears("in order")
    watched.server.create(objects.service("db", "far"))
    eventually(lambda: watched.refreshed == [{"a": {"svc/far/db": 1}}])


def test_the_operator_may_list_namespaces_that_rules_may_name(watched: Watched) -> None:
    loss = {"loss": "1% egress peer=svc/far/db"}
    watched.server.create(objects.pod("web", node="here", uid="a", annotations=loss))
    watched.start(Options(node="here", posts_events=False, peer_namespaces=frozenset({"far"})))
    watched.hears("in order")
    assert [str(peer) for peer in watched.sync.wanted[0]["a"].peers] == ["svc/far/db"]


def test_then_it_is_what_changes(watched: Watched) -> None:
    watched.pods("a", "b")
    watched.start()
    watched.hears("in order")
    watched.server.annotate("pods", "default", "pod-b", {"loss": "1% egress"})
    eventually(lambda: watched.sync.asked[1:] == [{"b"}])


def test_many_pods_are_taken_some_at_a_time(watched: Watched) -> None:
    watched.pods(*(f"u-{number}" for number in range(70)))
    watched.start()
    watched.hears("70 pods in order")
    assert [len(uids) for uids in watched.sync.asked] == [32, 32, 6]


@pytest.mark.parametrize("is_timed", [True, False], ids=["time", "another podmgr"])
def test_all_come_again_in_time_and_after_others_have_changed_something(
    watched: Watched, is_timed: bool
) -> None:
    watched.pods("a", "b")
    watched.start(Options(node="here", posts_events=False, resync_seconds=0.2 if is_timed else 180))
    watched.hears("in order")
    if not is_timed:
        watched.sync.is_disturbed = True
        watched.server.annotate("pods", "default", "pod-b", {"loss": "1% egress"})  # the loop turns
    eventually(lambda: {"a", "b"} in watched.sync.asked[1:])


def test_what_fails_is_told_and_tried_again(watched: Watched) -> None:
    watched.pods("a", "b")
    watched.sync.failing = {"b"}
    watched.start()
    line = watched.hears("not in order")
    assert (line["level"], line["message"][:26]) == ("warning", "1 of 2 pods not in order a")
    eventually(lambda: watched.sync.asked.count({"b"}) >= 2)


@pytest.mark.parametrize("error", [PodmgrError("no room", tip="make some"), RuntimeError("no room")])
def test_an_error_of_all_ends_nothing(watched: Watched, error: Exception) -> None:
    watched.pods("a")
    watched.sync.error = error
    watched.start()
    line = watched.hears("no room")
    assert (line["level"], line["tip"]) == (
        "error",
        "make some" if isinstance(error, PodmgrError) else "this is a bug; the log has its traceback",
    )
    watched.sync.error = None
    eventually(lambda: len(watched.sync.asked) >= 2)
    assert watched.end() == EXIT_DONE


def test_node_without_pods_where_others_have_left_rules_is_a_warning(watched: Watched) -> None:
    watched.sync.left = {"a", "b"}
    watched.start()
    line = watched.hears("the cluster has no pod on this node; 2 pods lose the rules they have")
    assert (line["level"], line["tip"]) == ("warning", "is the node's name right? see --node-name")


def test_what_is_counted_is_served(watched: Watched) -> None:
    watched.pods("a", "b")
    watched.sync.failing = {"b"}
    watched.start(Options(node="here", posts_events=False, metrics_address=("127.0.0.1", 0)))
    watched.hears("not in order")
    line = watched.hears("metrics, healthz and readyz on port")
    assert line["message"].endswith(f" {line['port']}")
    pages = {}
    for page in ("healthz", "readyz", "metrics"):
        with urllib.request.urlopen(f"http://127.0.0.1:{line['port']}/{page}", timeout=10) as answer:
            pages[page] = answer.read().decode().splitlines()
    assert pages["healthz"] == pages["readyz"] == ["ok"]
    assert {"podmgr_pods 2.0", 'podmgr_api_connected{resource="pods"} 1.0'} <= set(pages["metrics"])
    assert "podmgr_last_sync_timestamp_seconds 0.0" in pages["metrics"]  # not all is as it shall be


# The end


def test_when_it_ends_all_rules_go(watched: Watched) -> None:
    watched.sync.outcomes = [REMOVED]
    watched.start()
    watched.hears("in order")
    assert watched.end() == EXIT_DONE
    assert watched.sync.removed == 1
    said = [line["message"] for line in watched.lines()]
    assert said[-2:] == [
        "stopping: removing all limits (Ctrl-C again: stop at once)",
        "stopped; 1 rules removed",
    ]


def test_kept_rules_stay(watched: Watched) -> None:
    watched.start(Options(node="here", posts_events=False, keeps_rules=True))
    watched.hears("in order")
    assert watched.end() == EXIT_DONE
    assert watched.sync.removed == 0
    assert watched.lines()[-1]["message"].startswith("stopped; the rules stay (--keep)")


def test_rules_that_cannot_be_removed_make_it_fail(watched: Watched) -> None:
    watched.sync.outcomes = [REMOVED, REMOVED._replace(error=PodmgrError("no"))]
    watched.start()
    watched.hears("in order")
    assert watched.end() == EXIT_FAILED
    assert watched.lines()[-1]["message"] == "stopped; 1 rules removed"


def test_removal_that_fails_as_a_whole_says_who_finishes_it(watched: Watched) -> None:
    watched.start()
    watched.hears("in order")
    watched.sync.error = PodmgrError("the ledger is locked")
    assert watched.end() == EXIT_FAILED
    assert watched.lines()[-1]["message"] == "the ledger is locked; podmgr clean finishes it"


def test_it_ends_though_it_never_learned_its_node(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)
    watched.server.stop()
    watched.start(Options(posts_events=False))
    watched.hears("cannot be reached")
    assert watched.end() == EXIT_DONE
    assert (watched.sync.asked, watched.sync.removed) == ([], 1)
    watched.server.start()


def test_it_waits_for_kubelet_to_say_which_node_this_is(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot kubelet comes later; a watch that gave up would leave the pods without rules."""
    monkeypatch.delenv("NODE_NAME", raising=False)
    watched.pods("u-1")
    for name in ("here", "there"):
        watched.server.create(objects.node(name, boot_id="before", machine_id="m", address="192.0.2.77"))
    watched.start(Options(posts_events=False))
    watched.hears("which node is this")
    assert watched.server.wait_for(lambda: len(watched.server.asked("list", "nodes")) >= 3)
    watched.server.patch("nodes", "", "here", {"status": {"nodeInfo": {"bootID": this_machine().boot_id}}})
    watched.hears("watching the pods of node here")
    watched.hears("in order")
    assert watched.sync.asked == [{"u-1"}]
    assert len([line for line in watched.lines() if "which node" in line["message"]]) == 1
