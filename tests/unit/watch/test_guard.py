"""Who may scrape, and how often: tokens and Unix sockets over real HTTP, and crowds of clients."""

from __future__ import annotations

import hmac
import http.client
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from podmgr.errors import PodmgrError
from podmgr.watch.guard import paced, with_token
from podmgr.watch.health import Health
from podmgr.watch.server import Address, parse_address, serve
from tests.scraping import ask

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

HERE = ("127.0.0.1", 0)
TOKEN = "s3cret-of-the-monitoring"


def page(_: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"figures\n"]


# A token


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def port(token_file: Path) -> int:
    return serve(HERE, with_token(page, token_file), Health())


@pytest.mark.parametrize("said", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "])
def test_who_says_the_token_is_answered(port: int, said: str) -> None:
    assert ask(port, "/metrics", said) == (200, "figures\n")


@pytest.mark.parametrize(
    "said",
    [
        *(None, "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"),
        *(f"Bearer {TOKEN.upper()}", "Bearer \u00e9", f"Bearer x {TOKEN}", "Bearer " + "x" * 60_000),
    ],
)
def test_all_others_get_401_and_no_figure(port: int, said: str | None) -> None:
    assert ask(port, "/metrics", said) == (401, "Unauthorized\n")


def test_probes_need_no_token(port: int) -> None:
    assert ask(port, "/healthz") == (200, "ok\n")
    assert ask(port, "/readyz")[0] == 503


def test_the_token_is_compared_in_constant_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compares, decides alone: made to say the contrary, it turns the answers around."""
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: not compare(a, b))
    assert ask(port, "/metrics", f"Bearer {TOKEN}")[0] == 401
    assert ask(port, "/metrics", "Bearer another")[0] == 200


def test_a_token_that_is_changed_is_in_force_at_once(port: int, token_file: Path) -> None:
    token_file.write_text("another")
    assert ask(port, "/metrics", f"Bearer {TOKEN}")[0] == 401
    assert ask(port, "/metrics", "Bearer another")[0] == 200


@pytest.mark.parametrize("becomes", ["gone", "empty", "folder", "writable"])
def test_a_token_that_can_no_longer_be_read_lets_nobody_in(port: int, token_file: Path, becomes: str) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    if becomes == "writable":
        token_file.chmod(0o666)
    elif becomes == "empty":
        token_file.write_text("")
    else:
        token_file.unlink()
        if becomes == "folder":
            token_file.mkdir()
    for said in (f"Bearer {TOKEN}", "Bearer ", "Bearer", None) * 5:
        assert ask(port, "/metrics", said)[0] == 401
    assert ask(port, "/healthz")[0] == 200
    assert len(os.listdir("/proc/self/fd")) <= open_before + 4  # connections that are just being closed


@pytest.mark.parametrize("content", ["", "\n", "two words", "x" * 5000])
def test_a_file_without_a_token_is_an_error_at_the_start(token_file: Path, content: str) -> None:
    token_file.write_text(content)
    with pytest.raises(PodmgrError, match="there is no token in"):
        with_token(page, token_file)


def test_a_pipe_is_no_token_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(PodmgrError, match="there is no token in"):
        with_token(page, tmp_path / "pipe")
    with pytest.raises(PodmgrError, match="No such file"):
        with_token(page, tmp_path / "gone")


# A Unix socket


@pytest.fixture
def path() -> Iterator[Path]:
    """Short enough for a socket, wherever the tests' folder is."""
    folder = Path(f"/tmp/podmgr-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder / "metrics.sock"
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def test_a_socket_answers_and_its_mode_says_whom(path: Path) -> None:
    before = os.umask(0)
    try:
        assert serve(parse_address(f"unix:{path}"), page, Health()) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    assert path.lstat().st_uid == os.geteuid()
    assert ask(path, "/metrics") == (200, "figures\n")
    assert ask(path, "/healthz") == (200, "ok\n")
    assert ask(path, "/nothing")[0] == 404


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect(path: Path) -> None:
    serve(path, page, Health())
    connect = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(54321)\n"
        "socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
    )
    for group, code in (("54321", 1), (str(os.getegid()), 0)):
        argv = [sys.executable, "-c", connect, str(path), group]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert ("PermissionError" in done.stderr) == bool(code)


def test_a_token_holds_on_a_socket_too(path: Path, token_file: Path) -> None:
    serve(path, with_token(page, token_file), Health())
    assert ask(path, "/metrics")[0] == 401
    assert ask(path, "/metrics", f"Bearer {TOKEN}")[0] == 200


def test_what_a_crash_left_there_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    serve(path, page, Health())
    assert ask(path, "/healthz")[0] == 200


def test_what_is_anothers_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(PodmgrError, match="is no socket"):
        serve(path, page, Health())
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(PodmgrError, match="somebody else answers"):
            serve(path, page, Health())
    assert path.exists()


@pytest.mark.parametrize("what", ["gone", "writable", "too long"])
def test_a_folder_that_is_no_place_for_it_is_an_error(path: Path, what: str) -> None:
    address: Address = path
    if what == "writable":
        path.parent.chmod(0o777)
    else:
        address = path.parent / ("gone" if what == "gone" else "x" * 120) / "socket"
        if what == "too long":
            address = path.parent / ("x" * 120)
    with pytest.raises(PodmgrError, match=r"cannot listen on|others may write"):
        serve(address, page, Health())


def test_the_socket_goes_with_the_process(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\nfrom podmgr.watch.health import Health\n"
        "from podmgr.watch.server import serve\npath = Path(sys.argv[1])\n"
        "serve(path, None, Health()); assert path.is_socket()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert not path.exists()


# Crowds


def test_a_page_is_made_one_at_a_time_with_pauses_as_long_as_it_took() -> None:
    now, busy, most = 0.0, 0, 0
    began: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow(_: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        nonlocal now, busy, most
        busy += 1
        most = max(most, busy)
        began.append(now)
        now += 0.3
        busy -= 1
        start_response("200 OK", [])
        return []

    answer = paced(slow, lambda: now, sleep)
    for _ in range(3):
        answer({}, lambda *_: lambda _: None)
    assert began == [pytest.approx(number * 0.6) for number in range(3)]
    assert most == 1


def test_a_crowd_of_scrapes_is_told_to_come_again_and_probes_are_answered() -> None:
    """Without a bound each would be a thread that looks at the whole kernel."""
    busy, most, made = 0, 0, 0
    goes_on = threading.Event()
    lock = threading.Lock()

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        nonlocal busy, most, made
        with lock:
            busy, made = busy + 1, made + 1
            most = max(most, busy)
        goes_on.wait(20)
        with lock:
            busy -= 1
        return page(environ, start_response)

    port = serve(HERE, paced(slow), Health())

    def scrape() -> int:
        with suppress(OSError, http.client.HTTPException):
            return ask(port, "/metrics")[0]
        return 0  # the oldest gave way

    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(scrape) for _ in range(40)]
        while sum(future.done() for future in asked) < 32:  # eight wait, or were hung up on
            time.sleep(0.01)
        assert ask(port, "/healthz") == (200, "ok\n")
        goes_on.set()
        answers = [future.result() for future in asked]
    assert most == 1
    assert made <= 8
    assert set(answers) <= {0, 200, 503}
    assert answers.count(503) >= 1


def test_a_client_that_reads_nothing_holds_up_nobody() -> None:
    """Its page is larger than all buffers: the thread that writes to it waits, and no other."""

    def large(_: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * (32 << 20)]

    port = serve(HERE, paced(large), Health())
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(1)  # its page has begun
        assert ask(port, "/metrics")[0] == 200
        assert ask(port, "/healthz")[0] == 200
