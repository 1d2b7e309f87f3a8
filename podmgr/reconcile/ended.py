"""Pods that end while they are brought in order: that their programs cannot be had is no failure."""

from __future__ import annotations

from collections.abc import Iterable

from podmgr.attachment import PodRef, Wish
from podmgr.kernel import cgroup_life, cgroups
from podmgr.reconcile.outcome import Action, Outcome


def without_ended(outcomes: Iterable[Outcome], wishes: Iterable[Wish]) -> tuple[list[Outcome], list[PodRef]]:
    """The outcomes but for the failures of pods that have no process any more, and these pods."""
    outcomes = list(outcomes)
    failed = {item.pod for item in outcomes if item.action is Action.FAILED and item.pod is not None}
    ended = [wish.target.pod for wish in wishes if wish.target.pod in failed and _has_ended(wish)]
    kept = [item for item in outcomes if item.action is not Action.FAILED or item.pod not in ended]
    return kept, [pod for pod in ended if pod is not None]


def _has_ended(wish: Wish) -> bool:
    """One that waits for its first process has not."""
    cgroup, is_to_come = wish.target.cgroup, wish.is_early or wish.network is not None
    return not (cgroups.exists(cgroup) and (is_to_come or cgroup_life.is_populated(cgroup)))
