"""One watch for each state folder: two of one node would undo each other's work when they end.

Owns `watch.lock`. The ledger's own lock, which every podmgr takes for a moment, is `ledger`'s.

Apart from `loop`, which alone uses it: a file with a life of its own, also after a crash.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from podmgr.errors import PodmgrError
from podmgr.reconcile import ledger
from podmgr.settings import Settings


@contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Be the only one. Raises PodmgrError if there is another.

    The file is removed by who holds its lock; what a crash leaves is taken over.
    """
    with ledger.locked(settings.state_dir) as state:
        path = state.folder / "watch.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise PodmgrError(
                f"another podmgr watch runs on {state.folder}", tip="stop it first; see --state-dir"
            ) from error
    try:
        yield
    finally:
        with suppress(PodmgrError), ledger.locked(settings.state_dir):  # nobody has it open just now
            path.unlink(missing_ok=True)
        os.close(fd)
