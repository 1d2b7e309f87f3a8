"""What `watch` says while it runs: a line of text, or of JSON, for each thing that happens."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from podmgr.errors import printable


class LogFormat(StrEnum):
    """The values of --log-format."""

    TEXT = "text"
    JSON = "json"


class Journal:
    """Writes whole lines to stderr, from any thread."""

    def __init__(self, form: LogFormat, stream: TextIO | None = None) -> None:
        self._form = form
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def info(self, message: str, **fields: object) -> None:
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self._write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        if self._form is LogFormat.JSON:
            line = json.dumps({"time": now, "level": level, "message": message, **fields}, default=str)
        else:
            pod = f"{fields['namespace']}/{fields['pod']}: " if "pod" in fields else ""
            line = printable(f"{now} {level:7} {pod}{message}")
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except OSError:  # the reader of our log is gone; the rules are not
                pass
