"""Wishes made concrete: what a standing wish keeps and gives up, and what a failure takes with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.attachment import Attachment, Cgroup, Link, PodRef, Selection, Target, Wish
from podmgr.errors import PodmgrError
from podmgr.kernel.netns import Namespaces
from podmgr.programs.build import SpecMaker
from podmgr.reconcile import chain
from podmgr.reconcile import merged as merging
from podmgr.reconcile.decided import Decided
from podmgr.reconcile.desired import Desiring
from podmgr.reconcile.placement import Networks, Placement
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.hooks import chosen_hook
from podmgr.rules.kinds import KINDS
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.rule import Direction, Hook, Rule
from podmgr.rules.source import Layer, Source, SourcedRule, parse_source
from podmgr.settings import Settings
from tests.unit.samples import attachment, parsed

POD = PodRef("default", "web", "u-1")
CGROUP = Cgroup(Path("/cgroups/7"), 7)
TARGET = Target("pod/web", CGROUP, POD, counts_loopback=False)
SLOW, FAST = "bandwidth=1 mbps egress", "bandwidth=100 mbps egress"
LOSS, MORE_LOSS = "loss=uniform egress 1%", "loss=uniform egress 2%"
CLI = "cli"
SHOP = Source(Layer.NAMESPACE, "shop")
INGRESS_LOSS = "loss=uniform ingress 1%"
NONE_SUCH = "ebpf-limit=no-such egress"


def sourced(rule: str, source: str = "pod", *, is_enforced: bool = False) -> SourcedRule:
    return SourcedRule(parsed(rule), parse_source(source), is_enforced)


def present(rule: str, source: str) -> Attachment:
    """A row of the ledger."""
    row = attachment(rule, direction=parsed(rule).direction, owner="u-1", program_id=5)
    return row._replace(source=parse_source(source))


def by_command_line(rule: str, *, counts_loopback: bool = False) -> Attachment:
    """A row as `podmgr apply` makes it, with the program that the rule has today."""
    target = TARGET._replace(counts_loopback=counts_loopback)
    (row,) = Case([Wish(target, (sourced(rule, CLI),))], Settings(), (), Network()).rows
    return row._replace(program_id=5)


def keys(unreadable: Iterable[tuple[str, str]]) -> frozenset[tuple[Source, str]]:
    return frozenset((parse_source(source), key) for source, key in unreadable)


def wish(*rules: SourcedRule, unreadable: Sequence[tuple[str, str]] = (), is_standing: bool = True) -> Wish:
    return Wish(TARGET, rules, is_standing, keys(unreadable))


class Network(Networks):
    """Places rules at the hook of their own; on eth0 at tc. Some it cannot place, some not as it should."""

    def __init__(self, *, lacking_fq: bool = False, errors: Sequence[str] = (), note: str = "") -> None:
        super().__init__(Namespaces())
        self.lacking_fq = lacking_fq
        self.errors = errors
        self.note = note
        self.asked: list[tuple[str, bool, bool, Hook | None]] = []
        self.enforced: list[str] = []

    def place(
        self,
        rule: Rule,
        cgroup: Cgroup,
        *,
        counts_loopback: bool,
        starts_here: bool = False,
        is_enforced: bool = False,
        hook: Hook | None = None,
    ) -> Placement:
        self.asked.append((str(rule), counts_loopback, starts_here, hook))
        self.enforced += [str(rule)] if is_enforced else []
        if str(rule) in self.errors:
            raise PodmgrError(f"'{rule}' finds no interface")
        choice = chosen_hook(rule, is_shared=counts_loopback)
        hook = hook or (choice[0] if choice else Hook.CGROUP)
        if self.note:
            return Placement(Hook.CGROUP, note=self.note)
        if hook is Hook.CGROUP:
            return Placement(hook)
        return Placement(hook, (Link(cgroup.id, 2, rule.direction, "eth0"),), counts_loopback)

    def without_fq(self, cgroup: Cgroup) -> dict[str, str]:
        assert cgroup == CGROUP
        return {"eth0": "noqueue"} if self.lacking_fq else {}


class Case:
    """What became of wishes: what shall be, and what was decided."""

    def __init__(
        self, wishes: Iterable[Wish], settings: Settings, rows: Iterable[Attachment], network: Network
    ) -> None:
        self.decided = Decided(wishes)
        self.desiring = Desiring(settings, network, self.decided, SpecMaker(settings))
        self.desired = self.desiring.desired(rows)

    @property
    def rows(self) -> list[Attachment]:
        return self.decided.alive(self.desired.rows)

    @property
    def cgroup_ids(self) -> Collection[int]:
        return self.decided.cgroup_ids

    def settle(self, hooks: Mapping[str, str]) -> None:
        self.desired = self.desiring.settled(self.desired, hooks)

    def require_fq(self) -> None:
        self.desiring.require_fq(self.desired)

    def fail(self, rule: str) -> None:
        self.decided.fail(7, parsed(rule) if rule else None, PodmgrError("it failed"))

    def failures(self) -> list[tuple[str, PodmgrError]]:
        return [(outcome.subject, outcome.error) for outcome in self.decided.outcomes() if outcome.error]

    def may_go(self, row: Attachment) -> bool:
        return row.identity not in self.desired.left_alone and self.decided.may_go(row)


def made(
    wished: Wish, *rows: Attachment, folder: Path = Path("/nonexistent"), network: Network | None = None
) -> Case:
    return Case([wished], Settings(program_dir=folder), rows, network or Network())


def wanted(found: Case) -> list[tuple[str, str]]:
    return [(str(row.rule), str(row.source)) for row in found.rows]


# Rows


def test_rule_becomes_a_row_of_its_target() -> None:
    found = made(wish(sourced(SLOW, "service/front")))
    (row,) = found.rows
    (spec,) = found.desired.specs.values()
    assert (row.target, row.owner, row.pod, row.cgroup_id) == ("pod/web", "u-1", POD, 7)
    assert (str(row.rule), row.kind, row.direction) == (SLOW, "bandwidth", "egress")
    assert row.source == Source(Layer.SERVICE, "front")
    assert (row.digest, row.object_digest, row.program_id) == (spec.rule_digest, spec.digest, None)
    assert (row.hook, row.links, row.is_scoped) == ("cgroup", (), False)
    assert (spec.counts_loopback, spec.is_scoped) == (False, False)


@pytest.mark.parametrize("is_scoped", [False, True])
def test_rule_at_tc_becomes_a_row_with_its_interfaces(is_scoped: bool) -> None:
    found = made(wish(sourced(LOSS))._replace(target=TARGET._replace(counts_loopback=is_scoped)))
    (row,) = found.rows
    (spec,) = found.desired.specs.values()
    assert (row.hook, row.is_scoped) == ("tc", is_scoped)
    assert row.links == (Link(7, 2, Direction.EGRESS, "eth0"),)
    assert (spec.hook, spec.is_scoped) == (Hook.TC, is_scoped)
    assert row.object_digest == spec.digest


@pytest.mark.parametrize("starts_here", [False, True])
def test_network_is_asked_for_the_target(starts_here: bool) -> None:
    network = Network()
    target = TARGET._replace(counts_loopback=True, starts_here=starts_here)
    made(wish(sourced(LOSS))._replace(target=target), network=network)
    assert network.asked == [(LOSS, True, starts_here, None)]


@pytest.mark.parametrize("is_standing", [True, False])
def test_rule_that_cannot_be_placed_fails(is_standing: bool) -> None:
    network = Network(errors=[LOSS])
    found = made(wish(sourced(SLOW), sourced(LOSS), is_standing=is_standing), network=network)
    ((failed, error),) = found.failures()
    assert (failed, error.message) == (LOSS, f"'{LOSS}' finds no interface")
    assert wanted(found) == ([(SLOW, "pod")] if is_standing else [])


def test_rule_that_is_placed_elsewhere_carries_the_reason() -> None:
    found = made(wish(sourced(LOSS)), network=Network(note="finds no interface that is up"))
    (row,) = found.rows
    assert (row.hook, row.links) == ("cgroup", ())
    assert found.desired.notes[row.identity] == "finds no interface that is up"
    assert list(found.desired.notes) == [row.identity]


@pytest.mark.parametrize("is_standing", [True, False])
def test_rows_are_in_the_order_of_the_chain(is_standing: bool) -> None:
    found = made(wish(sourced(SLOW), sourced(LOSS), is_standing=is_standing))
    assert wanted(found) == [(LOSS, "pod"), (SLOW, "pod")]


@pytest.mark.parametrize(("rule", "is_kept"), [(SLOW, False), (LOSS, False), (INGRESS_LOSS, True)])
def test_wish_that_is_not_standing_keeps_what_cannot_be_read_and_nothing_else(
    rule: str, is_kept: bool
) -> None:
    found = made(
        wish(sourced(SLOW), sourced(LOSS), unreadable=[("service/front", "loss")], is_standing=False),
        present(FAST, CLI),
        present(LOSS, CLI),
        present("ebpf-limit=a egress", "service/front"),
        present(INGRESS_LOSS, "service/back"),
        present(rule, "service/front"),
    )
    kept = [(rule, "service/front")] if is_kept else []
    assert sorted(wanted(found)) == sorted([(SLOW, "pod"), (LOSS, "pod"), *kept])


# What a standing wish keeps


def test_rules_that_are_not_wished_any_more_go() -> None:
    assert wanted(made(wish(), present(SLOW, "pod"), present(LOSS, "service/front"))) == []


def test_what_the_command_line_put_there_stays_beside_other_rules() -> None:
    assert wanted(made(wish(sourced(SLOW)), by_command_line(LOSS))) == [(LOSS, CLI), (SLOW, "pod")]


@pytest.mark.parametrize("source", ["pod", "service/front", "namespace/shop"])
def test_what_the_command_line_put_there_stays_over_a_colliding_rule(source: str) -> None:
    assert wanted(made(wish(sourced(SLOW, source)), by_command_line(FAST))) == [(FAST, CLI)]


def test_same_rule_from_the_command_line_stays_the_command_lines() -> None:
    assert wanted(made(wish(sourced(SLOW)), by_command_line(SLOW))) == [(SLOW, CLI)]


def test_enforced_rule_holds_beside_the_command_lines() -> None:
    found = made(wish(sourced(SLOW, "namespace/shop", is_enforced=True)), by_command_line(FAST))
    assert sorted(wanted(found)) == [(SLOW, "namespace/shop"), (FAST, CLI)]


def test_enforced_rule_is_placed_as_one_that_a_pod_cannot_move() -> None:
    network = Network()
    made(wish(sourced(SLOW, "namespace/shop", is_enforced=True), sourced(LOSS)), network=network)
    assert {rule for rule, *_ in network.asked} == {SLOW, LOSS}
    assert network.enforced == [SLOW]


def test_enforced_rule_that_the_command_line_has_too_holds_once() -> None:
    found = made(wish(sourced(SLOW, "namespace/shop", is_enforced=True)), by_command_line(SLOW))
    assert wanted(found) == [(SLOW, "namespace/shop")]


@pytest.mark.parametrize("counts_loopback", [True, False])
def test_what_the_command_line_put_there_stays_as_it_was_made(counts_loopback: bool) -> None:
    """Also where a rule of the pod's would be made otherwise, and would have another owner."""
    row = by_command_line(SLOW, counts_loopback=counts_loopback)._replace(
        owner="7", target="cgroup/a", pod=None
    )
    found = made(wish(), row)
    assert found.rows == [row._replace(program_id=None)]
    assert found.desired.specs[row.object_digest].counts_loopback is counts_loopback


