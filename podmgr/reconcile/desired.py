"""What is wished, made concrete: targets and their rules as rows and specs, and who failed so far."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from podmgr.attachment import Attachment, Slot, Target, Wish, slot_of
from podmgr.errors import PodmgrError
from podmgr.programs.build import SpecMaker
from podmgr.programs.catalog import chosen_hook, recipe, require_possible
from podmgr.programs.spec import ProgramSpec
from podmgr.reconcile import ledger, qdiscs
from podmgr.reconcile.actuator import Failures
from podmgr.reconcile.filters import priority
from podmgr.reconcile.placement import Networks, Placement
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.precedence import CLI, SourcedRule, strength
from podmgr.rules.rule import Custom, Hook, Rule, collision_key, succession_key
from podmgr.settings import Settings

_AT_CGROUP = Placement(Hook.CGROUP)


class Desired:
    """The wishes as rows and specs, and the targets and rules that failed so far.

    `rows` is what the ledger says now: a standing wish builds on it.
    """

    def __init__(
        self, wishes: Sequence[Wish], settings: Settings, rows: Iterable[Attachment], networks: Networks
    ) -> None:
        self.wishes: dict[int, Wish] = {}
        self.specs: dict[str, ProgramSpec] = {}
        self._networks = networks
        self._notes: dict[tuple[int, str], str] = {}
        self._rows: dict[int, list[Attachment]] = {}
        self._failed: dict[int, tuple[str, PodmgrError]] = {}
        self._failed_rules: dict[tuple[int, str], PodmgrError] = {}
        self._failed_slots: set[tuple[Slot, str]] = set()
        self._left_alone: set[Slot] = set()
        self._priorities: dict[tuple[int, str], int] = {}
        for wish in wishes:
            other = self.wishes.setdefault(wish.target.cgroup.id, wish)
            if other.target != wish.target:
                error = PodmgrError(
                    f"{wish.target.name} and {other.target.name} are the same cgroup",
                    tip=f"which is meant? {wish.target.cgroup.path}",
                )
                self.fail(wish.target.cgroup.id, "", error)
        maker = SpecMaker(settings)
        present: dict[int, list[Attachment]] = {}
        for row in rows:
            present.setdefault(row.cgroup_id, []).append(row)
        for cgroup_id, wish in self.wishes.items():
            self._rows[cgroup_id] = []
            rules = _merged(wish, present.get(cgroup_id, ()))
            theirs = {
                parse_rule_option(row.rule)[0]: row
                for row in present.get(cgroup_id, ())
                if row.source == CLI and row.rule
            }
            self._number(cgroup_id, rules)
            for sourced in sorted(rules, key=lambda sourced: recipe(sourced.rule).order):
                if wish.is_standing and sourced.source == CLI:
                    self._leave_alone(theirs[sourced.rule], sourced.rule, maker)
                    continue
                try:
                    self._want(wish.target, sourced, maker)
                except PodmgrError as error:
                    self.fail(cgroup_id, str(sourced.rule), error)

    def _number(self, cgroup_id: int, rules: Sequence[SourcedRule]) -> None:
        """The place of each rule among the filters of an interface: custom programs in the order written."""
        custom = [sourced for sourced in rules if isinstance(sourced.rule, Custom)]
        for sourced in rules:
            position = custom.index(sourced) if sourced in custom else 0
            self._priorities[cgroup_id, str(sourced.rule)] = priority(
                sourced.rule, is_enforced=sourced.is_enforced, position=position
            )

    def _at(self, row: Attachment, place: Placement) -> Attachment:
        return row._replace(
            hook=place.hook.value,
            links=place.links,
            is_scoped=place.is_scoped,
            priority=self._priorities[row.cgroup_id, row.rule] if place.links else 0,
        )

    def _want(self, target: Target, sourced: SourcedRule, maker: SpecMaker) -> None:
        """The rule as a row and a spec. A custom program's place is known when it is compiled."""
        rule, place = sourced.rule, None
        if chosen_hook(rule, is_shared=False) is not None:
            place = self._place(target, rule, is_enforced=sourced.is_enforced)
        spec = maker.spec(
            rule,
            counts_loopback=target.counts_loopback,
            hook=place.hook if place else None,
            is_scoped=place.is_scoped if place else target.counts_loopback,
        )
        self.specs[spec.digest] = spec
        row = self._at(_wanted_row(target, sourced, spec), place or _AT_CGROUP)
        ledger.require_readable(row)
        self._rows[target.cgroup.id].append(row)

    def _place(
        self, target: Target, rule: Rule, hook: Hook | None = None, *, is_enforced: bool = False
    ) -> Placement:
        place = self._networks.place(
            rule,
            target.cgroup,
            counts_loopback=target.counts_loopback,
            starts_here=target.starts_here,
            is_enforced=is_enforced,
            hook=hook,
        )
        if place.note:
            self._notes[target.cgroup.id, str(rule)] = place.note
        return place

    def note(self, row: Attachment) -> str:
        """Why the row is not where such a rule would otherwise act; "" if it is."""
        return self._notes.get((row.cgroup_id, row.rule), "")

    def settle(self, hooks: Mapping[str, str]) -> None:
        """Place custom programs, by the hook that each object, given by its digest, is for."""
        for cgroup_id, rows in self._rows.items():
            for number, row in enumerate(rows):
                rule = parse_rule_option(row.rule)[0]
                is_settled = chosen_hook(rule, is_shared=False) is not None
                if is_settled or row.identity in self._left_alone or row.object_digest not in hooks:
                    continue
                try:
                    hook = Hook(hooks[row.object_digest])
                    require_possible(rule, hook)
                    rows[number] = self._at(row, self._place(self.wishes[cgroup_id].target, rule, hook))
                except PodmgrError as error:
                    self.fail(cgroup_id, row.rule, error)

    def _leave_alone(self, row: Attachment, rule: Rule, maker: SpecMaker) -> None:
        """Want the command line's attachment as it is; what we would make otherwise, we do not make."""
        self._left_alone.add(row.identity)
        is_custom = chosen_hook(rule, is_shared=False) is None
        for counts_loopback in (False, True):  # cgroup/PATH may be a pod's cgroup
            with suppress(PodmgrError):  # its program may be in a folder that is not ours
                spec = maker.spec(
                    rule,
                    counts_loopback=counts_loopback,
                    hook=None if is_custom else Hook(row.hook),
                    is_scoped=counts_loopback if is_custom else row.is_scoped,
                )
                if spec.digest == row.object_digest:
                    self.specs[spec.digest] = spec
                    self._rows[row.cgroup_id].append(row._replace(program_id=None))

    @property
    def cgroup_ids(self) -> Collection[int]:
        """The targets that have not failed."""
        return self.wishes.keys() - self._failed.keys()

    @property
    def rows(self) -> list[Attachment]:
        """The rows that have not failed."""
        return [row for rows in self._rows.values() for row in rows if self.is_alive(row)]

    def is_alive(self, row: Attachment) -> bool:
        """Whether a wanted row can still be had."""
        return row.cgroup_id not in self._failed and (row.cgroup_id, row.rule) not in self._failed_rules

    def may_go(self, row: Attachment) -> bool:
        """Whether an old row is in nobody's place: what failed leaves there what it would replace.

        What the command line put there is its own.
        """
        if row.cgroup_id in self._failed or row.identity in self._left_alone:
            return False
        return (row.slot, row.source) not in self._failed_slots

    def all_failed(self) -> bool:
        return not self.cgroup_ids

    def fail(self, cgroup_id: int, rule: str, error: PodmgrError) -> None:
        """The first failure of a target, or of a standing wish's rule, is the one that counts."""
        if rule and self.wishes[cgroup_id].is_standing:
            self._failed_rules.setdefault((cgroup_id, rule), error)
            self._failed_slots |= {
                (slot_of(cgroup_id, rule), source) for source in self._sources_below(cgroup_id, rule)
            }
        else:
            self._failed.setdefault(cgroup_id, (rule, error))

    def _sources_below(self, cgroup_id: int, text: str) -> set[str]:
        """Whose rules stay in the place of one that fails: its own, and those that it beats."""
        wish, rule = self.wishes[cgroup_id], parse_rule_option(text)[0]
        own = {sourced.source for sourced in wish.rules if sourced.rule == rule}
        key = succession_key(rule)
        return own | {source for source, other in wish.beaten if succession_key(other) == key}

    def fail_all(self, failures: Failures) -> None:
        for row, error in failures:
            self.fail(row.cgroup_id, row.rule, error)

    def failures(self) -> list[tuple[Target, str, PodmgrError]]:
        """The targets and rules that failed, with the reason."""
        failed = [(cgroup_id, rule, error) for cgroup_id, (rule, error) in self._failed.items()]
        failed += [(cgroup_id, rule, error) for (cgroup_id, rule), error in self._failed_rules.items()]
        return [(self.wishes[cgroup_id].target, rule, error) for cgroup_id, rule, error in failed]

    def require_one_cgroup_each(self, rows: Collection[Attachment]) -> None:
        """A pod's UID names the folder of its pins, so it can stand for one living cgroup only."""
        by_owner: dict[str, list[Attachment]] = {}
        for row in rows:
            by_owner.setdefault(row.owner, []).append(row)
        for cgroup_id in list(self.cgroup_ids):
            target = self.wishes[cgroup_id].target
            for row in by_owner.get(target.owner, ()):
                if row.cgroup_id != cgroup_id:
                    error = PodmgrError(
                        f"the pod {target.owner} is already on {row.cgroup_path}",
                        tip=f"podmgr clean cgroup/{row.cgroup_path} first, or leave metadata.uid out",
                    )
                    self.fail(cgroup_id, "", error)

    def require_fq(self) -> None:
        """At the cgroup hook, a program that stamps departure times does nothing without fq: fail.

        On interfaces, fq is looked for, and made, when the program is attached.
        """
        for cgroup_id, rows in self._rows.items():
            for row in rows:
                rule = parse_rule_option(row.rule)[0]
                if not recipe(rule).needs_fq or row.hook != Hook.CGROUP or row.identity in self._left_alone:
                    continue
                try:
                    lacking = self._networks.without_fq(self.wishes[cgroup_id].target.cgroup)
                    if lacking:
                        raise qdiscs.not_root(lacking).of(rule)
                except PodmgrError as error:
                    self.fail(cgroup_id, row.rule, error)


