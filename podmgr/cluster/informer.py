"""Following a list of the API server for ever: list, watch, reconnect, list again.

A loop over connections, and in each a loop over events; only that knows what they hold. A watch
that ends as agreed goes on where it was; a lost connection too; anything that the server objects
to (410 above all) begins with a new list. Each time the credentials are read anew, so that they
may rotate on disk.

It follows any list, and knows nothing of pods.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.cluster.backoff import Backoff
from podmgr.errors import PodmgrError, unexpected

WATCH_SECONDS = 240  # a connection that is dead without anyone noticing lasts no longer
_QUICK_SECONDS = 1.0  # a watch that ends sooner did not work


class Sink(Protocol):
    """Where the news go. Called from the informer's thread."""

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None: ...
    def put(self, item: Mapping[str, Any]) -> None: ...
    def remove(self, item: Mapping[str, Any]) -> None: ...


@dataclass
class Informer:
    """Follows one resource. `run` is a thread's whole life.

    `is_listed` is set once the sink holds a first list; `failure` is why nothing comes at present. `on_lost`
    hears of the first one, and of a right that is lacking.
    """

    name: str
    path: str
    query: Mapping[str, str]
    connect: Callable[[], Api]
    sink: Sink
    stopping: threading.Event
    on_lost: Callable[[str, PodmgrError], None]
    on_found: Callable[[str], None]
    watch_seconds: int = WATCH_SECONDS
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 15.0))
    is_listed: threading.Event = field(default_factory=threading.Event)
    failure: PodmgrError | None = None
    _version: str | None = None

    def run(self) -> None:
        """List and watch until `stopping` is set; the thread may be left to die with the process."""
        while not self.stopping.is_set():
            try:
                self._connection()
            except Exception as problem:  # a thread that died would leave the rules as they are for ever
                error = problem if isinstance(problem, PodmgrError) else unexpected(problem)
                if not isinstance(error, UnreachableError):
                    self._version = None
                is_outdated = isinstance(error, StatusError) and error.is_gone
                was_lost = self.failure is not None and _is_refusal(self.failure) >= _is_refusal(error)
                if not is_outdated:
                    self.failure = error
                    if not was_lost:
                        self.on_lost(self.name, error)
                self.stopping.wait(self.backoff.next_seconds())

    def _connection(self) -> None:
        """One set of credentials: a list if one is needed, and one watch."""
        api = self.connect()
        try:
            if self._version is None:
                items, version = api.list(self.path, self.query)
                self.sink.replace(items)
                self._version = version
                self.is_listed.set()
            seconds = random.randint(self.watch_seconds * 3 // 4, self.watch_seconds)
            events = api.watch(self.path, self.query, self._version, seconds=seconds)
            if self.failure is not None:
                self.failure = None
                self.on_found(self.name)
            self._watch(events)
        finally:
            api.close()

    def _watch(self, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        started, count = time.monotonic(), 0
        for count, (kind, item) in enumerate(events, start=1):  # noqa: B007  counts
            if kind in ("ADDED", "MODIFIED"):
                self.sink.put(item)
            elif kind == "DELETED":
                self.sink.remove(item)
            version = (item.get("metadata") or {}).get("resourceVersion")
            if version:
                self._version = str(version)
            self.backoff.reset()
            if self.stopping.is_set():
                return
        if not count and time.monotonic() - started < _QUICK_SECONDS:
            self.stopping.wait(self.backoff.next_seconds())


def _is_refusal(error: PodmgrError) -> bool:
    return isinstance(error, StatusError) and error.is_refusal
