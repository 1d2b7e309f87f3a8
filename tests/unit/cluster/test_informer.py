"""Following a list through everything that goes wrong: what the sink holds is what the server holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from podmgr.cluster import api
from podmgr.cluster.access import Access
from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.cluster.backoff import Backoff
from podmgr.cluster.informer import Informer
from podmgr.errors import PodmgrError
from tests.kube import objects
from tests.kube.apiserver import ApiServer

PODS = "/api/v1/pods"
HERE = {"fieldSelector": "spec.nodeName=here"}


@dataclass
class Sink:
    """What was told: the objects by name with their versions, and each piece of news."""

    held: dict[str, str] = field(default_factory=dict)
    news: list[str] = field(default_factory=list)

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None:
        self.held = dict(map(_known, items))
        self.news.append("replace " + " ".join(sorted(self.held)))

    def put(self, item: Mapping[str, Any]) -> None:
        name, self.held[name] = _known(item)
        self.news.append(f"put {name}")

    def remove(self, item: Mapping[str, Any]) -> None:
        name, _ = _known(item)
        del self.held[name]
        self.news.append(f"remove {name}")


def _known(item: Mapping[str, Any]) -> tuple[str, str]:
    assert item["kind"] == "Pod"
    return item["metadata"]["name"], item["metadata"]["resourceVersion"]


@dataclass
class Followed:
    """A server, an informer of its pods in a thread, and what the informer said."""

    server: ApiServer
    access: Access
    watch_seconds: int = 60
    first_pause: float = 0.01
    most_pause: float = 0.1
    sink: Sink = field(default_factory=Sink)
    lost: list[PodmgrError] = field(default_factory=list)
    found: int = 0
    apis: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Followed:
        def connect() -> Api:
            self.apis += 1
            return Api(self.access)

        def on_found(name: str) -> None:
            assert name == "pods"
            self.found += 1

        def on_lost(name: str, error: PodmgrError) -> None:
            assert name == "pods"
            self.lost.append(error)

        self.informer = Informer(
            "pods",
            PODS,
            HERE,
            connect,
            self.sink,
            self.stopping,
            on_lost=on_lost,
            on_found=on_found,
            watch_seconds=self.watch_seconds,
            backoff=Backoff(self.first_pause, self.most_pause),
        )
        self.thread = threading.Thread(target=self.informer.run, daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        """End the thread; the server must be there."""
        self.stopping.set()
        self.server.heal()
        deadline = time.monotonic() + 5
        while self.thread.is_alive():
            assert time.monotonic() < deadline
            self.server.end_watches()
            self.thread.join(0.01)

    def pod(self, name: str, node: str = "here") -> None:
        self.server.create(objects.pod(name, node=node))

    def is_watching(self) -> None:
        assert self.server.wait_for(lambda: self.server.watching("pods") > 0)

    def end_watch(self) -> None:
        """End the watch, and wait for the next one."""
        self.is_watching()
        count = self.watches()
        self.server.end_watches()
        assert self.server.wait_for(lambda: self.watches() > count)

    def is_in_step(self) -> None:
        """Wait until the sink holds what the server holds, in its newest versions."""
        eventually(lambda: self.sink.held == self.expected(), lambda: (self.sink, self.lost))

    def expected(self) -> dict[str, str]:
        with self.server.lock:
            return {
                name: item["metadata"]["resourceVersion"]
                for (_, name), item in self.server.objects["pods"].items()
                if item["spec"]["nodeName"] == "here"
            }

    def lists(self) -> int:
        return len(self.server.asked("list", "pods"))

    def watches(self) -> int:
        return len(self.server.asked("watch", "pods"))


def eventually(is_so: Callable[[], bool], why: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 8
    while not is_so():
        assert time.monotonic() < deadline, why()
        time.sleep(0.002)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


Follow = Callable[..., Followed]


@pytest.fixture
def follow(server: ApiServer, tmp_path: Path) -> Iterator[Follow]:
    """Starts an informer of the pods on node `here`."""
    made: list[Followed] = []

    def start(*, token_file: Path | None = None, **options: Any) -> Followed:
        path = server.write_kubeconfig(tmp_path / "kubeconfig", token_file=token_file)
        made.append(Followed(server, Access(str(path)), **options).start())
        return made[-1]

    yield start
    for item in made:
        item.stop()


@pytest.fixture
def followed(server: ApiServer, follow: Follow) -> Followed:
    """An informer that has listed two pods and watches."""
    server.create(objects.pod("a", node="here"))
    server.create(objects.pod("b", node="here"))
    server.create(objects.pod("elsewhere", node="there"))
    made = follow()
    made.is_in_step()
    made.is_watching()
    return made


# When all is well


def test_list_comes_first_and_then_each_change(followed: Followed) -> None:
    followed.pod("c")
    followed.server.annotate("pods", "default", "a", {"bandwidth": "x"})
    followed.server.delete("pods", "default", "b")
    followed.is_in_step()
    assert followed.sink.news == ["replace a b", "put c", "put a", "remove b"]
    assert (followed.lists(), followed.watches(), followed.lost) == (1, 1, [])


def test_pods_of_other_nodes_are_not_asked_for(followed: Followed) -> None:
    followed.pod("far", node="there")
    followed.pod("near")
    followed.is_in_step()
    assert set(followed.sink.held) == {"a", "b", "near"}
    assert {request.query["fieldSelector"] for request in followed.server.asked()} == {"spec.nodeName=here"}


def test_empty_list_is_news_too(follow: Follow) -> None:
    followed = follow()
    assert followed.informer.is_listed.wait(5)
    assert followed.sink.news == ["replace "]


def test_it_is_listed_as_soon_as_the_sink_holds_the_list_and_not_before(
    server: ApiServer, follow: Follow
) -> None:
    server.create(objects.pod("a", node="here"))
    server.fail("list", 500, "pods")
    followed = follow()
    assert server.wait_for(lambda: followed.lists() >= 3)
    assert not followed.informer.is_listed.is_set()
    server.heal()
    assert followed.informer.is_listed.wait(5)
    assert followed.sink.news == ["replace a"]


def test_watch_that_ends_as_agreed_goes_on_where_it_was(followed: Followed) -> None:
    for number in range(5):
        followed.end_watch()
        followed.pod(f"new-{number}")
        followed.is_in_step()
    assert (followed.lists(), followed.watches()) == (1, 6)
    assert followed.sink.news == ["replace a b", *(f"put new-{number}" for number in range(5))]
    assert followed.lost == []


def test_change_between_two_watches_is_not_lost(followed: Followed) -> None:
    followed.server.hang("watch", "pods", times=1)
    followed.server.end_watches()
    assert followed.server.wait_for(lambda: followed.watches() == 2)
    followed.pod("c")
    followed.server.delete("pods", "default", "a")
    followed.server.reset_connections()
    followed.is_in_step()
    assert followed.lists() == 1
    assert followed.sink.news == ["replace a b", "put c", "remove a"]


def test_bookmarks_keep_the_version_young(server: ApiServer, follow: Follow) -> None:
    """A node on which nothing happens need not list again because others have made history."""
    server.bookmark_interval = 0.05
    followed = follow()
    followed.is_watching()
    for number in range(20):
        followed.pod(f"far-{number}", node="there")
    newest = server.version
    eventually(lambda: int(followed.informer._version or 0) >= newest)
    followed.end_watch()
    assert int(server.asked("watch")[1].query["resourceVersion"]) >= newest
    assert followed.sink.news == ["replace "]


def test_watches_are_asked_for_a_time_that_differs_so_that_nodes_do_not_come_together(
    followed: Followed,
) -> None:
    for _ in range(7):
        followed.end_watch()
    seconds = [int(request.query["timeoutSeconds"]) for request in followed.server.asked("watch")]
    assert all(45 <= asked <= 60 for asked in seconds)
    assert len(set(seconds)) > 1


def test_empty_watches_that_end_at_once_are_not_asked_for_without_a_pause(
    server: ApiServer, follow: Follow
) -> None:
    followed = follow(first_pause=0.1, most_pause=0.2)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        server.end_watches()
        time.sleep(0.001)
    assert 2 <= followed.watches() <= 13
    assert followed.lists() == 1


# History that is gone


@pytest.mark.parametrize("as_event", [True, False])
def test_too_old_a_version_means_a_new_list_and_what_went_away_is_removed(
    followed: Followed, as_event: bool
) -> None:
    server = followed.server
    server.gone_as_event = as_event
    server.stop()
    server.delete("pods", "default", "a")
    followed.pod("c")
    server.forget_history()
    server.start()
    followed.is_in_step()
    assert followed.sink.news == ["replace a b", "replace b c"]
    assert followed.lists() == 2


@pytest.mark.parametrize("as_event", [True, False])
def test_too_old_a_version_is_nothing_to_tell(followed: Followed, as_event: bool) -> None:
    followed.server.gone_as_event = as_event
    followed.server.forget_history()
    followed.server.end_watches()
    assert followed.server.wait_for(lambda: followed.lists() == 2)
    followed.pod("c")
    followed.is_in_step()
    assert (followed.lost, followed.found) == ([], 0)


def test_error_in_the_middle_of_a_watch_means_a_new_list(followed: Followed) -> None:
    followed.server.send_error(410, "pods")
    assert followed.server.wait_for(lambda: followed.lists() == 2)
    followed.pod("c")
    followed.is_in_step()
    assert followed.lost == []
    followed.server.send_error(500, "pods")
    assert followed.server.wait_for(lambda: followed.lists() == 3)
    followed.pod("d")
    followed.is_in_step()
    assert [error.message for error in followed.lost] == ["the API server says 500: as the test wants it"]


def test_version_is_never_asked_for_again_after_it_was_too_old(followed: Followed) -> None:
    followed.server.forget_history()
    followed.server.end_watches()
    assert followed.server.wait_for(lambda: followed.watches() == 3)
    versions = [request.query["resourceVersion"] for request in followed.server.asked("watch")]
    assert versions[1] != versions[2]


# A server in trouble


def test_refused_lists_are_repeated_ever_more_seldom(server: ApiServer, follow: Follow) -> None:
    server.fail("list", 500, "pods")
    followed = follow(first_pause=0.02, most_pause=0.5)
    time.sleep(0.5)
    assert 3 <= followed.lists() <= 11  # if the pauses did not grow it were 20 or more
    server.create(objects.pod("a", node="here"))
    server.heal()
    followed.is_in_step()


def test_refused_watches_are_repeated_ever_more_seldom(server: ApiServer, follow: Follow) -> None:
    server.fail("watch", 503, "pods")
    followed = follow(first_pause=0.02, most_pause=0.5)
    time.sleep(0.5)
    assert 3 <= followed.watches() <= 11
    server.heal()
    followed.pod("a")
    followed.is_in_step()


def test_trouble_is_told_once_and_so_is_its_end(followed: Followed) -> None:
    for _ in range(2):
        followed.server.fail("list", 500, "pods")
        followed.server.fail("watch", 500, "pods")
        before = followed.found
        followed.server.end_watches()
        eventually(lambda: isinstance(followed.informer.failure, StatusError))
        assert followed.found == before
        followed.server.heal()
        followed.is_watching()
        eventually(lambda: followed.informer.failure is None)
    assert len(followed.lost) == followed.found == 2


def test_outage_leaves_the_sink_alone_and_needs_no_new_list(followed: Followed) -> None:
    followed.server.stop()
    eventually(lambda: isinstance(followed.informer.failure, UnreachableError))
    assert set(followed.sink.held) == {"a", "b"}
    followed.pod("c")
    followed.server.delete("pods", "default", "b")
    followed.server.start()
    followed.is_in_step()
    assert followed.sink.news == ["replace a b", "put c", "remove b"]
    assert followed.lists() == 1
    eventually(lambda: (len(followed.lost), followed.found) == (1, 1))


def test_server_that_comes_up_late_is_found(server: ApiServer, follow: Follow) -> None:
    server.stop()
    followed = follow()
    eventually(lambda: len(followed.lost) == 1)
    followed.pod("a")
    server.start()
    followed.is_in_step()
    eventually(lambda: followed.found == 1)


@pytest.mark.parametrize("politely", [True, False])
def test_line_that_is_cut_is_no_event_and_the_watch_goes_on_where_it_was(
    followed: Followed, politely: bool
) -> None:
    followed.server.cut_watches(politely=politely)
    followed.pod("c")
    followed.is_in_step()
    assert followed.sink.news == ["replace a b", "put c"]
    assert followed.lists() == 1


def test_connection_that_is_reset_goes_on_where_it_was(followed: Followed) -> None:
    followed.server.reset_connections()
    followed.pod("c")
    followed.is_in_step()
    assert followed.lists() == 1


@pytest.mark.parametrize("line", [b"garbage\n", b"{}\n", b'{"type":"ADDED","object":{"metadata":[1]}}\n'])
def test_garbage_means_a_new_list(followed: Followed, line: bytes) -> None:
    followed.server.send_line(line)
    assert followed.server.wait_for(lambda: followed.lists() == 2)
    followed.pod("c")
    followed.is_in_step()
    assert len(followed.lost) == 1


def test_kinds_of_events_that_are_new_are_passed_over(followed: Followed) -> None:
    followed.server.send_line(b'{"type":"RENAMED","object":{"metadata":{"name":"a"}}}\n')
    followed.pod("c")
    followed.is_in_step()
    assert (followed.lists(), followed.lost) == (1, [])


def test_lines_in_pieces_are_events(followed: Followed) -> None:
    followed.server.slow_watches(size=997, pause=0)
    for number in range(5):
        followed.pod(f"new-{number}")
    followed.is_in_step()
    assert followed.lost == []


def test_connection_that_is_dead_without_a_word_is_given_up(
    server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api._SILENCE_SECONDS == 2 * 60  # the server sends a bookmark each minute
    monkeypatch.setattr(api, "_SILENCE_SECONDS", 0.4)
    server.bookmark_interval = 0.1
    followed = follow()
    followed.is_watching()
    time.sleep(0.5)  # bookmarks keep a connection alive on which nothing else happens
    assert followed.lost == []
    server.freeze_watches()
    followed.pod("a")
    followed.is_in_step()
    assert followed.lists() == 1
    assert followed.lost == []  # the next one is well: nothing to tell


def test_what_nobody_has_thought_of_means_a_new_list_and_ends_nothing(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = followed.sink.put

    def stumble(item: Mapping[str, Any]) -> None:
        monkeypatch.setattr(followed.sink, "put", put)
        raise LookupError(f"what is {item['metadata']['name']}?")

    monkeypatch.setattr(followed.sink, "put", stumble)
    followed.pod("c")
    followed.is_in_step()
    assert followed.sink.news == ["replace a b", "replace a b c"]
    (error,) = followed.lost
    assert error.message == "unexpected LookupError: what is c?"
    assert "stumble" in (error.detail or "")
    eventually(lambda: followed.found == 1)


# Credentials


def test_token_that_is_renewed_on_disk_is_used(server: ApiServer, follow: Follow, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.tokens = {"first"}
    followed = follow(token_file=token)
    followed.is_watching()
    server.tokens = {"second"}
    server.end_watches()
    eventually(lambda: followed.lost != [])
    assert isinstance(followed.lost[0], StatusError)
    assert followed.lost[0].status == 401
    followed.pod("a")
    assert "a" not in followed.sink.held
    token.write_text("second")
    followed.is_in_step()
    eventually(lambda: (len(followed.lost), followed.found) == (1, 1))


def test_credentials_are_read_anew_for_each_watch(followed: Followed) -> None:
    for _ in range(3):
        followed.end_watch()
    assert followed.apis == followed.watches() == 4
    assert followed.server.wait_for(lambda: followed.server.connections() == 1)  # the old ones are closed


def test_kubeconfig_that_is_gone_for_a_while_is_waited_for(followed: Followed) -> None:
    path = Path(followed.access.kubeconfig or "")
    content = path.read_text()
    path.unlink()
    followed.server.end_watches()
    eventually(lambda: followed.lost != [])
    followed.pod("c")
    path.write_text(content)
    followed.is_in_step()


# The end


def test_it_ends_when_it_is_told_to_while_the_server_is_away(followed: Followed) -> None:
    followed.informer.backoff = Backoff(30, 30)
    followed.server.stop()
    eventually(lambda: followed.lost != [])
    started = time.monotonic()
    followed.stopping.set()
    followed.thread.join(5)
    assert not followed.thread.is_alive()
    assert time.monotonic() - started < 2
    followed.server.start()


def test_it_ends_at_the_next_event_after_it_was_told_to(followed: Followed) -> None:
    followed.stopping.set()
    followed.pod("c")
    followed.thread.join(5)
    assert not followed.thread.is_alive()


# Pauses, on a script


class Pauses(threading.Event):
    """Passes the time at once, and writes it down; set when the script is at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0)
        return self.is_set()


