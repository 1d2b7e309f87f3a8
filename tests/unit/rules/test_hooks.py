"""At which hook a rule acts, as far as it and its kind say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.rules.hooks import at_cgroup, chosen_hook
from podmgr.rules.kinds import BUILT_IN_PROGRAMS
from podmgr.rules.rule import Hook, Rule
from tests.unit.samples import parsed as rule
from tests.unit.samples import rules


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("loss=uniform egress 2%", "hook=cgroup"),
        ("bandwidth=1 mbps egress algorithm=edt", "hook=cgroup"),
        ("bandwidth=1 mbps ingress algorithm=edt", ""),
        ("ebpf-limit=dropper egress", 'SEC("cgroup_skb/" INTERFACE)'),
        ("ebpf-limit=edt egress", ""),
        ("duplicate=1% egress", ""),
        ("corrupt=1% ingress", ""),
        ("reorder=1% egress", ""),
        ("block=egress", "hook=cgroup"),
        ("block=egress reply=rst", ""),
        ("block=ingress state=new", ""),
        ("block=egress cut=yes", ""),
    ],
)
def test_the_cgroup_hook_is_named_as_each_rule_can_have_it(option: str, words: str) -> None:
    assert at_cgroup(rule(option)) == words


@pytest.mark.parametrize(
    ("option", "own", "shared"),
    [
        ("loss=uniform egress 2%", "tc", "tc"),
        ("loss=exponential egress 400", "tc", "tc"),
        ("loss=uniform ingress 2%", "tc", "cgroup"),
        ("bandwidth=1 mbps egress", "cgroup", "cgroup"),
        ("bandwidth=1 mbps ingress", "cgroup", "cgroup"),
        ("bandwidth=1 mbps egress algorithm=edt", "tc", "cgroup"),
        ("bandwidth=1 mbps ingress algorithm=edt", "tc", "tc"),
        ("duplicate=1% egress", "tc", "tc"),
        ("corrupt=1% ingress", "tc", "tc"),
        ("reorder=1% egress", "tc", "tc"),
        ("block=egress", "tc", "tc"),
        ("block=ingress", "tc", "cgroup"),
        ("ebpf-limit=edt egress -DRATE=1000000", "tc", "cgroup"),
        ("ebpf-limit=loss ingress", "tc", "cgroup"),
    ],
)
def test_each_rule_has_a_hook_where_its_effect_is_truest_and_a_reason(
    option: str, own: str, shared: str
) -> None:
    for is_shared, expected in ((False, own), (True, shared)):
        choice = chosen_hook(rule(option), is_shared=is_shared)
        assert choice is not None
        assert choice[0] == expected
        assert "says so" not in choice[1] and len(choice[1]) > 20


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("hook", Hook)
@pytest.mark.parametrize(
    "option", ["loss=uniform ingress 2%", "bandwidth=1 mbps egress", "bandwidth=1 mbps egress algorithm=edt"]
)
def test_user_may_choose_the_hook(option: str, hook: Hook, is_shared: bool) -> None:
    assert chosen_hook(rule(f"{option} hook={hook}"), is_shared=is_shared) == (hook, "hook= says so")


@pytest.mark.parametrize("is_shared", [True, False])
def test_rule_on_interfaces_is_at_tc(is_shared: bool) -> None:
    limit = rule("bandwidth=1 mbps ingress interface=eth0")
    assert chosen_hook(limit, is_shared=is_shared) == (Hook.TC, "interface= says so")


@pytest.mark.parametrize("option", ["ebpf-limit=dropper egress", "ebpf-limit=dropper ingress interface=eth0"])
def test_hook_of_a_custom_program_is_in_its_section(option: str) -> None:
    assert chosen_hook(rule(option), is_shared=False) is None
    assert chosen_hook(rule(option), is_shared=True) is None


@given(rules, st.booleans())
def test_every_rule_with_a_built_in_program_has_a_hook(wish: Rule, is_shared: bool) -> None:
    choice = chosen_hook(wish, is_shared=is_shared)
    assert (choice is not None) == (wish.program in BUILT_IN_PROGRAMS)
    if choice is not None and wish.place.hook is not None:
        assert choice[0] is wish.place.hook
    if choice is not None and wish.place.interfaces:
        assert choice[0] is Hook.TC
