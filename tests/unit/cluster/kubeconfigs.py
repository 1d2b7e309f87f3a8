"""Kubeconfigs, the plugins that they name, and a server that remembers who asked it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.errors import PodmgrError
from tests.certificates import Authority

PODS = "/api/v1/pods"
V1 = "client.authentication.k8s.io/v1"
NO = {"server": "http://127.0.0.1:1"}
TLS = {"server": "https://x"}


@dataclass
class Recorder:
    """A server that says yes, and remembers who asked."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    @property
    def last(self) -> dict[str, Any]:
        return self.seen[-1]


@contextmanager
def recording(authority: Authority | None = None, folder: Path | None = None) -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            peer = self.connection.getpeercert() if authority else None
            names = [dict(part)["commonName"] for part in (peer or {}).get("subject", ())]
            values = {
                name.title() if "Extra" not in name else name: self.headers.get_all(name)
                for name in self.headers
            }
            recorder.seen.append({"path": self.path, "headers": values, "client": names})
            body = b'{"kind": "PodList", "metadata": {}, "items": []}'
            self.send_response(recorder.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if authority and folder:
        context = authority.server_context(folder, "127.0.0.1", "localhost")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    recorder.url = f"{'https' if authority else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()


def config(
    cluster: dict[str, Any], user: dict[str, Any] | None = None, *, current: str = "c", **other: Any
) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": current,
        **other,
    }


def plugged(command: str, **other: Any) -> dict[str, Any]:
    return config(NO, {"exec": {"apiVersion": V1, "command": command, **other}})


def ask(folder: Path, content: dict[str, Any], context: str | None = None) -> Api:
    """One request with this kubeconfig."""
    path = folder / "kubeconfig"
    path.write_text(json.dumps(content))
    api = Api(Access(str(path), context))
    try:
        api.list(PODS)
    finally:
        api.close()
    return api


def refused(folder: Path, content: dict[str, Any] | str, reason: str) -> PodmgrError:
    """The error for a kubeconfig that cannot be used, which is one line and a tip."""
    path = folder / "kubeconfig"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PodmgrError) as caught:
        Api(Access(str(path)))
    assert reason in caught.value.message
    assert caught.value.message.isprintable() and caught.value.tip
    assert "manifest" not in caught.value.tip
    return caught.value


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def script(folder: Path, text: str, name: str = "plugin") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def answering(folder: Path, status: dict[str, Any], before: str = "") -> dict[str, Any]:
    answer = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})
    return {"apiVersion": V1, "command": script(folder, f"{before}\ncat <<'END'\n{answer}\nEND")}
