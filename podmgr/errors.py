"""The few exceptions that podmgr raises on purpose, each with an exit code and a tip.

Everything below `cli` raises one of these; `cli` turns them into text. Anything else that
reaches the user is a bug.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTLY = 3
EXIT_INTERRUPTED = 130  # as shells say it: 128 and the number of SIGINT

_EXCERPT_COLUMNS = 100  # of a long value, what an error shows around the caret


class PodmgrError(Exception):
    """It failed. `message` is one line; `tip` says what to do next; `detail` may be long."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, tip: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip
        self.detail = detail


class UsageError(PodmgrError):
    """The command line asks for something that cannot be meant."""

    exit_code = EXIT_USAGE


class RuleError(UsageError):
    """A rule that cannot be read: which key and value, at which column, and what would be right.

    `column` counts from 1 in `value`; `where` names the object that carries the annotation.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str,
        value: str,
        column: int,
        expected: str,
        where: str | None = None,
    ) -> None:
        self.problem = problem
        self.key = key
        self.value = value
        self.column = column
        self.expected = expected
        self.where = where
        prefix = f"{printable(where)}: " if where else ""
        shown, offset = _excerpt(printable(value), column)
        super().__init__(
            f"{prefix}{printable(key)}: {_shortened(printable(problem))} (column {column})",
            tip=expected,
            detail=f"{printable(key)}={shown}\n{' ' * (len(printable(key)) + 1 + offset)}^",
        )

    def on(self, where: str) -> RuleError:
        """The same error, saying which object carries the annotation."""
        return RuleError(
            self.problem,
            key=self.key,
            value=self.value,
            column=self.column,
            expected=self.expected,
            where=where,
        )


# Makes an error of what is wrong and of what would be right.
Fail = Callable[[str, str], UsageError]


class UnknownKeyError(RuleError):
    """An annotation that can only be meant for podmgr, and that it does not know or does not read."""

    def __init__(self, problem: str, *, key: str, expected: str, where: str | None = None) -> None:
        super().__init__(problem, key=key, value="", column=1, expected=expected, where=where)
        prefix = f"{printable(where)}: " if where else ""
        self.message = prefix + _shortened(printable(problem))
        self.args = (self.message,)
        self.detail = None

    def on(self, where: str) -> UnknownKeyError:
        return UnknownKeyError(self.problem, key=self.key, expected=self.expected, where=where)


class MissingToolError(PodmgrError):
    """A program that podmgr needs is not installed."""


class ToolTimeoutError(PodmgrError):
    """A program that podmgr runs did not end in time."""


class PermissionDeniedError(PodmgrError):
    """The kernel does not let us look or act. Never to be read as "nothing is there"."""


def unexpected(error: Exception) -> PodmgrError:
    """What nobody has thought of, as a failure among others, for loops that must go on."""
    failure = PodmgrError(
        f"unexpected {type(error).__name__}: {error}",
        detail="".join(traceback.format_exception(error)),
        tip="this is a bug; the log has its traceback",
    )
    failure.__cause__ = error
    return failure


def printable(text: str) -> str:
    """`text` fit for a terminal: control characters, one for one, become a middle dot.

    Annotations are written by strangers; their escape sequences must not reach the screen.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "·" for character in text)


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * _EXCERPT_COLUMNS else text[: 2 * _EXCERPT_COLUMNS] + "…"


def _excerpt(value: str, column: int) -> tuple[str, int]:
    """At most a screen's width of `value`, and the caret's offset in what is shown."""
    offset = column - 1
    if len(value) <= _EXCERPT_COLUMNS:
        return value, offset
    start = max(0, offset - _EXCERPT_COLUMNS // 2)
    shown = value[start : start + _EXCERPT_COLUMNS]
    head = "…" if start else ""
    tail = "…" if start + _EXCERPT_COLUMNS < len(value) else ""
    return head + shown + tail, offset - start + len(head)
