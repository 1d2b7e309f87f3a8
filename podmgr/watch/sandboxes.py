"""Pods that the runtime is about to start wait until their rules are in force: `watch --nri`.

Owns the thread that is registered with the runtime, and connects again when that has gone; who is waited for;
and what is said where it was in vain. Bringing pods in order is the loop's.

Apart from `loop`, which alone uses it: it has threads and a lock of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from podmgr.attachment import PodRef
from podmgr.cluster import reasons
from podmgr.cluster.backoff import Backoff
from podmgr.errors import PodmgrError
from podmgr.runtime.nri import Sandbox, Session
from podmgr.watch import events
from podmgr.watch.journal import Journal
from podmgr.watch.telling import Announce

_FIRST_SECONDS, _MOST_SECONDS = 0.1, 10.0  # between two attempts to connect
_NOT_YET = "its rules are not in force yet"


@dataclass(frozen=True, slots=True)
class Nri:
    """How to be asked. `is_required`: a pod whose rules cannot be had does not start."""

    socket: Path
    is_required: bool = False


@dataclass(eq=False, slots=True)
class Asked:
    """A pod that is waited for, by the UID that the API server gave it."""

    uid: str
    answered: threading.Event = field(default_factory=threading.Event)
    reason: str = _NOT_YET  # why it is not in order

    def answer(self, reason: str) -> None:
        self.reason = reason
        self.answered.set()


class Sandboxes:
    """`meet` is told of a pod, and says the UIDs of those that have rules; `hurry` gets these done."""

    def __init__(
        self,
        nri: Nri | None,
        meet: Callable[[Sandbox], Collection[str]],
        hurry: Callable[[set[str]], None],
        journal: Journal,
        announce: Announce,
        stopping: threading.Event,
    ) -> None:
        self._nri = nri
        self._meet = meet
        self._hurry = hurry
        self._journal = journal
        self._announce = announce
        self._stopping = stopping
        self._asked: list[Asked] = []
        self._begun: set[Asked] = set()
        self._lock = threading.Lock()
        self._session: Session | None = None

    # Called by the loop.

    def start(self) -> None:
        """Be registered from now on, once all rules are known; else pods would wait for nothing."""
        if self._nri is not None:
            threading.Thread(target=self._run, args=[self._nri], name="nri", daemon=True).start()

    def stop(self) -> None:
        """Let every pod start: nobody is there to give it rules."""
        session = self._session
        if session is not None:
            session.close()
        with self._lock:
            for asked in self._asked:
                asked.answer("")

    def urgent(self) -> set[str]:
        """The pods that are waited for, and that nobody has begun with."""
        with self._lock:
            return {asked.uid for asked in self._asked if asked not in self._begun}

    def begin(self, uids: Iterable[str]) -> list[Asked]:
        """Who waits for one of these pods now. What is true of it later is true for these."""
        wanted = set(uids)
        with self._lock:
            found = [asked for asked in self._asked if asked.uid in wanted]
            self._begun.update(found)
            return found

    def end(self, asked: Iterable[Asked], failures: Mapping[str, str], unfinished: Collection[str]) -> None:
        """It was tried: with some it failed, some are not done yet, and the rest are in order."""
        for one in asked:
            if one.uid in unfinished:
                one.reason = failures.get(one.uid, _NOT_YET)
            else:
                one.answer(failures.get(one.uid, ""))

    # Called by threads of the session.

    def judge(self, sandbox: Sandbox, deadline: float) -> str:
        """Wait until its rules are in force; why it may not start, "" if it may."""
        try:
            reason = self._wait([Asked(uid) for uid in self._meet(sandbox)], deadline)
        except Exception as problem:  # it is as if its rules could not be had
            self._journal.failure(problem)
            reason = str(problem)
        return self._say(sandbox, reason) if reason and not self._stopping.is_set() else ""

    def _wait(self, asked: list[Asked], deadline: float) -> str:
        if not asked:
            return ""
        with self._lock:
            self._asked += asked
        try:
            self._hurry({one.uid for one in asked})
            for one in asked:
                one.answered.wait(max(0.0, deadline - time.monotonic()))
        finally:
            with self._lock:
                self._asked = [one for one in self._asked if one not in asked]
                self._begun.difference_update(asked)
        return next((one.reason for one in asked if one.reason), "")

    def _say(self, sandbox: Sandbox, reason: str) -> str:
        assert self._nri is not None
        pod = PodRef(sandbox.namespace, sandbox.name, sandbox.uid)
        is_required = self._nri.is_required
        line = (
            f"is not started (--nri=required): {reason}" if is_required else f"starts all the same: {reason}"
        )
        self._journal.warning(line, **events.names(pod))
        self._announce(pod, reasons.FAILED, line, is_warning=True)
        return reason if is_required else ""

    # The thread that is registered.

    def _run(self, nri: Nri) -> None:
        backoff, said = Backoff(_FIRST_SECONDS, _MOST_SECONDS), ""
        while not self._stopping.is_set():
            try:
                self._session = Session(nri.socket, self.judge)
                self._session.wait_until_configured()
                self._journal.info(
                    f"asked by {self._session.runtime} before pods start", socket=str(nri.socket)
                )
                backoff.reset()
                said = ""
                self._session.serve()
            except PodmgrError as error:
                if not self._stopping.is_set() and error.message != said:
                    said = error.message
                    self._journal.failure(error, before="NRI: ", after="; pods start unasked, trying again")
            except Exception as problem:
                self._journal.failure(problem, before="NRI: ")
            if self._session is not None:
                self._session.close()
            self._stopping.wait(backoff.next_seconds())


def item_of(sandbox: Sandbox) -> dict[str, object]:
    """The pod as the API server has it, as far as the runtime knows it."""
    return {
        "metadata": {
            "namespace": sandbox.namespace,
            "name": sandbox.name,
            "uid": sandbox.uid,
            "labels": sandbox.labels,
            "annotations": sandbox.annotations,
        },
        "spec": {"hostNetwork": sandbox.has_host_network},
        "status": {"phase": "Pending"},
    }
