"""A tree of directories that look like cgroups, in a temporary folder."""

from __future__ import annotations

from pathlib import Path

from podmgr.attachment import Cgroup

UID = "846f24d4-50e1-452e-91c0-7dfcee8503e9"


def directory(path: Path, *, pids: str = "") -> Path:
    """A directory that looks like a cgroup."""
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text(pids)
    return path


def at(path: Path) -> Cgroup:
    return Cgroup(path, path.stat().st_ino)


def small_tree(folder: Path) -> Path:
    """A small tree: kubepods/podUID/a and system.slice, with the root's file of controllers."""
    made = directory(folder / "cgroup")
    (made / "cgroup.controllers").write_text("cpu\n")
    directory(made / "kubepods", pids="")
    directory(made / f"kubepods/pod{UID}", pids="11\n")
    directory(made / f"kubepods/pod{UID}/a", pids="12\n13\n")
    directory(made / "system.slice")
    return made
