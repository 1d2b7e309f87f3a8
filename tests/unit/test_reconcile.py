"""What needs no kernel of the transactions: exit codes, and whose pins a target's are."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.cgroups import Cgroup
from podmgr.desired import Target
from podmgr.errors import PodmgrError
from podmgr.plan import PodRef
from podmgr.reconcile import Action, Outcome, exit_code

CGROUP = Cgroup(Path("/cgroups/a"), 77)


def outcome(target: str, action: Action) -> Outcome:
    error = PodmgrError("it failed") if action is Action.FAILED else None
    return Outcome(target, "loss=uniform egress 1%", action, None, error)


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
