"""What podmgr leaves besides programs when it is killed: cgroups of its own, and tables of nft.

Apart from `clean`, which alone uses it: what it finds by names alone, also with the state folder lost.
Programs and their pins are `reconcile`'s, and so are runs that are written down there (`abandoned`).
"""

from __future__ import annotations

from pathlib import Path

from podmgr.kernel import masquerade, scratch
from podmgr.proc import Runner


def remove(root: Path, *, runner: Runner) -> list[str]:
    """Remove what is left below the cgroup `root` by makers that are gone; what it was.

    nft is asked only where a cgroup tells of a crash: else the kernel would load it for nothing.
    """
    removed = [str(cgroup.path) for cgroup in scratch.sweep(root)]
    if removed:
        removed += [f"the nft table inet {name}" for name in masquerade.sweep(runner=runner)]
    return removed
