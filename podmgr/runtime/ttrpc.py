"""ttRPC over NRI's multiplexed connection: calls from either side, on one Unix socket.

A frame of the multiplexer is a connection's number (4 bytes, big-endian), a length (4) and so many bytes of
that connection's stream. In a stream, a message of ttRPC is a length (4), the call's number (4), a kind (1),
flags (1) and the data: containerd/nri, pkg/net/multiplex, and containerd/ttrpc, PROTOCOL.md.

Apart from `nri`: it knows calls, and not what is asked.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.errors import PodmgrError
from podmgr.runtime.wire import Message, WireError, encoded

PLUGIN, RUNTIME = 1, 2  # the connections: on which the runtime calls us, and on which we call it
OK, UNIMPLEMENTED, FAILED_PRECONDITION = 0, 12, 9  # gRPC's codes

_FRAME = struct.Struct(">II")
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_MOST_BYTES = 4 << 20  # of a message's data
_MOST_SENT_BYTES = 3500  # a Go reader takes a frame of up to 4,096 bytes at once
_READ_BYTES = 64 * 1024


class Call(NamedTuple):
    """What the runtime asks of us. `timeout_ns` 0: it does not say how long it waits."""

    number: int
    service: str
    method: str
    content: bytes
    timeout_ns: int


class Answer(NamedTuple):
    """What became of our call: `code` is gRPC's."""

    number: int
    code: int
    message: str
    content: bytes


class ClosedError(PodmgrError):
    """The runtime has closed the connection, or never opened it."""


class Connection:
    """One thread reads; any thread writes."""

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0) -> None:
        """Raises ClosedError if nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._writing = threading.Lock()
        self._read = b""
        self._streams: dict[int, bytearray] = {PLUGIN: bytearray(), RUNTIME: bytearray()}
        self._calls = 0
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ClosedError(
                f"cannot connect to {path}: {error.strerror or error}",
                tip="does the runtime have NRI, and is it enabled? see --nri-socket",
            ) from error

    def read(self, timeout_seconds: float | None) -> Call | Answer | None:
        """The next message; None after the timeout. Raises ClosedError at the end, WireError for nonsense."""
        while (found := self._next()) is None:
            try:
                self._socket.settimeout(timeout_seconds)
                content = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                return None
            except OSError as error:
                raise ClosedError(f"the runtime is gone: {error.strerror or error}") from error
            if not content:
                raise ClosedError("the runtime has closed the connection")
            self._read += content
            self._part()
        return found

    def call(self, service: str, method: str, content: bytes) -> int:
        """Ask something of the runtime; the number that its answer will have."""
        self._calls += 1
        number = 2 * self._calls - 1  # odd: whoever calls is the client
        request = encoded({1: service, 2: method, 3: content})
        self._send(RUNTIME, number, _REQUEST, request)
        return number

    def answer(self, call: Call, content: bytes = b"", *, code: int = OK, message: str = "") -> None:
        """Raises ClosedError if nobody is there to hear it."""
        status = encoded({1: code, 2: message[: _MOST_SENT_BYTES // 4]})
        self._send(PLUGIN, call.number, _RESPONSE, encoded({1: status, 2: content}))

    def close(self) -> None:
        """Also what reads in another thread ends."""
        with suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, connection: int, number: int, kind: int, content: bytes) -> None:
        message = _HEADER.pack(len(content), number, kind, 0) + content
        try:
            with self._writing:
                self._socket.sendall(_FRAME.pack(connection, len(message)) + message)
        except OSError as error:
            raise ClosedError(f"the runtime is gone: {error.strerror or error}") from error

    def _part(self) -> None:
        """What was read, to the streams that it belongs to; what is of none is dropped."""
        while len(self._read) >= _FRAME.size:
            connection, length = _FRAME.unpack_from(self._read)
            if length > _MOST_BYTES + _HEADER.size:
                raise WireError(f"a frame of {length} bytes")
            end = _FRAME.size + length
            if len(self._read) < end:
                return
            if connection in self._streams:
                self._streams[connection] += self._read[_FRAME.size : end]
            self._read = self._read[end:]

    def _next(self) -> Call | Answer | None:
        for stream in self._streams.values():
            while len(stream) >= _HEADER.size:
                length, number, kind, _ = _HEADER.unpack_from(stream)
                if length > _MOST_BYTES:
                    raise WireError(f"a message of {length} bytes")
                end = _HEADER.size + length
                if len(stream) < end:
                    break
                message = Message(bytes(stream[_HEADER.size : end]))
                del stream[:end]
                if kind == _REQUEST:
                    return Call(
                        number, message.text(1), message.text(2), message.content(3), message.number(4)
                    )
                if kind == _RESPONSE:
                    status = message.message(1)
                    return Answer(number, status.number(1), status.text(2), message.content(2))
        return None
