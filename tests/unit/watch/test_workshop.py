"""Who is compiled for, when, and by how many: one pod's programs hold up nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup, PodRef, Target, Wish
from podmgr.errors import PodmgrError
from podmgr.proc import Completed, Runner
from podmgr.reconcile.preparing import NOTHING, Prepared
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.source import POD, Source, SourcedRule, parse_source
from podmgr.settings import Settings
from podmgr.watch import workshop
from podmgr.watch.workshop import (
    LIGHT_SECONDS,
    MOST_SECONDS,
    PATIENCE_SECONDS,
    PER_NAMESPACE,
    WORKERS,
    Workshop,
)
from tests.unit.samples import Script, eventually, said

BRINGS = "ebpf-limit=mine egress"
ENFORCING = parse_source("namespace/shop")


def wish(pod: str, namespace: str = "shop", rule: str = BRINGS, *, enforcing: Source | None = None) -> Wish:
    target = Target(f"pod/{pod}", Cgroup(Path("/x"), 1), PodRef(namespace, pod, pod))
    rules = tuple(SourcedRule(parsed, POD) for parsed in parse_rule_option(rule))
    return Wish(target, rules, is_standing=True, enforcing=frozenset({enforcing} if enforcing else ()))


@dataclass
class Compiling:
    """Stands for `prepare`: each pod's programs take until they are let go."""

    begun: list[str] = field(default_factory=list)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    runners: list[Runner] = field(default_factory=list)
    asked: list[tuple[str, float]] = field(default_factory=list)
    now: float = 1_000.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(
        self, wishes: Sequence[Wish], _: Settings, *, runner: Runner, with_custom: bool, **__: object
    ) -> Prepared:
        (one,) = wishes
        uid = one.target.owner
        if not with_custom:
            return Prepared()
        with self.lock:
            self.begun.append(uid)
            self.runners.append(runner)
            gate = self.gates.setdefault(uid, threading.Event())
        assert gate.wait(20)
        gate.clear()
        return Prepared(owners=frozenset({uid}))

    def end(self, *uids: str) -> None:
        with self.lock:
            for uid in uids:
                self.gates.setdefault(uid, threading.Event()).set()

    def is_at(self, *uids: str) -> None:
        """Wait until work on exactly these was begun, in whatever order."""
        eventually(lambda: sorted(self.begun) == sorted(uids))


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiling]:
    found = Compiling()
    monkeypatch.setattr(workshop, "prepare", found.prepare)
    yield found
    found.end(*found.begun)


@pytest.fixture
def shop(compiling: Compiling) -> Iterator[Workshop]:
    made = Workshop(
        Settings(),
        lambda uid, seconds: compiling.asked.append((uid, seconds)),
        runner=Script(said("")),
        clock=lambda: compiling.now,
    )
    yield made
    made.close()


def taken(shop: Workshop, wished: Wish) -> Prepared:
    """Wait until it is prepared."""
    found: list[Prepared] = []

    def is_there() -> bool:
        prepared = shop.prepared(wished)
        found.extend([prepared] if prepared is not None else [])
        return prepared is not None

    eventually(is_there)
    return found[0]


def test_a_wish_is_prepared_once_and_told_of(shop: Workshop, compiling: Compiling) -> None:
    assert shop.prepared(wish("a")) is None
    compiling.is_at("a")
    assert shop.prepared(wish("a")) is None
    compiling.end("a")
    eventually(lambda: compiling.asked == [("a", 0.0)])
    assert shop.prepared(wish("a")) == Prepared(owners=frozenset({"a"}))
    assert not shop.has("a")
    assert shop.prepared(wish("a")) is None  # anew: what it includes may be another by now
    compiling.is_at("a", "a")


def test_a_pod_that_changes_meanwhile_has_one_worker_and_gets_the_newest(
    shop: Workshop, compiling: Compiling
) -> None:
    newest = wish("a", rule=f"{BRINGS} -DNUMBER=9")
    assert shop.prepared(wish("a")) is None
    compiling.is_at("a")
    for number in range(9):
        assert shop.prepared(wish("a", rule=f"{BRINGS} -DNUMBER={number}")) is None
    assert shop.prepared(newest) is None
    assert compiling.begun == ["a"]
    compiling.end("a")
    compiling.is_at("a", "a")
    compiling.end("a")
    assert taken(shop, newest).owners == {"a"}
    assert len(compiling.begun) == 2


def test_a_namespace_has_half_of_the_workers(shop: Workshop, compiling: Compiling) -> None:
    pods = [f"shop-{number}" for number in range(PER_NAMESPACE + 1)]
    assert [shop.prepared(wish(pod)) for pod in pods] == [None] * len(pods)
    compiling.is_at(*pods[:-1])
    assert shop.prepared(wish("a", "other")) is None
    compiling.is_at(*pods[:-1], "a")
    compiling.end(pods[0])
    compiling.is_at(*pods, "a")


