"""Names followed over real HTTP: what reaches `refresh` and when, what is followed, and what is said."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.cluster.directory import Part, Resource
from podmgr.cluster.objects import pod_of
from podmgr.reconcile.refresh import Moved
from podmgr.rules.peers import Entry
from podmgr.rules.precedence import PodRules
from podmgr.rules.source import POD, SourcedRule
from podmgr.rules.tables import Peers
from podmgr.settings import LogFormat
from podmgr.watch.feeds import MOST_APART, chosen
from podmgr.watch.following import Following
from podmgr.watch.journal import Journal
from podmgr.watch.ruled import RuledPod
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.unit.samples import eventually, parsed

Obj = dict[str, Any]


@dataclass
class Followed:
    """A server, what is followed of it, and what came of it. It is the loop, too."""

    server: ApiServer
    access: Access
    written: dict[str, Peers] = field(default_factory=dict)
    writes: list[tuple[float, dict[str, Peers]]] = field(default_factory=list)
    changes: list[set[str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    log: io.StringIO = field(default_factory=io.StringIO)
    problem: Exception | None = None
    rules: dict[str, tuple[str, ...]] = field(default_factory=dict)
    spaces: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        journal = Journal(LogFormat.TEXT, self.log)
        self.following = Following(
            lambda: Api(self.access), self.refresh, self.changes.append, journal, self.stopping
        )
        self.following.start("node-1")

    def refresh(self, changes: Mapping[str, Moved]) -> None:
        if self.problem is not None:
            raise self.problem
        written = {uid: moved.now for uid, moved in changes.items()}
        self.writes.append((time.monotonic(), written))
        self.written |= written

    def wanted(self, *uids: str) -> dict[str, RuledPod]:
        found = {}
        for uid in uids:
            pod = pod_of(objects.pod(uid, self.spaces.get(uid, "shop"), uid=uid))
            rules = tuple(SourcedRule(parsed(rule), POD) for rule in self.rules.get(uid, ()))
            found[uid] = RuledPod(pod if uid in self.rules else None, PodRules(rules, (), ()))
        return found

    def sync(self, *uids: str) -> dict[str, RuledPod]:
        """As the loop does."""
        wanted = self.following.with_names(self.wanted(*uids))
        self.written |= {uid: item.peers for uid, item in wanted.items()}
        self.following.written(wanted)
        return wanted

    def has(self, uid: str, *rules: str, namespace: str = "shop") -> RuledPod:
        """A pod of this node has these rules."""
        self.rules[uid], self.spaces[uid] = rules, namespace
        return self.sync(uid)[uid]

    def addresses(self, uid: str, peer: str) -> set[str]:
        return next((_shown(known) for name, known in self.written[uid].items() if str(name) == peer), set())

    def slice(self, *addresses: str, service: str = "db", namespace: str = "shop") -> None:
        self.server.create(objects.endpoint_slice(service, namespace, addresses=addresses))

    def move(self, *addresses: str, service: str = "db", namespace: str = "shop") -> float:
        """The service has other endpoints; when that was."""
        made = objects.endpoint_slice(service, namespace, addresses=addresses)
        self.server.replace(made)
        return time.monotonic()


def _shown(entries: tuple[Entry, ...]) -> set[str]:
    return {str(entry.prefix).partition("/")[0] for entry in entries if not entry.is_taken_away}


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    with ApiServer() as server:
        server.create(objects.node("node-1"))
        for namespace in ("shop", "bank"):
            server.create(objects.namespace(namespace))
        made = objects.service("db", "shop")
        made["spec"] |= {"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"]}
        server.create(made)
        found = Followed(server, Access(str(server.write_kubeconfig(tmp_path / "kubeconfig"))))
        yield found
        found.stopping.set()
        found.following.stop()
        server.end_watches()


RULE = "loss=uniform egress 1% peer=svc/db"


def test_a_reconcile_has_what_names_stand_for_at_that_time(followed: Followed) -> None:
    followed.slice("10.42.0.1")
    item = followed.has("u-1", RULE)
    assert [str(rule.rule) for rule in item.rules.rules] == [RULE]
    assert followed.addresses("u-1", "svc/db") == {"10.43.0.1", "10.42.0.1"}
    assert (item.refused, item.rules.warnings, followed.changes) == ((), (), [])


def test_endpoints_that_are_replaced_reach_the_maps_of_those_that_name_them(followed: Followed) -> None:
    followed.slice("10.42.0.1")
    followed.has("u-1", RULE, "loss=uniform ingress 1% peer=node")
    followed.has("u-2", "loss=uniform egress 1% peer=pod/app=db")
    eventually(lambda: followed.server.watching("endpointslices") == 1)
    followed.writes.clear()
    followed.move("10.42.0.9")
    eventually(lambda: followed.addresses("u-1", "svc/db") == {"10.43.0.1", "10.42.0.9"})
    assert {uid for _, changes in followed.writes for uid in changes} == {"u-1"}
    assert followed.addresses("u-1", "node") == {"10.0.0.11"}  # all that the pod names
    assert followed.changes == []  # no reconcile


def test_an_event_reaches_the_maps_at_once(followed: Followed) -> None:
    followed.slice("10.42.0.1")
    for number in range(20):
        followed.has(f"u-{number}", RULE, "loss=uniform ingress 1% peer=svc/other")
    eventually(lambda: followed.server.watching("endpointslices") == 1)
    took = []
    for number in range(100):
        address = f"10.42.1.{number}"
        at = followed.move(address)
        eventually(lambda: address in followed.addresses("u-19", "svc/db"))  # noqa: B023
        took.append(next(when for when, changes in reversed(followed.writes) if "u-19" in changes) - at)
    took.sort()
    print(f"event to refresh: median {took[50] * 1e3:.1f} ms, p99 {took[98] * 1e3:.1f} ms")
    assert took[50] < 0.05  # the slowest of a hundred: tests/kube/test_names.py


def test_a_burst_is_few_writes(followed: Followed) -> None:
    followed.slice()
    followed.has("u-1", RULE)
    eventually(lambda: followed.server.watching("endpointslices") == 1)
    followed.writes.clear()
    for number in range(200):
        followed.move(*[f"10.42.0.{last}" for last in range(1, number + 2)])
    eventually(lambda: len(followed.addresses("u-1", "svc/db")) == 201)
    assert len(followed.writes) < 100


def test_a_service_that_is_made_later_is_followed(followed: Followed) -> None:
    item = followed.has("u-1", "loss=uniform egress 1% peer=svc/late")
    assert len(item.rules.rules) == 1 and followed.addresses("u-1", "svc/late") == set()
    assert item.rules.warnings == ("pod/u-1: svc/late: there is no such service in namespace shop yet",)
    followed.slice("10.42.0.7", service="late")
    followed.server.create(objects.service("late", "shop"))
    eventually(lambda: "10.42.0.7" in followed.addresses("u-1", "svc/late"))
    eventually(lambda: followed.changes == [{"u-1"}])  # so that the warning ends
    assert followed.sync("u-1")["u-1"].rules.warnings == ()


def test_pods_are_followed_in_the_namespaces_that_are_named(followed: Followed) -> None:
    item = followed.has("u-1", "loss=uniform egress 1% peer=pod/app=db,pod/one")
    assert len(item.rules.warnings) == 2
    assert [(one.resource, one.namespace) for one in followed.server.asked("list")] == [("pods", "shop")]
    made = followed.server.create(objects.pod("one", "shop", labels={"app": "db"}))
    (address,) = {one["ip"] for one in made["status"]["podIPs"]}
    eventually(lambda: followed.addresses("u-1", "pod/app=db") == {address})
    eventually(lambda: followed.addresses("u-1", "pod/one") == {address})
    followed.server.patch("pods", "shop", "one", {"metadata": {"labels": {"app": "other"}}})
    eventually(lambda: followed.addresses("u-1", "pod/app=db") == set())
    followed.server.delete("pods", "shop", "one")
    eventually(lambda: followed.addresses("u-1", "pod/one") == set())


def test_the_world_follows_nodes(followed: Followed) -> None:
    followed.has("u-1", "loss=uniform egress 1% peer=world")
    (known,) = followed.written["u-1"].values()
    before = {str(entry.prefix) for entry in known if entry.is_taken_away}
    assert {"10.0.0.11/32", "10.43.0.1/32"} <= before
    node = objects.node("node-2") | {"spec": {"podCIDRs": ["10.99.0.0/24"]}}
    followed.server.create(node)
    eventually(
        lambda: any(
            str(entry.prefix) == "10.99.0.0/24" for entry in next(iter(followed.written["u-1"].values()))
        )
    )


def test_rules_without_names_follow_nothing(followed: Followed) -> None:
    followed.has("u-1", "loss=uniform egress 1%", "loss=uniform ingress 1% peer=10.0.0.0/8,dns")
    assert followed.server.requests == []


def test_what_nobody_names_any_more_is_let_go(followed: Followed) -> None:
    followed.has("u-1", RULE)
    eventually(lambda: followed.following.connected() == {"services": True, "endpointslices": True})
    followed.has("u-1", "loss=uniform egress 1% peer=node")
    assert followed.following.connected() == {"nodes": True}
    del followed.rules["u-1"]
    followed.sync("u-1")
    assert followed.following.connected() == {}


def test_a_reconcile_that_wrote_what_was_true_before_is_put_right(followed: Followed) -> None:
    followed.slice("10.42.0.1")
    followed.has("u-1", RULE)
    eventually(lambda: followed.server.watching("endpointslices") == 1)
    slow = followed.following.with_names(followed.wanted("u-1"))
    followed.move("10.42.0.9")
    eventually(lambda: "10.42.0.9" in followed.addresses("u-1", "svc/db"))
    followed.written |= {uid: item.peers for uid, item in slow.items()}  # the reconcile ends
    assert "10.42.0.9" not in followed.addresses("u-1", "svc/db")
    followed.following.written(slow)
    eventually(lambda: "10.42.0.9" in followed.addresses("u-1", "svc/db"))


def test_a_reconcile_of_one_pod_takes_no_news_from_another(followed: Followed) -> None:
    """Whoever looks first, all that name it hear of it."""
    followed.slice("10.42.0.1")
    for uid in ("u-1", "u-2"):
        followed.has(uid, RULE)
    eventually(lambda: followed.server.watching("endpointslices") == 1)
    for number in range(50):
        address = f"10.42.2.{number}"
        followed.move(address)
        while address not in followed.addresses("u-1", "svc/db"):
            followed.sync("u-1")
        eventually(lambda: address in followed.addresses("u-2", "svc/db"))  # noqa: B023


def test_what_cannot_be_written_is_left_to_a_reconcile(followed: Followed) -> None:
    followed.slice("10.42.0.1")
    followed.has("u-1", RULE)
    eventually(lambda: followed.server.watching("endpointslices") == 1)
    followed.problem = OSError("no map")
    followed.move("10.42.0.9")
    eventually(lambda: followed.changes == [{"u-1"}])
    eventually(lambda: "no map" in followed.log.getvalue())
    followed.problem = None
    followed.move("10.42.0.10")
    eventually(lambda: "10.42.0.10" in followed.addresses("u-1", "svc/db"))


@pytest.mark.parametrize(
    ("peer", "resource"),
    [
        ("svc/db", "services"),
        ("svc/db", "endpointslices"),
        ("pod/app=db", "pods"),
        ("ns/shop", "pods"),
        ("node", "nodes"),
        ("world", "nodes"),
    ],
)
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_without_a_right_rules_that_need_it_fail_and_come_with_it(
    followed: Followed, peer: str, resource: str, verb: str
) -> None:
    followed.server.fail(verb, 403, resource)
    item = followed.has("u-1", f"loss=uniform egress 1% peer={peer}", "loss=uniform ingress 1%")
    if verb == "list":
        assert [str(rule.rule) for rule in item.rules.rules] == ["loss=uniform ingress 1%"]
        ((rule, error),) = item.refused
        assert str(rule) == f"loss=uniform egress 1% peer={peer}"
        assert f'cannot list resource "{resource}"' in error.message and "lacks this right" in str(error.tip)
        assert item.rules.unreadable == {(POD, "loss")}  # what it would replace stays
    eventually(lambda: f'cannot {verb} resource "{resource}"' in followed.log.getvalue())
    followed.server.heal()
    if verb == "list":
        eventually(lambda: {"u-1"} in followed.changes)
        item = followed.sync("u-1")["u-1"]
    assert (len(item.rules.rules), item.refused) == (2, ())


def test_what_was_known_stays_while_the_server_is_away(followed: Followed) -> None:
    followed.slice("10.42.0.1")
    followed.has("u-1", RULE)
    followed.server.stop()
    eventually(lambda: not any(followed.following.connected().values()))
    followed.sync("u-1")
    assert followed.addresses("u-1", "svc/db") == {"10.43.0.1", "10.42.0.1"}
    followed.move("10.42.0.9")
    followed.server.start()
    eventually(lambda: "10.42.0.9" in followed.addresses("u-1", "svc/db"))


def test_a_service_that_becomes_an_external_name_is_told_and_back(followed: Followed) -> None:
    followed.has("u-1", RULE)
    eventually(lambda: followed.server.watching("services") == 1)
    followed.server.patch("services", "shop", "db", {"spec": {"type": "ExternalName"}})
    eventually(lambda: followed.changes == [{"u-1"}])
    assert "ExternalName" in followed.sync("u-1")["u-1"].refused[0][1].message
    followed.server.patch("services", "shop", "db", {"spec": {"type": "ClusterIP"}})
    eventually(lambda: followed.changes == [{"u-1"}] * 2)
    assert followed.sync("u-1")["u-1"].refused == ()


# What is followed whole


def test_a_few_namespaces_are_followed_one_by_one_and_many_as_a_whole() -> None:
    few = {Part(Resource.PODS, f"ns-{number}") for number in range(MOST_APART)}
    assert chosen(few, ()) == few
    whole = Part(Resource.PODS)
    assert chosen(few | {Part(Resource.PODS, "one-more")}, ()) == {whole}
    assert chosen(few, [whole]) == {whole}
    assert chosen(few | {whole}, ()) == {whole}
    assert chosen([Part(Resource.NODES, "", "a"), Part(Resource.NODES)], ()) == {Part(Resource.NODES)}
    assert chosen((), [whole]) == set()


def test_from_a_few_namespaces_to_all_nothing_is_missed(followed: Followed) -> None:
    count = MOST_APART + 2
    for number in range(count):
        made = objects.service("db", f"ns-{number}")
        followed.server.create(made)
        followed.slice(f"10.42.9.{number}", namespace=f"ns-{number}")
        followed.has(f"u-{number}", RULE, namespace=f"ns-{number}")
        for one in range(number + 1):
            eventually(lambda: f"10.42.9.{one}" in followed.addresses(f"u-{one}", "svc/db"))  # noqa: B023
    for number in range(count):
        followed.move(f"10.42.8.{number}", namespace=f"ns-{number}")
    for number in range(count):
        eventually(lambda: f"10.42.8.{number}" in followed.addresses(f"u-{number}", "svc/db"))  # noqa: B023
    followed.sync("u-0")
    followed.has("u-0", RULE, "loss=uniform ingress 1%", namespace="ns-0")
    assert "10.42.8.0" in followed.addresses("u-0", "svc/db")
