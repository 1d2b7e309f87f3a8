"""The life of a cgroup: it is made, processes live in it, are moved and killed, and it is removed.

Which cgroup is meant, and where the hierarchy is, `cgroups` knows.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel.cgroups import cannot_use, folders

_REMOVE_SECONDS = 5.0
_FREEZE_SECONDS = 0.5  # one that waits for a device cannot be frozen
_PAUSE_SECONDS = 0.005


def is_populated(cgroup: Cgroup) -> bool:
    """Whether a process lives in the cgroup or below it."""
    return _says(cgroup, "populated 1")


def processes(cgroup: Cgroup) -> list[int]:
    """The processes in the cgroup and below it."""
    found: list[int] = []
    if _says(cgroup, "populated 0"):  # the root has no such file
        return found
    for folder in folders(cgroup.path):
        with suppress(OSError):
            found += [int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split()]
    return found


def create(parent: Path, name: str) -> Cgroup:
    """Make the cgroup `name` below another. Raises PodmgrError or PermissionDeniedError."""
    path = parent / name
    try:
        path.mkdir()
    except OSError as error:
        raise cannot_use(f"cgroup {path}", error, parent) from error
    return Cgroup(path, path.stat().st_ino)


def join(cgroup: Cgroup, pid: int = 0) -> None:
    """Move a process into the cgroup: 0 is the calling one."""
    (cgroup.path / "cgroup.procs").write_text(str(pid))


def kill(cgroup: Cgroup, *, spared: int | None = None) -> int:
    """Kill all processes in and below the cgroup, but for one; how many there were.

    Also those that start others faster than they are killed: the kernel kills all at once (cgroup.kill,
    Linux 5.14); where it cannot, or one is spared, they are frozen meanwhile.
    """
    killed = set(processes(cgroup)) - {spared}
    if not killed or (spared is None and _set(cgroup, "cgroup.kill", "1") and _is_empty_in_time(cgroup)):
        return len(killed)
    with _frozen(cgroup):
        deadline = time.monotonic() + _REMOVE_SECONDS
        while (pids := set(processes(cgroup)) - {spared}) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(pids)
            time.sleep(_PAUSE_SECONDS)
    return len(killed)


def evict(cgroup: Cgroup) -> int:
    """Move all processes in and below the cgroup to its parent; how many there were."""
    moved = 0
    for pid in processes(cgroup):
        with suppress(OSError):
            (cgroup.path.parent / "cgroup.procs").write_text(str(pid))
            moved += 1
    return moved


def remove(cgroup: Cgroup) -> None:
    """Remove the cgroup and those below it, which must hold no process. Gone already is fine.

    A process that was just killed may still be on its way out, so a busy cgroup is tried again
    for some seconds. Raises PodmgrError after that.
    """
    deadline = time.monotonic() + _REMOVE_SECONDS
    for folder in reversed(list(folders(cgroup.path))):
        while True:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(_PAUSE_SECONDS)
                    continue
                raise PodmgrError(
                    f"cannot remove cgroup {folder}: {error.strerror}",
                    tip=f"its processes: {processes(cgroup)}",
                ) from error
            break


@contextmanager
def _frozen(cgroup: Cgroup) -> Iterator[None]:
    """None of its processes runs in the block, and so none starts another; they can be killed."""
    is_freezing = _set(cgroup, "cgroup.freeze", "1")
    deadline = time.monotonic() + _FREEZE_SECONDS
    while is_freezing and not _says(cgroup, "frozen 1") and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        if is_freezing:
            _set(cgroup, "cgroup.freeze", "0")


def _is_empty_in_time(cgroup: Cgroup) -> bool:
    deadline = time.monotonic() + _REMOVE_SECONDS
    while (is_left := bool(processes(cgroup))) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    return not is_left


def _set(cgroup: Cgroup, name: str, value: str) -> bool:
    """Write to one of the cgroup's files; whether the kernel has it and took it."""
    with suppress(OSError):
        fd = os.open(cgroup.path / name, os.O_WRONLY | os.O_CLOEXEC)  # one that is not there is not made
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
        return True
    return False


def _says(cgroup: Cgroup, line: str) -> bool:
    with suppress(OSError):
        return line in (cgroup.path / "cgroup.events").read_text()
    return False
