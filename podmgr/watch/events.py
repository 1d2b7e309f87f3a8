"""The wording of what a user reads of a pod: in Kubernetes Events, and in the lines of the log.

Pure. Events are posted by `cluster.announcer`, for reasons that `cluster.reasons` names;
`cluster.told` reads them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from podmgr.attachment import PodRef
from podmgr.cluster.reasons import APPLIED, OVER, REMOVED
from podmgr.errors import PodmgrError, RuleError
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.rules.source import POD

MOST_LINES = 10  # of one pod and kind, in the log and in an Event
REASONS = {Action.ATTACHED: APPLIED, Action.REPLACED: APPLIED, Action.DETACHED: REMOVED, Action.OVER: OVER}


def told(outcome: Outcome) -> str:
    """A rule as an Event shows it: whose it is, and at which hook."""
    details = [str(outcome.source)] if outcome.source not in (None, POD) else []
    if outcome.action not in (Action.DETACHED, Action.OVER):
        details.append(f"{outcome.hook} hook" + (f", since it {outcome.note}" if outcome.note else ""))
    return outcome.subject + (f" ({', '.join(details)})" if details else "")


def line(error: PodmgrError) -> str:
    """The error and its tip in one line, with the value or what clang or the verifier said of it."""
    lines = [line.strip() for line in (error.detail or "").splitlines() if line.strip()]
    if isinstance(error, RuleError):
        telling = lines[0] if lines else ""
    else:
        telling = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    return error.message + (f" ({telling})" if telling else "") + (f"; {error.tip}" if error.tip else "")


def some(lines: Sequence[str]) -> list[str]:
    """So many that a stranger's annotations do not fill the log."""
    left = len(lines) - MOST_LINES
    return [*lines] if left <= 0 else [*lines[:MOST_LINES], f"and {left} more"]


def names(pod: PodRef) -> dict[str, str]:
    return {"namespace": pod.namespace, "pod": pod.name, "uid": pod.uid}
