"""The pins on bpffs: `<bpffs>/<owner>/<rule digest>` and, beside it, the program's maps.

A pin keeps a program alive and says whose it is, also when the ledger is lost. So do the marks:
empty folders `<bpffs>/qdiscs/<namespace>-<interface>-<kind>` for each qdisc that podmgr made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import mounts, starts
from podmgr.proc import Runner
from podmgr.refusals import failed

_DEFAULT_MOUNT = Path("/sys/fs/bpf")
_MAPS_SUFFIX = "-maps"
_COUNTERS_MAP = "podmgr_counters"
_FIGURES_MAP = "podmgr_figures"
SCOPE_MAP = "podmgr_scope"
_MARKS = "qdiscs"
_MARK = re.compile(r"(\d+)-(\d+)-([a-z]+)", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{16}")  # what else lies there is another's


class Pin(NamedTuple):
    """Where one program is pinned. Its paths are text: a node has hundreds, looked at many times."""

    bpffs: Path
    owner: str
    digest: str

    @property
    def program(self) -> str:
        return f"{self.bpffs}/{self.owner}/{self.digest}"

    @property
    def maps(self) -> str:
        return self.program + _MAPS_SUFFIX

    @property
    def counters(self) -> str:
        return f"{self.maps}/{_COUNTERS_MAP}"

    @property
    def figures(self) -> str:
        """There if the program keeps numbers beside its counters."""
        return f"{self.maps}/{_FIGURES_MAP}"

    @property
    def windows(self) -> str:
        """There if the program's rule, or one that may hide it, is not always in force."""
        return f"{self.maps}/podmgr_windows"

    @property
    def peers(self) -> str:
        """There if the program looks up which packets are its rule's."""
        return f"{self.maps}/podmgr_peers"

    @property
    def terms(self) -> str:
        return f"{self.maps}/podmgr_terms"

    @property
    def state_of_peers(self) -> str:
        return f"{self.maps}/podmgr_state"

    @property
    def scope(self) -> str:
        """There if the program asks whose packets it may touch."""
        return f"{self.maps}/{SCOPE_MAP}"


class Mark(NamedTuple):
    """A qdisc that podmgr made: on which interface of which network namespace, and its kind."""

    namespace: int
    index: int  # type: ignore[assignment]  # a tuple's method of that name is not missed
    kind: str

    def __str__(self) -> str:
        return f"{self.namespace}-{self.index}-{self.kind}"


def mark(bpffs: Path, made: Mark) -> None:
    """Say that the qdisc is ours: before it is made."""
    (bpffs / _MARKS / str(made)).mkdir(mode=0o700, parents=True, exist_ok=True)


def unmark(bpffs: Path, made: Mark) -> None:
    """The qdisc is gone, or it turned out to be another's."""
    with suppress(FileNotFoundError):
        (bpffs / _MARKS / str(made)).rmdir()


def marks(bpffs: Path) -> list[Mark]:
    """The qdiscs that are ours."""
    with suppress(FileNotFoundError):
        found = map(_MARK.fullmatch, os.listdir(bpffs / _MARKS))
        return sorted(Mark(int(match[1]), int(match[2]), match[3]) for match in found if match)
    return []


def ensure_bpffs(bpffs: Path, *, runner: Runner) -> bool:
    """Make the pins' folder, mounting bpffs at /sys/fs/bpf if need be; whether it was mounted now.

    Raises PodmgrError if the folder lies on another file system, PermissionDeniedError if it
    may not be made.
    """
    mounted = False
    if (
        mounts.filesystem_of(bpffs) != "bpf"
        and bpffs.is_relative_to(_DEFAULT_MOUNT)
        and _DEFAULT_MOUNT.is_dir()
    ):
        done = runner(["mount", "-t", "bpf", "bpf", str(_DEFAULT_MOUNT)])
        mounted = done.succeeded
    if mounts.filesystem_of(bpffs) != "bpf":
        if os.geteuid() != 0:
            raise _not_allowed(bpffs)
        raise PodmgrError(
            f"{bpffs} is not on a bpf file system",
            tip=f"mount one: mount -t bpf bpf {_DEFAULT_MOUNT}; or see --bpffs",
        )
    try:
        bpffs.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise failed(f"use {bpffs}", error, tip="see --bpffs") from error
    require_own(bpffs)
    return mounted