@pytest.mark.parametrize("rule", [SLOW, "ebpf-limit=elsewhere egress"])
def test_program_of_the_command_line_that_cannot_be_made_again_is_left_where_it_is(rule: str) -> None:
    row = present(rule, CLI)
    found = made(wish(sourced(LOSS)), row)
    assert wanted(found) == [(LOSS, "pod")]
    assert not found.may_go(row)
    assert found.failures() == []


def test_row_on_another_cgroup_does_not_matter() -> None:
    elsewhere = present(FAST, CLI)._replace(cgroup_id=8)
    assert wanted(made(wish(sourced(SLOW)), elsewhere)) == [(SLOW, "pod")]


def test_row_that_only_a_pin_tells_of_is_not_kept() -> None:
    assert wanted(made(wish(sourced(SLOW)), present(LOSS, CLI)._replace(rule=None))) == [(SLOW, "pod")]


def test_key_that_cannot_be_read_leaves_in_force_what_it_was() -> None:
    found = made(
        wish(sourced(LOSS), unreadable=[("pod", "bandwidth")]), present(SLOW, "pod"), present(LOSS, "pod")
    )
    assert wanted(found) == [(LOSS, "pod"), (SLOW, "pod")]


@pytest.mark.parametrize(
    "unreadable", [("pod", "loss"), ("service/front", "bandwidth"), ("namespace/shop", "bandwidth")]
)
def test_other_keys_and_other_sources_are_not_kept_with_it(unreadable: tuple[str, str]) -> None:
    assert wanted(made(wish(unreadable=[unreadable]), present(SLOW, "pod"))) == []


