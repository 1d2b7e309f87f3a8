"""What a run has made, written down before it is made, under a lock that ends with podmgr however that ends.

`<state-dir>/runs/NAME`, a file with a line `WHAT NAME` for each thing, and a flock on it. A file that can be
locked is of a podmgr that was killed: who has it finishes what is written there, and removes it. One look
into a folder tells that there is none. What to do about one is `abandoned`'s to know.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.reconcile.ledger import make_folder, require_own
from podmgr.refusals import failed

_FOLDER = "runs"
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_BYTES = 65_536


class Lease(NamedTuple):
    """One run's file, locked. What lives on of the run does not hold its descriptor."""

    path: Path
    fd: int

    def note(self, what: str, name: object) -> None:
        """Write down what is made next. Raises PodmgrError."""
        try:
            os.write(self.fd, f"{what} {name}\n".encode())  # whole, or cut off before its end
        except OSError as error:
            raise failed(f"write {self.path}", error, tip="see --state-dir") from error

    def notes(self) -> dict[str, str]:
        """What was written down; a line that a crash has cut off is of nothing that was made."""
        *lines, _ = os.pread(self.fd, _MOST_BYTES, 0).decode(errors="replace").split("\n")
        return {what: name for what, _, name in (line.partition(" ") for line in lines)}

    def end(self) -> None:
        """All that is written there is gone."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        with suppress(OSError):  # others are there, or come just now
            self.path.parent.rmdir()
        self.let_go()

    def let_go(self) -> None:
        """Whoever comes next sees to it."""
        os.close(self.fd)


def take(state_dir: Path, name: str) -> Lease:
    """A lease of that name, which nobody else has. Raises PodmgrError or PermissionDeniedError."""
    path = state_dir / _FOLDER / name
    try:
        while True:
            for folder in (state_dir, path.parent):
                os.close(make_folder(folder))
            with suppress(FileNotFoundError):  # the folder has gone again with another's end
                fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_there(path, fd):  # nobody has taken it for an abandoned one, and removed it
                    return Lease(path, fd)
                os.close(fd)
    except OSError as error:
        raise failed(f"use {path}", error, tip="see --state-dir") from error


def abandoned(state_dir: Path) -> Iterator[Lease]:
    """Those of podmgrs that are gone; who is given one lets it go, or ends it.

    None for who may not look. Raises PermissionDeniedError if others may write there.
    """
    folder = state_dir / _FOLDER
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for path in (state_dir, folder):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            require_own(path, fd)
        finally:
            os.close(fd)
    for name in names:
        with suppress(OSError):  # it has ended just now
            fd = os.open(folder / name, _OPEN)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_abandoned = _is_there(folder / name, fd)
            except BlockingIOError:
                is_abandoned = False
            if is_abandoned:
                yield Lease(folder / name, fd)
            else:
                os.close(fd)
    with suppress(OSError):
        folder.rmdir()


def _is_there(path: Path, fd: int) -> bool:
    with suppress(FileNotFoundError):
        return os.stat(path).st_ino == os.fstat(fd).st_ino
    return False
