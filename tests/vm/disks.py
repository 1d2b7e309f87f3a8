"""Disks for the guest, out of folders."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm.debian import run

MIB = 1 << 20


def make_disk(folder: Path, disk: Path, log: Path, *, free_bytes: int = 0) -> None:
    """A sparse ext4 image with the content of `folder`; without a journal, since nobody keeps its changes."""
    content = int(run(["du", "--summarize", "--block-size=1", str(folder)], log).split()[0])
    size_mib = (content + content // 8 + free_bytes) // MIB + 16
    options = ["-q", "-m", "0", "-O", "^has_journal"]
    run(["mke2fs", "-t", "ext4", *options, "-d", str(folder), str(disk), f"{size_mib}M"], log)


def make_initramfs(folder: Path, archive: Path) -> None:
    """A cpio archive as the kernel unpacks it. Uncompressed: to unpack costs an emulated processor more."""
    names = "\0".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    with archive.open("wb") as file:
        argv = ["cpio", "--quiet", "--create", "--null", "--format=newc", "--owner=0:0"]
        subprocess.run(argv, input=names.encode(), stdout=file, cwd=folder, check=True)
