"""Compiling the programs of pods beside the loop, so that nobody waits for what another one wrote.

What strangers write may take a compiler many seconds. A pod's programs are compiled by one worker at a
time, a namespace's by half of them; the namespace that has used least goes first; and one worker is for
those who have hardly used any, and is not niced as the others are.

It compiles, and attaches nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from podmgr.attachment import Wish
from podmgr.errors import PodmgrError
from podmgr.proc import Completed, Limits, Runner
from podmgr.reconcile.preparing import NOTHING, Prepared, prepare
from podmgr.settings import Settings

WORKERS = max(4, os.cpu_count() or 1)
PER_NAMESPACE = WORKERS // 2
MOST_SECONDS = 60.0  # for all programs of a pod; a command that was begun then is ended by its own limit
LIGHT_SECONDS = 2.0  # of a worker's time: who has used less of late is light
HALF_LIFE_SECONDS = 30.0  # of what a namespace has used
PATIENCE_SECONDS = 1.0  # what is enforced waits no longer for what the pod itself brings
_RESTED_SECONDS = 0.01
_NICE = 10

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Ready = Callable[[str, float], None]  # of which pod, and in how many seconds


@dataclass(slots=True)
class _Job:
    """The programs of one pod. `enforced`: those of podmgr's own, once they are compiled.

    `was_ahead`: begun before the pod's place was known; `is_ahead`: and nobody waits for them yet.
    """

    wish: Wish
    asked_at: float
    is_ahead: bool = False
    was_ahead: bool = False
    is_running: bool = False
    enforced: Prepared | None = None
    done: Prepared | None = None


@dataclass(slots=True)
class _Used:
    """Seconds of workers' time, which are forgotten by and by."""

    seconds: float = 0.0
    at: float = 0.0

    def now(self, now: float) -> float:
        return float(self.seconds * 0.5 ** ((now - self.at) / HALF_LIFE_SECONDS))


@dataclass(slots=True)
class _Namespace:
    used: _Used = field(default_factory=_Used)
    running: int = 0