@pytest.mark.parametrize(
    ("kept", "rival", "stays"),
    [
        ("pod", "service/front", True),
        ("pod", "namespace/shop", True),
        ("service/front", "namespace/shop", True),
        ("service/front", "service/back", True),
        ("service/front", "pod", False),
        ("namespace/shop", "pod", False),
        ("namespace/shop", "service/front", False),
    ],
)
def test_what_is_kept_gives_way_to_a_stronger_rule_only(kept: str, rival: str, stays: bool) -> None:
    found = made(
        wish(sourced(SLOW, rival), unreadable=[(kept, "bandwidth")]),
        present(FAST, kept),
    )
    assert wanted(found) == ([(FAST, kept)] if stays else [(SLOW, rival)])


@pytest.mark.parametrize(
    "others", [[], [sourced(FAST)], [sourced(SLOW)], [sourced(FAST, "service/front"), sourced(LOSS)]]
)
def test_what_is_kept_of_a_namespace_that_enforces_holds_beside_all_others(others: list[SourcedRule]) -> None:
    wished = Wish(
        TARGET,
        tuple(others),
        is_standing=True,
        unreadable=keys([("namespace/shop", "bandwidth")]),
        enforcing=frozenset({SHOP}),
    )
    expected = {(str(item.rule), str(item.source)) for item in others if str(item.rule) != SLOW}
    assert set(wanted(made(wished, present(SLOW, "namespace/shop")))) == expected | {(SLOW, "namespace/shop")}


