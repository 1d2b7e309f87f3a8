"""What a pod with its rules is wished, and what is told of it."""

from __future__ import annotations

from pathlib import Path

from podmgr.attachment import Cgroup, PodRef
from podmgr.cluster.objects import Pod
from podmgr.rules.grammar import parse_value
from podmgr.rules.precedence import PodRules
from podmgr.rules.source import POD, SourcedRule
from podmgr.watch.ruled import RuledPod, wish_of

RULES = tuple(SourcedRule(rule, POD) for rule in parse_value("loss", "1% egress container=app"))


def _ruled(containers: tuple[tuple[str, str], ...]) -> tuple[Pod, RuledPod]:
    pod = Pod(PodRef("default", "web", "u1"), {}, {}, "node-1", "Running", containers=containers)
    return pod, RuledPod(pod, PodRules(RULES, (), ("pod/web: overruled",)))


def test_a_wish_knows_the_ids_of_containers() -> None:
    pod, item = _ruled((("app", "a1" * 32), ("side", "")))
    assert wish_of(pod, Cgroup(Path("/x"), 1), item).containers == {"app": "a1" * 32, "side": ""}
    assert item.warnings == ["pod/web: overruled"]


def test_a_container_that_a_pod_does_not_have_is_told() -> None:
    _, item = _ruled((("side", ""),))
    assert item.warnings == ["pod/web: overruled", "pod/web: there is no container app, a rule waits for it"]
