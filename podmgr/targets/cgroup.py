"""The cgroup that a target on the command line names."""

from __future__ import annotations

from pathlib import Path

from podmgr.attachment import Target
from podmgr.kernel import cgroups


def resolve(text: str, root: Path) -> Target:
    """The cgroup that `cgroup/PATH` names, below the mount. Raises PodmgrError if there is none."""
    cgroup = cgroups.locate(root, text.removeprefix("cgroup/"))
    return Target(cgroups.display_name(root, cgroup), cgroup)
