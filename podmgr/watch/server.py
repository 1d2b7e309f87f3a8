"""Where a watch is asked how it is, over HTTP: /metrics, /healthz and /readyz.

Owns the address, the connections and the paths. What there is to answer is of `metrics` and `health`.
"""

from __future__ import annotations

import atexit
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from podmgr.errors import PodmgrError, UsageError, printable
from podmgr.watch.health import Health

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_MOST_CONNECTIONS = 16
_CLIENT_SECONDS = 5.0  # in which a client has to say what it wants
_UNIX = "unix:"
_SOCKET_MODE = 0o660

Address = tuple[str, int] | Path


def parse_address(text: str) -> Address:
    """HOST:PORT, :PORT for all addresses, or unix:PATH. Raises UsageError."""
    if text.startswith(f"{_UNIX}/"):
        return Path(text.removeprefix(_UNIX))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise UsageError(
            f"{printable(text)[:80]!r} is no address",
            tip="--metrics-address HOST:PORT, :PORT or unix:/PATH",
        )
    return host.strip("[]"), int(port)


def serve(address: Address, metrics: WSGIApplication, health: Health) -> int:
    """Answer from threads of their own until the process ends; the port, chosen if it was 0.

    A Unix socket has none, belongs to our user and group alone, and goes with the process. Raises
    PodmgrError if the address cannot be had.
    """
    is_unix = isinstance(address, Path)
    shown = str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"
    try:
        server = _UnixServer(address) if isinstance(address, Path) else _Server(address)
    except OSError as error:
        raise PodmgrError(
            f"cannot listen on {shown}: {error.strerror or error}", tip="see --metrics-address"
        ) from error
    server.set_app(_pages(metrics, health))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return 0 if is_unix else server.server_port


def _pages(metrics: WSGIApplication, health: Health) -> WSGIApplication:
    probes = {"/healthz": health.is_alive, "/readyz": health.is_ready}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        probe = probes.get(path)
        is_good = probe() if probe else False
        status = "404 Not Found" if probe is None else "200 OK" if is_good else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [b"ok\n" if is_good else status.partition(" ")[2].encode() + b"\n"]

    return answer


class _Client(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """A probe every few seconds is nothing to tell."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """So many connections at once: the oldest gives way to a new one, so that a probe is heard
    however many others say nothing.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        is_v6 = ":" in address[0] or (not address[0] and socket.has_dualstack_ipv6())
        self.address_family = socket.AF_INET6 if is_v6 else socket.AF_INET
        self._open: list[Any] = []
        self._lock = threading.Lock()
        super().__init__(address, _Client)

    def server_bind(self) -> None:
        """As inherited, but the own name is not asked of DNS, which may let us wait."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.append(request)
            oldest = self._open.pop(0) if len(self._open) > _MOST_CONNECTIONS else None
        if oldest is not None:
            with suppress(OSError):  # it has just ended
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock, suppress(ValueError):
                self._open.remove(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away, or says nothing, is nothing to tell."""


class _UnixServer(_Server):
    """The same on a socket in the file system, which says by its mode who may ask."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _make_room(path)
        super().__init__(("", 0))

    def server_bind(self) -> None:
        self.socket.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(self._path))
        self._path.chmod(_SOCKET_MODE)  # nobody is connected before it listens
        atexit.register(_remove, self._path, self._path.lstat().st_ino)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """A client without an address is called as if it had one."""
        return self.socket.accept()[0], ("unix", 0)


def _make_room(path: Path) -> None:
    """Remove what an earlier watch left there. Raises PodmgrError if it is another's, or may become so."""
    tip = "see --metrics-address"
    folder = path.parent.stat()
    if folder.st_uid not in (0, os.geteuid()) or (
        folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX
    ):
        raise PodmgrError(f"others may write to {path.parent}, where the socket would be", tip=tip)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise PodmgrError(f"{path} is there, and is no socket", tip=tip)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_CLIENT_SECONDS)
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise PodmgrError(f"somebody else answers on {path}", tip=tip)


def _remove(path: Path, inode: int) -> None:
    with suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()
