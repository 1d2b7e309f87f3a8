"""What shall be: the wishes as rows, each rule in its place, and as specs of their programs.

Immutable: each step returns what shall be after it. Who fails on the way is noted in `Decided`.

Apart from `transaction`: `clean` and `list` start sooner without compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from podmgr.attachment import Attachment, Cgroup, Slot, Target, Wish
from podmgr.errors import PodmgrError, UsageError
from podmgr.kernel import cgroups
from podmgr.kernel.starts import Starts, is_over, now_ns, since_boot_ns
from podmgr.programs.build import SpecMaker
from podmgr.programs.spec import ProgramSpec
from podmgr.reconcile import ledger, qdiscs
from podmgr.reconcile.chain import priority
from podmgr.reconcile.decided import Decided
from podmgr.reconcile.lookups import Lookup, lookups
from podmgr.reconcile.merged import forms, is_for_later, merged
from podmgr.reconcile.placement import Networks, Placement
from podmgr.rules.hooks import chosen_hook, require_possible
from podmgr.rules.kinds import template_of
from podmgr.rules.rule import Hook, Rule
from podmgr.rules.source import CLI, SourcedRule
from podmgr.rules.timing import ALWAYS
from podmgr.settings import Settings


class DesiredRule(NamedTuple):
    """A rule that shall be in force, as a row without a program.

    `priority` is its place among the filters of an interface, `note` says why it is not where such
    a rule would otherwise act. A custom program's place is found when it is compiled.
    """

    rule: Rule
    row: Attachment
    priority: int
    lookup: Lookup
    note: str = ""
    needs_place: bool = False

    def at(self, place: Placement) -> DesiredRule:
        """The same in its place."""
        row = self.row._replace(
            hook=place.hook,
            links=place.links,
            is_scoped=place.is_scoped,
            priority=self.priority if place.links else 0,
        )
        return self._replace(row=row, note=place.note or self.note, needs_place=False)


class _Placed(NamedTuple):
    """A rule and where it acts, as far as that is known before its program is compiled."""

    sourced: SourcedRule
    place: Placement | None
    lookup: Lookup | None = None

    @property
    def program(self) -> object:
        """Equal for rules that share a program: those of one layer, so that none goes without the others."""
        rule = self.sourced.rule
        if not rule.shares_program:
            return self.sourced
        layer, is_enforced = self.sourced.source.layer, self.sourced.is_enforced
        return (type(rule), rule.direction, self.place, layer, is_enforced)


class Desired(NamedTuple):
    """What shall be on all targets; `specs` by the digest of their objects.

    `left_alone` are the identities of what the command line put there, and which stays as it is.
    """

    rules: tuple[DesiredRule, ...]
    specs: Mapping[str, ProgramSpec]
    left_alone: frozenset[Slot]
    meant: Mapping[str, frozenset[Rule]]  # all rules of each target, by its owner; also those that are over

    @property
    def rows(self) -> list[Attachment]:
        return [item.row for item in self.rules]

    @property
    def lookups(self) -> Mapping[Slot, Lookup]:
        """What the program of each row looks up, by the row's identity."""
        return {item.row.identity: item.lookup for item in self.rules}

    @property
    def notes(self) -> Mapping[Slot, str]:
        """Why a row is not where such a rule would otherwise act, by the row's identity."""
        return {item.row.identity: item.note for item in self.rules if item.note}

    @property
    def unplaced(self) -> frozenset[Slot]:
        """The identities of rows whose place nobody knows before they are compiled."""
        return frozenset(item.row.identity for item in self.rules if item.needs_place)