@pytest.mark.parametrize("source", ["namespace/shop", "service/front", "pod"])
@pytest.mark.parametrize("is_standing", [False, True])
def test_of_a_layer_that_is_unseen_all_stays_and_of_others_nothing(source: str, is_standing: bool) -> None:
    there = [present(rule, source) for rule in (SLOW, LOSS)]
    wished = Wish(TARGET, (), is_standing, unseen=frozenset({parse_source(source).layer}))
    assert sorted(wanted(made(wished, *there))) == sorted([(SLOW, source), (LOSS, source)])
    for layer in {Layer.NAMESPACE, Layer.SERVICE, Layer.POD} - wished.unseen:
        assert wanted(made(wished._replace(unseen=frozenset({layer})), *there)) == []


@pytest.mark.parametrize(
    ("priority", "stays"),
    [
        (0, True),
        (chain.priority(parsed(LOSS), is_enforced=True), True),
        (chain.priority(parsed(LOSS)), False),
    ],
    ids=["at the cgroup hook, where it may be", "at the place of enforced ones", "at the place of others"],
)
def test_what_an_unseen_namespace_may_enforce_holds_beside_what_the_pod_says(
    priority: int, stays: bool
) -> None:
    there = present(LOSS, "namespace/shop")._replace(priority=priority)
    wished = Wish(TARGET, (sourced(MORE_LOSS),), unseen=frozenset({Layer.NAMESPACE}))
    assert wanted(made(wished, there)) == [(MORE_LOSS, "pod")] + [(LOSS, "namespace/shop")] * stays


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.key)
@pytest.mark.parametrize("position", [0, 60])
def test_a_place_in_the_chain_tells_whether_its_rule_is_enforced(kind: Kind, position: int) -> None:
    for rule in parse_rule_option(kind.example):
        for is_enforced in (False, True):
            place = chain.priority(rule, is_enforced=is_enforced, position=position)
            row = present(LOSS, "namespace/shop")._replace(rule=rule, priority=place)
            assert chain.is_enforced(row) is is_enforced


