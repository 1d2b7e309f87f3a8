"""Which rules hide which: those of one kind, direction and layer, and never one that is enforced."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.attachment import Cgroup, Target, Wish
from podmgr.reconcile.lookups import lookups
from podmgr.rules.precedence import AnnotatedNamespace, AnnotatedService, rules_of_pod

TARGET = Target("pod/web", Cgroup(Path("/cgroups/7"), 7))
ENFORCED = {
    "podmgr.io/enforce": "true",
    "podmgr.io/loss": "1% both",
    "podmgr.io/bandwidth": "1 mbps egress",
    "podmgr.io/ebpf-limit": "dropper egress",
}
LIFTING = [
    {"podmgr.io/bandwidth": "400 gbps egress peer=0.0.0.0/1; 400 gbps egress peer=128.0.0.0/1"},
    {"podmgr.io/loss": "0% both; 0% both peer=::/0; 0% both for=1h port=1-65535"},
    {"podmgr.io/loss": "0% both mode=shadow", "podmgr.io/bandwidth": "1 gbps egress every=2s for=1s"},
    {"podmgr.io/profile": "lte"},
    {"podmgr.io/ebpf-limit": "dropper egress peer=10.0.0.1; dropper egress peer=10.0.0.2 for=3s"},
    {"podmgr.io/block": "both peer=10.0.0.1", "podmgr.io/delay": "10ms rtt peer=10.0.0.1"},
]


@pytest.mark.parametrize("lifting", LIFTING)
def test_no_rule_of_a_pod_or_a_service_hides_one_that_is_enforced(lifting: dict[str, str]) -> None:
    service = AnnotatedService("web", {"app": "web"}, lifting)
    namespace = AnnotatedNamespace("shop", ENFORCED)
    found = rules_of_pod("web", lifting, {"app": "web"}, [service], namespace)
    assert not found.errors
    beside = lookups(found.rules, Wish(TARGET, found.rules))
    enforced = {sourced.rule: beside[sourced] for sourced in found.rules if sourced.is_enforced}
    assert len(enforced) == 4
    assert all(lookup.is_none and lookup.group == (rule,) for rule, lookup in enforced.items())


def test_the_same_of_a_pod_hides_and_of_its_service_does_not() -> None:
    own, of_service = {"podmgr.io/loss": "1% egress"}, {"podmgr.io/loss": "2% egress peer=10.0.0.1"}
    both = own | {"podmgr.io/loss": "1% egress; 2% egress peer=10.0.0.1"}
    for of_pod, service, is_matched in ((both, {}, True), (own, of_service, False)):
        services = [AnnotatedService("web", {"app": "web"}, service)]
        found = rules_of_pod("web", of_pod, {"app": "web"}, services)
        beside = lookups(found.rules, Wish(TARGET, found.rules))
        (rest,) = (lookup for sourced, lookup in beside.items() if not any(sourced.rule.match))
        assert rest.is_matched is is_matched