class Desiring:
    """Makes of wishes what shall be; targets and rules for which it cannot are `decided` to fail.

    `may_compile` says of an owner whether its custom programs may go through the preprocessor now.
    """

    def __init__(
        self,
        settings: Settings,
        networks: Networks,
        decided: Decided,
        maker: SpecMaker,
        *,
        may_compile: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._settings = settings
        self._maker = maker
        self._may_compile = may_compile
        self._networks = networks
        self._decided = decided
        self._meant: dict[str, frozenset[Rule]] = {}
        self._asks_for_containers = False  # some rule of the target at hand

    def desired(self, present: Iterable[Attachment]) -> Desired:
        """What shall be, but for the place of custom programs. `present`: what the ledger says now."""
        by_cgroup: dict[int, list[Attachment]] = {}
        for row in present:
            by_cgroup.setdefault(row.cgroup_id, []).append(row)
        rules: list[DesiredRule] = []
        specs: dict[str, ProgramSpec] = {}
        left_alone: set[Slot] = set()
        for cgroup_id, wish in self._decided.wishes.items():
            there = by_cgroup.get(cgroup_id, ())
            starts = Starts(self._settings.bpffs, wish.target.owner)
            left_alone |= {
                row.identity
                for row in there
                if wish.is_standing and _is_of_command_line(row) and not _has_ended(row.rule, starts)
            }
            for item, spec in self._of_target(wish, there, starts):
                rules.append(item)
                specs[spec.digest] = spec
        return Desired(tuple(rules), specs, frozenset(left_alone), self._meant)

    def settled(self, desired: Desired, hooks: Mapping[str, str]) -> Desired:
        """With custom programs in their place, by the hook that each object, given by its digest, is for."""
        rules = [
            self._settled(item, hooks.get(item.row.object_digest)) if item.needs_place else item
            for item in desired.rules
            if not self._is_too_early(item, hooks)
        ]
        return desired._replace(rules=tuple(rules))

    def _is_too_early(self, item: DesiredRule, hooks: Mapping[str, str]) -> bool:
        """Whether it is a custom program for interfaces, which nobody can see yet."""
        is_early = self._decided.wishes[item.row.cgroup_id].is_early
        return item.needs_place and is_early and hooks.get(item.row.object_digest) == Hook.TC

    def require_fq(self, desired: Desired) -> None:
        """At the cgroup hook, a program that stamps departure times does nothing without fq: fail.

        On interfaces, fq is looked for, and made, when the program is attached.
        """
        for item in desired.rules:
            is_left_alone = item.row.identity in desired.left_alone
            if is_left_alone or item.row.hook is not Hook.CGROUP or not template_of(item.rule).needs_fq:
                continue
            cgroup_id = item.row.cgroup_id
            try:
                lacking = self._networks.without_fq(self._decided.wishes[cgroup_id].target.cgroup)
                if lacking:
                    raise qdiscs.not_root(lacking).of(item.rule)
            except PodmgrError as error:
                self._decided.fail(cgroup_id, item.rule, error)

    def _of_target(
        self, wish: Wish, present: Collection[Attachment], starts: Starts
    ) -> Iterable[tuple[DesiredRule, ProgramSpec]]:
        """In the order of the chain."""
        rules = merged(wish, present)
        theirs = {row.rule: row for row in present if _is_of_command_line(row)}
        found: list[tuple[DesiredRule, ProgramSpec]] = []
        programs: dict[object, list[_Placed]] = {}
        self._meant[wish.target.owner] = frozenset(form for sourced in rules for form in forms(sourced.rule))
        beside = lookups(rules, wish)
        self._asks_for_containers = any(sourced.rule.match.containers for sourced in rules)
        for sourced in sorted(rules, key=lambda sourced: template_of(sourced.rule).stage):
            has_ended = _has_ended(sourced.rule, starts)
            begins_anew = has_ended and sourced.source == CLI and not wish.is_standing
            if has_ended and not begins_anew:
                self._decided.end(
                    wish.target, sourced, is_there=any(row.rule == sourced.rule for row in present)
                )
                continue
            if wish.is_standing and sourced.source == CLI:
                found += self._left_alone(theirs[sourced.rule], sourced.rule, beside[sourced])
                continue
            try:
                if begins_anew:
                    _require_not_past(sourced.rule)
                placed = None if is_for_later(wish, sourced.rule) else self._placed(wish.target, sourced)
                if placed is not None:
                    lookup = beside[sourced]._replace(rule=placed.sourced.rule, begins_anew=begins_anew)
                    placed = placed._replace(lookup=lookup)
                    programs.setdefault(placed.program, []).append(placed)
            except PodmgrError as error:
                self._decided.fail(wish.target.cgroup.id, sourced.rule, error)
        positions = _positions(rules)
        for sharing in programs.values():
            try:
                found += self._wanted(wish.target, sharing, positions.get(sharing[0].sourced, 0))
            except PodmgrError as error:
                for placed in sharing:
                    self._decided.fail(wish.target.cgroup.id, placed.sourced.rule, error)
        return sorted(found, key=lambda pair: template_of(pair[0].rule).stage)

    def _placed(self, target: Target, sourced: SourcedRule) -> _Placed | None:
        """A custom program's place is known when it is compiled. None: another rule does it on egress."""
        if chosen_hook(sourced.rule, is_shared=False) is None:
            return _Placed(sourced, None)
        rule, whole = sourced.rule, sourced.rule.on_egress_alone
        if whole is not rule and self._networks.are_shared(target):
            if whole is None:
                return None
            place = self._place(target, whole, is_enforced=sourced.is_enforced)
            note = rule.note_on_egress_alone
            note += "; run --net delays both ways" if target.starts_here else ""
            notes = "; ".join(filter(None, (note, place.note)))
            return _Placed(sourced._replace(rule=whole), place._replace(note=notes))
        return _Placed(sourced, self._place(target, rule, is_enforced=sourced.is_enforced))

    def _wanted(
        self, target: Target, sharing: Sequence[_Placed], position: int
    ) -> list[tuple[DesiredRule, ProgramSpec]]:
        """The rules of one program, each as a row. `position` is that of a custom one among its like."""
        first, place, lookup = sharing[0].sourced, sharing[0].place, sharing[0].lookup
        assert lookup is not None
        spec = self._maker.spec(
            *(placed.sourced.rule for placed in sharing),
            counts_loopback=target.counts_loopback,
            hook=place.hook if place else None,
            is_scoped=place.is_scoped if place else target.counts_loopback,
            is_matched=lookup.is_matched,
            container_level=self._level_of_containers(target.cgroup, first.rule, lookup),
            may_compile=self._may_compile(target.owner),
        )
        number = priority(first.rule, is_enforced=first.is_enforced, position=position)
        found = []
        for index, placed in enumerate(sharing):
            row = Attachment(
                target=target.name,
                owner=target.owner,
                cgroup_path=str(target.cgroup.path),
                cgroup_id=target.cgroup.id,
                rule=placed.sourced.rule,
                direction=placed.sourced.rule.direction,
                hook=Hook.CGROUP,
                source=placed.sourced.source,
                digest=spec.rule_digest,
                object_digest=spec.digest,
                pod=target.pod,
                position=index,
            )
            ledger.require_readable(row)
            item = DesiredRule(placed.sourced.rule, row, number, lookup, needs_place=placed.place is None)
            if target.pod is None and placed.lookup and placed.lookup.absent:  # a pod's are the cluster's
                item = item._replace(note=f"waits for container {', '.join(placed.lookup.absent)}")
            found.append((item.at(placed.place) if placed.place else item, spec))
        return found

    def _settled(self, item: DesiredRule, hook: str | None) -> DesiredRule:
        if hook is None:
            return item
        cgroup_id = item.row.cgroup_id
        try:
            require_possible(item.rule, Hook(hook))
            target = self._decided.wishes[cgroup_id].target
            return item.at(self._place(target, item.rule, Hook(hook)))
        except PodmgrError as error:
            self._decided.fail(cgroup_id, item.rule, error)
            return item

    def _place(
        self, target: Target, rule: Rule, hook: Hook | None = None, *, is_enforced: bool = False
    ) -> Placement:
        return self._networks.place(
            rule,
            target.cgroup,
            counts_loopback=target.counts_loopback,
            starts_here=target.starts_here,
            is_enforced=is_enforced,
            hook=hook,
        )

    def _level_of_containers(self, cgroup: Cgroup, rule: Rule, lookup: Lookup) -> int:
        """0 where the program need not know: it asks for none, and sends no packets to such as do."""
        asks = any(other.match.containers for other in lookup.group)
        sends = self._asks_for_containers and (template_of(rule).frees or template_of(rule).sends)
        return cgroups.level(cgroup) + 1 if asks or sends else 0

    def _left_alone(
        self, row: Attachment, rule: Rule, lookup: Lookup
    ) -> Iterable[tuple[DesiredRule, ProgramSpec]]:
        """The command line's attachment as it is; what we would make otherwise, we do not make."""
        is_custom = chosen_hook(rule, is_shared=False) is None
        item = DesiredRule(rule, row._replace(program_id=None), row.priority, lookup)
        for counts_loopback in (False, True):  # cgroup/PATH may be a pod's cgroup
            with suppress(PodmgrError):  # its program may be in a folder that is not ours
                spec = self._maker.spec(
                    rule,
                    counts_loopback=counts_loopback,
                    hook=None if is_custom else row.hook,
                    is_scoped=counts_loopback if is_custom else row.is_scoped,
                    is_matched=lookup.is_matched,
                    container_level=self._level_of_containers(row.cgroup, rule, lookup),
                    may_compile=self._may_compile(row.owner),
                )
                if spec.digest == row.object_digest:
                    yield item, spec


def _has_ended(rule: Rule | None, starts: Starts) -> bool:
    """Whether the rule is over for good, by when it began on its target."""
    if rule is None or rule.timing == ALWAYS:
        return False
    return any(is_over(form, starts.of(form)) for form in forms(rule))


def _require_not_past(rule: Rule) -> None:
    if rule.timing.until_ns and since_boot_ns(rule.timing.until_ns) <= now_ns():
        raise UsageError(f"'{rule}': until lies in the past", tip="date -u shows what time it is")


def _is_of_command_line(row: Attachment) -> bool:
    return row.source == CLI and row.rule is not None


def _positions(rules: Sequence[SourcedRule]) -> dict[SourcedRule, int]:
    """The place of custom programs among each other: in the order written."""
    brought = [sourced for sourced in rules if sourced.rule.brings_program]
    return {sourced: position for position, sourced in enumerate(brought)}
