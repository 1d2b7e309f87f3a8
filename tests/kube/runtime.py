"""A container runtime, as far as NRI goes: it takes plugins, and asks them before a pod's containers start.

Written from containerd's protocol, apart from podmgr's own reading of it.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PLUGIN_CONNECTION, RUNTIME_CONNECTION = 1, 2
REQUEST, RESPONSE = 1, 2
SERVICE = "nri.pkg.api.v1alpha1.Plugin"
_SECONDS = 20.0

Fields = dict[int, list[bytes | int]]


class Reply(NamedTuple):
    """What the plugin answered; `code` 0 lets the pod start, None is no answer at all."""

    code: int | None
    message: str
    seconds: float
    content: bytes = b""


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def put(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def take(content: bytes) -> Fields:
    found: Fields = {}
    while content:
        tag, content = _varint(content)
        value, content = _varint(content)
        if tag & 7 == 2:
            found.setdefault(tag >> 3, []).append(content[:value])
            content = content[value:]
        else:
            assert tag & 7 == 0
            found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(content: bytes) -> tuple[int, bytes]:
    value = shift = 0
    while True:
        byte, content = content[0], content[1:]
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, content


def pod_message(
    uid: str,
    name: str = "web",
    namespace: str = "default",
    *,
    annotations: Mapping[str, str] | None = None,
    cgroup_parent: str = "",
    network: str | None = "",
) -> bytes:
    """A PodSandbox. `network` None: the host's."""
    namespaces = [] if network is None else [put(1, "network") + (put(2, network) if network else b"")]
    linux = put(3, cgroup_parent) + b"".join(put(5, item) for item in [put(1, "ipc"), *namespaces])
    return (
        put(1, f"sandbox-of-{uid}")
        + put(2, name)
        + put(3, uid)
        + put(4, namespace)
        + b"".join(put(6, put(1, key) + put(2, value)) for key, value in (annotations or {}).items())
        + put(7, "runc")
        + put(8, linux)
    )


@dataclass
class _Plugin:
    """One connection, from the runtime's side."""

    socket: socket.socket
    events: int = 0
    name: str = ""
    replies: dict[int, tuple[int, str, bytes]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_registered: bool = False
    is_open: bool = True
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1, 2))

    def send(self, connection: int, number: int, kind: int, content: bytes) -> None:
        message = struct.pack(">IIBB", len(content), number, kind, 0) + content
        self.socket.sendall(struct.pack(">II", connection, len(message)) + message)

    def call(self, method: str, content: bytes, seconds: float = _SECONDS) -> Reply:
        number, began = next(self.numbers), time.monotonic()
        request = put(1, SERVICE) + put(2, method) + put(3, content) + put(4, int(seconds * 1e9))
        self.send(PLUGIN_CONNECTION, number, REQUEST, request)
        with self.changed:
            self.changed.wait_for(lambda: number in self.replies or not self.is_open, seconds)
            code, message, answer = self.replies.pop(number, (None, "", b""))
        return Reply(code, message, time.monotonic() - began, answer)

    def listen(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                connection, length = struct.unpack(">II", self._exactly(8))
                message = self._exactly(length)
                size, number, kind, _ = struct.unpack(">IIBB", message[:10])
                assert size == length - 10 <= 4096  # a Go reader takes no larger frame
                self._hear(connection, number, kind, take(message[10:]))
        with self.changed:
            self.is_open = False
            self.changed.notify_all()

    def _hear(self, connection: int, number: int, kind: int, fields: Fields) -> None:
        if connection == RUNTIME_CONNECTION and kind == REQUEST:
            assert fields[1] == [b"nri.pkg.api.v1alpha1.Runtime"] and fields[2] == [b"RegisterPlugin"]
            (content,) = fields[3]
            assert isinstance(content, bytes)
            asked = take(content)
            self.name = f"{_text(asked, 2)}-{_text(asked, 1)}"
            self.send(RUNTIME_CONNECTION, number, RESPONSE, b"")
            with self.changed:
                self.is_registered = True
                self.changed.notify_all()
        else:
            assert connection == PLUGIN_CONNECTION and kind == RESPONSE
            (status,) = fields.get(1, [b""])
            assert isinstance(status, bytes)
            told = take(status)
            (code,) = told.get(1, [0])
            (content,) = fields.get(2, [b""])
            assert isinstance(code, int) and isinstance(content, bytes)
            with self.changed:
                self.replies[number] = (code, _text(told, 2), content)
                self.changed.notify_all()

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.socket.recv(count - len(found))
            if not more:
                raise EOFError
            found += more
        return found


def _text(fields: Fields, number: int) -> str:
    (content,) = fields.get(number, [b""])
    assert isinstance(content, bytes)
    return content.decode()


class Runtime:
    """It listens until it is stopped, and may be started again. `is_old` tells of pods by StateChange."""

    def __init__(self, path: Path, *, is_old: bool = False, wait_seconds: float = 2.0) -> None:
        self.path = path
        self.is_old = is_old
        self.wait_seconds = wait_seconds
        self.plugins: list[_Plugin] = []
        self.failures: list[BaseException] = []
        self._server: socket.socket | None = None

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen()
        threading.Thread(target=self._accept, args=[self._server], daemon=True).start()

    def stop(self) -> None:
        """As at its restart: all connections end."""
        if self._server is not None:
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self.path.unlink(missing_ok=True)
        for plugin in self.plugins:
            with suppress(OSError):
                plugin.socket.shutdown(socket.SHUT_RDWR)
            plugin.socket.close()
        self.plugins.clear()
        assert not self.failures, self.failures

    def run_pod(self, message: bytes) -> Reply:
        """RunPodSandbox: what the plugin says; without a plugin the pod starts."""
        if not self.plugins:
            return Reply(0, "no plugin", 0.0)
        plugin = self.plugins[-1]
        assert plugin.events == 1
        if self.is_old:
            return plugin.call("StateChange", put(1, 1) + put(2, message), self.wait_seconds)
        return plugin.call("RunPodSandbox", put(1, message), self.wait_seconds)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = server.accept()
                threading.Thread(target=self._greet, args=[_Plugin(accepted)], daemon=True).start()

    def _greet(self, plugin: _Plugin) -> None:
        """As containerd does with a plugin that connects."""
        try:
            threading.Thread(target=plugin.listen, daemon=True).start()
            with plugin.changed:
                if not plugin.changed.wait_for(lambda: plugin.is_registered or not plugin.is_open, _SECONDS):
                    return
            configuration = put(2, "containerd") + put(3, "v9.9") + put(5, int(self.wait_seconds * 1000))
            configured = plugin.call("Configure", configuration)
            (events,) = take(configured.content).get(2, [0])
            assert isinstance(events, int)
            plugin.events = events
            running = pod_message("11111111-50e1-452e-91c0-7dfcee8503e9")
            for more in (1, 0):  # in two parts, as of many
                synced = plugin.call("Synchronize", put(1, running) + (put(3, more) if more else b""))
                assert synced.code == 0 and take(synced.content).get(2, [0]) == [more]
            self.plugins.append(plugin)
        except BaseException as failure:
            if plugin.is_open:
                self.failures.append(failure)
