"""inotify(7): what happens in folders, told at once.

Owns the descriptor, the numbers of what is watched, and the wire of events. What the folders are is the
caller's business.

Apart from `watch.newcomers`, which alone uses it: system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from pathlib import Path
from typing import NamedTuple

from podmgr.errors import PodmgrError

# linux/inotify.h
MODIFIED, MADE, REMOVED = 0x2, 0x100, 0x200
_QUEUE_OVERFLOW, _IGNORED, _ONLYDIR = 0x4000, 0x8000, 0x0100_0000

_HEADER = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """What happened to `name` in what has the number `watch`; `name` is "" if to that itself."""

    watch: int
    mask: int
    name: str

    @property
    def is_overflow(self) -> bool:
        """The kernel had to drop events: nobody knows which."""
        return bool(self.mask & _QUEUE_OVERFLOW)

    @property
    def is_end(self) -> bool:
        """What was watched is gone, or is not watched any more; its number means nothing now."""
        return bool(self.mask & _IGNORED)


class FullError(PodmgrError):
    """The kernel does not let this user watch more."""


class Inotify:
    """One descriptor. One thread adds and reads; any thread may `wake` it."""

    def __init__(self) -> None:
        self._fd = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if self._fd < 0:
            raise _failure("be told of changes in folders", ctypes.get_errno())
        self._waking = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def watch(self, path: Path, mask: int, *, is_folder: bool = True) -> int | None:
        """The number of what is watched now; None if it is gone. The same path has the same number.

        Raises FullError at the kernel's limit, PodmgrError if it cannot be watched for another reason.
        """
        number = int(
            _libc.inotify_add_watch(self._fd, os.fsencode(path), mask | (_ONLYDIR if is_folder else 0))
        )
        if number >= 0:
            return number
        code = ctypes.get_errno()
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
            return None
        raise _failure(f"watch {path}", code)

    def forget(self, number: int) -> None:
        """Watch it no more: of a cgroup that is removed the kernel does not always say so."""
        _libc.inotify_rm_watch(self._fd, number)

    def read(self, timeout_seconds: float) -> list[Event]:
        """What has happened, waited for; nothing after the timeout, or when woken."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._waking, select.POLLIN)
        poll.poll(timeout_seconds * 1000)
        try:
            content = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return []
        return events(content)

    def wake(self) -> None:
        """Let `read` return at once, from now on."""
        os.eventfd_write(self._waking, 1)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._waking)


def events(content: bytes) -> list[Event]:
    """What one read(2) gave."""
    found, at = [], 0
    while at < len(content):
        watch, mask, _, length = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        found.append(Event(watch, mask, os.fsdecode(content[at : at + length].rstrip(b"\0"))))
        at += length
    return found


def _failure(what: str, code: int) -> PodmgrError:
    if code in (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        tip = "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances (sysctl)"
        return FullError(f"cannot {what}: {os.strerror(code)}", tip=tip)
    return PodmgrError(f"cannot {what}: {os.strerror(code)}", tip="podmgr doctor")