def require_place(bpffs: Path) -> None:
    """Raise PodmgrError for a folder that is no place for pins: what is removed there may be anybody's.

    Such as one on another file system, the one where bpf is mounted, and one whose name no bpf
    file system can have, where the kernel says "not permitted". One that is not there is none yet.
    """
    mount = mounts.mount_of(bpffs)
    advice = "name a folder of podmgr's own with --bpffs"
    if mount is None or mount.filesystem != "bpf":
        if os.path.lexists(bpffs):
            raise PodmgrError(f"{bpffs} is not on a bpf file system", tip=advice)
        return
    names = Path(os.path.realpath(bpffs)).relative_to(mount.path).parts
    if not names and mount.root == Path("/"):
        raise PodmgrError(f"{bpffs} holds the pins of others too", tip=f"{advice}, such as {bpffs}/podmgr")
    if any("." in name for name in names):
        raise PodmgrError(f"{bpffs}: on a bpf file system no name may hold a dot", tip=advice)


def require_own(bpffs: Path) -> None:
    """Raise PermissionDeniedError if others may write to the pins' folder, should it be there.

    Anybody may make folders in many a /sys/fs/bpf, and would choose what is unpinned, and as what.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.lstat(bpffs)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise PermissionDeniedError(
                f"others may write to the pins' folder {bpffs}",
                tip=f"see whose it is: ls -ld {bpffs}; remove it, or name another with --bpffs",
            )


def make_owner(bpffs: Path, owner: str) -> bool:
    """Make the owner's folder; whether it was not there yet."""
    try:
        os.mkdir(bpffs / owner, 0o700)
    except FileExistsError:
        return False
    return True


def pinned(bpffs: Path, of: Collection[str] | None = None) -> Iterator[Pin]:
    """Everything that is pinned, also halfway: programs, and maps whose program is gone.

    `of` these owners, or of all. Raises PermissionDeniedError if the folder may not be read.
    """
    for owner in sorted(owners(bpffs) if of is None else of):
        try:
            entries = list(os.scandir(bpffs / owner))
        except (FileNotFoundError, NotADirectoryError):
            continue
        ours = [entry.name for entry in entries if entry.name.endswith(_MAPS_SUFFIX) or not entry.is_dir()]
        for digest in sorted({name.removesuffix(_MAPS_SUFFIX) for name in ours}):
            if _DIGEST.fullmatch(digest):
                yield Pin(bpffs, owner, digest)


def owners(bpffs: Path, *, pods_only: bool = False) -> set[str]:
    """The folders of pins; a pod's is called after its UID, a plain cgroup's after its number.

    Raises PermissionDeniedError if they may not be listed.
    """
    try:
        names = os.listdir(bpffs)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise failed(f"use {bpffs}", error, tip="see --bpffs") from error
    return {
        name for name in names if name not in (_MARKS, starts.FOLDER) and not (pods_only and name.isdigit())
    }


def remove(pin: Pin) -> None:
    """Unpin the program and its maps. What is gone already is fine."""
    with suppress(FileNotFoundError):
        os.unlink(pin.program)
    with suppress(FileNotFoundError):
        _remove_folder(pin.maps)


def _remove_folder(folder: str) -> None:
    """With all that is in it, also what others put there. A link is removed, not followed."""
    if os.path.islink(folder):
        os.unlink(folder)
        return
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.is_dir(follow_symlinks=False):
                _remove_folder(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(folder)


def remove_empty_folders(bpffs: Path) -> None:
    """Remove owners without pins, and then the folder itself if nothing is left in it."""
    starts.remove_empty_folders(bpffs)
    with suppress(OSError):
        for owner in os.listdir(bpffs):
            with suppress(OSError):
                (bpffs / owner).rmdir()
        bpffs.rmdir()


def _not_allowed(bpffs: Path) -> PermissionDeniedError:
    return PermissionDeniedError(f"not allowed to use {bpffs}", tip="run as root (sudo podmgr ...)")
