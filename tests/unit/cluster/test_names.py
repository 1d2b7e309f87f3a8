"""What names make of a pod's rules: which hold, which are refused, and who may name what."""

from __future__ import annotations

import pytest

from podmgr.cluster.names import name_all
from podmgr.cluster.peers import UNKNOWN, Resolved
from podmgr.errors import PodmgrError
from podmgr.rules.match import Peer, PeerKind
from podmgr.rules.peers import Entry, Tenant, prefix_of
from podmgr.rules.precedence import AnnotatedNamespace, AnnotatedService, PodRules, rules_of_pod
from podmgr.rules.source import POD, SourcedRule
from tests.unit.samples import parsed

SVC = PeerKind.SERVICE
ONE = (Entry(prefix_of("10.43.0.1")),)
KNOWN = {
    Peer(SVC, "db", "shop"): Resolved(ONE),
    Peer(SVC, "none", "shop"): Resolved(remark="there is none"),
    Peer(SVC, "ext", "shop"): Resolved(error=PodmgrError("is external", tip="a CIDR")),
    Peer(SVC, "late", "shop"): UNKNOWN,
}


def sourced(*rules: str) -> tuple[SourcedRule, ...]:
    return tuple(SourcedRule(parsed(rule), POD) for rule in rules)


def test_rules_without_names_are_looked_up_nowhere() -> None:
    rules = sourced("loss=1% egress", "delay=1ms egress peer=10.0.0.0/8", "loss=1% ingress peer=dns")
    named = name_all(rules, (), "shop", KNOWN.__getitem__)
    assert (named.rules, named.peers, named.unreadable) == (rules, {}, frozenset())


def test_a_rule_whose_names_cannot_be_had_is_left_out_and_others_hold() -> None:
    rules = sourced(
        "loss=1% egress peer=svc/db",
        "loss=2% egress peer=svc/none",
        "delay=1ms egress peer=svc/db,svc/ext",
        "duplicate=1% egress except=svc/late",
        "loss=3% egress",
    )
    named = name_all(rules, (), "shop", KNOWN.__getitem__)
    assert named.rules == (rules[0], rules[1], rules[4])
    assert named.peers == {Peer(SVC, "db"): ONE, Peer(SVC, "none"): ()}
    ((refused, error),) = named.refused
    assert (refused, error.message, error.tip) == (rules[2], "svc/ext is external", "a CIDR")
    assert named.remarks == ("svc/none: there is none",)
    assert named.unreadable == {(POD, "delay"), (POD, "duplicate")}


def test_what_may_take_a_rules_place_is_looked_up_too() -> None:
    named = name_all(
        sourced("loss=1% egress"), [parsed("loss=2% egress peer=svc/db")], "shop", KNOWN.__getitem__
    )
    assert named.peers == {Peer(SVC, "db"): ONE}


# Names of other namespaces


def rules_with(peer: str, layer: str, others: str = "") -> PodRules:
    """The rules of a pod of `shop`, of which one names that peer."""
    carried = {"podmgr.io/enforce": "true"} if layer == "namespace" else {}
    carried |= {"loss": f"1% egress peer={peer}", "bandwidth": "1 mbps egress"}
    return rules_of_pod(
        "web",
        carried if layer == "pod" else {},
        {"app": "web"},
        [AnnotatedService("web", {"app": "web"}, carried if layer == "service" else {})],
        AnnotatedNamespace("shop", carried if layer == "namespace" else {}),
        tenant=Tenant("shop", frozenset(filter(None, [others]))),
    )


@pytest.mark.parametrize("layer", ["pod", "service", "namespace"])
@pytest.mark.parametrize("peer", ["svc/other/db", "ns/other"])
def test_a_name_of_another_namespace_is_one_line_and_other_rules_hold(layer: str, peer: str) -> None:
    found = rules_with(peer, layer)
    assert [str(item.rule) for item in found.rules] == ["bandwidth=1 mbps egress"]
    (error,) = found.errors
    assert error.message.endswith(f"loss: {peer} is of another namespace (column 16)")
    assert error.tip is not None and "--peer-namespaces" in error.tip
    assert {key for _, key in found.unreadable} == {"loss"}


@pytest.mark.parametrize("others", ["other", "*"])
def test_the_operator_may_list_others(others: str) -> None:
    found = rules_with("svc/other/db", "pod", others)
    assert len(found.rules) == 2 and not found.errors
    assert rules_with("svc/shop/db", "pod").errors == ()
