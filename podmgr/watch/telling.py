"""What has been said of pods, in the journal and as Kubernetes Events: each complaint once until it changes.

Apart from `podsync`, which alone uses it: that one acts, this one speaks, in the words of `events`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Protocol

from podmgr.attachment import PodRef
from podmgr.cluster import reasons
from podmgr.reconcile.outcome import Outcome
from podmgr.watch import events
from podmgr.watch.journal import Journal
from podmgr.watch.ruled import RuledPod


class Announce(Protocol):
    """Says something on a pod, where `kubectl describe` shows it."""

    def __call__(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None: ...


class Telling:
    """Remembers what it has complained of, and of whom."""

    def __init__(self, journal: Journal, announce: Announce) -> None:
        self._journal = journal
        self.announce = announce
        self._complaints: dict[str, object] = {}
        self._failures: dict[str, set[str]] = {}

    def complain(self, uid: str, item: RuledPod) -> None:
        """Of what cannot be read or is overruled, when it is new."""
        failures = item.failures
        complaints = [*failures, *item.warnings]
        if item.pod is None or not complaints:
            self._complaints.pop(uid, None)
            return
        if self._complaints.get(uid) == complaints:
            return
        self._complaints[uid] = complaints
        self.say_failed(item.pod.ref, failures)
        for line in events.some(item.warnings):
            self._journal.warning(line, **events.names(item.pod.ref))

    def tell(self, outcomes: Iterable[Outcome], uids: Iterable[str], ending: Container[str] = ()) -> set[str]:
        """Say what has changed, an Event for each pod and reason; the UIDs of those that failed.

        A failure that was told at an earlier attempt is not told again. On a pod that is `ending` it is
        nobody's to mend: its interfaces may go before its last process.
        """
        said: dict[tuple[str, str], tuple[PodRef, list[str]]] = {}
        failures: dict[PodRef, list[str]] = {}
        for outcome in outcomes:
            if outcome.pod is None:
                continue
            if outcome.error is not None:
                rule = f"{outcome.rule}: " if outcome.rule else ""
                failures.setdefault(outcome.pod, []).append(rule + events.line(outcome.error))
            elif outcome.action in events.REASONS:
                fields: dict[str, object] = {"rule": outcome.subject, "source": str(outcome.source)}
                fields |= {"hook": outcome.hook, "program_id": outcome.program_id}
                self._journal.info(
                    f"{outcome.subject} {outcome.action}", **events.names(outcome.pod), **fields
                )
                key = (outcome.pod.uid, events.REASONS[outcome.action])
                said.setdefault(key, (outcome.pod, []))[1].append(events.told(outcome))
        for (_, reason), (pod, rules) in said.items():
            self.announce(pod, reason, "; ".join(rules))
        for pod, lines in failures.items():
            if not set(lines) - self._failures.get(pod.uid, set()):
                pass
            elif pod.uid in ending:
                for line in events.some(lines):
                    self._journal.warning(f"while it ends: {line}", **events.names(pod))
            else:
                self.say_failed(pod, lines)
            self._failures[pod.uid] = set(lines)
        failed = {pod.uid for pod in failures}
        for uid in set(uids) - failed:
            self._failures.pop(uid, None)
        return failed

    def say_failed(self, pod: PodRef, lines: Sequence[str]) -> None:
        """Each in the log, all in one Event."""
        shown = events.some(lines)
        for line in shown:
            self._journal.error(line, **events.names(pod))
        if shown:
            self.announce(pod, reasons.FAILED, " | ".join(shown), is_warning=True)
