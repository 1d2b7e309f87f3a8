"""Telling of rules that are attached while packets pass them by: each once, until it sees packets again.

Apart from `podsync`, which alone uses it: it compares what was counted at two looks.
"""

from __future__ import annotations

from typing import Protocol

from podmgr.attachment import PodRef, Slot
from podmgr.cluster import reasons
from podmgr.errors import PodmgrError
from podmgr.reconcile.observe import Observed, bypassed_text, observe, since
from podmgr.settings import Settings
from podmgr.watch import events
from podmgr.watch.journal import Journal


class Announce(Protocol):
    """Says something on a pod, where `kubectl describe` shows it."""

    def __call__(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None: ...


class Bypassed:
    """One thread looks."""

    def __init__(self, settings: Settings, journal: Journal, announce: Announce) -> None:
        self._settings = settings
        self._journal = journal
        self._announce = announce
        self._observed: list[Observed] = []
        self._bypassed: set[Slot] = set()

    def look(self) -> None:
        """Tell, once, of rules of pods that are attached while packets pass them by, since the last look."""
        try:
            observed = observe(self._settings)[0]
        except PodmgrError:
            return  # what cannot be looked at is told elsewhere
        before = {item.attachment.identity: item.counters for item in self._observed}
        now = since(self._observed, observed)
        self._observed = observed
        for item in now:
            if not item.is_bypassed:
                continue
            row = item.attachment
            if row.pod is None or row.identity in self._bypassed:
                continue
            line = bypassed_text(item)
            self._journal.warning(line, **events.names(row.pod))
            self._announce(row.pod, reasons.BYPASSED, line, is_warning=True)
            self._bypassed.add(row.identity)
        self._bypassed &= {  # until it sees packets again, or is gone
            item.attachment.identity
            for item in now
            if item.is_bypassed or item.counters == before.get(item.attachment.identity)
        }
