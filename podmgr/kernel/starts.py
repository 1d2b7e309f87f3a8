"""When rules began that are not always in force: marks that outlive programs, ledger and podmgr.

A mark is an empty folder on bpffs, `<bpffs>/starts/<owner>/<digest of the rule's text>-<nanoseconds since
boot>`. It is gone with the machine's boot, as all that is pinned.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from podmgr.rules.rule import Rule

FOLDER = "starts"

_MARK = re.compile(r"([0-9a-f]{16})-([0-9]{1,19})", re.ASCII)


def now_ns() -> int:
    """The clock of all that is said here, and of bpf/timing.h: since boot, with the time asleep."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def since_boot_ns(moment_ns: int) -> int:
    """A moment since 1970 on that clock, as it is now set."""
    return moment_ns - time.time_ns() + now_ns()


class Starts:
    """Those of one owner, read once."""

    def __init__(self, bpffs: Path, owner: str) -> None:
        self._folder = bpffs / FOLDER / owner
        self._marks: dict[str, int] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            found = filter(None, map(_MARK.fullmatch, sorted(os.listdir(self._folder), reverse=True)))
            self._marks = {match[1]: int(match[2]) for match in found}

    def of(self, rule: Rule) -> int | None:
        """When it began, in nanoseconds since boot; None: not yet."""
        return self._marks.get(_digest(rule))

    def begin(self, rule: Rule) -> int:
        """When it began, which is now if it had not."""
        digest = _digest(rule)
        if digest not in self._marks:
            start_ns = now_ns()
            (self._folder / f"{digest}-{start_ns}").mkdir(mode=0o700, parents=True, exist_ok=True)
            self._marks[digest] = start_ns
        return self._marks[digest]

    def keep(self, rules: Collection[Rule]) -> None:
        """Forget all but these."""
        for digest in self._marks.keys() - {_digest(rule) for rule in rules}:
            self._forget(digest)

    def forget(self, rule: Rule) -> None:
        """It has not begun."""
        self._forget(_digest(rule))

    def _forget(self, digest: str) -> None:
        start_ns = self._marks.pop(digest, None)
        if start_ns is not None:
            with suppress(FileNotFoundError):
                (self._folder / f"{digest}-{start_ns}").rmdir()


def owners(bpffs: Path) -> list[str]:
    """Who has marks."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(bpffs / FOLDER))
    return []


def remove_empty_folders(bpffs: Path) -> None:
    """Of owners without marks, and then the folder of all."""
    for owner in owners(bpffs):
        with suppress(OSError):
            (bpffs / FOLDER / owner).rmdir()
    with suppress(OSError):
        (bpffs / FOLDER).rmdir()


def is_over(rule: Rule, start_ns: int | None) -> bool:
    """Whether it is over for good: one that has not begun may be so only by its `until`."""
    left = seconds_left(rule, start_ns)
    return left is not None and left <= 0


def seconds_left(rule: Rule, start_ns: int | None) -> float | None:
    """Until it is over; None: it never is. `start_ns` None: as if it began now."""
    timing, now = rule.timing, now_ns()
    until_ns = since_boot_ns(timing.until_ns) if timing.until_ns else 0
    end_ns = timing.ends_ns(now if start_ns is None else start_ns, until_ns)
    return None if end_ns is None else (end_ns - now) / 1e9


def _digest(rule: Rule) -> str:
    return hashlib.sha256(str(rule).encode()).hexdigest()[:16]
