"""What `watch` says while it runs: a line of text, or of JSON, for each thing that happens.

Owns how a line looks, and that nobody waits for who reads it. What libraries tell `logging` comes
out the same way. What there is to say is everybody else's business.
"""

from __future__ import annotations

import json
import logging
import queue
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO

from podmgr.errors import PodmgrError, printable, unexpected
from podmgr.settings import LogFormat

_MOST_LINES = 10_000
_OF_LIBRARIES = logging.WARNING  # below, urllib3 tells of each request
_FIELDS = "podmgr_fields"  # a record that has them is our own


class Journal:
    """Writes whole lines to stderr, from a thread of its own: a reader that has stopped to read
    holds up nothing but itself. What it leaves no room for is dropped, and counted.
    """

    def __init__(self, form: LogFormat, stream: TextIO | None = None) -> None:
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_LINES)
        self._handler = _Handler(self._lines)
        self._handler.setFormatter(_Json() if form is LogFormat.JSON else _Text())
        self._handler.setLevel(_OF_LIBRARIES)  # asked by loggers; our own lines do not come from one
        # Begun before `watch` blocks its signals, this thread would take them from who waits for them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _Writer(self._lines, stream or sys.stderr).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def info(self, message: str, **fields: object) -> None:
        self._handler.handle(_record(logging.INFO, message, fields))

    def warning(self, message: str, **fields: object) -> None:
        self._handler.handle(_record(logging.WARNING, message, fields))

    def error(self, message: str, **fields: object) -> None:
        self._handler.handle(_record(logging.ERROR, message, fields))

    def failure(self, problem: Exception, *, before: str = "", after: str = "") -> None:
        """An error with its tip and detail, and what stands around its message."""
        error = problem if isinstance(problem, PodmgrError) else unexpected(problem)
        fields = {name: text for name, text in (("tip", error.tip), ("detail", error.detail)) if text}
        self.error(f"{before}{error.message}{after}", **fields)

    @contextmanager
    def hearing_libraries(self) -> Iterator[None]:
        """While the block runs, say what libraries warn of, and Python; nothing else of theirs comes out."""
        root, raises = logging.getLogger(), logging.raiseExceptions
        root.addHandler(self._handler)
        logging.captureWarnings(True)
        logging.raiseExceptions = False  # or `logging` writes tracebacks of its own between our lines
        try:
            yield
        finally:
            logging.raiseExceptions = raises
            logging.captureWarnings(False)
            root.removeHandler(self._handler)

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all is written, for so long at most."""
        deadline = time.monotonic() + timeout_seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)


class _Handler(QueueHandler):
    """Puts finished lines into the queue, as far as there is room."""

    _dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                lost = f"{self._dropped} lines were dropped: the log is full"
                self.queue.put_nowait(self.prepare(_record(logging.WARNING, lost, {})))
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1


class _Writer(QueueListener):
    """Writes them. A handler of `logging` would do it under a lock that `logging` takes when the
    process ends: with a reader that has stopped to read, it would not end.
    """

    def __init__(self, lines: queue.Queue[logging.LogRecord], stream: TextIO) -> None:
        super().__init__(lines)
        self._stream = stream

    def handle(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # the reader of our log is gone; the rules are not
            self._stream.write(f"{record.msg}\n")
            self._stream.flush()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {"time": _time(record), "level": _level(record), "message": _message(record)}
        return json.dumps({**said, **_fields(record)}, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields, about = _fields(record), ""
        if "pod" in fields:
            about = f"{fields['namespace']}/{fields['pod']}: "
        elif "logger" in fields:
            about = f"{fields['logger']}: "
        return printable(f"{_time(record)} {_level(record):7} {about}{_message(record)}")


def _record(level: int, message: str, fields: Mapping[str, object]) -> logging.LogRecord:
    return logging.makeLogRecord({"levelno": level, "msg": message, _FIELDS: fields})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _level(record: logging.LogRecord) -> str:
    if record.levelno >= logging.ERROR:
        return "error"
    return "warning" if record.levelno >= logging.WARNING else "info"


def _message(record: logging.LogRecord) -> str:
    """Our own as it is; a library's on one line, with the error that it is about."""
    if hasattr(record, _FIELDS):
        return str(record.msg)
    try:
        message = " ".join(record.getMessage().split())
    except Exception:  # its arguments do not fit it
        message = f"{record.msg!r} {record.args!r}"
    error = record.exc_info[1] if record.exc_info else None
    is_told = error is None or (str(error) and str(error) in message)
    return message if is_told else f"{message} ({type(error).__name__}: {error})"


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    if hasattr(record, _FIELDS):
        fields: Mapping[str, Any] = getattr(record, _FIELDS)
        return fields
    error = record.exc_info[1] if record.exc_info else None
    detail = {} if error is None else {"detail": "".join(traceback.format_exception(error))}
    return {"logger": record.name, **detail}
