"""The checkout as it stands, and the job to do in it, as one tar archive for the guest."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Made by tools, and large or of no use elsewhere.
LEFT_OUT = frozenset({"__pycache__", "build", "dist", "node_modules"})
SECTOR = 512


def pack(root: Path, command: Sequence[str], environment: Mapping[str, str], archive: Path) -> None:
    """Write `archive`: checkout/…, job/command and job/environment, the latter with NUL after each word."""
    words = {"command": command, "environment": [f"{name}={value}" for name, value in environment.items()]}
    with tarfile.open(archive, "w") as tar:
        for path in files(root):
            _add(tar, path, f"checkout/{path.relative_to(root)}")
        for name, lines in words.items():
            content = b"".join(os.fsencode(line) + b"\0" for line in lines)
            entry = tarfile.TarInfo(f"job/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def files(root: Path) -> Iterator[Path]:
    """All files of a checkout, tracked or not; of dot-folders only .ci."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if _belongs(name))
        yield from (Path(folder) / name for name in sorted(names))


def _belongs(folder: str) -> bool:
    return folder not in LEFT_OUT and (folder == ".ci" or not folder.startswith("."))


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    try:
        entry = tar.gettarinfo(path, name)
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        if not entry.isreg():
            tar.addfile(entry)
            return
        with path.open("rb") as file:
            entry.size = os.fstat(file.fileno()).st_size
            tar.addfile(entry, file)
    except FileNotFoundError:  # somebody works in the checkout meanwhile
        return
