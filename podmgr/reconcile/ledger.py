"""The ledger: which attachments are ours. `<state-dir>/ledger.json`, written whole, under a lock.

The kernel is the truth, the ledger is the title deed: what it says is always checked against
the kernel by the caller. The lock is a flock on a file that only its owner can open: whoever may
open a folder may lock it. Its descriptor is handed to the child processes of a transaction, so
that after a `kill -9` of podmgr the lock lasts until the last bpftool of it has ended.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from podmgr.attachment import Attachment, Link, PodRef
from podmgr.errors import PermissionDeniedError, PodmgrError, UsageError
from podmgr.refusals import failed
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Direction, Hook, Rule, only
from podmgr.rules.source import parse_source

VERSION = 1
LOCK_TIMEOUT_SECONDS = 60.0

_FILE = "ledger.json"
_STAGING = "ledger.json.new"
LOCK = "lock"  # of whom, `unfinished` knows
_MAX_TEXT_BYTES = 8_192
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_NUMBERS = ("cgroup_id", "priority", "links_packets", "links_bytes", "position")
_TYPES = {"links": tuple, "is_scoped": bool} | dict.fromkeys(_NUMBERS, int)
_TEXTS = ("target", "owner", "cgroup_path", "digest", "object_digest")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class State(NamedTuple):
    """The state folder, locked. `fd` is its descriptor, `lock` the lock's: keep both open in children."""

    folder: Path
    fd: int
    lock: int

    @property
    def fds(self) -> list[int]:
        return [self.fd, self.lock]


_Signature = tuple[int, ...]


class _Cache:
    """The rows of the file that was last read or written; each write makes another file."""

    def __init__(self) -> None:
        self.content: tuple[_Signature, tuple[Attachment, ...]] = ((), ())

    def remember(self, signature: _Signature, rows: Sequence[Attachment]) -> None:
        self.content = (signature, tuple(rows))  # at once: other threads read too

    def rows(self, signature: _Signature) -> list[Attachment] | None:
        known, rows = self.content
        return list(rows) if known == signature else None


_cached = _Cache()


def _signature(status: os.stat_result) -> _Signature:
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


