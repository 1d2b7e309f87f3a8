"""The log of `watch`: whole lines, readable by people or by machines, and never a reason to stop."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.settings import LogFormat
from podmgr.watch.journal import Journal

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@functools.cache
def logbook(form: LogFormat) -> tuple[Journal, io.StringIO]:
    """One for all examples: each journal has a thread."""
    stream = io.StringIO()
    return Journal(form, stream), stream


def line(form: LogFormat, message: str, *, level: str = "info", **fields: object) -> str:
    journal, stream = logbook(form)
    stream.seek(0)
    stream.truncate()
    getattr(journal, level)(message, **fields)
    journal.flush(2)
    return stream.getvalue()


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_text_has_time_level_and_message(level: str) -> None:
    text = line(LogFormat.TEXT, "all is well", level=level)
    assert re.fullmatch(rf"{TIME} {level:7} all is well\n", text)


def test_text_names_the_pod_and_no_other_field() -> None:
    text = line(LogFormat.TEXT, "attached", namespace="shop", pod="web-1", uid="u-1", program_id=7)
    assert re.fullmatch(rf"{TIME} info    shop/web-1: attached\n", text)


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_json_has_all_fields(level: str) -> None:
    text = line(LogFormat.JSON, "attached", level=level, pod="web-1", program_id=7, path=Path("/x"))
    content = json.loads(text)
    assert re.fullmatch(TIME, content.pop("time"))
    assert content == {
        "level": level,
        "message": "attached",
        "pod": "web-1",
        "program_id": 7,
        "path": "/x",
    }


def test_time_is_utc_now() -> None:
    said = datetime.fromisoformat(json.loads(line(LogFormat.JSON, "x"))["time"])
    assert abs(datetime.now(UTC) - said) < timedelta(seconds=10)


@given(st.text(), st.text(), st.sampled_from(LogFormat))
def test_whatever_is_said_is_one_line_without_escape_sequences(
    message: str, pod: str, form: LogFormat
) -> None:
    text = line(form, message, namespace="shop", pod=pod)
    assert text.endswith("\n")
    assert text[:-1].isprintable()


@given(st.text(), st.text())
def test_json_gives_back_what_was_said(message: str, value: str) -> None:
    content = json.loads(line(LogFormat.JSON, message, value=value))
    assert (content["message"], content["value"]) == (message, value)


def test_lines_of_many_threads_are_whole() -> None:
    class Hasty(io.StringIO):
        """Gives other threads their chance in the middle of a line."""

        def write(self, text: str) -> int:
            for part in (text[:20], text[20:]):
                super().write(part)
                time.sleep(0.0001)
            return len(text)

    stream = Hasty()
    journal = Journal(LogFormat.JSON, stream)

    def say(name: str) -> None:
        for step in range(20):
            journal.info(name, step=step)

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush(5)
    found = [json.loads(text) for text in stream.getvalue().splitlines()]
    for name in "abcdef":
        assert [item["step"] for item in found if item["message"] == name] == list(range(20))


def test_line_is_out_at_once() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        Journal(LogFormat.TEXT, stream).info("hello")
        assert os.read(read, 1000).endswith(b"hello\n")
    os.close(read)


def test_reader_that_has_gone_stops_nothing() -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    stream = Broken()
    journal = Journal(LogFormat.TEXT, stream)
    journal.info("one")
    journal.error("two")
    journal.flush(2)
    assert len(stream.getvalue().splitlines()) == 2


def test_without_a_stream_it_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(LogFormat.TEXT)
    journal.warning("careful")
    journal.flush(2)
    captured = capsys.readouterr()
    assert "careful" in captured.err
    assert captured.out == ""


class Stalled(io.StringIO):
    """A reader that has stopped to read."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.is_reached = threading.Event()

    def write(self, text: str) -> int:
        self.is_reached.set()
        self.goes_on.wait(10)
        return super().write(text)


def test_reader_that_stalls_holds_up_nothing_and_is_told_how_much_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("podmgr.watch.journal._MOST_LINES", 50)
    stream = Stalled()
    journal = Journal(LogFormat.TEXT, stream)
    started = time.monotonic()
    for number in range(200):
        journal.info(f"line {number}")
    assert time.monotonic() - started < 2
    stream.goes_on.set()
    journal.flush(5)
    journal.info("at last")
    journal.flush(5)
    lines = [text.split(" ", 1)[1].strip() for text in stream.getvalue().splitlines()]
    told = sum(int(text.split()[1]) for text in lines if "lines were dropped" in text)
    assert lines[-1].endswith("at last")
    assert told + sum(text.startswith("info    line") for text in lines) == 200


def test_lines_that_are_dropped_are_counted_before_the_next_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("podmgr.watch.journal._MOST_LINES", 5)
    stream = Stalled()
    journal = Journal(LogFormat.JSON, stream)
    journal.info("being written")
    assert stream.is_reached.wait(5)
    for number in range(12):
        journal.info(str(number))
    stream.goes_on.set()
    journal.flush(5)
    journal.info("again")
    journal.info("and again")
    journal.flush(5)
    assert [json.loads(text)["message"] for text in stream.getvalue().splitlines()] == [
        *("being written", "0", "1", "2", "3", "4"),
        *("7 lines were dropped: the log is full", "again", "and again"),
    ]


def test_flush_waits_no_longer_than_it_may() -> None:
    stream = Stalled()
    journal = Journal(LogFormat.TEXT, stream)
    journal.info("x")
    started = time.monotonic()
    journal.flush(0.1)
    assert 0.1 <= time.monotonic() - started < 2
    stream.goes_on.set()
    journal.flush(5)
    assert stream.getvalue().endswith("x\n")


def test_writing_thread_takes_no_signals() -> None:
    """`watch` waits for them in another thread."""
    journal = Journal(LogFormat.TEXT, io.StringIO())
    journal.info("x")
    journal.flush(5)
    ident = next(thread.native_id for thread in threading.enumerate() if thread.name == "journal")
    status = Path(f"/proc/self/task/{ident}/status").read_text()
    blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert blocked >> (number - 1) & 1