class Workshop:
    """Prepares the wishes of pods. `ready` is told of each that is done, by any thread."""

    def __init__(
        self,
        settings: Settings,
        ready: Ready,
        *,
        runner: Runner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._runner = runner
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._busy: set[str] = set()  # pods that a worker is at, perhaps for a wish that is past
        self._namespaces: dict[str, _Namespace] = {}
        self._changed = threading.Condition()
        self._has_workers = False
        self._is_closed = False
        self._went_on_at = clock()
        self._is_first_free = True  # the worker for the light ones

    def ready_of(self, wishes: Iterable[Wish], by_hand: Container[str]) -> tuple[list[Wish], Prepared]:
        """The wishes that may be done now, with what was compiled for them.

        A wish of podmgr's own programs is tried without: they mostly are in the store. `by_hand` are the
        owners of those where the command line put a custom program.
        """
        ready, known = [], NOTHING
        for wish in wishes:
            uid = wish.target.owner
            brings = uid in by_hand or any(sourced.rule.brings_program for sourced in wish.rules)
            if brings or self.has(uid):
                found = self.prepared(wish)
                if found is None:
                    continue
                known |= found
            ready.append(wish)
        return ready, known

    def prepared(self, wish: Wish) -> Prepared | None:
        """What was compiled for the pod; None as long as it is not, which is begun.

        Once only: the next time it is begun anew.
        """
        uid = wish.target.owner
        with self._changed:
            job = self._jobs.get(uid)
            if job is None or not _is_for(job, wish):
                self._went_on_at = self._clock()
                self._jobs[uid] = _Job(wish, job.asked_at if job and not job.done else self._went_on_at)
                self._begin()
                return None
            if job.done is not None:
                if not wish.is_early:  # what acts on interfaces is taken later
                    del self._jobs[uid]
                return job.done
            job.is_ahead = False
            if job.enforced is not None and self._clock() >= job.asked_at + PATIENCE_SECONDS:
                return job.enforced
            return None

    def ahead(self, wish: Wish) -> None:
        """Begin to prepare for a pod of which is not known yet where its cgroup and its network will be."""
        uid = wish.target.owner
        with self._changed:
            job = self._jobs.get(uid)
            if wish.rules and (job is None or not _is_for(job, wish)):
                self._jobs[uid] = _Job(wish, self._clock(), is_ahead=True, was_ahead=True)
                self._begin()

    def has(self, uid: str) -> bool:
        """Whether something is under way for the pod that is waited for, or is ready."""
        with self._changed:
            job = self._jobs.get(uid)
            return job is not None and (job.done is not None or not job.is_ahead)

    def forget(self, uids: Iterable[str]) -> None:
        """These pods are gone."""
        with self._changed:
            for uid in uids:
                self._jobs.pop(uid, None)

    def idle_seconds(self) -> float:
        """How long nothing was asked for or has become ready."""
        with self._changed:
            return self._clock() - self._went_on_at

    def close(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._jobs.clear()
            self._is_closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        """The pods whose programs are compiled and waited for, or were and nobody has taken them."""
        with self._changed:
            return sum(not job.is_ahead for job in self._jobs.values())

    def _begin(self) -> None:
        if not self._has_workers:
            self._has_workers = True
            for number in range(WORKERS):
                work = threading.Thread(target=self._work, args=(not number,), name="compiler", daemon=True)
                work.start()
        self._changed.notify_all()

    def _work(self, is_for_light: bool) -> None:
        if not is_for_light:
            with suppress(OSError):  # of this thread, and of what it starts
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            with self._changed:
                while (job := self._next(is_for_light)) is None:
                    if self._is_closed:
                        return
                    self._changed.wait()
                namespace = self._namespaces.setdefault(_namespace_of(job), _Namespace())
                job.is_running = True
                self._is_first_free &= not is_for_light
                namespace.running += 1
                self._busy.add(job.wish.target.owner)
            started = self._clock()
            try:
                self._do(job, started + MOST_SECONDS)
            finally:
                now = self._clock()
                with self._changed:
                    self._is_first_free |= is_for_light
                    self._went_on_at = now
                    namespace.running -= 1
                    namespace.used = _Used(namespace.used.now(now) + now - started, now)
                    self._busy.discard(job.wish.target.owner)
                    self._forget_who_rests(now)
                    self._changed.notify_all()
            if not job.is_ahead:
                self._ready(job.wish.target.owner, 0.0)

    def _forget_who_rests(self, now: float) -> None:
        for name, namespace in list(self._namespaces.items()):
            if not namespace.running and namespace.used.now(now) < _RESTED_SECONDS:
                del self._namespaces[name]

    def _next(self, is_for_light: bool) -> _Job | None:
        """Of whose namespace has used least: what was asked for first. What is light the others take only
        while the worker for that is at work.
        """
        now = self._clock()
        waiting: list[tuple[float, float, int, _Job]] = []
        for number, (uid, job) in enumerate(self._jobs.items()):
            namespace = self._namespaces.get(_namespace_of(job), _Namespace())
            used = namespace.used.now(now)
            if job.is_running or uid in self._busy or namespace.running >= PER_NAMESPACE:
                continue
            if is_for_light == (used < LIGHT_SECONDS) or not (is_for_light or self._is_first_free):
                waiting.append((used, job.asked_at, number, job))
        return min(waiting)[3] if waiting else None

    def _do(self, job: _Job, deadline: float) -> None:
        runner = _until(self._runner, deadline, self._clock)
        is_guess = job.was_ahead

        def try_(*, with_custom: bool, before: Prepared = NOTHING) -> Prepared:
            return prepare(
                [job.wish],
                self._settings,
                runner=runner,
                each=_one_by_one,
                before=before,
                with_custom=with_custom,
                is_ahead=is_guess,
            )

        try:
            own = NOTHING
            if job.wish.enforcing:
                own = try_(with_custom=False)
                job.enforced = own
                self._ready(job.wish.target.owner, PATIENCE_SECONDS)
            job.done = try_(with_custom=True, before=own)
        except Exception:  # the transaction meets it too, and tells the loop, which owns what is said
            job.done = Prepared(owners=frozenset({job.wish.target.owner}))


def _is_for(job: _Job, wish: Wish) -> bool:
    """Whether the wish takes the same programs: in what was done ahead, the cgroup is a guess."""
    mine, other = job.wish.target, wish.target
    return job.wish.rules == wish.rules and (mine == other or (job.was_ahead and mine.pod == other.pod))


def _namespace_of(job: _Job) -> str:
    pod = job.wish.target.pod
    return pod.namespace if pod else ""


def _one_by_one(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return [work(item) for item in items]


def _until(runner: Runner, deadline: float, clock: Callable[[], float]) -> Runner:
    """Starts nothing once the time is over."""

    def run(
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        if clock() >= deadline:
            raise PodmgrError(
                f"the pod's programs take longer than {MOST_SECONDS:.0f} s to compile",
                tip="fewer programs, or such as take a compiler less time",
            )
        return runner(argv, stdin=stdin, pass_fds=pass_fds, limits=limits, env=env)

    return run