@contextmanager
def locked(folder: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[State]:
    """Make the state folder, and hold its lock. `on_wait` is called once if another holds it.

    Raises PermissionDeniedError if the folder cannot be used or others may write to it, and
    PodmgrError if the lock is not to be had within a minute.
    """
    fd = make_folder(folder)
    try:
        lock = _lock(folder, fd, on_wait)
        try:
            yield State(folder, fd, lock)
        finally:
            os.close(lock)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> int:
    """A descriptor of the folder, which is made if need be. Raises PermissionDeniedError, PodmgrError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failed(f"use the state folder {folder}", error, tip="see --state-dir") from error
    try:
        require_own(folder, fd)
    except PodmgrError:
        os.close(fd)
        raise
    return fd


def is_locked(folder: Path) -> bool:
    """Whether another podmgr is in a transaction just now."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def signature(folder: Path) -> _Signature:
    """Another one after each change; () if there is no ledger."""
    try:
        return _signature(os.stat(folder / _FILE))
    except OSError:
        return ()


def read(folder: Path) -> list[Attachment]:
    """What the ledger says. Entries of an earlier boot are gone with it, and left out.

    Raises DamagedLedgerError if it cannot be read as a ledger, PermissionDeniedError if it may
    not be read at all.
    """
    try:
        with (folder / _FILE).open() as file:
            now = _signature(os.fstat(file.fileno()))
            if (known := _cached.rows(now)) is not None:
                return known
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except UnicodeDecodeError as error:
        raise DamagedLedgerError(folder / _FILE) from error
    except IsADirectoryError as error:
        raise DamagedLedgerError(folder / _FILE) from error
    except OSError as error:
        raise failed(f"read the ledger in {folder}", error, tip="see --state-dir") from error
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        rows = _from_document(content["attachments"])
        boot_id = content["boot_id"]
    except (ValueError, KeyError, TypeError, AttributeError, PodmgrError, RecursionError) as error:
        raise DamagedLedgerError(folder / _FILE) from error
    if boot_id != _BOOT_ID.read_text().strip():
        rows = []
    _cached.remember(now, rows)
    return rows


class DamagedLedgerError(PodmgrError):
    """The file is truncated, or not podmgr's."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is not a ledger that podmgr can read",
            tip="podmgr clean sets it aside, and removes what is pinned",
        )


def read_or_set_aside(state: State) -> tuple[list[Attachment], Path | None]:
    """What the ledger says; one that cannot be read is kept under another name, which is returned."""
    try:
        return read(state.folder), None
    except DamagedLedgerError:
        aside = state.folder / f"{_FILE}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        os.replace(state.folder / _FILE, aside)
        return [], aside


def write(state: State, attachments: Sequence[Attachment]) -> None:
    """Replace the ledger: staging file, fsync, rename. With no attachments there is no ledger.

    Raises PodmgrError if the disk is full; the old ledger then still stands.
    """
    if not attachments:
        with suppress(FileNotFoundError):
            (state.folder / _FILE).unlink()
        with suppress(FileNotFoundError):
            (state.folder / _STAGING).unlink()
        return
    head = (
        f'{{"version": {VERSION}, "boot_id": {json.dumps(_BOOT_ID.read_text().strip())}, "attachments": [\n'
    )
    staging = state.folder / _STAGING
    try:
        with staging.open("w") as file:
            file.write(head + ",\n".join(map(_to_json, attachments)) + "\n]}\n")
            file.flush()
            os.fsync(file.fileno())
            now = _signature(os.fstat(file.fileno()))
        os.replace(staging, state.folder / _FILE)
        os.fsync(state.fd)
        _cached.remember(now, attachments)
    except OSError as error:
        with suppress(OSError):
            staging.unlink()
        raise failed(f"write the ledger in {state.folder}", error, tip="see --state-dir") from error


def require_readable(row: Attachment) -> None:
    """Raise UsageError for a row that could be written, and not read back: before the kernel is touched."""
    for name in _TEXTS:
        _check_text(name, getattr(row, name))
    for name, text in (("the rule", str(row.rule)), ("the source", str(row.source))):
        _check_text(name, text)
    for text in row.pod or ():
        _check_text("the pod's name", text)


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} is not text")
    try:
        is_too_long = len(text.encode()) > _MAX_TEXT_BYTES
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not valid UTF-8: {text[:60]!r}", tip="give it another name") from error
    if is_too_long:
        raise UsageError(f"{name} is longer than {_MAX_TEXT_BYTES:,} bytes", tip="give it a shorter name")
    if "\0" in text:
        raise UsageError(f"{name} holds a NUL", tip="give it another name")


@functools.lru_cache(maxsize=4096)
def _to_json(row: Attachment) -> str:
    """One line of the ledger."""
    fields = row._asdict() | {"rule": str(row.rule), "kind": row.kind, "source": str(row.source)}
    fields["pod"] = row.pod and row.pod._asdict()
    fields["links"] = [{name: getattr(link, name) for name in link.__slots__} for link in row.links]
    return json.dumps(fields)


def _from_document(rows: Sequence[dict[str, Any]]) -> list[Attachment]:
    """The rows of a ledger, in which a rule stands as text, and on many pods."""
    rules: dict[str, Rule] = {}
    found = []
    for row in rows:
        text = row["rule"]
        if text not in rules:
            _check_text("rule", text)
            rules[text] = only(parse_rule_option(text))
        found.append(_from_json(row, rules[text]))
    return found


def _from_json(row: dict[str, Any], rule: Rule) -> Attachment:
    fields = row | {
        "rule": rule,
        "direction": Direction(row["direction"]),
        "hook": Hook(row["hook"]),
        "source": parse_source(row["source"]),
        "links": tuple(_link(link) for link in row.get("links", ())),
    }
    if fields.pop("kind") != rule.kind:
        raise ValueError("a rule of another kind")
    if fields["pod"] is not None:
        fields["pod"] = PodRef(**fields["pod"])
    attachment = Attachment(**fields)
    for name, expected in _TYPES.items():
        if not isinstance(getattr(attachment, name), expected):
            raise ValueError(f"{name} is not {expected.__name__}")
    for name in _TEXTS:
        _check_text(name, getattr(attachment, name))
    for name in attachment.pod or ():
        _check_text("the pod", name)
    if not _PLAIN_NAME.fullmatch(attachment.owner) or not _PLAIN_NAME.fullmatch(attachment.digest):
        raise ValueError("a pin outside the folder")
    if not isinstance(attachment.program_id, int | None):
        raise ValueError("program_id is not a number")
    return attachment


def _link(fields: dict[str, Any]) -> Link:
    link = Link(**(fields | {"side": Direction(fields["side"])}))
    numbers = (link.namespace, link.index)
    if not all(type(number) is int for number in numbers) or not isinstance(link.name, str):
        raise ValueError("no interface")
    return link


def _lock(folder: Path, fd: int, on_wait: Callable[[], None]) -> int:
    """The descriptor of the lock's file, locked. The file stays: others may be waiting for it."""
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except OSError as error:
        raise failed(f"use the state folder {folder}", error, tip="see --state-dir") from error
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    waiting = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise PodmgrError(
                    f"another podmgr has held the lock on {folder} for a minute",
                    tip="wait for it, or look for a hanging podmgr or bpftool",
                ) from None
            if not waiting:
                waiting = True
                on_wait()
            time.sleep(0.01)
        else:
            return lock


def require_own(folder: Path, fd: int) -> None:
    """Raise PermissionDeniedError if others may write to the folder, of which `fd` is a descriptor.

    Objects are checked, then loaded from there: nobody else may change them in between.
    """
    status = os.fstat(fd)
    is_own = status.st_uid in (0, os.geteuid())
    if not is_own or status.st_mode & 0o022:
        is_for_all = status.st_mode & stat.S_ISVTX
        raise PermissionDeniedError(
            f"others may write to the state folder {folder}",
            tip="name a folder for podmgr alone with --state-dir"
            if is_for_all or not is_own
            else f"chmod go-w {shlex.quote(str(folder))}",
        )
