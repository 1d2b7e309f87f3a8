"""A small Kubernetes API server over real HTTP, with faults to order: for tests, and by hand.

It owns the port, the faults and the log of requests. What the objects are and which versions they have is
`store`'s; what goes over a connection, and how that breaks, is `connection`'s.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.kube import objects
from tests.kube.connection import Connection, Listener, Request
from tests.kube.store import Batch, Resource, Selector, StatusError, Store


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next requests of a kind."""

    verb: str
    resource: str | None
    status: int | None  # None: no answer ever
    left: int | None  # None: until healed
    headers: dict[str, str] = field(default_factory=dict)


class ApiServer(Store):
    """The server, its faults and its log of requests. Use it from any thread.

    A resource of None in a fault means all. `close` it, or use it in a `with`.
    """

    def __init__(self, port: int = 0, *, history: int = 5000) -> None:
        super().__init__(history=history)
        self.tokens: set[str] | None = None  # None: no one is asked
        self.requests: list[Request] = []
        self.bookmark_interval = 1.0  # seconds
        # How a watch of too old a version is refused: by a line in the stream, as the real server does
        # when it knows its history from the watch cache, or by HTTP 410.
        self.gone_as_event = True
        self._faults: list[Fault] = []
        self._slow: dict[str | None, tuple[int, float]] = {}
        self._happened = threading.Condition(self.lock)
        self._connections: set[Connection] = set()
        self._listener: Listener | None = None
        # Bound but never listening. While the server is down, nobody else gets the port, and a client that
        # knocks again and again is not given it as its own and so connected to itself.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", port))
        self.port: int = self._reservation.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen, on the same port each time."""
        listener = Listener(self)
        with self.lock:
            self._listener = listener
        threading.Thread(target=listener.serve_forever, name="apiserver", daemon=True).start()

    def stop(self) -> None:
        """An outage: no port and no connection any more, at once. Objects and history stay."""
        with self.lock:
            listener, self._listener = self._listener, None
        if listener is None:
            return
        with suppress(OSError):
            listener.socket.shutdown(socket.SHUT_RDWR)  # wakes serve_forever, which else looks twice a second
        listener.shutdown()
        listener.server_close()
        with self._happened:
            for connection in self._connections:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
            assert self._happened.wait_for(lambda: not self._connections, 10)

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._reservation.close()

    def write_kubeconfig(
        self, path: Path, token: str | None = None, token_file: Path | None = None, namespace: str = "default"
    ) -> Path:
        user = {"token": token} if token else {"tokenFile": str(token_file)} if token_file else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
            "current-context": "test",
        }
        path.write_text(json.dumps(config, indent=2))  # JSON is YAML
        path.chmod(0o600)
        return path

    # What was asked, and who is there.

    def asked(self, verb: str | None = None, resource: str | None = None) -> list[Request]:
        """The requests with this verb, for this resource."""
        with self.lock:
            return [
                request
                for request in self.requests
                if verb in {None, request.verb} and resource in {None, request.resource}
            ]

    def watching(self, resource: str | None = None) -> int:
        """How many watches are open, as far as the server can see."""
        with self.lock:
            return len(self._streams(resource))

    def connections(self) -> int:
        """How many connections are open, idle ones included."""
        with self.lock:
            return len(self._connections)

    def wait_for(self, is_so: Callable[[], bool], seconds: float = 5) -> bool:
        """Sleep until this holds of requests, watches or objects; False if it does not in time."""
        with self._happened:
            return self._happened.wait_for(is_so, seconds)

    # Faults of answers.

    def fail(
        self,
        verb: str,
        status: int,
        resource: str | None = None,
        *,
        times: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Answer the next so many requests (None: all, until `heal`) with this status."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        with self.lock:
            self._faults.append(Fault(verb, resource, status, times, headers))

    def hang(self, verb: str, resource: str | None = None, *, times: int | None = None) -> None:
        """Take the next so many requests, and never answer them."""
        with self.lock:
            self._faults.append(Fault(verb, resource, None, times))

    def heal(self) -> None:
        """From now on all is well again. What is frozen or hangs already stays so: it is lost."""
        with self.lock:
            self._faults.clear()
            self._slow.clear()

    # Faults of streams.

    def cut_watches(self, resource: str | None = None, *, politely: bool = False) -> None:
        """Break off in the middle of a line. Politely: as a proxy may, which ends the chunks properly."""
        self._order(resource, lambda connection: connection.cut(politely))

    def end_watches(self, resource: str | None = None) -> None:
        """End the streams as the server does when their time is up. The connections live on."""
        self._order(resource, Connection.end)

    def freeze_watches(self, resource: str | None = None) -> None:
        """Half-open: these streams say nothing any more, and are not closed. New ones are well."""
        self._order(resource, Connection.freeze)

    def send_line(self, line: bytes, resource: str | None = None) -> None:
        """Put this into the running streams as it is, for example garbage."""
        self._order(resource, lambda connection: connection.send_lines([line]))

    def send_error(self, code: int, resource: str | None = None) -> None:
        """An ERROR event in the running streams, and their end."""

        def send(connection: Connection) -> None:
            connection.send_lines([StatusError(code, "as the test wants it").as_line()])
            connection.end()

        self._order(resource, send)

    def slow_watches(self, resource: str | None = None, *, size: int = 7, pause: float = 0.001) -> None:
        """Until `heal`: send lines in chunks of so many bytes, with a pause of so many seconds."""
        with self.lock:
            self._slow[resource] = (size, pause)

    def reset_connections(self) -> None:
        """RST instead of FIN, for every connection there is."""
        with self.lock:
            for connection in self._connections:
                connection.order(connection.reset)

    # For the connections' threads.

    def check(self, request: Request, authorization: str) -> Fault | None:
        """Write the request down; is it allowed, and what goes wrong with it?"""
        with self._happened:
            self.requests.append(request)
            self._happened.notify_all()
            if self.tokens is not None and authorization not in {f"Bearer {token}" for token in self.tokens}:
                raise StatusError(401, "Unauthorized")
            for fault in self._faults:
                if fault.verb == request.verb and fault.resource in {None, request.resource}:
                    if fault.left is not None:
                        fault.left -= 1
                        if fault.left <= 0:
                            self._faults.remove(fault)
                    return fault
        return None

    def join(self, connection: Connection) -> None:
        with self.lock:
            if self._listener is connection.server:
                self._connections.add(connection)
            else:  # accepted by a server that has stopped since
                connection.close_connection = True

    def leave(self, connection: Connection) -> None:
        with self._happened:
            self._connections.discard(connection)
            self._happened.notify_all()

    def begin_stream(self, connection: Connection, what: Resource, matches: Selector, version: str) -> Batch:
        """Where the stream begins; from now on the connection is woken when there is more."""
        with self._happened:
            batch = self.follow(what, matches, version)
            connection.stream = what.name
            self._happened.notify_all()
            return batch

    def end_stream(self, connection: Connection) -> None:
        with self._happened:
            connection.stream = None
            self._happened.notify_all()

    def pace(self, resource: str | None) -> tuple[int, float] | None:
        with self.lock:
            return self._slow.get(resource, self._slow.get(None))

    def _changed(self, resource: str) -> None:
        for connection in self._streams(resource):
            connection.wake()
        self._happened.notify_all()

    def _streams(self, resource: str | None) -> list[Connection]:
        return [
            connection
            for connection in self._connections
            if connection.stream is not None and resource in {None, connection.stream}
        ]

    def _order(self, resource: str | None, action: Callable[[Connection], None]) -> None:
        with self.lock:
            for connection in self._streams(resource):
                connection.order(connection.in_stream(action))


def main() -> None:
    """Serve a few objects until Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=8001)
    with ApiServer(parser.parse_args().port) as server, tempfile.TemporaryDirectory() as folder:
        for obj in (objects.namespace("default"), objects.node("node-1"), objects.service("web")):
            server.create(obj)
        for number in range(3):
            server.create(objects.pod(f"web-{number}", labels={"app": "web"}))
        print(server.url, server.write_kubeconfig(Path(folder) / "kubeconfig"), sep="\n", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
