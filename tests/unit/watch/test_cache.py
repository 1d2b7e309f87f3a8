"""The copy of the cluster, over real HTTP: what it holds, whose rules a change touches, what is said."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.settings import LogFormat
from podmgr.watch.cache import Cache
from podmgr.watch.journal import Journal
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.unit.samples import eventually

SLOW = {"bandwidth": "1 mbps egress"}


@dataclass
class Cached:
    """A server, a copy of what it has of one node, and what came of it."""

    server: ApiServer
    access: Access
    log: io.StringIO = field(default_factory=io.StringIO)
    changes: list[set[str]] = field(default_factory=list)
    turns: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        journal = Journal(LogFormat.TEXT, self.log)
        self.cache = Cache(lambda: Api(self.access), self.changes.append, journal, self.stopping)

    def start(self) -> None:
        self.cache.start("here")

    def turned(self) -> None:
        self.turns += 1

    def rules(self, uid: str) -> list[str]:
        return [str(rule.rule) for rule in self.cache.wanted([uid])[uid].rules.rules]


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Cached]:
    with ApiServer() as server:
        made = Cached(server, Access(str(server.write_kubeconfig(tmp_path / "kubeconfig"))))
        yield made
        made.stopping.set()
        server.end_watches()


def test_it_holds_the_pods_of_the_node_with_the_rules_that_they_shall_have(cached: Cached) -> None:
    server = cached.server
    server.create(objects.namespace("default"))
    server.create(objects.service("web", annotations={"loss": "1% egress"}))
    server.create(objects.pod("one", node="here", uid="u-1", labels={"app": "web"}, annotations=SLOW))
    server.create(objects.pod("other", node="there", uid="u-2"))
    cached.start()
    cached.cache.wait_until_listed(cached.turned)
    assert cached.cache.uids() == {"u-1"}
    wanted = cached.cache.wanted(["u-1", "u-2"])
    assert sorted(cached.rules("u-1")) == ["bandwidth=1 mbps egress", "loss=uniform egress 1%"]
    assert wanted["u-1"].cgroup_uids == ("u-1",)
    assert (wanted["u-2"].pod, wanted["u-2"].rules.rules) == (None, ())
    assert cached.cache.connected() == {"namespaces": True, "services": True, "pods": True}


def test_a_change_tells_whose_rules_it_may_touch(cached: Cached) -> None:
    server = cached.server
    server.create(objects.pod("one", node="here", uid="u-1", labels={"app": "web"}))
    server.create(objects.pod("two", node="here", uid="u-2"))
    cached.start()
    cached.cache.wait_until_listed(cached.turned)
    assert cached.changes[-1] == {"u-1", "u-2"}
    cached.changes.clear()
    server.create(objects.service("web", annotations=SLOW))
    eventually(lambda: cached.changes == [{"u-1"}])
    assert cached.rules("u-1") == ["bandwidth=1 mbps egress"]
    server.create(objects.service("plain", selector={"app": "web"}))  # of no matter here
    server.annotate("pods", "default", "two", {**SLOW})
    eventually(lambda: cached.changes == [{"u-1"}, {"u-2"}])
    server.delete("pods", "default", "two")
    eventually(lambda: cached.changes == [{"u-1"}, {"u-2"}, {"u-2"}])
    assert cached.cache.uids() == {"u-1"}


def test_who_waits_for_the_lists_is_alive_and_may_be_stopped(cached: Cached) -> None:
    cached.server.stop()
    cached.start()
    waiting = threading.Thread(target=cached.cache.wait_until_listed, args=[cached.turned])
    waiting.start()
    eventually(lambda: cached.turns > 0)
    assert cached.cache.connected() == {"namespaces": False, "services": False, "pods": False}
    cached.stopping.set()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_lost_connection_and_its_return_are_told_and_shown(cached: Cached) -> None:
    cached.start()
    cached.cache.wait_until_listed(cached.turned)
    cached.server.stop()
    eventually(lambda: not any(cached.cache.connected().values()))
    lost = rf" error   pods: the API server {cached.server.url} .*; the rules stay, trying again\n"
    eventually(lambda: len(re.findall(lost, cached.log.getvalue())) == 1)
    cached.server.start()
    eventually(lambda: all(cached.cache.connected().values()))
    eventually(lambda: " info    pods: the API server answers again\n" in cached.log.getvalue())


def test_it_knows_which_namespaces_enforce_their_rules(cached: Cached) -> None:
    enforcing = SLOW | {"podmgr.io/enforce": "true"}
    cached.server.create(objects.namespace("strict", annotations=enforcing))
    cached.start()
    cached.cache.wait_until_listed(cached.turned)
    assert cached.cache.enforces("strict")
    assert not cached.cache.enforces("default")