EVENT = ("ADDED", {"kind": "Pod", "metadata": {"name": "a", "resourceVersion": "2"}})
CUT, REFUSED = UnreachableError("cut"), StatusError(500, "no")


@dataclass
class Script:
    """An API whose lists fail or do not, and whose watches are events and errors, until it is at its end."""

    lists: list[Exception | None]
    watches: list[list[object]]
    watch_seconds: float
    stopping: Pauses = field(default_factory=Pauses)
    now: float = 0.0

    def close(self) -> None:
        if not self.lists and not self.watches:
            self.stopping.set()

    def list(self, *_: object) -> tuple[Sequence[object], str]:
        error = self.lists.pop(0) if self.lists else None
        if error is not None:
            raise error
        return [], "1"

    def watch(self, *_: object, **__: object) -> Iterator[object]:
        steps = self.watches.pop(0)

        def events() -> Iterator[object]:
            self.now += self.watch_seconds
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                yield step

        return events()


def pauses_of(
    monkeypatch: pytest.MonkeyPatch,
    lists: list[Exception | None],
    watches: list[list[object]],
    seconds: float = 0,
) -> list[float]:
    """The pauses, as long as they can be; each watch takes so many seconds."""
    script = Script(lists, watches, seconds)
    monkeypatch.setattr("random.uniform", max)
    monkeypatch.setattr("podmgr.cluster.informer.time.monotonic", lambda: script.now)
    Informer(
        "pods",
        PODS,
        {},
        lambda: cast(Api, script),
        Sink(),
        script.stopping,
        on_lost=lambda *_: None,
        on_found=lambda _: None,
    ).run()
    return script.stopping.seconds


