"""What was decided on the way: which targets and rules failed, and what may therefore not go."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from podmgr.attachment import Attachment, Slot, Target, Wish, slot_of
from podmgr.errors import PodmgrError
from podmgr.reconcile.outcome import Action, Failures, Outcome
from podmgr.rules.rule import Rule
from podmgr.rules.source import Source, SourcedRule


class Decided:
    """The failures of one transaction, by target (cgroup id) and rule; the first of each counts.

    Of a standing wish a rule fails by itself, of others the target as a whole.
    """

    def __init__(self, wishes: Iterable[Wish]) -> None:
        self.wishes: dict[int, Wish] = {}
        self._targets: dict[int, tuple[Rule | None, PodmgrError]] = {}
        self._rules: dict[tuple[int, Rule], PodmgrError] = {}
        self._kept: set[tuple[Slot, Source]] = set()
        self._ended: list[Outcome] = []
        for wish in wishes:
            other = self.wishes.setdefault(wish.target.cgroup.id, wish)
            if other.target != wish.target:
                error = PodmgrError(
                    f"{wish.target.name} and {other.target.name} are the same cgroup",
                    tip=f"which is meant? {wish.target.cgroup.path}",
                )
                self.fail(wish.target.cgroup.id, None, error)

    def fail(self, cgroup_id: int, rule: Rule | None, error: PodmgrError) -> None:
        """Note a failure: of a rule, or of the target as a whole (None)."""
        wish = self.wishes[cgroup_id]
        if rule is None or not wish.is_standing:
            self._targets.setdefault(cgroup_id, (rule, error))
            return
        self._rules.setdefault((cgroup_id, rule), error)
        self._kept |= {(slot_of(cgroup_id, rule), source) for source in _sources_below(wish, rule)}

    def end(self, target: Target, sourced: SourcedRule, *, is_there: bool) -> None:
        """Note that a rule is over. Of a standing wish that is told once: while its program is there."""
        if is_there or not self.wishes[target.cgroup.id].is_standing:
            outcome = Outcome(target.name, sourced.rule, Action.OVER, None, None, target.pod, sourced.source)
            self._ended.append(outcome)

    def fail_all(self, failures: Failures) -> None:
        for row, error in failures:
            self.fail(row.cgroup_id, row.rule, error)

    def require_one_cgroup_each(self, rows: Iterable[Attachment]) -> None:
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
                    self.fail(cgroup_id, None, error)

    @property
    def networks(self) -> dict[int, Path]:
        """Where the runtime keeps the networks of targets, by cgroup id."""
        return {number: wish.network for number, wish in self.wishes.items() if wish.network}

    @property
    def cgroup_ids(self) -> Collection[int]:
        """The targets that have not failed."""
        return self.wishes.keys() - self._targets.keys()

    def failed_rules(self, cgroup_id: int) -> frozenset[Rule]:
        """The rules of a target that failed by themselves."""
        return frozenset(rule for failed_id, rule in self._rules if failed_id == cgroup_id)

    def alive(self, rows: Iterable[Attachment]) -> list[Attachment]:
        """The wanted rows that can still be had."""
        return [row for row in rows if self.is_alive(row)]

    def is_alive(self, row: Attachment) -> bool:
        """Whether a wanted row can still be had."""
        if row.cgroup_id in self._targets:
            return False
        return row.rule is None or (row.cgroup_id, row.rule) not in self._rules

    def may_go(self, row: Attachment) -> bool:
        """Whether an old row is in nobody's place: what failed leaves there what it would replace."""
        return row.cgroup_id not in self._targets and (row.slot, row.source) not in self._kept

    def outcomes(self) -> list[Outcome]:
        """The targets and rules that failed, with the reason, and what is over."""
        failed = [(cgroup_id, rule, error) for cgroup_id, (rule, error) in self._targets.items()]
        failed += [(cgroup_id, rule, error) for (cgroup_id, rule), error in self._rules.items()]
        failures = [_failure(self.wishes[cgroup_id].target, rule, error) for cgroup_id, rule, error in failed]
        return [*self._ended, *failures]


def _sources_below(wish: Wish, rule: Rule) -> set[Source]:
    """Whose rules stay in the place of one that fails: its own, and those that it beats."""
    own = {item.source for item in wish.rules if rule in (item.rule, item.rule.on_egress_alone)}
    return own | {source for source, other in wish.beaten if other.succession_key == rule.succession_key}


def _failure(target: Target, rule: Rule | None, error: PodmgrError) -> Outcome:
    return Outcome(target.name, rule, Action.FAILED, None, error, target.pod)
