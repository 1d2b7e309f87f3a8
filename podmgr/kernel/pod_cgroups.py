"""Which cgroup is a pod's: kubelet's names for them, in every tree that it makes, and whose word counts.

Owns what is read from names. A cgroup named by the user is found by `cgroups`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel.cgroup_life import is_populated
from podmgr.kernel.cgroups import exists, folders

_POD_UID = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$")
_KUBELETS = re.compile(r"(?:.*-)?kubepods(?:-burstable|-besteffort)?(?:\.slice)?")
_CLASSES = ("burstable", "besteffort")  # of service, as the cgroupfs driver calls them

FRESH_SECONDS = 2.0  # a directory that was made so lately needs no second look at the others


def uid_of(folder: str) -> str | None:
    """The UID of the pod whose directory this is, read from its name."""
    match = _POD_UID.search(os.path.basename(folder))
    return match.group(1).replace("_", "-") if match else None


def is_kubelets(folder: Path) -> bool:
    """Whether kubelet makes pods' directories in a folder of this name."""
    if folder.name in _CLASSES:
        folder = folder.parent
    return _KUBELETS.fullmatch(folder.name) is not None


def kubelets(root: Path) -> Iterator[Path]:
    """The folders in which kubelet makes pods' directories, as far as they are there."""
    for folder in map(Path, folders(root, _may_hold_pods)):
        if is_kubelets(folder) and _is_roots(str(folder)):
            yield folder


def pods_in(folder: Path) -> Iterator[tuple[str, Cgroup]]:
    """The pods that have a directory in this folder, by the UID that it is called after."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (found := pod_at(Path(entry.path))) is not None:
                yield found


def pod_at(path: Path) -> tuple[str, Cgroup] | None:
    """The UID and the cgroup of a pod's directory; None if it is none, or gone."""
    uid = uid_of(path.name)
    if uid is None or not _is_roots(str(path)):
        return None
    with suppress(OSError):
        return uid, Cgroup(path, path.stat().st_ino)
    return None


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

    for folder in folders(root, _may_hold_pods):
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


def _may_hold_pods(folder: str) -> bool:
    """What a pod makes below its own cgroup stands for no pod."""
    return _is_roots(folder) and uid_of(folder) is None


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
    """Pods by UID, listed again only when one is asked for that was not there, or is gone.

    A directory that was `sighted` while it was made needs no list. One thread asks, any may tell.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._pods = Pods({})
        self._found: dict[str, Cgroup] = {}  # with processes, when they were seen last
        self._sighted: dict[str, tuple[Cgroup, float]] = {}

    def sighted(self, uid: str, cgroup: Cgroup) -> None:
        """Kubelet has made this directory just now, or the first process has come to it."""
        self._sighted[uid] = (cgroup, self._clock())

    def find(self, uids_of_pods: Iterable[Sequence[str]]) -> list[Cgroup | None]:
        """For each pod, named by the UIDs that its directory may carry, its cgroup if it has one.

        One with processes: others are as good as none; but see `early`.
        """
        wanted = list(uids_of_pods)
        found = [self._known(uids) for uids in wanted]
        if all(cgroup or self._is_fresh(uids) for uids, cgroup in zip(wanted, found, strict=True)):
            return found
        self._pods = pods(self._root)
        self._found = dict(self._pods.found)
        self._forget()
        return [cgroup or self._known(uids) for uids, cgroup in zip(wanted, found, strict=True)]

    def early(self, uids: Sequence[str]) -> Cgroup | None:
        """The directory of a pod that was seen being made, and where no process has come to yet.

        Of one that was there before nobody knows whether it is not left over.
        """
        if any(uid in self._pods.rivals or uid in self._found for uid in uids):
            return None
        known = (self._sighted[uid][0] for uid in uids if uid in self._sighted)
        return next((cgroup for cgroup in known if exists(cgroup)), None)

    def likely(self, uid: str) -> Path:
        """Where a pod's directory may come to be: beside another's."""
        others = [*self._found.values(), *(cgroup for cgroup, _ in list(self._sighted.values()))]
        beside = others[-1].path.parent if others else self._root / "kubepods.slice/kubepods-burstable.slice"
        return beside / f"pod{uid}"

    def _is_fresh(self, uids: Sequence[str]) -> bool:
        ago = [self._clock() - self._sighted[uid][1] for uid in uids if uid in self._sighted]
        return any(seconds < FRESH_SECONDS for seconds in ago) and self.early(uids) is not None

    def _forget(self) -> None:
        """What is listed, or gone."""
        for uid, (cgroup, _) in list(self._sighted.items()):
            if uid in self._found or not exists(cgroup):
                self._sighted.pop(uid, None)

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
        if not self._found and not self._pods.empty:
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
        for uid in uids:
            if (cgroup := self._found.get(uid)) is not None:
                if exists(cgroup):
                    return cgroup
                del self._found[uid]
        for uid in uids:
            cgroup, _ = self._sighted.get(uid, (None, 0.0))
            if cgroup is not None and uid not in self._pods.rivals and is_populated(cgroup):
                self._found[uid] = cgroup
                return cgroup
        return None
