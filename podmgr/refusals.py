"""What the system said no to, as a sentence with its true reason."""

from __future__ import annotations

import errno
import os

from podmgr.errors import PermissionDeniedError, PodmgrError


def failed(what: str, error: OSError, *, tip: str) -> PodmgrError:
    """What the system said no to, with its own reason, as "cannot WHAT: REASON".

    A right that is lacking is told apart from a disk that is full or cannot be written to; `tip` is
    for root, whom another user's advice would not help.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        denied = f"not allowed to {what}: {error.strerror}"
        return PermissionDeniedError(
            denied, tip=tip if os.geteuid() == 0 else "run as root (sudo podmgr ...)"
        )
    advice = {
        errno.ENOSPC: "free some space there",
        errno.EDQUOT: "free some space there",
        errno.EROFS: f"it is read-only; {tip}",
        errno.EMFILE: "ulimit -n allows more open files",
        errno.ENFILE: "the machine has no more open files to give",
        errno.ENOMEM: "the machine is short of memory",
    }
    return PodmgrError(f"cannot {what}: {error.strerror or error}", tip=advice.get(error.errno or 0, tip))
