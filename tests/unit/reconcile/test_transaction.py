"""What needs no kernel of the transactions: exit codes, remarks, and whose pins a target's are."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.attachment import Cgroup, PodRef, Target
from podmgr.errors import PodmgrError
from podmgr.reconcile.outcome import Action, Outcome, exit_code, remarks
from podmgr.rules.rule import Hook
from tests.unit.samples import parsed

LOSS = "loss=uniform egress 1%"
CGROUP = Cgroup(Path("/cgroups/a"), 77)


def outcome(target: str, action: Action) -> Outcome:
    error = PodmgrError("it failed") if action is Action.FAILED else None
    return Outcome(target, parsed(LOSS), action, None, error)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([("a", Action.UNCHANGED)], 0),
        ([("a", Action.ATTACHED), ("a", Action.DETACHED), ("b", Action.REPLACED)], 0),
        ([("a", Action.FAILED)], 1),
        ([("a", Action.FAILED), ("b", Action.FAILED)], 1),
        ([("a", Action.ATTACHED), ("a", Action.FAILED)], 1),
        ([("a", Action.ATTACHED), ("b", Action.FAILED)], 3),
        ([("a", Action.FAILED), ("b", Action.UNCHANGED)], 3),
    ],
)
def test_exit_code_tells_all_none_and_some_targets_apart(
    outcomes: list[tuple[str, Action]], code: int
) -> None:
    assert exit_code(outcome(target, action) for target, action in outcomes) == code


@pytest.mark.parametrize(
    ("pod", "owner"),
    [(None, "77"), (PodRef("default", "web", ""), "77"), (PodRef("default", "web", "u-1"), "u-1")],
)
def test_pins_belong_to_the_pod_or_else_to_the_cgroup(pod: PodRef | None, owner: str) -> None:
    assert Target("web", CGROUP, pod).owner == owner


# Remarks


def placed(action: Action, hook: str, note: str = "", *, target: str = "a") -> Outcome:
    return Outcome(target, parsed(LOSS), action, 7, hook=Hook(hook), note=note)


@pytest.mark.parametrize("action", [Action.ATTACHED, Action.REPLACED])
def test_new_rule_is_told_why_it_is_where_it_is_and_what_it_is_not(action: Action) -> None:
    where, what = remarks([placed(action, "cgroup", "finds no interface that is up")])
    assert where == f"{LOSS} is at the cgroup hook: it finds no interface that is up"
    assert what.startswith("loss egress at the cgroup hook is not loss to TCP")


def test_rule_at_its_own_hook_needs_no_remark() -> None:
    assert remarks([placed(Action.ATTACHED, "tc")]) == []


@pytest.mark.parametrize("action", [Action.UNCHANGED, Action.DETACHED, Action.FAILED, Action.SKIPPED])
def test_only_new_rules_are_remarked_upon(action: Action) -> None:
    assert remarks([placed(action, "cgroup", "finds no interface that is up")]) == []


def test_what_is_not_a_rule_is_not_remarked_upon() -> None:
    """A target that failed as a whole has none, and of an unknown program only its number is known."""
    outcomes = [Outcome("a", None, Action.FAILED), Outcome("a", None, Action.DETACHED, 5, hook=Hook.TC)]
    assert remarks(outcomes) == []
    assert [outcome.subject for outcome in outcomes] == ["", "program 5"]


def test_each_remark_is_made_once() -> None:
    several = [placed(Action.ATTACHED, "cgroup", "is alone", target=name) for name in "abc"]
    others = [placed(Action.ATTACHED, "cgroup", target="d"), placed(Action.ATTACHED, "cgroup", "is shared")]
    lines = remarks([*several, *others])
    assert len(lines) == 3
    assert [line for line in lines if "is at the cgroup hook" in line] == [
        f"{LOSS} is at the cgroup hook: it is alone",
        f"{LOSS} is at the cgroup hook: it is shared",
    ]
