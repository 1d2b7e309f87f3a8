"""The log of `watch`: whole lines, readable by people or by machines, and never a reason to stop."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import urllib3
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
    before, mask = set(threading.enumerate()), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    journal = Journal(LogFormat.TEXT, io.StringIO())
    journal.info("x")
    journal.flush(5)
    (writing,) = set(threading.enumerate()) - before
    status = Path(f"/proc/self/task/{writing.native_id}/status").read_text()
    blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert blocked >> (number - 1) & 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


STALLED = """
from podmgr.settings import LogFormat
from podmgr.watch.journal import Journal
journal = Journal(LogFormat.TEXT)
with journal.hearing_libraries():
    for _ in range(2_000):
        journal.info("x" * 100)
    journal.flush(0.1)
"""


def test_process_ends_though_nobody_reads_what_it_says() -> None:
    with subprocess.Popen([sys.executable, "-c", STALLED], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


# Libraries


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    logger = logging.getLogger("podmgr.tests.library")
    yield logger
    logger.setLevel(logging.NOTSET)


def heard(form: LogFormat, say: Callable[[], object]) -> str:
    """What the journal has of it when it hears libraries."""
    journal, stream = logbook(form)
    stream.seek(0)
    stream.truncate()
    with journal.hearing_libraries():
        say()
    journal.flush(2)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("level", "shown"), [("warning", "warning"), ("error", "error"), ("critical", "error")]
)
def test_what_a_library_warns_of_looks_like_our_own(library: logging.Logger, level: str, shown: str) -> None:
    def say() -> None:
        getattr(library, level)("%s has\n gone \x1b[31m", "all")

    text = heard(LogFormat.TEXT, say)
    assert re.fullmatch(rf"{TIME} {shown:7} {re.escape(library.name)}: all has gone ·\[31m\n", text)
    content = json.loads(heard(LogFormat.JSON, say))
    assert re.fullmatch(TIME, content.pop("time"))
    assert content == {"level": shown, "message": "all has gone \x1b[31m", "logger": library.name}


@pytest.mark.parametrize("form", LogFormat)
def test_urllib3_is_heard(form: LogFormat) -> None:
    """Of an answer with a header that is none; not of the request before."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        (text,) = heard(form, lambda: urllib3.request("GET", url, retries=False)).splitlines()
    said = rf"Failed to parse headers \(url={url}\): [^()]*\(\)\], unparsed data: [^()]*"
    if form is LogFormat.TEXT:
        assert re.fullmatch(rf"{TIME} warning urllib3.connection: {said}", text)
    else:
        content = json.loads(text)
        assert (content["level"], content["logger"]) == ("warning", "urllib3.connection")
        assert re.fullmatch(said, content["message"])


@pytest.mark.parametrize("form", LogFormat)
def test_what_a_library_tells_besides_is_not_said(library: logging.Logger, form: LogFormat) -> None:
    def say() -> None:
        library.debug("a request")
        library.info("an answer")

    library.setLevel(logging.DEBUG)
    assert heard(form, say) == ""


def test_error_of_a_library_is_named_and_json_has_all_of_it(library: logging.Logger) -> None:
    def say() -> None:
        try:
            raise ValueError("no\nsuch thing")
        except ValueError:
            library.exception("it failed")

    assert heard(LogFormat.TEXT, say).endswith("it failed (ValueError: no·such thing)\n")
    content = json.loads(heard(LogFormat.JSON, say))
    assert content["message"] == "it failed (ValueError: no\nsuch thing)"
    assert content["detail"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("form", LogFormat)
def test_library_that_logs_in_a_wrong_way_breaks_no_line(
    library: logging.Logger, form: LogFormat, capfd: pytest.CaptureFixture[str]
) -> None:
    class Silly:
        def __repr__(self) -> str:
            raise ValueError

    def say() -> None:
        library.warning("%d of them", "x")
        library.warning("%r", Silly())  # no one can tell what it is

    (text,) = heard(form, say).splitlines()
    assert "'%d of them' ('x',)" in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", LogFormat)
def test_warnings_of_python_are_heard_as_well(form: LogFormat, capfd: pytest.CaptureFixture[str]) -> None:
    text = heard(form, lambda: warnings.warn("take care", UserWarning, stacklevel=1))
    assert re.search(r"test_journal\.py:\d+: UserWarning: take care", text)
    assert text.count("\n") == 1
    assert capfd.readouterr() == ("", "")


def test_own_lines_come_once_while_libraries_are_heard() -> None:
    journal, _ = logbook(LogFormat.TEXT)

    def say() -> None:
        journal.info("one")
        journal.error("other")

    text = heard(LogFormat.TEXT, say)
    assert re.fullmatch(rf"{TIME} info    one\n{TIME} error   other\n", text)


def test_afterwards_libraries_are_as_before(library: logging.Logger) -> None:
    def state() -> tuple[object, ...]:
        return logging.raiseExceptions, logging.getLogger().handlers[:], warnings.showwarning

    before = state()
    assert heard(LogFormat.TEXT, lambda: None) == ""
    assert state() == before
    journal, stream = logbook(LogFormat.TEXT)
    library.warning("unheard")
    journal.flush(2)
    assert stream.getvalue() == ""


def test_commands_that_do_not_watch_do_not_load_it() -> None:
    """Its imports would be a part of their time that is felt."""
    code = "import sys, podmgr.cli.main; sys.exit('logging.handlers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
