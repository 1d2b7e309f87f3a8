"""cgroup v2: where it is mounted, and which cgroup a path or a number means.

Owns the hierarchy. Which cgroup is a pod's is `pod_cgroups`' to know, who lives in one
`cgroup_life`'s; what is attached to one is asked of `bpf_syscall`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError, UsageError, printable
from podmgr.kernel import mounts
from podmgr.refusals import failed

_MOST_FOLDERS = 200_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ROOT_INODE = 1
_FILEID_KERNFS = 0xFE  # include/linux/exportfs.h: the handle is the 64-bit inode number

_IS_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ELOOP, errno.ENAMETOOLONG)

_libc = ctypes.CDLL(None, use_errno=True)


def find_root(configured: Path | None) -> Path:
    """The cgroup2 mount, or the configured directory. Raises PodmgrError if there is none."""
    if configured is not None:
        if not (configured / "cgroup.controllers").is_file():
            raise PodmgrError(
                f"{configured} is not a cgroup v2 directory",
                tip="leave --cgroup-root out and podmgr looks in the mount table",
            )
        return configured.resolve()
    for mount in mounts.table():
        if mount.filesystem == "cgroup2":
            return mount.path
    raise PodmgrError(
        "no cgroup v2 hierarchy is mounted",
        tip="boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none DIR",
    )


def locate(root: Path, path: str) -> Cgroup:
    """The cgroup that `cgroup/PATH` means: PATH absolute, or relative to the mount.

    Raises PodmgrError if there is no such cgroup or it is the root, which is the whole machine.
    """
    shown = printable(path)
    try:
        fd = os.open(os.path.join(root, path), os.O_PATH | os.O_CLOEXEC)
        try:
            status, found = os.fstat(fd), Path(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        is_cgroup = status.st_dev == os.stat(root).st_dev and os.path.exists(found / "cgroup.procs")
        is_here = os.stat(found).st_ino == status.st_ino  # and not by way of another mount namespace
    except (OSError, ValueError) as error:
        raise cannot_use(f"cgroup {shown}", error, root) from error
    if not is_cgroup:
        raise PodmgrError(f"{shown} is not a cgroup of {root}", tip=f"ls {root}")
    if not is_here or not found.is_relative_to(root):
        raise PodmgrError(f"cgroup {shown} is outside {root}", tip=f"ls {root}")
    if found == root:
        raise UsageError("the root cgroup is the whole machine", tip=f"name a cgroup below {root}")
    return Cgroup(found, status.st_ino)


@contextmanager
def opened(cgroup: Cgroup) -> Iterator[int | None]:
    """A descriptor of the cgroup with that id, wherever it is mounted now; None if it is gone.

    A directory that has taken its path is another cgroup. Raises PermissionDeniedError or
    PodmgrError where it cannot be told whether it is gone.
    """
    fd = _open_path(cgroup)
    if fd is None:
        fd = _open_by_id(cgroup.id)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _open_path(cgroup: Cgroup) -> int | None:
    try:
        fd = os.open(cgroup.path, _FOLDER)
    except ValueError:  # a path that cannot be one
        return None
    except OSError as error:
        if error.errno in _IS_GONE:
            return None
        raise cannot_use(f"cgroup {cgroup.path}", error, cgroup.path.parent) from error
    if os.fstat(fd).st_ino == cgroup.id:
        return fd
    os.close(fd)
    return None


def _open_by_id(cgroup_id: int) -> int | None:
    """open_by_handle_at(2): the whole cgroup2 hierarchy is one file system, whatever is mounted."""
    mounted = [mount.path for mount in mounts.table() if mount.filesystem == "cgroup2"]
    if not mounted:
        raise PodmgrError("no cgroup v2 hierarchy is mounted", tip="podmgr doctor")
    handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, _FILEID_KERNFS, cgroup_id), 16)
    root = os.open(mounted[0], _FOLDER)
    try:
        fd = int(_libc.open_by_handle_at(root, handle, _FOLDER))
    finally:
        os.close(root)
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in _IS_GONE:
        return None
    error = OSError(number, os.strerror(number))
    raise failed(f"look for cgroup {cgroup_id}", error, tip="it takes CAP_DAC_READ_SEARCH")


def exists(cgroup: Cgroup) -> bool:
    """Whether the cgroup with that id still is."""
    with opened(cgroup) as fd:
        return fd is not None


def has_true_root() -> bool:
    """Whether the root of the whole hierarchy is mounted here, not only that of a cgroup namespace."""
    return bool(_true_roots())


def level(cgroup: Cgroup) -> int:
    """How many levels below the true root it lies; see `has_true_root`."""
    for root in _true_roots():
        if cgroup.path.is_relative_to(root):
            return len(cgroup.path.relative_to(root).parts)
    raise PodmgrError(f"the level of cgroup {cgroup.path} is not to be seen", tip="podmgr doctor")


def _true_roots() -> list[Path]:
    found = []
    for mount in mounts.table():
        with suppress(OSError):  # it may be mounted where we may not look
            if mount.filesystem == "cgroup2" and mount.path.stat().st_ino == _ROOT_INODE:
                found.append(mount.path)
    return found


def ancestors(root: Path, cgroup: Cgroup) -> list[Cgroup]:
    """The cgroups above, nearest first, the root last."""
    above = [path for path in cgroup.path.parents if path.is_relative_to(root)]
    return [Cgroup(path, path.stat().st_ino) for path in above]


def above(cgroup: Cgroup) -> list[Cgroup]:
    """All cgroups above that are to be seen, nearest first, also beyond the configured root."""
    found = []
    for path in cgroup.path.parents:
        if not (path / "cgroup.procs").exists():
            break
        with suppress(OSError):
            found.append(Cgroup(path, path.stat().st_ino))
    return found


def walk(root: Path) -> Iterator[Cgroup]:
    """Every cgroup below `root`, and the root itself. Those that vanish meanwhile are left out."""
    for folder in folders(root):
        with suppress(OSError):
            yield Cgroup(Path(folder), os.stat(folder).st_ino)


def folders(top: Path, enters: Callable[[str], bool] = lambda _: True) -> Iterator[str]:
    """A folder and those below it, each before what it holds; what `enters` refuses is not looked into.

    Without recursion, and bounded: users may make thousands of cgroups, one below the other, in
    what is delegated to them.
    """
    left = [str(top)]
    count = 0
    while left:
        folder = left.pop()
        count += 1
        if count > _MOST_FOLDERS:
            raise PodmgrError(f"more than {_MOST_FOLDERS:,} cgroups below {top}", tip="see --cgroup-root")
        yield folder
        if not enters(folder):
            continue
        with suppress(OSError), os.scandir(folder) as entries:  # gone meanwhile, or a path that is too long
            left += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def walk_everywhere(root: Path) -> Iterator[Cgroup]:
    """Every cgroup below `root` and below all cgroup2 mounts, each once."""
    seen: set[int] = set()
    mounted = [mount.path for mount in mounts.table() if mount.filesystem == "cgroup2"]
    for folder in dict.fromkeys([root, *mounted]):
        for cgroup in walk(folder):
            if cgroup.id not in seen:
                seen.add(cgroup.id)
                yield cgroup


def own(root: Path) -> Path:
    """The cgroup that this process lives in, if it is below `root`; else the root."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    for name in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for mount in mounts.table():
            path = mount.path / name
            if mount.filesystem == "cgroup2" and path.is_relative_to(root) and path.is_dir():
                return path
    return root


def display_name(root: Path, cgroup: Cgroup) -> str:
    """How `list` names a plain cgroup: `cgroup/PATH`, relative to the mount."""
    inside = cgroup.path.is_relative_to(root)
    return f"cgroup/{cgroup.path.relative_to(root) if inside else cgroup.path}"


def cannot_use(what: str, error: Exception, root: Path) -> PodmgrError:
    """The error for a cgroup below `root` that the kernel does not let us use."""
    tip = f"cgroups are the directories below {root}"
    if isinstance(error, PermissionError):
        return failed(f"use {what}", error, tip=tip)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return PodmgrError(f"{what}: {reason}", tip=tip)
