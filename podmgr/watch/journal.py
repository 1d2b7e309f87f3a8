"""What `watch` says while it runs: a line of text, or of JSON, for each thing that happens."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

from podmgr.errors import printable
from podmgr.settings import LogFormat

_MOST_LINES = 10_000


class Journal:
    """Writes whole lines to stderr, from a thread of its own: a reader that has stopped to read
    holds up nothing but itself. What it leaves no room for is dropped, and counted.
    """

    def __init__(self, form: LogFormat, stream: TextIO | None = None) -> None:
        self._form = form
        self._stream = stream or sys.stderr
        self._lines: queue.Queue[str] = queue.Queue(_MOST_LINES)
        self._dropped = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="journal", daemon=True).start()

    def info(self, message: str, **fields: object) -> None:
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self._write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write("error", message, fields)

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all is written, for so long at most."""
        deadline = time.monotonic() + timeout_seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        line = self._line(level, message, fields)
        with self._lock:
            try:
                if self._dropped:
                    lost = f"{self._dropped} lines were dropped: the log is full"
                    self._lines.put_nowait(self._line("warning", lost, {}))
                    self._dropped = 0
                self._lines.put_nowait(line)
            except queue.Full:
                self._dropped += 1

    def _line(self, level: str, message: str, fields: Mapping[str, object]) -> str:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        if self._form is LogFormat.JSON:
            return json.dumps({"time": now, "level": level, "message": message, **fields}, default=str)
        pod = f"{fields['namespace']}/{fields['pod']}: " if "pod" in fields else ""
        return printable(f"{now} {level:7} {pod}{message}")

    def _run(self) -> None:
        # Begun before `watch` blocks its signals, this thread would take them from who waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            line = self._lines.get()
            with suppress(OSError, ValueError):  # the reader of our log is gone; the rules are not
                self._stream.write(line + "\n")
                self._stream.flush()
            self._lines.task_done()
