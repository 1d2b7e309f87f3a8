"""Kubernetes Events on pods, so that `kubectl describe pod` tells what became of its rules.

Posted from a thread of its own, as well as may be: nothing waits for them. A pod gets a few at
once and then one in a while; what is held back of a pod and reason becomes one event with a
count and the newest message.

Apart from `watch.loop`, which alone uses it: a thread of its own, for which nothing waits.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from podmgr.attachment import PodRef
from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.reasons import COMPONENT
from podmgr.errors import PodmgrError, printable, unexpected

_BURST = 10.0
_REFILL_SECONDS = 30.0
_SAME_SECONDS = 600.0  # the same message is not said again within this time
_MAX_MESSAGE = 1_000  # the API server refuses more than 1,024 bytes
_MAX_WAITING = 1_000


@dataclass(slots=True)
class _Notice:
    pod: PodRef
    reason: str
    message: str
    is_warning: bool
    first: datetime
    last: datetime
    count: int = 1


@dataclass
class Announcer:
    """`run` is a thread's whole life. `report` takes a line for the log."""

    connect: Callable[[], Api]
    node: str
    report: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[tuple[str, str], _Notice] = field(default_factory=dict)
    _said: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    _tokens: dict[str, tuple[float, float]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_closing: bool = False
    _is_posting: bool = False
    _has_failed: bool = False

    def announce(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Say it on the pod, soon; not again what was just said."""
        message = _shortened(printable(message))
        key, now = (pod.uid, reason), datetime.now(UTC)
        with self._changed:
            said = self._said.get(key)
            if said and said[0] == message and self.clock() - said[1] < _SAME_SECONDS:
                return
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.message, waiting.last, waiting.count = message, now, waiting.count + 1
            elif len(self._waiting) < _MAX_WAITING:
                self._waiting[key] = _Notice(pod, reason, message, is_warning, now, now)
            if not is_warning:  # something has changed: what was said before may be so anew
                for other in [other for other in self._said if other[0] == pod.uid]:
                    del self._said[other]
            self._said[key] = (message, self.clock())
            self._changed.notify()

    def run(self) -> None:
        """Post what waits, until closed and nothing may be posted any more."""
        api: Api | None = None
        while (notice := self._next()) is not None:
            try:
                api = self._post(api, notice)
                self._has_failed = False
            except Exception as problem:
                api = None
                self._complain(problem if isinstance(problem, PodmgrError) else unexpected(problem))
            with self._changed:
                self._is_posting = False
                self._changed.notify_all()

    def _post(self, api: Api | None, notice: _Notice) -> Api:
        """Post it; the connection that is to be used on."""
        path, event = f"/api/v1/namespaces/{notice.pod.namespace}/events", self._event(notice)
        if api is not None:
            with suppress(PodmgrError):  # its credentials may be old, its connection closed
                api.create(path, event)
                return api
        api = self.connect()
        api.create(path, event)
        return api

    def _complain(self, error: PodmgrError) -> None:
        """Once, until it works again. That the namespace is gone is no failure."""
        if not self._has_failed and not (isinstance(error, StatusError) and error.status in (404, 409)):
            self._has_failed = True
            self.report(f"cannot post events: {error.message}")

    def close(self, timeout_seconds: float) -> None:
        """Post what may be posted still, for so long at most."""
        deadline = self.clock() + timeout_seconds
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            while (self._is_posting or self._postable() is not None) and self.clock() < deadline:
                self._changed.wait(min(0.1, timeout_seconds))

    def _next(self) -> _Notice | None:
        with self._changed:
            while (key := self._postable()) is None:
                if self._is_closing:
                    return None
                self._changed.wait(1.0 if self._waiting else None)
            self._is_posting = True
            self._take_token(key[0])
            return self._waiting.pop(key)

    def _postable(self) -> tuple[str, str] | None:
        return next((key for key in self._waiting if self._tokens_of(key[0]) >= 1), None)

    def _tokens_of(self, uid: str) -> float:
        tokens, at = self._tokens.get(uid, (_BURST, self.clock()))
        return min(_BURST, tokens + (self.clock() - at) / _REFILL_SECONDS)

    def _take_token(self, uid: str) -> None:
        now = self.clock()
        self._tokens[uid] = (self._tokens_of(uid) - 1, now)
        for other in [key for key, (_, at) in self._tokens.items() if now - at > _BURST * _REFILL_SECONDS]:
            del self._tokens[other]
        for key in [key for key, (_, at) in self._said.items() if now - at > _SAME_SECONDS]:
            del self._said[key]

    def _event(self, notice: _Notice) -> dict[str, Any]:
        """core/v1: these fields are what `kubectl describe` shows."""
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{notice.pod.name[:230]}.{secrets.token_hex(8)}",
                "namespace": notice.pod.namespace,
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": notice.pod.name,
                "namespace": notice.pod.namespace,
                "uid": notice.pod.uid,
            },
            "reason": notice.reason,
            "message": notice.message,
            "type": "Warning" if notice.is_warning else "Normal",
            "count": notice.count,
            "firstTimestamp": _rfc3339(notice.first),
            "lastTimestamp": _rfc3339(notice.last),
            "source": {"component": COMPONENT, "host": self.node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.node,
        }


def _shortened(message: str) -> str:
    text = message.encode()[:_MAX_MESSAGE].decode(errors="ignore")
    return text if text == message else text[:-1] + "…"


def _rfc3339(time_: datetime) -> str:
    return time_.strftime("%Y-%m-%dT%H:%M:%SZ")