def test_what_an_unseen_service_says_gives_way_to_the_pod() -> None:
    wished = Wish(TARGET, (sourced(FAST),), unseen=frozenset({Layer.SERVICE}))
    assert wanted(made(wished, present(SLOW, "service/front"))) == [(FAST, "pod")]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_what_is_kept_of_a_namespace_that_enforces_holds_beside_the_command_lines(is_reversed: bool) -> None:
    rows = [present(SLOW, "namespace/shop"), by_command_line(FAST)]
    wished = Wish(
        TARGET,
        (),
        is_standing=True,
        unreadable=keys([("namespace/shop", "bandwidth")]),
        enforcing=frozenset({SHOP}),
    )
    found = made(wished, *(reversed(rows) if is_reversed else rows))
    assert sorted(wanted(found)) == [(SLOW, "namespace/shop"), (FAST, CLI)]


SOURCES = ["pod", "service/a", "service/b", "namespace/shop"]
RULES = [
    *(SLOW, FAST, LOSS, "bandwidth=1 mbps ingress", "loss=exponential egress 400"),
    *("ebpf-limit=a egress", "ebpf-limit=a egress -DX=1", "ebpf-limit=b egress"),
]
WINNERS = st.lists(
    st.builds(sourced, st.sampled_from(RULES), st.sampled_from(SOURCES)),
    unique_by=lambda item: item.rule.collision_key,
)
ENFORCED = st.lists(
    st.builds(lambda rule: sourced(rule, "namespace/shop", is_enforced=True), st.sampled_from(RULES)),
    unique_by=lambda item: item.rule.collision_key,
    max_size=2,
)
PRESENT = st.lists(
    st.builds(present, st.sampled_from(RULES), st.sampled_from([CLI, *SOURCES])),
    unique_by=lambda row: row.slot,
)
UNREADABLE = st.frozensets(
    st.tuples(st.sampled_from(SOURCES), st.sampled_from(["bandwidth", "loss", "ebpf-limit"])), max_size=3
)


@st.composite
def standing_wishes(draw: st.DrawFn) -> Wish:
    """As they come of annotations: a key that cannot be read has no rules, who enforces does so with all."""
    unreadable = draw(UNREADABLE)
    enforced = draw(ENFORCED | st.none())
    rules = [
        item
        for item in [*(enforced or ()), *draw(WINNERS)]
        if (str(item.source), item.rule.key) not in unreadable
        and (item.is_enforced or enforced is None or item.source != SHOP)
    ]
    shared = {item.rule for item in rules if item.is_enforced}
    return Wish(
        TARGET,
        tuple(item for item in rules if item.is_enforced or item.rule not in shared),
        is_standing=True,
        unreadable=keys(unreadable),
        enforcing=frozenset() if enforced is None else frozenset({SHOP}),
    )


@given(standing_wishes(), PRESENT)
def test_merging_keeps_what_is_enforced_and_the_command_lines_and_lets_nothing_else_collide(
    wished: Wish, rows: list[Attachment]
) -> None:
    merged = merging.merged(wished, rows)
    enforced = [item for item in wished.rules if item.is_enforced]
    assert set(enforced) <= set(merged)
    texts = [str(item.rule) for item in merged]
    assert len(set(texts)) == len(texts)
    assert {str(row.rule) for row in rows if str(row.source) == CLI} <= set(texts)
    keys = [item.rule.collision_key for item in merged if not item.is_enforced]
    assert len(set(keys)) == len(keys)
    held = [row for row in rows if row.rule and (row.source, row.rule.key) in wished.unreadable]
    kept = {str(row.rule) for row in rows if str(row.source) == CLI or row in held}
    assert set(texts) <= kept | {str(item.rule) for item in wished.rules}
    assert {str(row.rule) for row in held if row.source in wished.enforcing} <= set(texts)
    for item in wished.rules:  # a rule that is lost has lost to one that is not weaker
        if item not in merged:
            rivals = [other for other in merged if other.rule.collision_key == item.rule.collision_key]
            assert any(
                rival.source.strength >= item.source.strength
                or (rival.is_enforced and rival.rule == item.rule)
                for rival in rivals
            )


@given(standing_wishes(), PRESENT)
def test_merging_with_what_came_of_it_changes_nothing(wished: Wish, rows: list[Attachment]) -> None:
    once = merging.merged(wished, rows)
    again = merging.merged(wished, [present(str(item.rule), str(item.source)) for item in once])
    assert set(again) == set(once)


