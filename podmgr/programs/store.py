"""Checked objects in `<state-dir>/objects`: an equal program is compiled once.

A file's name says what its check found: `<digest>.<hook>.bpf.o`. Nothing gets here unchecked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.refusals import failed

# Unused objects that stay, newest first, so that a rule that comes back is not compiled again.
SPARE_OBJECTS = 64

_SUFFIX = ".bpf.o"
_NAME = re.compile(r"([0-9a-f]{16})\.[a-z]+\.bpf\.(o|new)")  # what else lies there is another's


class StoredObject(NamedTuple):
    """An object that has been checked."""

    path: Path
    digest: str
    hook: str


class ObjectStore:
    """The objects of one state folder. Writers hold the ledger's lock."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "objects"

    def find(self, digest: str) -> StoredObject | None:
        """The object with that digest, if it was compiled before."""
        for path in self.folder.glob(f"{digest}.*{_SUFFIX}"):
            return StoredObject(path, digest, path.name.split(".")[1])
        return None

    def add(self, digest: str, hook: str, content: bytes) -> StoredObject:
        """Keep an object, whole or not at all. Raises PodmgrError if the disk is full."""
        path = self.folder / f"{digest}.{hook}{_SUFFIX}"
        staging = path.with_suffix(".new")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            staging.write_bytes(content)
            os.replace(staging, path)
        except OSError as error:
            with suppress(OSError):
                staging.unlink()
            raise failed(f"keep an object in {self.folder}", error, tip="see --state-dir") from error
        return StoredObject(path, digest, hook)

    def prune(self, used: Collection[str]) -> None:
        """Delete what is not `used`: all of it if nothing is, else all but the newest spares."""
        with suppress(FileNotFoundError):
            ours = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
            ours.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            unused = [path for path in ours if path.name.split(".")[0] not in used]
            for path in unused[SPARE_OBJECTS:] if used else unused:
                path.unlink(missing_ok=True)
            if not used:
                with suppress(OSError):  # something of others is in it
                    self.folder.rmdir()