def test_who_has_used_much_leaves_a_worker_to_the_others(shop: Workshop, compiling: Compiling) -> None:
    tenants = [f"tenant-{number}" for number in range(WORKERS)]
    first = [wish(f"{tenant}-first", tenant) for tenant in tenants]
    for wished in first:
        assert shop.prepared(wished) is None
    names = [wished.target.owner for wished in first]
    compiling.is_at(*names)
    compiling.now += 2 * LIGHT_SECONDS
    compiling.end(*names)
    for wished in first:
        taken(shop, wished)
    more = [wish(f"{tenant}-{number}", tenant) for tenant in tenants for number in range(PER_NAMESPACE)]
    for wished in more:
        assert shop.prepared(wished) is None
    eventually(lambda: len(compiling.begun) == WORKERS + WORKERS - 1)
    assert shop.prepared(wish("light", "other")) is None
    eventually(lambda: "light" in compiling.begun)
    assert len(compiling.begun) == WORKERS + WORKERS


def test_what_is_enforced_does_not_wait_for_what_the_pod_brings(shop: Workshop, compiling: Compiling) -> None:
    wished = wish("a", enforcing=ENFORCING)
    assert shop.prepared(wished) is None
    compiling.is_at("a")
    assert compiling.asked == [("a", PATIENCE_SECONDS)]
    assert shop.prepared(wished) is None
    compiling.now += PATIENCE_SECONDS
    assert shop.prepared(wished) == NOTHING
    compiling.end("a")
    eventually(lambda: shop.prepared(wished) == Prepared(owners=frozenset({"a"})))


def test_no_command_is_started_once_a_pods_time_is_over(shop: Workshop, compiling: Compiling) -> None:
    assert shop.prepared(wish("a")) is None
    compiling.is_at("a")
    (runner,) = compiling.runners
    assert isinstance(runner(["clang"]), Completed)
    compiling.now += MOST_SECONDS
    with pytest.raises(PodmgrError, match="60 s to compile"):
        runner(["clang"])


def test_what_is_ready_is_done_and_the_rest_waits(shop: Workshop, compiling: Compiling) -> None:
    own, custom = wish("own", rule="loss=1% egress"), wish("custom")
    assert shop.ready_of([custom, own], by_hand=()) == ([own], NOTHING)
    compiling.end("custom")
    eventually(lambda: ("custom", 0.0) in compiling.asked)
    ready, prepared = shop.ready_of([custom, own], by_hand=())
    assert ready == [custom, own]
    assert prepared.owners == {"custom"}
    assert shop.ready_of([own], by_hand={"own"}) == ([], NOTHING)


def test_a_pod_that_is_gone_is_forgotten(shop: Workshop, compiling: Compiling) -> None:
    assert shop.prepared(wish("a")) is None
    shop.forget({"a"})
    assert len(shop) == 0
    compiling.end("a")


# Ahead: before it is known where a pod's cgroup and its network will be


def early(wished: Wish) -> Wish:
    """The pod has a cgroup now, which nobody could know."""
    target = wished.target._replace(cgroup=Cgroup(Path("/kubepods/x"), 7))
    return wished._replace(target=target, is_early=True)


def test_what_is_compiled_ahead_is_there_for_the_cgroup_and_for_the_network(
    shop: Workshop, compiling: Compiling
) -> None:
    shop.ahead(wish("a"))
    compiling.is_at("a")
    compiling.end("a")
    eventually(lambda: shop.has("a"))
    shop.ahead(wish("a"))
    found = Prepared(owners=frozenset({"a"}))
    assert shop.prepared(early(wish("a"))) == found
    assert shop.prepared(early(wish("a"))._replace(is_early=False)) == found
    assert not shop.has("a")
    assert compiling.begun == ["a"]


def test_nobody_waits_for_what_is_compiled_ahead(shop: Workshop, compiling: Compiling) -> None:
    shop.ahead(wish("a", rule="loss=1% egress"))
    compiling.is_at("a")
    assert (len(shop), shop.has("a")) == (0, False)
    own = early(wish("a", rule="loss=1% egress"))
    assert shop.ready_of([own], by_hand=()) == ([own], NOTHING)
    compiling.end("a")
    eventually(lambda: shop.has("a"))
    assert compiling.asked == []  # the pod has nothing to do yet


def test_who_comes_while_it_is_compiled_ahead_is_told(shop: Workshop, compiling: Compiling) -> None:
    shop.ahead(wish("a"))
    compiling.is_at("a")
    assert shop.prepared(early(wish("a"))) is None
    assert len(shop) == 1
    compiling.end("a")
    eventually(lambda: compiling.asked == [("a", 0.0)])
    assert compiling.begun == ["a"]


def test_what_was_compiled_ahead_for_other_rules_is_of_no_use(shop: Workshop, compiling: Compiling) -> None:
    shop.ahead(wish("a"))
    compiling.is_at("a")
    compiling.end("a")
    eventually(lambda: shop.has("a"))
    assert shop.prepared(early(wish("a", rule=f"{BRINGS} -DNUMBER=1"))) is None
    compiling.is_at("a", "a")


def test_pod_without_rules_needs_nothing_ahead(shop: Workshop) -> None:
    shop.ahead(wish("a")._replace(rules=()))
    assert (len(shop), shop.has("a")) == (0, False)
