"""Where a watch is asked how it is, over real HTTP: the address, the probes, and clients that misbehave."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from podmgr.errors import PodmgrError, UsageError
from podmgr.settings import Settings
from podmgr.watch.health import STUCK_SECONDS, Health
from podmgr.watch.metrics import Metrics
from podmgr.watch.server import parse_address, serve

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

HERE = ("127.0.0.1", 0)


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str, Message]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def nothing(_: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """A page of metrics without any."""
    start_response("200 OK", [])
    return []


@pytest.fixture
def port(tmp_path: Path) -> int:
    """Where a watch is asked that is well."""
    return serve(HERE, Metrics(Settings(tmp_path, tmp_path)).page(), Health())


# The address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9090", ("", 9090)),
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9090", ("::1", 9090)),
        ("[::]:9090", ("::", 9090)),
        ("node-1.example.com:65535", ("node-1.example.com", 65_535)),
    ],
)
def test_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "9090", "localhost", "localhost:", "localhost:http", "[::1]", ":-1", ":+1", ":65536"),
        *("unix:", "unix:socket", "unix"),
        *(": 1", ":9090 ", ":²", ":١", ":9_0", ":1.0", ":0x10", ":" + "9" * 5000),
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address") as caught:
        parse_address(text)
    assert caught.value.tip == "--metrics-address HOST:PORT, :PORT or unix:/PATH"
    assert len(caught.value.message) < 120


@given(st.text(max_size=30) | st.text("0123456789:[]ab.", max_size=20))
def test_reading_an_address_raises_nothing_but_usage_errors(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError as error:
        assert error.message.isprintable()
        return
    assert isinstance(address, tuple) and 0 <= address[1] <= 65_535


# Probes


def test_each_probe_asks_its_own_question_each_time() -> None:
    now = 0.0
    health = Health(lambda: now)
    port = serve(HERE, nothing, health)
    well, ill = (200, "ok\n"), (503, "Service Unavailable\n")
    assert [get(port, path)[:2] for path in ("/healthz", "/readyz")] == [well, ill]
    health.begun()
    assert [get(port, path)[:2] for path in ("/healthz", "/readyz")] == [well, well]
    now += STUCK_SECONDS
    assert [get(port, path)[:2] for path in ("/healthz", "/readyz")] == [ill, ill]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/x", "/nothing"])
def test_other_paths_are_not_found(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_probe_asks_for_no_metrics() -> None:
    asked: list[WSGIEnvironment] = []

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        asked.append(environ)
        return nothing(environ, start_response)

    port = serve(HERE, page, Health())
    for path in ("/healthz", "/readyz", "/nothing"):
        get(port, path)
    assert asked == []
    get(port, "/metrics")
    assert len(asked) == 1


# Scrapes, and clients that misbehave


def test_scrape_is_answered_as_prometheus_expects(port: int) -> None:
    status, text, headers = get(port, "/metrics")
    assert (status, headers.get_content_type()) == (200, "text/plain")
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"podmgr_build_info", "podmgr_pods"} <= names


def test_slow_scrape_does_not_keep_probes_waiting() -> None:
    is_asked, goes_on = threading.Event(), threading.Event()

    def slow(_: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        is_asked.set()
        goes_on.wait(10)
        start_response("200 OK", [])
        return []

    port = serve(HERE, slow, Health())
    with ThreadPoolExecutor() as pool:
        scrape = pool.submit(get, port, "/metrics")
        assert is_asked.wait(10)
        assert get(port, "/healthz")[0] == 200
        assert not scrape.done()
        goes_on.set()
        assert scrape.result()[0] == 200


def test_requests_are_not_logged(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    get(port, "/healthz")
    get(port, "/nothing")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("request_line", [b"GET /healthz HTTP/1.0\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b""])
def test_client_that_hangs_up_is_nothing_to_tell(
    port: int, capfd: pytest.CaptureFixture[str], request_line: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request_line)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
    time.sleep(0.05)
    assert get(port, "/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")


def silent(port: int) -> socket.socket:
    """A client that says nothing."""
    return socket.create_connection(("127.0.0.1", port), timeout=3)


def test_a_probe_is_heard_however_many_clients_say_nothing(port: int) -> None:
    """The oldest gives way, and only as many as it takes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(silent(port)) for _ in range(18)]
        assert get(port, "/healthz")[0] == 200
        for gone in clients[:3]:
            assert gone.recv(1) == b""
        for client in clients[3:]:
            client.settimeout(0.01)
            with pytest.raises(TimeoutError):
                client.recv(1)
    assert get(port, "/healthz")[0] == 200


def test_connections_that_have_ended_make_room(port: int) -> None:
    for _ in range(40):
        assert get(port, "/healthz")[0] == 200


@pytest.mark.parametrize("said", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_client_that_says_no_more_is_hung_up_on(
    port: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("podmgr.watch.server._Client.timeout", 0.1)
    with silent(port) as client:
        client.sendall(said)
        assert client.recv(1) == b""
    assert get(port, "/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


V6 = ["[::1]"] if has_ipv6() else []


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("", ["127.0.0.1", *V6]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        *(("::1", [host]) for host in V6),
        *(("::", ["127.0.0.1", host]) for host in V6),
    ],
)
def test_it_listens_where_it_was_told(address: str, hosts: list[str]) -> None:
    port = serve((address, 0), nothing, Health())
    assert port > 0
    for host in hosts:
        assert get(port, "/healthz", host)[0] == 200


def test_machine_without_ipv6_is_served_over_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    port = serve(("", 0), nothing, Health())
    assert get(port, "/healthz")[0] == 200


def test_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PodmgrError) as caught:
            serve(("127.0.0.1", port), nothing, Health())
    reason = os.strerror(errno.EADDRINUSE)
    assert caught.value.message == f"cannot listen on 127.0.0.1:{port}: {reason}"
    assert caught.value.tip == "see --metrics-address"


def test_host_that_is_none_is_an_error() -> None:
    with pytest.raises(PodmgrError, match=r"cannot listen on 203\.0\.113\.7:0: Cannot assign"):
        serve(("203.0.113.7", 0), nothing, Health())


def test_listening_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DNS does not answer, its timeout would hold up the start, and with it every rule."""
    for name in ("getfqdn", "gethostbyaddr", "gethostbyname"):
        monkeypatch.setattr(socket, name, None)
    for host in ("", "127.0.0.1"):
        assert serve((host, 0), nothing, Health())
