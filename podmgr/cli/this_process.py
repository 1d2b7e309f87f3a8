"""What podmgr's own process needs: streams to write to, an end by signals, and no search for garbage.

Other processes are `proc`'s.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def repair_streams() -> None:
    """A closed descriptor would be given to the next file that is opened; text may not be ASCII."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end it as an exception does: what it made is removed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _terminate)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def goes_on() -> None:
    """Called by commands that run until they are stopped: `__main__` has switched the collector off."""
    gc.enable()
    gc.freeze()  # what is there by now stays
