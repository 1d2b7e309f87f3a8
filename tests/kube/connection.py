"""One HTTP connection of the API server: requests, routes, streams, and how they break.

Each connection has a thread of its own, and only that thread writes to the connection. It sleeps in one
poll of the socket and of an eventfd, by which others hand it orders: so an event is on its way at once, and a
client that leaves is noticed at once, both without looking at a clock.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import socket
import socketserver
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.kube.selection import selector
from tests.kube.store import RESOURCES, Obj, Resource, Selector, StatusError, encode

if TYPE_CHECKING:
    from tests.kube.apiserver import ApiServer

_ROUTE = re.compile(
    r"(?P<prefix>/api/v1|/apis/(?:apps|batch|discovery\.k8s\.io)/v1)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?"
)
_TRUE = {"true", "1"}
_MERGE_PATCHES = {"application/merge-patch+json", "application/strategic-merge-patch+json"}
_LAST_CHUNK = b"0\r\n\r\n"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came in. Verbs are RBAC's: get, list, watch, create, update, patch, delete."""

    method: str
    path: str
    query: dict[str, str]
    time: float  # monotonic
    verb: str
    resource: str
    namespace: str  # "" for all
    name: str


class Listener(ThreadingHTTPServer):
    """The listening socket between a start and a stop."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        super().__init__(("127.0.0.1", api.port), Connection)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks DNS for a name

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # the inherited one sends a FIN first, even where a RST is due


class _Hangup(Exception):
    """This connection ends here."""


class _EndOfStream(Exception):
    """This watch ends here, the connection lives on."""


class Connection(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        super().setup()
        self.api = self.server.api
        self.socket = self.connection  # http.server calls the socket so
        self.stream: str | None = None
        self.close_connection = False
        self._orders: deque[Callable[[], None]] = deque()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        for fd in (self._wakeup, self.connection.fileno()):
            self._poll.register(fd, select.POLLIN)
        self.api.join(self)

    def finish(self) -> None:
        self.api.leave(self)
        os.close(self._wakeup)
        super().finish()

    def handle(self) -> None:
        with suppress(_Hangup, ConnectionError):
            while not self.close_connection:
                if self._client_spoke():
                    self.handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # For other threads, with the server's lock held: else the connection may be gone already.

    def order(self, action: Callable[[], None]) -> None:
        """Have this done by the connection's own thread."""
        self._orders.append(action)
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    # What can be ordered.

    def in_stream(self, action: Callable[[Connection], None]) -> Callable[[], None]:
        """The action, but nothing if the stream has ended by itself meanwhile."""
        return lambda: action(self) if self.stream else None

    def reset(self) -> NoReturn:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Hangup

    def end(self) -> NoReturn:
        raise _EndOfStream

    def freeze(self) -> NoReturn:
        while not self._client_spoke():
            pass
        raise _Hangup

    def cut(self, politely: bool) -> NoReturn:
        line = b'{"type":"MODIFIED","object":{"metadata":{"name":"half-a-li'
        if politely:
            self.wfile.write(_chunk(line) + _LAST_CHUNK)
        else:
            self.wfile.write(_chunk(line + b'ne"}}}\n')[: len(line)])
        raise _Hangup

    def send_lines(self, lines: list[bytes]) -> None:
        if pace := self.api.pace(self.stream):
            size, pause = pace
            data = b"".join(lines)
            for start in range(0, len(data), size):
                self.wfile.write(_chunk(data[start : start + size]))
                time.sleep(pause)
        elif lines:
            self.wfile.write(b"".join(map(_chunk, lines)))

    def _client_spoke(self, seconds: float = math.inf) -> bool:
        """Sleep until the client says something or is gone (True), or until woken. Orders are done here."""
        ready = dict(self._poll.poll(None if seconds == math.inf else max(0, seconds) * 1000))
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
            while self._orders:
                self._orders.popleft()()
        return self.connection.fileno() in ready

    # Requests.

    def do_GET(self) -> None:
        """All methods come here."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers: dict[str, str] = {}
        try:
            url = urlsplit(self.path)
            if url.path == "/version":
                return self._answer(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
            request, resource = self._request(unquote(url.path), dict(parse_qsl(url.query)))
            if fault := self.api.check(request, self.headers.get("Authorization", "")):
                if fault.status is None:
                    self.freeze()
                headers = fault.headers
                raise StatusError(fault.status, _complaint(fault.status, request, resource))
            if request.verb == "watch":
                return self._watch(request, resource)
            self._answer(*self._do(request, resource, body))
        except StatusError as error:
            self._answer(error.code, error.as_object(), headers)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _request(self, path: str, query: dict[str, str]) -> tuple[Request, Resource]:
        match = _ROUTE.fullmatch(path)
        resource = RESOURCES.get(match["resource"]) if match else None
        if match is None or resource is None or resource.prefix != match["prefix"]:
            raise StatusError(404, "the server could not find the requested resource")
        namespace, name = match["namespace"], match["name"]
        if namespace and not resource.namespaced:
            raise StatusError(404, "the server could not find the requested resource")
        verb = _VERBS.get(self.command, "get" if name else "list")
        if verb == "list" and query.get("watch", "").lower() in _TRUE:
            verb = "watch"
        for_many = verb in {"list", "watch"}
        needs_namespace = resource.namespaced and not for_many
        if (name is None) != (for_many or verb == "create") or (needs_namespace and not namespace):
            raise StatusError(405, "the server does not allow this method on the requested resource")
        request = Request(
            self.command, path, query, time.monotonic(), verb, resource.name, namespace or "", name or ""
        )
        return request, resource

    def _do(self, request: Request, resource: Resource, body: bytes) -> tuple[int, Obj | bytes]:
        """What the request asks for: status and answer."""
        api, place = self.api, (resource.name, request.namespace, request.name)
        if request.verb == "list":
            limit, token = int(request.query.get("limit") or 0), request.query.get("continue", "")
            return 200, api.page(resource, _selector(request, resource), limit, token)
        if request.verb == "get":
            return 200, api.get(*place)
        if request.verb == "delete":
            deleted = api.delete(*place)
            success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return 200, deleted if resource.name in {"pods", "services"} else success
        try:
            obj = json.loads(body)
        except ValueError as error:
            raise StatusError(400, f"the body is no JSON: {error}") from error
        if request.verb == "patch":
            if self.headers.get_content_type() not in _MERGE_PATCHES:
                raise StatusError(415, "the body of the request was in an unknown format")
            return 200, api.patch(*place, obj, is_kept=request.query.get("dryRun") != "All")
        obj |= {"kind": resource.kind, "apiVersion": resource.api_version}
        _check_namespace(obj, request, resource)
        return (200, api.replace(obj)) if request.verb == "update" else (201, api.create(obj))

    def _watch(self, request: Request, resource: Resource) -> None:
        matches = _selector(request, resource)
        try:
            batch = self.api.begin_stream(self, resource, matches, request.query.get("resourceVersion", ""))
        except StatusError as error:
            if error.code != 410 or not self.api.gone_as_event:
                raise
            self._stream_head()
            self.wfile.write(_chunk(error.as_line()) + _LAST_CHUNK)
            return
        end_at = time.monotonic() + float(request.query.get("timeoutSeconds") or math.inf)
        interval = math.inf
        if request.query.get("allowWatchBookmarks", "").lower() in _TRUE:
            interval = self.api.bookmark_interval
        bookmark_at = time.monotonic() + interval
        try:
            self._stream_head()
            while True:
                self.send_lines(batch.lines)
                now = time.monotonic()
                if interval < math.inf and now >= min(bookmark_at, end_at):
                    meta = {"metadata": {"resourceVersion": str(batch.version), "creationTimestamp": None}}
                    self.send_lines([resource.line("BOOKMARK", encode(meta))])
                    bookmark_at = now + interval
                if now >= end_at:
                    break
                if self._client_spoke(min(bookmark_at, end_at) - now):
                    raise _Hangup
                batch = self.api.read(resource, matches, batch.position)
        except StatusError as error:  # the client is slower than history is long
            self.send_lines([error.as_line()])
        except _EndOfStream:
            pass
        finally:
            self.api.end_stream(self)
        self.wfile.write(_LAST_CHUNK)

    def _stream_head(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _answer(self, status: int, content: Obj | bytes, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else encode(content)
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _selector(request: Request, resource: Resource) -> Selector:
    fields, labels = request.query.get("fieldSelector", ""), request.query.get("labelSelector", "")
    return selector(resource, request.namespace or None, fields, labels)


def _check_namespace(obj: Obj, request: Request, resource: Resource) -> None:
    if not resource.namespaced:
        return
    namespace = obj.setdefault("metadata", {}).setdefault("namespace", request.namespace)
    if namespace != request.namespace:
        raise StatusError(400, "the namespace of the object does not match the namespace on the request")
    # An event may only be about an object of its namespace; one about a node belongs into default.
    if resource.name == "events" and obj["involvedObject"].get("namespace", "default") != namespace:
        raise StatusError(422, "involvedObject.namespace: does not match event.namespace")


def _complaint(status: int, request: Request, resource: Resource) -> str:
    if status != 403:
        return "an error on the server, as the test wants it"
    group = resource.api_version.rpartition("/")[0]
    scope = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
    wish = f'cannot {request.verb} resource "{resource.name}" in API group "{group}" {scope}'
    return f'{resource.name} is forbidden: User "system:serviceaccount:podmgr:podmgr" {wish}'