# Failures


def test_rule_that_fails_leaves_the_others_of_a_standing_wish() -> None:
    found = made(wish(sourced(NONE_SUCH), sourced(SLOW)))
    assert wanted(found) == [(SLOW, "pod")]
    ((rule, error),) = found.failures()
    assert rule == NONE_SUCH
    assert error.message.startswith("there is no program no-such")
    assert found.cgroup_ids
    assert set(found.cgroup_ids) == {7}


def test_rule_that_fails_takes_a_wish_that_is_not_standing_with_it() -> None:
    found = made(wish(sourced(NONE_SUCH), sourced(SLOW), is_standing=False))
    assert wanted(found) == []
    assert [rule for rule, _ in found.failures()] == [NONE_SUCH]
    assert not found.cgroup_ids


def test_rule_that_fails_leaves_in_force_what_it_would_replace_and_no_more() -> None:
    found = made(wish(sourced(SLOW)))
    found.fail(SLOW)
    assert wanted(found) == []
    assert not found.may_go(present(FAST, "pod"))
    assert found.may_go(present(LOSS, "pod"))
    assert found.may_go(present("bandwidth=1 mbps ingress", "pod"))
    assert found.may_go(present(FAST, "pod")._replace(cgroup_id=8))


def test_rule_that_fails_leaves_in_force_those_that_it_beats() -> None:
    wished = wish(sourced(SLOW), sourced(LOSS))._replace(
        beaten=frozenset(
            {(parse_source("service/front"), parsed(FAST)), (parse_source("service/back"), parsed(LOSS))}
        )
    )
    found = made(wished)
    assert found.may_go(present(FAST, "service/front"))
    found.fail(SLOW)
    assert not found.may_go(present(FAST, "service/front"))
    assert not found.may_go(present("bandwidth=5 mbps egress", "service/front"))
    assert found.may_go(present("loss=uniform egress 2%", "service/back"))
    assert found.may_go(present(FAST, "service/other"))


def test_rule_that_fails_holds_nobody_to_what_a_namespace_has_enforced() -> None:
    """Who loosens a limit is not to find the old one beside a rule of the pod's that fails."""
    shop = "namespace/shop"
    wished = wish(
        sourced(NONE_SUCH), sourced(FAST), sourced("bandwidth=9 mbps egress", shop, is_enforced=True)
    )._replace(enforcing=frozenset({SHOP}))
    found = made(wished)
    found.fail(FAST)
    assert found.may_go(present(SLOW, shop))
    found.fail("bandwidth=9 mbps egress")
    assert not found.may_go(present(SLOW, shop))


def test_two_targets_that_are_one_cgroup_both_fail() -> None:
    other = Wish(TARGET._replace(name="pod/other", pod=PodRef("default", "other", "u-2")), (sourced(FAST),))
    for wishes in ([wish(sourced(SLOW)), other], [other, wish(sourced(SLOW))]):
        found = Case(wishes, Settings(), [present(LOSS, "pod")], Network())
        assert (found.rows, list(found.cgroup_ids)) == ([], [])
        assert not found.may_go(present(LOSS, "pod"))
        ((_, error),) = found.failures()
        assert error.message.endswith("are the same cgroup")
        assert {"pod/web", "pod/other"} <= set(error.message.split())
        assert error.tip == "which is meant? /cgroups/7"


def test_target_that_is_named_twice_is_one() -> None:
    assert made(wish(sourced(SLOW))).rows == Case([wish(sourced(SLOW))] * 2, Settings(), [], Network()).rows


def test_target_that_fails_keeps_all_that_it_has() -> None:
    found = made(wish(sourced(SLOW), is_standing=False))
    assert found.may_go(present(LOSS, "pod"))
    found.fail(SLOW)
    assert not found.may_go(present(LOSS, "pod"))


def test_failure_without_a_rule_fails_the_whole_of_a_standing_wish() -> None:
    found = made(wish(sourced(SLOW), sourced(LOSS)))
    found.fail("")
    assert not found.cgroup_ids
    assert not found.may_go(present(LOSS, "pod"))


@pytest.mark.parametrize("is_standing", [True, False])
def test_first_failure_is_the_one_that_counts(is_standing: bool) -> None:
    found = made(wish(sourced(SLOW), is_standing=is_standing))
    rows = found.rows
    found.decided.fail_all([(rows[0], PodmgrError("first")), (rows[0], PodmgrError("second"))])
    assert [error.message for _, error in found.failures()] == ["first"]


