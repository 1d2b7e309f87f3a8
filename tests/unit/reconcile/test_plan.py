"""Plans: carrying one out reaches what is wanted, a second one is empty, and slots change hands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.attachment import Attachment, PodRef, Selection, slot_of
from podmgr.reconcile.plan import Plan, make_plan
from podmgr.rules.match import EVERYTHING
from podmgr.rules.rule import Hook, Rule
from podmgr.rules.source import CLI, POD, parse_source
from tests.unit.samples import EGRESS, INGRESS, attachment, parsed, rules

RULES = [
    "bandwidth=1 mbps egress",
    "bandwidth=2 mbps egress",
    "bandwidth=1 mbps ingress",
    "loss=uniform egress 1%",
    "loss=exponential egress 400",
    "ebpf-limit=a egress",
    "ebpf-limit=a egress -DX=1",
    "ebpf-limit=b egress",
]


def row(rule: str, cgroup_id: int = 7, *, program: str = "1", program_id: int | None = None) -> Attachment:
    """A rule on a cgroup; `program` stands for the version of the program that fulfils it."""
    digest = hashlib.sha256(f"{rule} {program}".encode()).hexdigest()[:16]
    return attachment(
        rule, cgroup_id=cgroup_id, digest=digest, direction=parsed(rule).direction, program_id=program_id
    )


def unknown(cgroup_id: int, digest: str, program_id: int) -> Attachment:
    """What only a pin tells of."""
    return attachment("", cgroup_id=cgroup_id, digest=digest, program_id=program_id)


ROWS = st.builds(row, st.sampled_from(RULES), st.integers(1, 3), program=st.sampled_from("12"))
WANTED = st.lists(ROWS, unique_by=lambda row: row.slot)


@st.composite
def actuals(draw: st.DrawFn) -> list[Attachment]:
    """Attached rows, also several in one slot, and some that only their pins tell of."""
    known = draw(st.lists(ROWS, unique_by=lambda row: row.identity))
    orphans = draw(st.lists(ROWS, unique_by=lambda row: row.identity, max_size=3))
    taken = {row.identity for row in known}
    rows = known + [row._replace(rule=None) for row in orphans if row.identity not in taken]
    return [row._replace(program_id=100 + number, hook=Hook.CGROUP) for number, row in enumerate(rows)]


def carried_out(plan: Plan, actual: Iterable[Attachment]) -> list[Attachment]:
    """What is attached after the plan, each new row with the id of its program."""
    gone = {row.identity for row in plan.detach}
    left = [row for row in actual if row.identity not in gone]
    return left + [row._replace(program_id=1000 + number) for number, row in enumerate(plan.attach)]


def identities(rows: Iterable[Attachment]) -> list[str]:
    return sorted(repr(row.identity) for row in rows)


@given(WANTED, actuals())
def test_carrying_out_a_plan_reaches_what_is_wanted(
    wanted: list[Attachment], actual: list[Attachment]
) -> None:
    assert identities(carried_out(make_plan(wanted, actual), actual)) == identities(wanted)


@given(WANTED, actuals())
def test_second_plan_is_empty(wanted: list[Attachment], actual: list[Attachment]) -> None:
    after = carried_out(make_plan(wanted, actual), actual)
    second = make_plan(wanted, after)
    assert second.is_empty
    assert not second.replaced
    assert identities(second.unchanged) == identities(wanted)


@given(WANTED, actuals())
def test_nothing_is_both_touched_and_unchanged(wanted: list[Attachment], actual: list[Attachment]) -> None:
    plan = make_plan(wanted, actual)
    touched = {row.identity for row in (*plan.attach, *plan.detach)}
    assert not touched & {row.identity for row in plan.unchanged}
    assert identities((*plan.attach, *plan.unchanged)) == identities(wanted)
    assert {row.identity for row in plan.detach} <= {row.identity for row in actual}


@given(WANTED, actuals())
def test_unchanged_rows_keep_their_programs(wanted: list[Attachment], actual: list[Attachment]) -> None:
    ids = {row.identity: row.program_id for row in actual}
    for row in make_plan(wanted, actual).unchanged:
        assert row.program_id == ids[row.identity]
        assert row.rule


@given(WANTED, actuals())
def test_replaced_slots_are_those_both_attached_and_detached(
    wanted: list[Attachment], actual: list[Attachment]
) -> None:
    plan = make_plan(wanted, actual)
    assert plan.replaced == {row.slot for row in plan.attach} & {row.slot for row in plan.detach}


def test_nothing_wanted_and_nothing_there_is_an_empty_plan() -> None:
    assert make_plan([], []) == Plan((), (), ())
    assert make_plan([], []).is_empty


def test_plan_that_only_attaches_or_only_detaches_is_not_empty() -> None:
    assert not make_plan([row(RULES[0])], []).is_empty
    assert not make_plan([], [row(RULES[0], program_id=5)]).is_empty


def test_changed_rule_replaces_the_old_one() -> None:
    old, new = row(RULES[0], program_id=5), row(RULES[1])
    plan = make_plan([new], [old])
    assert (plan.attach, plan.detach, plan.unchanged) == ((new,), (old,), ())
    assert plan.replaced == {(7, "bandwidth", EGRESS, EVERYTHING)}


def test_same_rule_with_another_program_replaces_the_old_one() -> None:
    old, new = row(RULES[0], program="1", program_id=5), row(RULES[0], program="2")
    plan = make_plan([new], [old])
    assert (plan.attach, plan.detach) == ((new,), (old,))
    assert plan.replaced


def test_uniform_and_exponential_loss_share_a_slot() -> None:
    assert row(RULES[3]).slot == row(RULES[4]).slot


def test_other_direction_or_cgroup_or_program_is_another_slot() -> None:
    slots = [row(RULES[0]), row(RULES[2]), row(RULES[0], 8), row(RULES[3]), row(RULES[5]), row(RULES[7])]
    assert len({row.slot for row in slots}) == len(slots)


def test_new_rule_beside_an_old_one_replaces_nothing() -> None:
    plan = make_plan([row(RULES[0]), row(RULES[2])], [row(RULES[0], program_id=5)])
    assert plan.attach == (row(RULES[2]),)
    assert plan.unchanged == (row(RULES[0], program_id=5),)
    assert not plan.replaced


def test_attachment_that_only_its_pin_tells_of_is_recognised_by_its_digest() -> None:
    wanted = row(RULES[0])
    plan = make_plan([wanted], [unknown(7, wanted.digest, 9)])
    assert plan.is_empty
    assert plan.unchanged == (wanted._replace(program_id=9),)


def test_unwanted_attachment_that_only_its_pin_tells_of_is_detached() -> None:
    orphan = unknown(7, "abc", 9)
    plan = make_plan([row(RULES[0])], [orphan])
    assert plan.detach == (orphan,)
    assert not plan.replaced


def test_source_and_target_name_do_not_make_a_row_new() -> None:
    wanted = row(RULES[0])._replace(source=parse_source("service/web"), target="pod/web")
    plan = make_plan([wanted], [row(RULES[0], program_id=5)])
    assert plan.unchanged == (wanted._replace(program_id=5),)


def test_identity_and_slot_tell_the_directions_apart() -> None:
    one = attachment(direction=EGRESS)
    other = attachment("loss=uniform ingress 1%", direction=INGRESS)
    assert one.identity != other.identity
    assert one.slot != other.slot


def test_unchanged_rule_keeps_the_owner_that_its_pin_has() -> None:
    """A cgroup may be called by its pod's UID once and by its id the next time."""
    actual = attachment(owner="pod-uid", program_id=5)
    (unchanged,) = make_plan([attachment(owner="7")], [actual]).unchanged
    assert (unchanged.owner, unchanged.program_id) == ("pod-uid", 5)


