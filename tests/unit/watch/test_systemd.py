"""Telling systemd, over a real socket: what arrives, and that nothing is missed without it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.watch import systemd


@pytest.fixture
def channel() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        yield receiver


def test_lines_arrive_as_one_message(
    channel: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    systemd.notify("READY=1", "STATUS=grüße")
    systemd.notify("WATCHDOG=1")
    assert channel.recv(1000) == "READY=1\nSTATUS=grüße".encode()
    assert channel.recv(1000) == b"WATCHDOG=1"


def test_abstract_socket_is_written_with_an_at_sign(
    channel: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"podmgr-test-{os.getpid()}"
    channel.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    systemd.notify("READY=1")
    assert channel.recv(1000) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/" + "x" * 200, "@" + "x" * 200])
def test_address_that_is_none_is_not_missed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


def test_without_systemd_no_socket_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", None)
    systemd.notify("READY=1")


def test_systemd_that_has_gone_is_not_missed(
    channel: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel.bind(str(tmp_path / "notify"))
    channel.close()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "never"))
    systemd.notify("READY=1")


def test_no_descriptor_is_left_open(
    channel: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        systemd.notify("WATCHDOG=1")
    assert len(os.listdir("/proc/self/fd")) == before
