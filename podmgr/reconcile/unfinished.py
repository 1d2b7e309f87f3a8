"""Whether a transaction was begun and never ended: podmgr was killed in it.

The lock's file holds the name of who is in one, and nothing between two. The next transaction, of any
podmgr, finds a name that is no more and finishes first.
"""

from __future__ import annotations

import os
from pathlib import Path

from podmgr.kernel import scratch
from podmgr.reconcile.ledger import LOCK, State

_MOST_BYTES = 100


def begin(state: State) -> bool:
    """Called under the lock; whether who had it last did not come to an end."""
    was_left = bool(os.fstat(state.lock).st_size)
    os.ftruncate(state.lock, 0)
    os.pwrite(state.lock, scratch.maker().encode(), 0)
    return was_left


def end(state: State) -> None:
    """All is as the ledger says."""
    os.ftruncate(state.lock, 0)


def is_left(state_dir: Path) -> bool:
    """Whether one was begun by a podmgr that is gone; for who may not look, no."""
    try:
        fd = os.open(state_dir / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        maker = os.pread(fd, _MOST_BYTES, 0).decode(errors="replace")
    finally:
        os.close(fd)
    return bool(maker) and scratch.is_gone(maker)
