"""The life of a network namespace: a process of ours holds it, others enter it, and it goes with the process.

It has no name that a crash could leave behind. Which namespaces there are, and who lives in
them, `netns` knows.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from podmgr import proc
from podmgr.errors import PermissionDeniedError

_CLONE_NEWNET = 0x40000000

# What users may do in a network is the namespace's own; in a new one they may do less.
_RIGHTS = ("ping_group_range", "ip_unprivileged_port_start")
_SETTINGS = Path("/proc/sys/net/ipv4")

_libc = ctypes.CDLL(None, use_errno=True)


def hold_namespace() -> proc.Process:
    """A process in a network namespace of its own, which ends with us. Raises PermissionDeniedError.

    Users may ping from there, and take ports, as they may from ours.
    """
    try:
        return proc.start(["sleep", "infinity"], prepare=_begin, streams=proc.DEVNULL)
    except proc.NotPreparedError as error:
        raise PermissionDeniedError(
            "not allowed to make a network namespace", tip="run as root (sudo podmgr ...)"
        ) from error


def release(holder: proc.Process) -> None:
    """End the process that holds a namespace."""
    holder.kill()
    holder.wait()


def enter(namespace_fd: int) -> None:
    """Called in a child: it lives in that namespace from here on. Raises OSError."""
    _require(_libc.setns(namespace_fd, _CLONE_NEWNET))


def _begin() -> None:
    os.setsid()  # Ctrl-C reaches us alone: what we put in order after it needs the namespace
    proc.die_with_parent()
    rights = {name: (_SETTINGS / name).read_text() for name in _RIGHTS if (_SETTINGS / name).exists()}
    _require(_libc.unshare(_CLONE_NEWNET))
    for name, right in rights.items():
        with suppress(OSError):  # /proc/sys may be read-only, as in a container
            (_SETTINGS / name).write_text(right)


def _require(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