def test_rules_of_a_standing_wish_fail_each_with_its_own_reason() -> None:
    found = made(wish(sourced(SLOW), sourced(LOSS)))
    found.decided.fail_all([(row, PodmgrError(row.kind)) for row in found.rows])
    assert sorted(error.message for _, error in found.failures()) == ["bandwidth", "loss"]
    assert found.cgroup_ids  # its old rules may still go


def test_one_wish_that_fails_leaves_the_others() -> None:
    other = wish(sourced(SLOW))._replace(target=TARGET._replace(cgroup=Cgroup(Path("/cgroups/8"), 8)))
    found = Case([wish(sourced(SLOW)), other], Settings(), [], Network())
    found.fail("")
    assert [row.cgroup_id for row in found.rows] == [8]
    assert set(found.cgroup_ids) == {8}


def test_pods_uid_stands_for_one_cgroup_only() -> None:
    found = made(wish(sourced(SLOW)))
    found.decided.require_one_cgroup_each([present(LOSS, "pod"), attachment(owner="u-2", cgroup_id=9)])
    assert found.cgroup_ids
    found.decided.require_one_cgroup_each(
        [present(LOSS, "pod")._replace(cgroup_id=8, cgroup_path="/cgroups/8")]
    )
    ((_, error),) = found.failures()
    assert error.message == "the pod u-1 is already on /cgroups/8"
    assert not found.cgroup_ids


# Custom programs: their objects say where they belong


def own_program(folder: Path, name: str = "dropper") -> Path:
    """A program folder with one program."""
    folder.chmod(0o755)
    source = folder / f"{name}.bpf.c"
    source.write_text("int x;")
    source.chmod(0o644)
    return folder


DROPPER = "ebpf-limit=dropper egress"


def test_custom_program_is_placed_when_its_object_is_known(tmp_path: Path) -> None:
    network = Network()
    found = made(wish(sourced(DROPPER)), folder=own_program(tmp_path), network=network)
    (row,) = found.rows
    assert (row.hook, row.links, network.asked) == ("cgroup", (), [])
    found.settle({row.object_digest: "tc"})
    (settled,) = found.rows
    assert (settled.hook, settled.links) == ("tc", (Link(7, 2, Direction.EGRESS, "eth0"),))
    assert settled.digest == row.digest
    assert network.asked == [(DROPPER, False, False, Hook.TC)]


def test_custom_program_for_the_cgroup_hook_stays_there(tmp_path: Path) -> None:
    found = made(wish(sourced(DROPPER)), folder=own_program(tmp_path))
    before = found.rows
    found.settle({before[0].object_digest: "cgroup"})
    assert found.rows == before
    assert not found.failures()


@pytest.mark.parametrize("counts_loopback", [False, True])
def test_custom_program_is_made_for_shared_interfaces_where_the_target_has_no_others(
    tmp_path: Path, counts_loopback: bool
) -> None:
    target = TARGET._replace(counts_loopback=counts_loopback)
    found = made(wish(sourced(DROPPER))._replace(target=target), folder=own_program(tmp_path))
    (spec,) = found.desired.specs.values()
    assert (spec.hook, spec.is_scoped) == (None, counts_loopback)


def test_custom_program_for_the_cgroup_hook_takes_no_interfaces(tmp_path: Path) -> None:
    rule = f"{DROPPER} interface=eth0"
    found = made(wish(sourced(rule), sourced(LOSS)), folder=own_program(tmp_path))
    digest = next(row.object_digest for row in found.rows if str(row.rule) == rule)
    found.settle({digest: "cgroup"})
    ((failed, error),) = found.failures()
    assert failed == rule
    assert "is for the cgroup hook, which knows no interfaces" in error.message
    assert wanted(found) == [(LOSS, "pod")]


def test_custom_program_that_cannot_be_placed_fails(tmp_path: Path) -> None:
    network = Network(errors=[DROPPER])
    found = made(wish(sourced(DROPPER), sourced(LOSS)), folder=own_program(tmp_path), network=network)
    found.settle({row.object_digest: "tc" for row in found.rows})
    assert [rule for rule, _ in found.failures()] == [DROPPER]
    assert wanted(found) == [(LOSS, "pod")]


