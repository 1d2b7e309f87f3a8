"""What doctor says of a kubeconfig and its server. The tools are replaced: without them nothing is loaded."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from podmgr.cli import doctor
from podmgr.cli.doctor import Finding, Status
from podmgr.cluster import api
from podmgr.kernel import bpf_syscall, confinement
from podmgr.settings import Settings
from tests.unit.samples import Script, said


def findings(kubeconfig: Path) -> list[Finding]:
    return list(doctor.examine(Settings(), runner=Script(said("", code=1)), named=str(kubeconfig)))


def written(folder: Path, cluster: dict[str, Any], user: dict[str, Any] | None = None) -> Path:
    path = folder / "kubeconfig"
    content = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(json.dumps(content))
    return path


PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "command": "true", "args": ["a\0b"]}


@pytest.mark.parametrize(
    ("cluster", "user", "reason"),
    [
        ({"server": "https://[bad"}, {}, "its server"),
        ({"server": "https://x", "proxy-url": "http://h:99999"}, {}, "proxy-url"),
        ({"server": "https://x"}, {"exec": PLUGIN}, "its exec args"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_a_finding_among_others(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], reason: str
) -> None:
    *_, found, last = findings(written(tmp_path, cluster, user))
    assert (found.name, found.status) == ("kubeconfig", Status.MISSING)
    assert reason in found.found and found.advice
    assert last.name == "self-test"


@contextmanager
def answering(status: int | None, body: bytes = b"") -> Iterator[str]:
    """A server that always says the same, or nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                held.append(connection)
                if status is not None:
                    assert connection.recv(65_536).startswith(b"GET /version ")
                    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(head.encode() + body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("status", "body", "found", "rank"),
    [
        (200, b'{"gitVersion": "v1.31.4"}', "is an API server v1.31.4", Status.OK),
        (200, b"<html>", "does not answer as an API server does", Status.MISSING),
        (200, b"{}", "does not answer as an API server does", Status.MISSING),
        (401, b'{"message": "Unauthorized"}', "the API server says 401: Unauthorized", Status.MISSING),
        (403, b'{"message": "forbidden"}', "the API server says 403: forbidden", Status.LACKING),
        (None, b"", "cannot be reached", Status.MISSING),
    ],
)
def test_the_server_of_the_kubeconfig_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, body: bytes, found: str, rank: Status
) -> None:
    monkeypatch.setattr(api, "_TRY_SECONDS", 5.0 if status else 0.2)
    with answering(status, body) as url:
        *_, finding, _ = findings(written(tmp_path, {"server": url}))
    assert (finding.name, finding.status) == ("kubeconfig", rank)
    assert found in finding.found


def test_a_server_that_refuses_connections_is_not_ok(tmp_path: Path) -> None:
    *_, finding, _ = findings(written(tmp_path, {"server": "http://127.0.0.1:1"}))
    assert finding.status is Status.MISSING
    assert finding.found == "the API server http://127.0.0.1:1 cannot be reached: Connection refused"
    assert finding.advice


def test_a_profile_of_apparmor_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf_syscall, "attached_programs", lambda *_: ())
    monkeypatch.setattr(confinement, "_PROFILE", tmp_path / "current")
    (tmp_path / "current").write_text("cri-containerd.apparmor.d (enforce)\n")
    (found,) = (item for item in findings(tmp_path / "none") if item.name == "privileges")
    assert found.status is Status.LACKING
    assert "cri-containerd.apparmor.d" in found.found and "apparmor-field" in found.advice
