"""Which cgroup is a pod's: kubelet's names for them, in every tree that it makes, and whose word counts.

Owns what is read from names. A cgroup named by the user is found by `cgroups`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel.cgroup_life import is_populated
from podmgr.kernel.cgroups import exists, folders

_POD_UID = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$")


def uid_of(folder: str) -> str | None:
    """The UID of the pod whose directory this is, read from its name."""
    match = _POD_UID.search(os.path.basename(folder))
    return match.group(1).replace("_", "-") if match else None


class Pods(NamedTuple):
    """Pod UID to the pod's own directory, and the UIDs that several directories claim, which have none.

    `empty` are the directories without processes of UIDs that have none with.
    """

    found: Mapping[str, Cgroup]
    rivals: Mapping[str, tuple[Path, ...]] = {}
    empty: Mapping[str, Path] = {}


def pods(root: Path) -> Pods:
    """The directories of all pods that have processes; listed once.

    Found by their names wherever they are, so that no runtime's layout is guessed. A static pod
    goes by the hash of its manifest (annotation kubernetes.io/config.hash). Directories without
    processes are passed over: kubelet leaves empty ones beside the real one. So is all that is
    not root's alone: whoever is given a cgroup may call one below it like another's pod.
    """
    claims: dict[str, list[Cgroup]] = {}
    empty: dict[str, Path] = {}

    def enters(folder: str) -> bool:
        # what a pod makes below its own cgroup stands for no pod
        return _is_roots(folder) and uid_of(folder) is None

    for folder in folders(root, enters):
        uid = uid_of(folder)
        if uid is None or not _is_roots(folder):
            continue
        with suppress(OSError):
            cgroup = Cgroup(Path(folder), os.stat(folder).st_ino)
            if is_populated(cgroup):
                claims.setdefault(uid, []).append(cgroup)
            else:
                empty.setdefault(uid, cgroup.path)
    return Pods(
        {uid: several[0] for uid, several in claims.items() if len(several) == 1},
        {uid: tuple(item.path for item in several) for uid, several in claims.items() if len(several) > 1},
        {uid: path for uid, path in empty.items() if uid not in claims},
    )


def _is_roots(folder: str) -> bool:
    """Whether root alone makes folders in it."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def container_cgroups(cgroup: Cgroup, names: Iterable[str], ids: Mapping[str, str] | None) -> dict[str, int]:
    """The numbers of the cgroups of containers, by name, of those that are there.

    Runtimes call them cri-containerd-ID.scope, crio-ID.scope or ID, in the pod's own cgroup. Without `ids`
    the name is that of the cgroup.
    """
    found: dict[str, int] = {}
    with suppress(OSError), os.scandir(cgroup.path) as entries:
        there = {entry.name: entry.inode() for entry in entries if entry.is_dir(follow_symlinks=False)}
        for name in names:
            wanted = name if ids is None else ids.get(name)
            its = [folder for folder in there if wanted and _is_container(folder, wanted, ids is not None)]
            if its:
                found[name] = there[its[0]]
    return found


def _is_container(folder: str, name: str, is_id: bool) -> bool:
    own = folder.removesuffix(".scope")
    is_runtimes = is_id and own.endswith(f"-{name}") and not own.startswith("crio-conmon-")
    return folder == name or is_runtimes or (is_id and own == name)


class PodIndex:
    """Pods by UID, listed again only when one is asked for that was not there, or is gone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pods = Pods({})

    def find(self, uids_of_pods: Iterable[Sequence[str]]) -> list[Cgroup | None]:
        """For each pod, named by the UIDs that its directory may carry, its cgroup if it has one."""
        wanted = list(uids_of_pods)
        found = [self._known(uids) for uids in wanted]
        if None not in found:
            return found
        self._pods = pods(self._root)
        return [cgroup or self._known(uids) for uids, cgroup in zip(wanted, found, strict=True)]

    def why_none(self, uids: Sequence[str], *, may_be_named: bool = False) -> PodmgrError:
        """Why a pod that was looked for has no cgroup. `may_be_named`: the command has --cgroup."""
        or_name_it = "; or name the cgroup: --cgroup PATH" if may_be_named else ""
        for paths in (self._pods.rivals[uid] for uid in uids if uid in self._pods.rivals):
            return PodmgrError(
                f"several cgroups claim to be this pod: {', '.join(map(str, paths[:3]))}",
                tip=f"one of them is not kubelet's: whose processes are in it?{or_name_it}",
            )
        for path in (self._pods.empty[uid] for uid in uids if uid in self._pods.empty):
            return PodmgrError(
                f"this pod's cgroup {path} has no processes",
                tip=f"is the pod running? kubectl get pod -o wide{or_name_it}",
            )
        if not self._pods.found and not self._pods.empty:
            option = "--cgroup" if may_be_named else "--node-name"
            return PodmgrError(
                "no pod has a cgroup v2 directory here: the node may run its pods on cgroup v1",
                tip=f"podmgr runs on the pod's own node; podmgr doctor; see --cgroup-root and {option}",
            )
        return PodmgrError(
            f"no cgroup of this pod (UID {uids[0]}) has processes here",
            tip="podmgr runs on the pod's own node; is the pod running? kubectl get pod -o wide" + or_name_it,
        )

    def _known(self, uids: Sequence[str]) -> Cgroup | None:
        for cgroup in (self._pods.found[uid] for uid in uids if uid in self._pods.found):
            if exists(cgroup):
                return cgroup
        return None