def test_object_that_is_not_there_leaves_its_rule_unplaced(tmp_path: Path) -> None:
    network = Network()
    found = made(wish(sourced(DROPPER)), folder=own_program(tmp_path), network=network)
    found.settle({"another": "tc"})
    assert [row.hook for row in found.rows] == ["cgroup"]
    assert network.asked == []


def test_built_in_programs_are_placed_once() -> None:
    network = Network()
    found = made(wish(sourced(LOSS)), network=network)
    found.settle({row.object_digest: "cgroup" for row in found.rows})
    assert [row.hook for row in found.rows] == ["tc"]
    assert len(network.asked) == 1


@pytest.mark.parametrize("rule", [LOSS, SLOW, f"{SLOW} hook=tc", f"{LOSS} hook=cgroup"])
@pytest.mark.parametrize("counts_loopback", [True, False])
def test_what_the_command_line_put_somewhere_stays_there(rule: str, counts_loopback: bool) -> None:
    """Though a standing wish would place it elsewhere, or nowhere."""
    row = by_command_line(rule, counts_loopback=counts_loopback)
    network = Network(errors=[rule])
    found = made(wish(), row, network=network)
    found.settle({row.object_digest: "cgroup"})
    found.require_fq()
    assert found.rows == [row._replace(program_id=None)]
    assert (found.failures(), network.asked) == ([], [])


def test_custom_program_of_the_command_line_stays_where_it_is(tmp_path: Path) -> None:
    folder = own_program(tmp_path)
    wished = Wish(TARGET, (sourced(DROPPER, CLI),))
    first = made(wished, folder=folder)
    first.settle({row.object_digest: "tc" for row in first.rows})
    (row,) = first.rows
    found = made(wish(), row._replace(program_id=5), folder=folder, network=Network(errors=[DROPPER]))
    found.settle({row.object_digest: "tc"})
    assert found.rows == [row]
    assert not found.failures()


# Departure times


@pytest.mark.parametrize("is_standing", [True, False])
def test_delay_at_the_cgroup_hook_without_fq_fails_its_rule(is_standing: bool) -> None:
    delay = "bandwidth=1 mbps egress algorithm=edt hook=cgroup"
    network = Network(lacking_fq=True)
    found = made(wish(sourced(delay), sourced(LOSS), is_standing=is_standing), network=network)
    found.require_fq()
    ((failed, error),) = found.failures()
    assert failed == delay
    assert "is not the root qdisc of eth0 (noqueue)" in error.message
    remedy = "tc qdisc replace dev eth0 root fq (kernel module sch_fq)"
    assert error.tip == f"{remedy}, or use algorithm=tbf"
    assert wanted(found) == ([(LOSS, "pod")] if is_standing else [])


def test_delay_at_the_cgroup_hook_with_fq_is_fine() -> None:
    found = made(wish(sourced("bandwidth=1 mbps egress algorithm=edt hook=cgroup")))
    found.require_fq()
    assert not found.failures()


def test_delay_on_an_interface_finds_its_qdisc_when_it_is_attached() -> None:
    found = made(wish(sourced("bandwidth=1 mbps egress algorithm=edt")), network=Network(lacking_fq=True))
    found.require_fq()
    assert not found.failures()


def test_delay_that_the_command_line_overrules_asks_for_no_qdisc() -> None:
    delay = "bandwidth=1 mbps egress algorithm=edt hook=cgroup"
    found = made(wish(sourced(delay)), by_command_line(SLOW), network=Network(lacking_fq=True))
    found.require_fq()
    assert not found.failures()
    assert wanted(found) == [(SLOW, "cli")]


def test_rules_that_delay_nothing_ask_for_no_qdisc() -> None:
    found = made(wish(sourced(SLOW), sourced(f"{LOSS} hook=cgroup")), network=Network(lacking_fq=True))
    found.require_fq()
    assert not found.failures()


# Targets


def test_target_selects_by_cgroup_and_by_owner() -> None:
    assert TARGET.selection == Selection(frozenset({7}), frozenset({"u-1"}))
    assert Target("cgroup/x", CGROUP).selection == Selection(frozenset({7}), frozenset({"7"}))