# Slots by name


@given(rules, rules)
def test_slots_are_equal_exactly_when_one_rule_may_take_the_others_place(one: Rule, other: Rule) -> None:
    succeeds = one.succession_key == other.succession_key
    assert (slot_of(7, one) == slot_of(7, other)) is succeeds
    assert slot_of(7, one) != slot_of(8, one)


@pytest.mark.parametrize("rule", RULES)
def test_slot_of_a_rule_is_the_slot_of_its_row(rule: str) -> None:
    assert row(rule, 9).slot == slot_of(9, parsed(rule))


# Selections

SPARING_CLI = Selection(frozenset({7}), frozenset({"u-1"}), spared=frozenset({CLI}))


@pytest.mark.parametrize(
    ("cgroup_id", "owner", "is_covered"),
    [(7, "7", True), (8, "u-1", True), (7, "u-1", True), (8, "8", False), (8, "7", False), (8, "u-2", False)],
)
def test_selection_covers_by_cgroup_or_by_owner(cgroup_id: int, owner: str, is_covered: bool) -> None:
    candidate = attachment(cgroup_id=cgroup_id, owner=owner)
    assert Selection(frozenset({7}), frozenset({"u-1"})).covers(candidate) is is_covered


@pytest.mark.parametrize(
    ("source", "is_covered"),
    [("cli", False), ("pod", True), ("service/cli", True), ("namespace/shop", True), ("unknown", True)],
)
def test_selection_spares_what_one_source_has_put_there(source: str, is_covered: bool) -> None:
    assert SPARING_CLI.covers(attachment(cgroup_id=7)._replace(source=parse_source(source))) is is_covered


def test_sparing_a_source_widens_no_selection() -> None:
    assert not SPARING_CLI.covers(attachment(cgroup_id=8)._replace(source=POD))


def test_empty_selection_covers_nothing() -> None:
    assert not Selection().covers(attachment())


def test_static_pod_that_was_made_anew_holds_what_its_first_uid_owns() -> None:
    kept = attachment(owner="u-1", pod=PodRef("default", "web", "u-2"), cgroup_id=8)
    assert kept.holder == "u-2"
    assert Selection(owners=frozenset({"u-2"})).covers(kept)
    assert not Selection(owners=frozenset({"u-1"})).covers(kept)


@pytest.mark.parametrize("pod", [None, PodRef("default", "web", "")])
def test_owner_holds_what_no_uid_is_known_of(pod: PodRef | None) -> None:
    assert attachment(owner="7", pod=pod).holder == "7"


def test_selections_add_up() -> None:
    both = Selection(frozenset({1}), frozenset({"a"})) | Selection(frozenset({2}), frozenset({"b"}))
    assert both == Selection(frozenset({1, 2}), frozenset({"a", "b"}))
