"""Who could have written a file: its owner, its group, and whoever may exchange a folder or link above it.

A path is followed link by link, so that none leads through a place that somebody else can change.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Collection
from pathlib import Path

from podmgr.errors import PermissionDeniedError, PodmgrError, UsageError
from podmgr.settings import Settings

_ACCESS_LIST = "system.posix_acl_access"
_COPY = (
    "copy the program and its headers to a folder that only its owner can write to, and name that "
    "with --program-dir"
)
_MOST_LINKS = 40  # as the kernel follows


def require_folder(settings: Settings) -> None:
    """Raise UsageError if the program folder, which somebody has named, is none.

    Without a program of one's own the default folder may be missing.
    """
    if problem := why_no_folder(settings.program_dir):
        raise UsageError(problem, tip="see --program-dir")


def why_no_folder(folder: Path) -> str:
    """What is wrong with a folder; "" if it is one."""
    try:
        return "" if stat.S_ISDIR(folder.stat().st_mode) else f"{folder} is not a folder"
    except OSError as error:
        return f"{folder}: {error.strerror}"


def trusted_users(settings: Settings) -> frozenset[int]:
    """Who may have written what is in the program folder: root, and who named it on the command line."""
    users = {0}
    if settings.trusts_invoker:
        sudo_uid = os.environ.get("SUDO_UID", "")
        is_sudo = os.getuid() == 0 and sudo_uid.isascii() and sudo_uid.isdigit()
        users.add(int(sudo_uid) if is_sudo else os.getuid())
    return frozenset(users)


def read(path: Path, trusted: Collection[int], *, most_bytes: int) -> bytes | None:
    """The content of a file that only the users `trusted` could have written; None if there is none.

    Raises PermissionDeniedError if others could, PodmgrError for what is no file or larger than
    `most_bytes`.
    """
    try:
        real = require(path, trusted)
        # Not to hang on a pipe that somebody calls a program; on files O_NONBLOCK means nothing.
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise PodmgrError(f"{path} is not a regular file", tip="see --program-dir")
            _check_writers(path, status, trusted)
            return _content(path, fd, status.st_size, most_bytes)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = "a link that leads nowhere" if error.errno == errno.ELOOP else error.strerror
        raise PermissionDeniedError(f"{path}: {reason}", tip="see --program-dir") from error


def _content(path: Path, fd: int, size: int, most_bytes: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        content = file.read(most_bytes + 1) if size <= most_bytes else b""
    if max(size, len(content)) > most_bytes:
        raise PodmgrError(
            f"{path} is larger than {most_bytes >> 20} MiB",
            tip="no program for a pod's packets is so large",
        )
    return content


def require(path: Path, trusted: Collection[int]) -> Path:
    """Where a path leads, if nobody but the users `trusted` can make it lead elsewhere.

    Raises PermissionDeniedError if others can, OSError as lstat does.
    """
    found = Path("/")
    left = list(path.parts[1:])
    links = 0
    while left:
        step = found / left.pop(0)
        if step.name == "..":
            found = found.parent
            continue
        status = os.lstat(step)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if status.st_uid not in trusted:
                raise _others([status.st_uid], step, status, trusted)
            target = Path(os.readlink(step))
            left = [*target.parts[target.is_absolute() :], *left]
            found = Path("/") if target.is_absolute() else found
            continue
        # In a sticky folder others exchange nothing, but make what they like: none holds the file itself.
        if stat.S_ISDIR(status.st_mode) and not (len(left) > 1 and status.st_mode & stat.S_ISVTX):
            _check_writers(step, status, trusted)
        found = step
    return found


def _check_writers(path: Path, status: os.stat_result, trusted: Collection[int]) -> None:
    named = shlex.quote(str(path))
    if status.st_mode & stat.S_IWOTH:
        raise PermissionDeniedError(
            f"everybody can write {path}", tip=_tip(status, trusted, f"chmod o-w {named}")
        )
    writers = {status.st_uid}
    if status.st_mode & stat.S_IWGRP:
        if _ACCESS_LIST in os.listxattr(path):
            raise PermissionDeniedError(
                f"an access control list lets others write {path}",
                tip=_tip(status, trusted, f"setfacl --remove-all {named}"),
            )
        writers |= _members(status.st_gid)
    if others := writers - set(trusted):
        raise _others(sorted(others), path, status, trusted)


def _others(
    users: Collection[int], path: Path, status: os.stat_result, trusted: Collection[int]
) -> PermissionDeniedError:
    names, named = ", ".join(map(_user_name, users)), shlex.quote(str(path))
    gift = "" if status.st_uid in trusted else f"chown root:root {named}; "
    return PermissionDeniedError(
        f"{names} can write {path}; programs must be root's alone",
        tip=_tip(status, trusted, f"{gift}chmod g-w,o-w {named}"),
    )


def _tip(status: os.stat_result, trusted: Collection[int], mending: str) -> str:
    """How to mend a file; a folder only if it is the caller's own and not for all to use."""
    may = os.geteuid() in (0, status.st_uid)
    if stat.S_ISDIR(status.st_mode):
        may = may and status.st_uid in trusted and not status.st_mode & stat.S_ISVTX
    return mending if may and not stat.S_ISLNK(status.st_mode) else _COPY


def _members(gid: int) -> set[int]:
    """The users of a group, as their primary group or as members."""
    users = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    try:
        members = grp.getgrgid(gid).gr_mem
    except KeyError:
        return users
    return users | {user.pw_uid for user in pwd.getpwall() if user.pw_name in members}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
