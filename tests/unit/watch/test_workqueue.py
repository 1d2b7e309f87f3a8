"""The queue: nothing is lost or given out twice, a burst is one piece of work, what failed waits longer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.watch.workqueue import BURST, TOKENS_PER_SECOND, WorkQueue


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock)


def taken_in(queue: WorkQueue, clock: Clock, seconds: float, step: float = 0.125) -> list[set[str]]:
    """What is taken in that time by one who looks often."""
    end, found = clock.now + seconds, []
    while clock.now < end:
        clock.now += step
        if keys := queue.take(0):
            found.append(keys)
    return found


def exhaust(queue: WorkQueue, key: str) -> None:
    """Take the key so often that it is held back from now on."""
    for _ in range(int(BURST)):
        queue.add([key])
        assert queue.take(0) == {key}


# Taking


def test_empty_queue_gives_nothing(queue: WorkQueue) -> None:
    assert queue.take(0) == set()
    assert len(queue) == 0


def test_all_that_is_due_is_taken_at_once_and_is_gone(queue: WorkQueue) -> None:
    queue.add(["a", "b"])
    queue.add(["c"])
    assert len(queue) == 3
    assert queue.take(0) == {"a", "b", "c"}
    assert queue.take(0) == set()


def test_key_that_was_added_many_times_is_taken_once(queue: WorkQueue) -> None:
    for _ in range(100):
        queue.add(["a", "a"])
    assert queue.take(0) == {"a"}
    assert queue.take(0) == set()


def test_key_that_comes_again_while_it_is_worked_on_is_taken_again(queue: WorkQueue) -> None:
    queue.add(["a"])
    queue.take(0)
    queue.add(["a"])
    queue.done("a")
    assert queue.take(0) == {"a"}


# Too often


def test_key_that_comes_again_and_again_is_held_back(queue: WorkQueue, clock: Clock) -> None:
    exhaust(queue, "a")
    queue.add(["a"])
    assert queue.take(0) == set()
    assert len(queue) == 1
    clock.now += 0.99 / TOKENS_PER_SECOND
    assert queue.take(0) == set()
    clock.now += 0.02 / TOKENS_PER_SECOND
    assert queue.take(0) == {"a"}


def test_key_that_is_held_back_holds_no_other_back(queue: WorkQueue) -> None:
    exhaust(queue, "a")
    queue.add(["a", "b"])
    assert queue.take(0) == {"b"}


def test_noise_about_a_key_that_is_held_back_does_not_put_it_off(queue: WorkQueue, clock: Clock) -> None:
    exhaust(queue, "a")
    for _ in range(12):
        queue.add(["a"])
        clock.now += 0.1
    assert queue.take(0) == {"a"}


@given(st.lists(st.floats(0, 3), min_size=1, max_size=80))
def test_key_is_never_taken_more_often_than_the_bucket_allows(pauses: list[float]) -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    start, count = clock.now, 0
    for pause in pauses:
        clock.now += pause
        queue.add(["a"])
        count += len(queue.take(0))
        assert count <= BURST + (clock.now - start) * TOKENS_PER_SECOND + 1e-6


def test_bucket_is_full_again_after_a_while(queue: WorkQueue, clock: Clock) -> None:
    exhaust(queue, "a")
    clock.now += BURST / TOKENS_PER_SECOND
    exhaust(queue, "a")
    queue.add(["a"])
    assert queue.take(0) == set()


def test_bucket_never_holds_more_than_a_burst(queue: WorkQueue, clock: Clock) -> None:
    queue.add(["a"])
    queue.take(0)
    clock.now += BURST * 1.9  # not yet forgotten
    exhaust(queue, "a")
    queue.add(["a"])
    assert queue.take(0) == set()


def test_ten_pass_at_once_and_then_one_each_second(queue: WorkQueue, clock: Clock) -> None:
    counts = []
    for _ in range(12):
        queue.add(["a"])
        counts.append(len(queue.take(0)))
    assert counts == [1] * 10 + [0, 0]
    clock.now += 1.001
    assert queue.take(0) == {"a"}


def test_key_that_was_worked_on_after_failures_is_not_forgotten(
    queue: WorkQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", min)
    queue.add(["a"])
    queue.take(0)
    clock.now += BURST * 2 - 1
    for _ in range(int(BURST)):
        queue.done("a")
        clock.now += queue.retry("a") + 1e-9
        assert queue.take(0) == {"a"}
    clock.now += 0.5
    queue.take(0)
    queue.add(["a"])
    queue.take(0)
    queue.add(["a"])
    assert queue.take(0) == set()


def test_keys_of_long_ago_are_forgotten(queue: WorkQueue, clock: Clock) -> None:
    queue.add(str(number) for number in range(1000))
    queue.take(0)
    clock.now += BURST * 3
    queue.add(["a"])
    queue.take(0)
    assert set(queue._buckets) == {"a"}


# Failures


def test_key_that_failed_comes_back_after_the_pause(queue: WorkQueue, clock: Clock) -> None:
    pause = queue.retry("a")
    assert 0 < pause <= queue.retry_first_seconds
    assert queue.take(0) == set()
    clock.now += pause + 1e-9
    assert queue.take(0) == {"a"}


def test_pauses_grow_up_to_the_most_and_begin_anew_once_it_has_worked(
    queue: WorkQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", max)

    def failing(times: int) -> list[float]:
        pauses = []
        for _ in range(times):
            pauses.append(queue.retry("a"))
            clock.now += pauses[-1]
            assert queue.take(0) == {"a"}
        return pauses

    assert failing(12) == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 120, 120, 120]
    queue.done("a")
    assert failing(2) == [0.25, 0.5]


def test_pause_can_be_bounded(queue: WorkQueue, clock: Clock) -> None:
    for _ in range(20):
        assert queue.retry("a", 2.0) <= 2.0
    clock.now += 2.0
    assert queue.take(0) == {"a"}


def test_news_of_a_key_that_waits_after_a_failure_do_not_wait(queue: WorkQueue) -> None:
    for _ in range(8):
        queue.retry("a")
    queue.add(["a"])
    assert queue.take(0) == {"a"}


def test_failure_of_one_key_leaves_the_pauses_of_others_short(queue: WorkQueue) -> None:
    for _ in range(10):
        queue.retry("a")
    assert queue.retry("b") <= queue.retry_first_seconds


def test_retry_does_not_put_off_what_is_due_sooner(queue: WorkQueue) -> None:
    queue.add(["a"])
    queue.retry("a")
    assert queue.take(0) == {"a"}


# Nothing is lost

KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.tuples(st.just("add"), st.lists(KEYS, max_size=3))
    | st.tuples(st.sampled_from(["retry", "done"]), KEYS.map(lambda key: [key]))
    | st.tuples(st.just("pass"), st.floats(0, 30))
    | st.tuples(st.just("take"), st.none()),
    max_size=60,
)


@given(STEPS)
def test_every_key_that_was_put_in_comes_out_and_no_other(steps: list[tuple[str, object]]) -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    waiting: set[str] = set()
    for action, argument in steps:
        if action == "pass" and isinstance(argument, float):
            clock.now += argument
        elif action == "take":
            keys = queue.take(0)
            assert keys <= waiting
            waiting -= keys
        elif isinstance(argument, list):
            for key in argument:
                if action == "retry":
                    queue.retry(key)
                elif action == "done":
                    queue.done(key)
            if action == "add":
                queue.add(argument)
            if action != "done":
                waiting.update(argument)
        assert len(queue) == len(waiting)
    found = taken_in(queue, clock, 200, step=1)
    assert set().union(*found) == waiting
    assert sum(map(len, found)) == len(waiting)


# Threads, on the real clock


def adding_from_threads(queue: WorkQueue, keys: Iterable[str], threads: int = 8) -> list[threading.Thread]:
    work = list(keys)

    def add(offset: int) -> None:
        for key in work[offset:] + work[:offset]:
            queue.add([key])

    started = [threading.Thread(target=add, args=(number * 7,)) for number in range(threads)]
    for thread in started:
        thread.start()
    return started


def test_keys_that_many_threads_add_are_all_taken() -> None:
    queue = WorkQueue()
    keys = {str(number) for number in range(300)}
    threads = adding_from_threads(queue, sorted(keys))
    taken: Counter[str] = Counter()
    while any(thread.is_alive() for thread in threads) or len(queue):
        taken.update(queue.take(0.05))
    assert set(taken) == keys
    assert max(taken.values()) <= len(threads)  # never more often than it was added


def test_taking_sleeps_until_another_thread_adds() -> None:
    queue = WorkQueue()
    threading.Timer(0.05, queue.add, [["a"]]).start()
    started = time.monotonic()
    assert queue.take(5) == {"a"}
    assert 0.04 < time.monotonic() - started < 2


def test_taking_sleeps_until_a_retry_is_due() -> None:
    queue = WorkQueue(retry_first_seconds=0.1)
    pause = queue.retry("a")
    started = time.monotonic()
    assert queue.take(5) == {"a"}
    assert pause - 0.01 <= time.monotonic() - started < pause + 1


def test_taking_ends_after_the_timeout() -> None:
    started = time.monotonic()
    assert WorkQueue().take(0.05) == set()
    assert 0.05 <= time.monotonic() - started < 2


def test_wake_ends_the_sleep() -> None:
    queue = WorkQueue()
    threading.Timer(0.05, queue.wake).start()
    started = time.monotonic()
    assert queue.take(5) == set()
    assert time.monotonic() - started < 2


def test_wake_that_comes_before_the_sleep_counts_once() -> None:
    queue = WorkQueue()
    queue.wake()
    started = time.monotonic()
    assert queue.take(5) == set()
    assert time.monotonic() - started < 2
    assert queue.take(0.05) == set()
    assert time.monotonic() - started >= 0.05
