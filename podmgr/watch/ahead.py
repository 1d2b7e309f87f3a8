"""Programs are compiled when a pod is known, before its cgroup or its network is there.

Owns the thread that does it, one pod after the other, those of built-in programs first. Nobody waits for
it: what it has not done yet the transaction does.

Apart from `loop`, which alone uses it: it has a thread and a lock of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from podmgr.attachment import Wish
from podmgr.proc import Runner
from podmgr.reconcile.ahead import compile_ahead
from podmgr.settings import Settings
from podmgr.watch.journal import Journal

MOST_PODS = 1024  # that are remembered


class Ahead:
    """Any thread asks; what was done for the rules of a pod is not done again for the same rules."""

    def __init__(
        self, settings: Settings, journal: Journal, stopping: threading.Event, *, runner: Runner
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._stopping = stopping
        self._runner = runner
        self._asked: dict[str, Wish] = {}
        self._done: dict[str, object] = {}
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, wishes: Sequence[Wish]) -> None:
        """What these pods will need."""
        new = [wish for wish in wishes if self._done.get(wish.target.owner) != _needed(wish)]
        if not new:
            return
        with self._news:
            self._asked |= {wish.target.owner: wish for wish in new}
            self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
            self._thread.start()

    def forget(self, uids: Iterable[str]) -> None:
        """These pods need nothing any more, or have it."""
        for uid in uids:
            self._done.pop(uid, None)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._news:
                self._news.wait_for(lambda: self._asked or self._stopping.is_set(), 1.0)
                wish = self._next()
            if wish is None:
                continue
            try:
                compile_ahead(
                    wish,
                    self._settings,
                    runner=self._runner,
                    is_wanted=lambda: not self._stopping.is_set(),
                )
            except Exception as problem:  # it is compiled when it is attached
                self._journal.failure(problem)

    def _next(self) -> Wish | None:
        """The lock is held."""
        if not self._asked:
            return None
        owner = min(self._asked, key=lambda uid: _is_custom(self._asked[uid]))
        wish = self._asked.pop(owner)
        while len(self._done) >= MOST_PODS:
            self._done.pop(next(iter(self._done)))
        self._done[owner] = _needed(wish)
        return wish


def _needed(wish: Wish) -> object:
    """Equal for wishes that need the same programs."""
    return wish.rules, wish.target.counts_loopback


def _is_custom(wish: Wish) -> bool:
    return any(sourced.rule.brings_program for sourced in wish.rules)
