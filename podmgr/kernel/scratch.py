"""Cgroups that podmgr makes for itself, for `run` and `demo`, and finds again after a crash.

Their names carry the process that made them: `podmgr-PURPOSE-PID-STARTTIME`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life, cgroups

_HIDDEN = 0  # how the kernel shows a process of another PID namespace
_NAME = re.compile(r"podmgr-[a-z]+-([0-9]+-[0-9]+)")


def create(root: Path, purpose: str) -> Cgroup:
    """A new cgroup below our own, so that the limits and rules that hold for us hold in it too.

    Raises PodmgrError if it cannot be made.
    """
    place = planned(root, purpose)
    return cgroup_life.create(place.parent, place.name)


def planned(root: Path, purpose: str) -> Path:
    """Where `create` makes the cgroup."""
    return cgroups.own(root) / f"podmgr-{purpose}-{maker()}"


def maker() -> str:
    """Names this process, also after it has ended: `PID-STARTTIME`."""
    return f"{os.getpid()}-{_start_time(os.getpid())}"


def is_gone(maker: str) -> bool:
    """Whether the process of that name has ended, as far as is seen from this PID namespace."""
    pid, _, start_time = maker.partition("-")
    return not pid.isdigit() or _start_time(int(pid)) != start_time


def sweep(root: Path) -> list[Cgroup]:
    """Remove the scratch cgroups whose makers are gone, and kill what lives in them, as their end would have.

    Without their rules, and in a network that nobody tidies, they are of no use. Who lives in one
    himself goes on, one level up. Where processes of another PID namespace live, their maker may live
    there too: it is left.
    """
    swept = []
    for cgroup in list(cgroups.walk(root)):
        match = _NAME.fullmatch(cgroup.path.name)
        if match and is_gone(match[1]) and _HIDDEN not in (living := cgroup_life.processes(cgroup)):
            if os.getpid() in living:
                cgroup_life.evict(cgroup)
            else:
                cgroup_life.kill(cgroup)
            cgroup_life.remove(cgroup)
            swept.append(cgroup)
    return swept


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot: with the pid, a name for it.

    None if it has ended, even if its parent has not taken note yet (a zombie has a pid).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None
