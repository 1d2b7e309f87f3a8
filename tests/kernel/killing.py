"""podmgr killed between any two of its outside calls.

A forked child runs the command and kills itself just before its N-th outside call (starting a
process, asking or changing the network, making, writing, renaming or removing a file or folder),
for every N until the command gets through. Since each kill also stands after the call before it,
every gap is tried.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

_CALLS = {"subprocess.Popen", "socket.sendto", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_INTERRUPTED = 130
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def is_killed(
    work: Callable[[], None],
    number: int,
    *,
    by: signal.Signals = signal.SIGKILL,
    delay_seconds: float | None = None,
) -> bool:
    """Run `work` in a child that is killed at its `number`-th outside call, or that long after it."""
    pid = os.fork()
    if pid == 0:
        count, me = 0, os.getpid()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            flags = arguments[2] if event == "open" else 0
            if event not in _CALLS and not (isinstance(flags, int) and flags & _WRITING):
                return
            count += 1
            if (
                count != number or os.getpid() != me
            ):  # a child, before its command: it is none of podmgr's steps
                return
            if delay_seconds is None:
                os.kill(os.getpid(), by)
            threading.Timer(delay_seconds or 0, os.kill, (os.getpid(), by)).start()

        sys.addaudithook(hook)
        code = 1
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = _INTERRUPTED
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) in (0, _INTERRUPTED)
    return os.waitstatus_to_exitcode(status) == _INTERRUPTED


def kill_everywhere(work: Callable[[], None], check: Callable[[], None], *, step: int = 1) -> int:
    """Kill `work` at each of its outside calls in turn, or each `step`-th, and check; how many there were."""
    number = 1
    while is_killed(work, number):
        check()
        number += step
    check()
    return number - 1
