"""Text to objects as kubectl reads it: YAML or JSON documents, bounded, each key once.

Knows nothing of Kubernetes. YAML means what Go's YAML library makes of it: a time and `=` are
text, `1:30` is no number, a key may not be written twice. What strangers write is bounded in
size, depth, and in what aliases multiply it to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from podmgr.errors import PodmgrError, printable

MAX_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_VALUES = 2_000_000  # of a file, aliases counted as often as they are used

_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[1-9][0-9_]*|0)", re.ASCII)
_REAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", re.ASCII)
_BETWEEN = re.compile(r"\s*(?:---\s+|---$)*")
_MAX_DIGITS = 400  # of a number; what is longer is text, and no annotation
_MERGE = "<<"
_NOT_TEXT = ("bool", "float", "int", "null")


def read(name: str, text: str, *, tip: str = "kubectl reads YAML and JSON") -> list[Any]:
    """The documents of a file that is called `name` in errors; empty ones are left out.

    Raises PodmgrError, with the line, for what kubectl does not read either; `tip` says what the
    file should be, where the error knows nothing better.
    """
    start = text.lstrip("\ufeff \t\r\n")
    try:
        if len(text) > MAX_BYTES:
            raise PodmgrError(f"{name} is larger than {MAX_BYTES >> 20} MiB")
        found = _json(name, start) if start.startswith("{") else _yaml(name, text)
    except PodmgrError as error:
        error.tip = error.tip or tip
        raise
    return [document for document in found if document is not None]


def _json(name: str, text: str) -> list[Any]:
    """One JSON document after the other; YAML that begins with a brace is read as YAML."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
    documents, at = [], 0
    try:
        while at < len(text):
            document, end = decoder.raw_decode(text, at)
            documents.append(_whole(document))
            at = _skipped(text, end)
    except _TwiceError as error:
        raise PodmgrError(f"{name}: the key {error} is written twice", tip="leave one of them out") from error
    except RecursionError as error:
        raise _too_deep(name) from error
    except ValueError as error:
        if not documents:
            return _yaml(name, text)
        raise _unreadable(name, "JSON", str(error)) from error
    return documents


def _skipped(text: str, at: int) -> int:
    """Behind the blanks and `---` lines that may stand between two documents."""
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


class _TwiceError(Exception):
    """A key of an object that stands there already."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(printable(key)[:80])
        found[key] = value
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _whole(value: Any, depth: int = 0) -> Any:
    """Halves of a character that JSON leaves alone become the character that says so, as in Go."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if isinstance(value, dict):
        return {_whole(key): _whole(item, depth + 1) for key, item in value.items()}
    return [_whole(item, depth + 1) for item in value] if isinstance(value, list) else value


def _yaml(name: str, text: str) -> list[Any]:
    import yaml  # 45 ms: only where manifests are read

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return list(_Builder(name).documents(yaml.parse(text, Loader=loader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _unreadable(name, "YAML", f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _unreadable(name, "YAML", str(error)) from error


def _unreadable(name: str, what: str, reason: str) -> PodmgrError:
    return PodmgrError(f"{name} is not {what}", detail=printable(reason.split("\n", maxsplit=1)[0])[:200])


def _too_deep(name: str) -> PodmgrError:
    return PodmgrError(f"{name} is nested too deeply", tip=f"at most {MAX_DEPTH} levels")


class _Builder:
    """Makes values of the parser's events, and keeps count of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._earlier: set[str] = set()  # anchors of the documents before
        self._events: Iterator[Any] = iter(())

    def documents(self, events: Iterator[Any]) -> Iterator[Any]:
        self._events = events
        for event in events:
            if type(event).__name__ == "DocumentStartEvent":
                self._earlier |= self._anchors.keys()
                self._anchors = {}
                yield self._value(next(events), 0)[0]

    def _value(self, event: Any, depth: int) -> tuple[Any, int]:
        """A value, and of how many it consists."""
        if depth > MAX_DEPTH:
            raise _too_deep(self._name)
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                why = ": an anchor holds only within its document" if event.anchor in self._earlier else ""
                alias = printable(event.anchor)[:40]
                raise self._error(event, f"the alias *{alias} stands for nothing{why}")
            return self._anchors[event.anchor]
        if kind == "ScalarEvent":
            built = self._scalar(event), 1
        elif kind == "SequenceStartEvent":
            built = self._sequence(depth)
        else:
            built = self._mapping(event, depth)
        if built[1] > MAX_VALUES:
            raise self._error(event, f"its aliases make more than {MAX_VALUES:,} values of it")
        if event.anchor is not None:
            self._anchors[event.anchor] = built
        return built

    def _sequence(self, depth: int) -> tuple[list[Any], int]:
        items, size = [], 1
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            item, count = self._value(event, depth + 1)
            items.append(item)
            size += count
        return items, size

    def _mapping(self, start: Any, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        merged: list[Any] = []
        size = 1
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            if type(event).__name__ != "ScalarEvent":
                raise self._error(event, "a key that is no text")
            key = event.value  # JSON knows no other keys than text
            is_merge = key == _MERGE and event.style in (None, "")
            value, count = self._value(next(self._events), depth + 1)
            size += count + 1
            if is_merge:
                merged += value if isinstance(value, list) else [value]
                continue
            if key in found:
                raise self._error(event, f"the key {printable(key)[:80]} is written twice")
            found[key] = value
        for base in merged:
            if not isinstance(base, dict):
                raise self._error(start, "<< takes a mapping")
            found = {**base, **found}
        return found, size

    def _scalar(self, event: Any) -> Any:
        is_plain, _ = event.implicit
        if (is_plain and event.tag != "!") or event.tag in (
            "tag:yaml.org,2002:" + name for name in _NOT_TEXT
        ):
            return _resolved(event.value)
        return event.value

    def _error(self, event: Any, problem: str) -> PodmgrError:
        mark = event.start_mark
        return PodmgrError(f"{self._name}: line {mark.line + 1}: {problem}")


def _resolved(text: str) -> Any:
    """A plain scalar as Go's YAML library takes it."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if len(text) > _MAX_DIGITS or text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return _integer(text.replace("_", "").lower())
    if _REAL.fullmatch(text):
        return float(text)
    return float(text.lower().replace(".", "")) if _SPECIAL.fullmatch(text) else text


def _integer(text: str) -> int | str:
    """`010` and `0o10` are 8; what only looks like a number (`08`, `0x`) is text."""
    digits = text.lstrip("+-")
    base = 8 if re.match("0[0-9]", digits) else 0
    try:
        return -int(digits, base) if text.startswith("-") else int(digits, base)
    except ValueError:
        return text