def test_pauses_grow_from_half_a_second_to_fifteen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(monkeypatch, [REFUSED] * 7, [[CUT]]) == [0.5, 1, 2, 4, 8, 15, 15, 15]


@pytest.mark.parametrize("error", [CUT, REFUSED, StatusError(410, "gone"), StatusError(0, "garbage")])
def test_pauses_grow_whatever_is_wrong(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert pauses_of(monkeypatch, [], [[error]] * 4) == [0.5, 1, 2, 4]


def test_an_event_shows_that_it_works_and_the_next_pause_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(monkeypatch, [REFUSED] * 3, [[EVENT, CUT], [CUT]]) == [0.5, 1, 2, 0.5, 1]


def test_list_that_works_does_not_show_that_the_watch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(monkeypatch, [None] * 3, [[REFUSED]] * 3) == [0.5, 1, 2]


def test_watch_that_has_worked_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(monkeypatch, [], [[EVENT], [EVENT, EVENT]]) == []
    assert pauses_of(monkeypatch, [], [[], []], seconds=180) == []


def test_watch_that_ends_at_once_with_nothing_is_followed_by_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(monkeypatch, [], [[], [], []], seconds=0.5) == [0.5, 1, 2]


# Everything at once


def test_whatever_breaks_the_sink_ends_up_with_what_the_server_holds(followed: Followed) -> None:
    server = followed.server

    def outage() -> None:
        server.stop()
        followed.pod("during-the-outage")
        server.start()

    faults: list[Callable[[], object]] = [
        server.end_watches,
        server.cut_watches,
        server.reset_connections,
        server.forget_history,
        lambda: server.send_error(410),
        lambda: server.send_line(b"garbage\n"),
        lambda: server.fail("watch", 500, "pods", times=2),
        lambda: server.fail("list", 503, "pods", times=1),
        outage,
    ]
    for number, fault in enumerate(faults * 3):
        if number % len(faults) == 0 and number:
            server.delete("pods", "default", "during-the-outage")
        followed.pod(f"before-{number}")
        fault()
        followed.pod(f"after-{number}")
        server.delete("pods", "default", f"before-{number}")
        server.annotate("pods", "default", "a", {"n": str(number)})
        time.sleep(0.01)
    followed.is_in_step()
    assert followed.thread.is_alive()
