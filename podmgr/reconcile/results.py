"""What a transaction has done, or would do, as outcomes.

Apart from `transaction`, which alone uses it: it touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from podmgr.attachment import Attachment
from podmgr.errors import PodmgrError
from podmgr.reconcile.decided import Decided
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.reconcile.plan import Plan

if TYPE_CHECKING:  # `list` and `clean` need no programs, and start 10 ms sooner without
    from podmgr.reconcile.desired import Desired


def told(decided: Decided, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """All outcomes. What is over is told so, and not that it is detached, too."""
    first = decided.outcomes()
    over = {(item.target, item.rule) for item in first if item.action is Action.OVER}
    return first + [
        item
        for item in outcomes
        if item.action is not Action.DETACHED or (item.target, item.rule) not in over
    ]


def outcomes_of(plan: Plan, desired: Desired) -> list[Outcome]:
    notes, unplaced = desired.notes, desired.unplaced

    def outcome(row: Attachment, action: Action) -> Outcome:
        if row.identity in unplaced:
            return outcome_of(row, action)._replace(
                hook=None, note="where it acts is known when it is compiled"
            )
        return outcome_of(row, action)._replace(note=notes.get(row.identity, ""))

    anew = {identity for identity, lookup in desired.lookups.items() if lookup.begins_anew}
    outcomes = [
        outcome(row, Action.REPLACED if row.identity in anew else Action.UNCHANGED) for row in plan.unchanged
    ]
    outcomes += [
        outcome(row, Action.REPLACED if row.slot in plan.replaced else Action.ATTACHED) for row in plan.attach
    ]
    outcomes += [outcome_of(row, Action.DETACHED) for row in plan.detach if row.slot not in plan.replaced]
    return outcomes


def outcome_of(row: Attachment, action: Action, error: PodmgrError | None = None) -> Outcome:
    return Outcome(row.target, row.rule, action, row.program_id, error, row.pod, row.source, row.hook)
