"""The mount table of this process."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    path: Path
    filesystem: str
    root: Path = Path("/")  # which of the file system's folders is seen there


def table() -> list[Mount]:
    """All mounts, in the order in which they were made."""
    mounts = []
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n"):
        fields, _, filesystem = line.partition(" - ")
        root, path = (
            Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field))
            for field in fields.split(" ")[3:5]
        )
        mounts.append(Mount(path, filesystem.split()[0], root))
    return mounts


def filesystem_of(path: Path) -> str | None:
    """The type of the file system that `path` lies on, or would lie on."""
    mount = mount_of(path)
    return mount and mount.filesystem


def mount_of(path: Path) -> Mount | None:
    """The mount that `path` lies on, or would lie on."""
    absolute = Path(os.path.realpath(path))
    covering = [mount for mount in table() if absolute.is_relative_to(mount.path)]
    deepest = max((len(mount.path.parts) for mount in covering), default=0)
    return next((mount for mount in reversed(covering) if len(mount.path.parts) == deepest), None)
