"""What ends a watch: SIGINT, SIGTERM or SIGHUP. The first in good order, the second at once.

Owns which they are, and the one thread that they reach. What good order is, is the caller's business.

Apart from `loop`, which alone uses it: what a signal does to a process with threads is a matter by itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_EXIT_AT_ONCE = 128 + signal.SIGINT


def block() -> None:
    """In this thread, in those that it starts, and so in the tools that are run: they reach who waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ending())


def ending() -> set[signal.Signals]:
    """What ends a watch; nohup has SIGHUP ignored."""
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    return {number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN}


def on_first_and_second(first: Callable[[], None], second: Callable[[], None]) -> None:
    """Wait in a thread of its own, and call these from there. After `second` the process ends.

    The signals are blocked already.
    """

    def wait() -> None:
        signals = ending()
        signal.sigwait(signals)
        first()
        signal.sigwait(signals)
        second()
        os._exit(_EXIT_AT_ONCE)

    threading.Thread(target=wait, name="signals", daemon=True).start()
