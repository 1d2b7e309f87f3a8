"""What is to be done next, by key: each key once, when it is due, and not too often.

Adding a key that waits changes nothing but its time, so a burst of events becomes one piece of
work. A key that is added again and again is held back by a token bucket of its own; one that
failed comes back after a growing pause. One thread takes, any thread adds.

Apart from `loop`, which alone uses it: it schedules keys, and knows nothing of pods.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from podmgr.cluster.backoff import Backoff

BURST = 10.0
TOKENS_PER_SECOND = 1.0


@dataclass(slots=True)
class _Bucket:
    """Lets `BURST` pass at once, and then `TOKENS_PER_SECOND`."""

    tokens: float
    at: float

    def refill(self, now: float) -> None:
        self.tokens = min(BURST, self.tokens + (now - self.at) * TOKENS_PER_SECOND)
        self.at = now

    @property
    def wait_seconds(self) -> float:
        return max(0.0, (1.0 - self.tokens) / TOKENS_PER_SECOND)


@dataclass
class WorkQueue:
    """Times are of `clock`, in seconds."""

    clock: Callable[[], float] = time.monotonic
    retry_first_seconds: float = 0.25
    retry_most_seconds: float = 120.0
    _due: dict[str, float] = field(default_factory=dict)
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _backoffs: dict[str, Backoff] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_woken: bool = False

    def add(self, keys: Iterable[str]) -> None:
        """Work on these keys as soon as they may be worked on."""
        with self._changed:
            now = self.clock()
            for key in keys:
                bucket = self._buckets.get(key)
                if bucket is not None:
                    bucket.refill(now)
                due = now + (bucket.wait_seconds if bucket else 0.0)
                self._due[key] = min(due, self._due.get(key, due))
            self._changed.notify()

    def retry(self, key: str, most_seconds: float | None = None) -> float:
        """Work on the key again after a pause, which grows each time; how many seconds."""
        with self._changed:
            backoff = self._backoffs.setdefault(
                key, Backoff(self.retry_first_seconds, self.retry_most_seconds)
            )
            pause = min(backoff.next_seconds(), most_seconds or self.retry_most_seconds)
            due = self.clock() + pause
            self._due[key] = min(due, self._due.get(key, due))
            return pause

    def later(self, key: str, seconds: float) -> None:
        """Work on the key in so long, if nothing else makes it due before."""
        with self._changed:
            due = self.clock() + seconds
            self._due[key] = min(due, self._due.get(key, due))
            self._changed.notify()

    def again(self, key: str, seconds: float) -> None:
        """Go on in so long with work on the key that was begun: that takes nothing from its bucket."""
        with self._changed:
            if key in self._buckets:
                self._buckets[key].tokens += 1
        self.later(key, seconds)

    def done(self, key: str) -> None:
        """The work on the key has succeeded."""
        with self._changed:
            self._backoffs.pop(key, None)

    def wake(self) -> None:
        """Let `take` return at once."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def take(self, timeout_seconds: float) -> set[str]:
        """The keys that are due, waited for; none after the timeout, or when woken."""
        with self._changed:
            deadline = self.clock() + timeout_seconds
            while True:
                now = self.clock()
                keys = {key for key, due in self._due.items() if due <= now}
                if keys or self._is_woken or now >= deadline:
                    break
                self._changed.wait(min([deadline, *self._due.values()]) - now)
            self._is_woken = False
            for key in keys:
                del self._due[key]
                bucket = self._buckets.setdefault(key, _Bucket(BURST, now))
                bucket.refill(now)
                bucket.tokens -= 1
            for key in [key for key, bucket in self._buckets.items() if now - bucket.at > BURST * 2]:
                del self._buckets[key]  # it is full again
            return keys

    def __len__(self) -> int:
        with self._changed:
            return len(self._due)
