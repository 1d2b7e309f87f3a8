"""A page asked for over HTTP, at a port of this machine or on a Unix socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

_SECONDS = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(str(self._path))


def ask(address: int | Path, path: str, authorization: str | None = None) -> tuple[int, str]:
    """Status and text of the page."""
    connection = (
        _UnixConnection(address)
        if isinstance(address, Path)
        else http.client.HTTPConnection("127.0.0.1", address, timeout=_SECONDS)
    )
    try:
        connection.request("GET", path, headers={"Authorization": authorization} if authorization else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
