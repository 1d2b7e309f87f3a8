"""What became of each rule on each target, and what that makes of the whole command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from podmgr.attachment import Attachment, PodRef
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_PARTLY, EXIT_USAGE, PodmgrError
from podmgr.rules.rule import Hook, Rule
from podmgr.rules.source import Source

Report = Callable[[str], None]  # takes one line for the user, beside the results
Failures = list[tuple[Attachment, PodmgrError]]


class Action(StrEnum):
    """What became of a rule."""

    ATTACHED = "attached"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    DETACHED = "detached"
    SKIPPED = "skipped"
    OVER = "over"  # its time is
    FAILED = "failed"


class Outcome(NamedTuple):
    """What became of one rule on one target. `pod` is None for a plain cgroup.

    `rule` None: of the target as a whole, or of a program that only its pin tells of.
    `note` says why the rule is not at the hook where it would otherwise be, or why that is not known.
    """

    target: str
    rule: Rule | None
    action: Action
    program_id: int | None = None
    error: PodmgrError | None = None
    pod: PodRef | None = None
    source: Source | None = None
    hook: Hook | None = None
    note: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """The target, told apart from those of the same name in other namespaces."""
        return (self.pod.namespace if self.pod else "", self.target)

    @property
    def subject(self) -> str:
        """The rule as users write it, or the program without one; "" for the target as a whole."""
        if self.rule is not None:
            return str(self.rule)
        return "" if self.program_id is None else f"program {self.program_id}"


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0: all done; 1: all failed; 2: all, for what the user wrote; 3: some targets, or skipped.

    A target is done, too, of which all failed that cannot be read, and the rest is in force: 3.
    """
    outcomes = list(outcomes)
    failed = [outcome for outcome in outcomes if outcome.action is Action.FAILED]
    skipped = {outcome.place for outcome in outcomes if outcome.action is Action.SKIPPED}
    if not failed:
        return EXIT_PARTLY if skipped else EXIT_DONE
    broken = {item.place for item in failed if not (item.error and item.error.exit_code == EXIT_USAGE)}
    if {outcome.place for outcome in outcomes if outcome not in failed} - broken - skipped:
        return EXIT_PARTLY
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error is not None}
    return EXIT_USAGE if codes == {EXIT_USAGE} else EXIT_FAILED


def remarks(outcomes: Iterable[Outcome]) -> list[str]:
    """What there is to know of rules that are new: why where they are, and what they are not. Each once."""
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.rule is None or outcome.action not in (Action.ATTACHED, Action.REPLACED):
            continue
        if outcome.hook is None:
            lines.append(f"{outcome.rule}: {outcome.note}")
            continue
        if outcome.note:
            lines.append(f"{outcome.rule} is at the {outcome.hook} hook: it {outcome.note}")
        lines += outcome.rule.caveats(outcome.hook)
    return list(dict.fromkeys(lines))
