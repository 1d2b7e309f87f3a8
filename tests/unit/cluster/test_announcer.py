"""Events on pods: what is posted, what is held back, and that nothing of it ever stops the rules."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.attachment import PodRef
from podmgr.cluster.announcer import Announcer
from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.errors import PodmgrError

POD = PodRef("shop", "web-1", "u-1")
OTHER = PodRef("shop", "web-2", "u-2")
BURST = 10
REFILL = 30.0


@dataclass
class Server:
    """Takes events, or refuses them."""

    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    errors: list[PodmgrError] = field(default_factory=list)  # of the next posts
    connections: int = 0
    now: float = 1000.0

    def connect(self) -> Api:
        self.connections += 1
        return cast(Api, self)

    def create(self, path: str, item: Mapping[str, Any]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.posted.append((path, dict(item)))

    @property
    def said(self) -> list[tuple[str, str, int]]:
        return [(item["reason"], item["message"], item["count"]) for _, item in self.posted]


@dataclass
class Stuck(Server):
    """Does not answer until it is released."""

    released: threading.Event = field(default_factory=threading.Event)

    def create(self, path: str, item: Mapping[str, Any]) -> None:
        self.released.wait(10)
        super().create(path, item)


@dataclass
class Desk:
    """An announcer that posts when it is told to, with a clock that is moved by hand."""

    server: Server = field(default_factory=Server)
    reports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.announcer = Announcer(
            self.server.connect, "node-1", self.reports.append, clock=lambda: self.server.now
        )

    def say(self, message: str, reason: str = "RuleFailed", pod: PodRef = POD) -> None:
        self.announcer.announce(pod, reason, message)

    def post(self) -> list[tuple[str, str, int]]:
        """Post all that may be posted now; what has been posted since the last time."""
        before = len(self.server.posted)
        self.announcer._is_closing = True  # else it would wait for more
        self.announcer.run()
        self.announcer._is_closing = False
        return self.server.said[before:]

    def wait(self, seconds: float) -> None:
        self.server.now += seconds


@pytest.fixture
def desk() -> Desk:
    return Desk()


# What is posted


def test_event_is_what_kubectl_describe_shows(desk: Desk) -> None:
    desk.announcer.announce(POD, "RuleFailed", "it failed", is_warning=True)
    desk.announcer.announce(OTHER, "RuleApplied", "it works")
    desk.post()
    (path, event), (_, other) = desk.server.posted
    assert path == "/api/v1/namespaces/shop/events"
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "web-1",
        "namespace": "shop",
        "uid": "u-1",
    }
    assert (event["reason"], event["message"], event["type"]) == ("RuleFailed", "it failed", "Warning")
    assert event["source"] == {"component": "podmgr", "host": "node-1"}
    assert event["reportingInstance"] == "node-1"
    assert event["metadata"]["namespace"] == "shop"
    assert re.fullmatch(r"web-1\.[0-9a-f]{16}", event["metadata"]["name"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["lastTimestamp"])
    assert event["firstTimestamp"] <= event["lastTimestamp"]
    assert other["type"] == "Normal"
    assert other["metadata"]["name"] != event["metadata"]["name"]


def test_name_of_an_event_on_the_longest_pod_is_not_too_long(desk: Desk) -> None:
    desk.say("x", pod=PodRef("shop", "p" * 253, "u-1"))
    desk.post()
    assert len(desk.server.posted[0][1]["metadata"]["name"]) <= 253


@given(st.text(min_size=1, max_size=3000) | st.integers(1, 1100).map(lambda n: "ä€x" * n))
def test_message_is_short_and_printable(message: str) -> None:
    desk = Desk()
    desk.say(message)
    ((_, said, _),) = desk.post()
    assert len(said.encode()) <= 1024  # what the API server takes
    assert said.isprintable()
    assert len(said) == len(message) or said.endswith("…")


def test_short_message_is_not_shortened(desk: Desk) -> None:
    desk.say("m" * 1000)
    assert desk.post() == [("RuleFailed", "m" * 1000, 1)]


# What is held back


def test_same_message_is_not_said_again_for_ten_minutes(desk: Desk) -> None:
    desk.say("it failed")
    assert len(desk.post()) == 1
    for _ in range(5):
        desk.wait(110)
        desk.say("it failed")
    assert desk.post() == []
    desk.wait(60)
    desk.say("it failed")
    assert desk.post() == [("RuleFailed", "it failed", 1)]


def test_other_message_reason_or_pod_is_said(desk: Desk) -> None:
    desk.say("it failed")
    desk.post()
    desk.say("it failed otherwise")
    desk.say("it failed", "RuleApplied")
    desk.say("it failed", pod=OTHER)
    assert len(desk.post()) == 3


def test_failure_after_a_success_is_said_again(desk: Desk) -> None:
    desk.say("it failed")
    desk.post()
    desk.say("it works", "RuleApplied")
    desk.say("it failed")
    assert [message for _, message, _ in desk.post()] == ["it works", "it failed"]


def test_success_of_one_pod_says_nothing_of_anothers_failure(desk: Desk) -> None:
    desk.say("it failed")
    desk.post()
    desk.say("it works", "RuleApplied", OTHER)
    desk.say("it failed")
    assert [message for _, message, _ in desk.post()] == ["it works"]


def test_what_waits_becomes_one_event_with_a_count_and_the_newest_message(desk: Desk) -> None:
    for number in range(5):
        desk.say(f"failure {number}")
    desk.say("something else", "RuleApplied")
    assert desk.post() == [("RuleFailed", "failure 4", 5), ("RuleApplied", "something else", 1)]


def test_pod_gets_a_few_at_once_and_then_one_in_a_while(desk: Desk) -> None:
    for number in range(BURST):
        desk.say(f"failure {number}")
        assert len(desk.post()) == 1
    desk.say("held back")
    assert desk.post() == []
    desk.say("and newer")
    desk.wait(REFILL - 1)
    assert desk.post() == []
    desk.wait(1)
    assert desk.post() == [("RuleFailed", "and newer", 2)]


def test_noisy_pod_holds_no_other_back(desk: Desk) -> None:
    for number in range(BURST + 1):
        desk.say(f"failure {number}")
        desk.post()
    desk.say("mine", pod=OTHER)
    assert desk.post() == [("RuleFailed", "mine", 1)]


def test_pod_that_was_quiet_may_say_a_few_at_once_again(desk: Desk) -> None:
    for _ in range(2):
        for number in range(BURST):
            desk.say(f"failure {number}")
            assert len(desk.post()) == 1
        desk.say("held back")
        assert desk.post() == []
        desk.wait(REFILL * (BURST + 1))
        assert len(desk.post()) == 1
        desk.wait(REFILL + 600)


def test_pods_of_long_ago_are_forgotten(desk: Desk) -> None:
    for number in range(50):
        desk.say("x", pod=PodRef("shop", "web", str(number)))
    desk.post()
    desk.wait(1000)
    desk.say("y")
    desk.post()
    assert set(desk.announcer._tokens) == {"u-1"}
    assert set(desk.announcer._said) == {("u-1", "RuleFailed")}


def test_waiting_events_do_not_fill_the_memory(desk: Desk) -> None:
    for number in range(1500):
        desk.say("x", pod=PodRef("shop", "web", str(number)))
    assert len(desk.post()) == 1000


# A server that does not want them


def test_failure_to_post_is_reported_once_until_it_works_again(desk: Desk) -> None:
    def failing(*messages: str) -> None:
        desk.server.errors = [UnreachableError(message) for message in messages]
        for message in messages:
            desk.say(message)
            desk.post()

    failing("one", "two")
    assert desk.reports == ["cannot post events: one"]
    desk.say("it works again")
    assert len(desk.post()) == 1
    failing("three")
    assert desk.reports == ["cannot post events: one", "cannot post events: three"]


def test_each_failure_is_followed_by_fresh_credentials(desk: Desk) -> None:
    desk.say("a")
    desk.say("b", "RuleApplied")
    desk.post()
    assert desk.server.connections == 1
    desk.server.errors = [StatusError(401, "expired")]
    desk.say("c")
    desk.post()
    desk.say("d")
    assert desk.post() == [("RuleFailed", "d", 1)]
    assert desk.server.connections >= 3


@dataclass
class Flaky(Server):
    """Refuses some of the posts, by their number."""

    refusals: dict[int, PodmgrError] = field(default_factory=dict)
    attempts: list[str] = field(default_factory=list)

    def create(self, path: str, item: Mapping[str, Any]) -> None:
        self.attempts.append(item["metadata"]["name"])
        if error := self.refusals.get(len(self.attempts)):
            raise error
        super().create(path, item)


@pytest.mark.parametrize("error", [UnreachableError("it was closed"), StatusError(401, "expired")])
def test_post_that_fails_on_an_old_connection_is_posted_again_over_a_new_one(error: PodmgrError) -> None:
    server = Flaky(refusals={2: error})
    desk = Desk(server)
    for reason in ("One", "Two", "Three"):
        desk.say("x", reason)
    assert [reason for reason, _, _ in desk.post()] == ["One", "Two", "Three"]
    assert (server.connections, desk.reports) == (2, [])  # the new one is used on
    assert server.attempts[1] == server.attempts[2]  # under its name, so that it is there once at most
    assert len(set(server.attempts)) == 3


def test_post_that_fails_on_a_new_connection_is_not_posted_again() -> None:
    server = Flaky(refusals={1: UnreachableError("one"), 2: UnreachableError("two")})
    desk = Desk(server)
    for reason in ("One", "Two", "Three"):
        desk.say("x", reason)
    assert [reason for reason, _, _ in desk.post()] == ["Three"]
    assert (server.connections, len(server.attempts)) == (3, 3)
    assert desk.reports == ["cannot post events: one"]


def test_post_that_fails_on_both_connections_is_given_up_and_reported() -> None:
    server = Flaky(refusals={2: UnreachableError("it was closed"), 3: UnreachableError("no route to host")})
    desk = Desk(server)
    for reason in ("One", "Two", "Three"):
        desk.say("x", reason)
    assert [reason for reason, _, _ in desk.post()] == ["One", "Three"]
    assert (server.connections, len(server.attempts)) == (3, 4)
    assert desk.reports == ["cannot post events: no route to host"]


def test_event_that_has_arrived_after_all_is_no_failure() -> None:
    refusals = {2: UnreachableError("timed out"), 3: StatusError(409, "already exists")}
    desk = Desk(Flaky(refusals=refusals))
    for reason in ("One", "Two"):
        desk.say("x", reason)
    assert [reason for reason, _, _ in desk.post()] == ["One"]
    assert desk.reports == []


def test_namespace_that_is_gone_is_no_failure(desk: Desk) -> None:
    desk.server.errors = [StatusError(404, 'namespaces "shop" not found')]
    desk.say("x")
    assert desk.post() == []
    assert desk.reports == []


def test_server_that_cannot_be_reached_stops_nothing(desk: Desk) -> None:
    def connect() -> Api:
        raise UnreachableError("no route to host")

    desk.announcer.connect = connect
    desk.say("x")
    assert desk.post() == []
    assert desk.reports == ["cannot post events: no route to host"]


def test_what_nobody_has_thought_of_stops_nothing(desk: Desk) -> None:
    def connect() -> Api:
        raise LookupError("what is this?")

    good, desk.announcer.connect = desk.announcer.connect, connect
    desk.say("x")
    assert desk.post() == []
    assert desk.reports == ["cannot post events: unexpected LookupError: what is this?"]
    desk.announcer.connect = good
    desk.say("y")
    assert desk.post() == [("RuleFailed", "y", 1)]


# The thread, on the real clock


@dataclass
class Running:
    announcer: Announcer
    server: Server
    thread: threading.Thread


@pytest.fixture
def running() -> Iterator[Callable[[Server], Running]]:
    made: list[Running] = []

    def run(server: Server) -> Running:
        announcer = Announcer(server.connect, "node-1", lambda _: None)
        thread = threading.Thread(target=announcer.run, daemon=True)
        thread.start()
        made.append(Running(announcer, server, thread))
        return made[-1]

    yield run
    for item in made:
        item.announcer.close(0)
        item.thread.join(5)
        assert not item.thread.is_alive()


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_thread_posts_at_once_what_is_announced(running: Callable[[Server], Running]) -> None:
    it = running(Server())
    it.announcer.announce(POD, "RuleApplied", "one")
    wait_for(lambda: len(it.server.posted) == 1)
    it.announcer.announce(POD, "RuleApplied", "two")
    wait_for(lambda: len(it.server.posted) == 2)


def test_closing_waits_for_what_is_being_posted_and_what_waits(
    running: Callable[[Server], Running],
) -> None:
    class Slow(Server):
        def create(self, path: str, item: Mapping[str, Any]) -> None:
            time.sleep(0.05)
            super().create(path, item)

    it = running(Slow())
    it.announcer.announce(POD, "RuleRemoved", "one")
    it.announcer.announce(OTHER, "RuleRemoved", "two")
    it.announcer.close(5)
    assert len(it.server.posted) == 2
    it.thread.join(5)
    assert not it.thread.is_alive()


def test_closing_does_not_wait_for_what_is_held_back(running: Callable[[Server], Running]) -> None:
    it = running(Server())
    for number in range(BURST):
        it.announcer.announce(POD, f"Reason{number}", "x")
    wait_for(lambda: len(it.server.posted) == BURST)
    it.announcer.announce(POD, "RuleFailed", "held back")
    started = time.monotonic()
    it.announcer.close(5)
    assert time.monotonic() - started < 2
    assert len(it.server.posted) == BURST


def test_closing_waits_no_longer_than_it_may(running: Callable[[Server], Running]) -> None:
    server = Stuck()
    it = running(server)
    it.announcer.announce(POD, "RuleRemoved", "x")
    started = time.monotonic()
    it.announcer.close(0.2)
    assert 0.2 <= time.monotonic() - started < 2
    server.released.set()


def test_announcing_never_waits_for_the_server(running: Callable[[Server], Running]) -> None:
    server = Stuck()
    it = running(server)
    started = time.monotonic()
    for number in range(100):
        it.announcer.announce(POD, "RuleApplied", str(number))
    assert time.monotonic() - started < 2
    server.released.set()