def _merged(wish: Wish, present: Iterable[Attachment]) -> list[SourcedRule]:
    """The wish's rules, and those on the target that stay beside or above them.

    Only a standing wish leaves there what the command line put.
    """
    rules = list(wish.rules)
    for row in present:
        if not row.rule:
            continue
        rule = parse_rule_option(row.rule)[0]
        is_to_stay = row.source == CLI and wish.is_standing
        if not is_to_stay and (row.source, rule.key) not in wish.unreadable:
            continue
        if row.source in wish.enforcing:
            rules = [item for item in rules if item.rule != rule]
            rules.append(SourcedRule(rule, row.source, is_enforced=True))
            continue
        key = collision_key(rule)
        rivals = [item for item in rules if collision_key(item.rule) == key and not item.is_enforced]
        is_enforced = any(item.rule == rule and item.is_enforced for item in rules)
        if is_enforced or any(strength(rival.source) > strength(row.source) for rival in rivals):
            continue
        rules = [item for item in rules if item not in rivals] + [SourcedRule(rule, row.source)]
    return rules


def _wanted_row(target: Target, sourced: SourcedRule, spec: ProgramSpec) -> Attachment:
    return Attachment(
        target=target.name,
        owner=target.owner,
        cgroup_path=str(target.cgroup.path),
        cgroup_id=target.cgroup.id,
        rule=str(sourced.rule),
        kind=sourced.rule.kind,
        direction=sourced.rule.direction,
        hook=_AT_CGROUP.hook.value,
        source=sourced.source,
        digest=spec.rule_digest,
        object_digest=spec.digest,
        pod=target.pod,
    )
