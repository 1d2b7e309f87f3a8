"""Finding a program's source by name: the built-ins, then the program folder, if it can be trusted.

A tenant who may annotate pods names programs; only root (or, for a folder named on the command
line, the invoking user) may have written them.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

from podmgr import csource
from podmgr.catalog import BUILT_IN_PROGRAMS
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.settings import Settings
from podmgr.spec import ProgramSource

_ACCESS_LIST = "system.posix_acl_access"
_PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """`bpf` or `examples`: inside the installed package, or at the top of the checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def find(name: str, settings: Settings) -> ProgramSource:
    """The program `name`: a built-in, or NAME.bpf.c or NAME.bpf.o of the program folder.

    Raises PodmgrError if there is none, if one hides a built-in, or if others could have
    written it.
    """
    built_in = shipped_folder("bpf")
    folder = settings.program_dir
    candidates = [folder / f"{name}.bpf.c", folder / f"{name}.bpf.o"]
    headers = _headers(built_in)
    if name in BUILT_IN_PROGRAMS:
        hiding = next((path for path in candidates if path.exists()), None)
        if hiding is not None:
            raise PodmgrError(f"{hiding} hides podmgr's own program {name}", tip="give it another name")
        return _source(name, (built_in / f"{name}.bpf.c").read_bytes(), headers)
    trusted = _trusted_users(settings)
    for path in candidates:
        content = _read(path, trusted)
        if content is None:
            continue
        if path.suffix == ".o":
            return ProgramSource(name, content, is_object=True)
        for header in folder.glob("*.h"):
            headers.setdefault(header.name, _read(header, trusted) or b"")
        return _source(name, content, headers)
    there = sorted(path.name.removesuffix(".bpf.c") for path in folder.glob("*.bpf.c"))
    raise PodmgrError(
        f"there is no program {name}",
        tip=f"put {name}.bpf.c into {folder}, or name another folder with --program-dir; "
        f"known: {', '.join(sorted(BUILT_IN_PROGRAMS) + there)}",
    )


def _headers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.h")}


def _source(name: str, content: bytes, headers: Mapping[str, bytes]) -> ProgramSource:
    expanded = csource.expand(f"{name}.bpf.c", content, headers)
    return ProgramSource(name, expanded, macros=csource.offered_macros(content))


def _trusted_users(settings: Settings) -> frozenset[int]:
    users = {0}
    if settings.trusts_invoker:
        sudo_uid = os.environ.get("SUDO_UID", "")
        is_sudo = os.getuid() == 0 and sudo_uid.isascii() and sudo_uid.isdigit()
        users.add(int(sudo_uid) if is_sudo else os.getuid())
    return frozenset(users)


def _read(path: Path, trusted: frozenset[int]) -> bytes | None:
    """The content of a file that only `trusted` could have written; None if there is no file."""
    try:
        real = path.resolve(strict=True)
        # Not to hang on a pipe that somebody calls a program; on files O_NONBLOCK means nothing.
        with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PodmgrError(f"{path} is not a regular file", tip="see --program-dir")
            for folder in {path.parent, real.parent}:
                _check_writers(folder, folder.stat(), trusted)
                for ancestor in folder.resolve().parents:
                    if not ancestor.stat().st_mode & stat.S_ISVTX:  # in a sticky one, owners rule
                        _check_writers(ancestor, ancestor.stat(), trusted)
            _check_writers(path, status, trusted)
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = error.strerror if isinstance(error, OSError) else "a link that leads nowhere"
        raise PermissionDeniedError(f"{path}: {reason}", tip="see --program-dir") from error


def _check_writers(path: Path, status: os.stat_result, trusted: frozenset[int]) -> None:
    if status.st_mode & stat.S_IWOTH:
        raise PermissionDeniedError(f"everybody can write {path}", tip=f"chmod o-w {path}")
    writers = {status.st_uid}
    if status.st_mode & stat.S_IWGRP:
        if _ACCESS_LIST in os.listxattr(path):
            raise PermissionDeniedError(
                f"an access control list lets others write {path}", tip=f"setfacl --remove-all {path}"
            )
        writers |= _members(status.st_gid)
    if others := writers - trusted:
        names = ", ".join(_user_name(uid) for uid in sorted(others))
        raise PermissionDeniedError(
            f"{names} can write {path}; programs must be root's alone",
            tip=f"chown root:root {path}; chmod g-w,o-w {path}",
        )


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
