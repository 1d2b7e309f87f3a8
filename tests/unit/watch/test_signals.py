"""What ends a watch, in processes of their own: once in good order, twice at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from podmgr.watch import signals

WATCH = """
import signal, subprocess, sys, threading
from podmgr.watch import signals

def say(word):
    print(word, flush=True)

signal.signal(signal.SIGHUP, signal.SIG_DFL)
signals.block()
signals.on_first_and_second(lambda: say("first"), lambda: say("second"))
say("ready")
if sys.argv[1:]:
    subprocess.Popen(sys.argv[1:])
threading.Event().wait()
"""


@contextmanager
def watching(*tool: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    argv = [sys.executable, "-c", WATCH, *tool]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process, process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: str(n.name))
def test_the_first_is_told_and_the_second_ends_the_process(number: signal.Signals) -> None:
    with watching() as (process, said):
        process.send_signal(number)
        assert said.readline() == "first\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert said.readline() == "second\n"
        assert process.wait(10) == 130


def test_they_do_not_reach_the_tools_that_are_run() -> None:
    """A terminal sends them to all, and a compiler that is stopped in the middle would be a failure."""
    with watching("sh", "-c", "kill -INT $$; kill -TERM $$; kill -HUP $$; echo alive") as (_, said):
        assert said.readline() == "alive\n"


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_hangup_ends_a_watch_unless_it_is_ignored(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        found = signals.ending()
    finally:
        signal.signal(signal.SIGHUP, before)
    hangup = {signal.SIGHUP} if handler is signal.SIG_DFL else set()
    assert found == {signal.SIGINT, signal.SIGTERM} | hangup
