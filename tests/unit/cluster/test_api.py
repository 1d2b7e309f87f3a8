"""Requests to the API server, its lists and watches, and that every bad answer is one of two errors."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api, StatusError, UnreachableError
from tests.kube import objects
from tests.kube.apiserver import ApiServer

PODS = "/api/v1/pods"


# Requests


def test_list_comes_whole_in_pages_with_its_version(
    server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podmgr.cluster.api._PAGE", 3)
    for number in range(7):
        server.create(objects.pod(f"web-{number}", node="here" if number else "there"))
    items, version = api.list(PODS, {"fieldSelector": "spec.nodeName=here"})
    assert [item["metadata"]["name"] for item in items] == [f"web-{number}" for number in range(1, 7)]
    assert {item["kind"] for item in items} == {"Pod"}
    assert version == str(server.version)
    assert [request.query["limit"] for request in server.asked("list")] == ["3", "3"]


def test_change_between_two_pages_is_seen_by_the_watch_that_follows(
    server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podmgr.cluster.api._PAGE", 1)
    for name in ("a", "b"):
        server.create(objects.pod(name))
    answer = api.get

    def change_behind(path: str, query: Mapping[str, str]) -> dict[str, Any]:
        found = answer(path, query)
        if "continue" not in query:
            server.annotate("pods", "default", "a", {"bandwidth": "x"})
        return found

    monkeypatch.setattr(api, "get", change_behind)
    _, version = api.list(PODS)
    kind, item = next(api.watch(PODS, {}, version, seconds=5))
    assert (kind, item["metadata"]["name"]) == ("MODIFIED", "a")


def test_object_is_got_and_made(server: ApiServer, api: Api) -> None:
    event = {
        "metadata": {"name": "web.1"},
        "involvedObject": {"namespace": "default", "name": "web"},
        "reason": "RuleApplied",
    }
    api.create("/api/v1/namespaces/default/events", event)
    assert [item["reason"] for item in server.events()] == ["RuleApplied"]
    got = api.get("/api/v1/namespaces/default/events/web.1")
    assert got["involvedObject"] == {"namespace": "default", "name": "web"}


@pytest.mark.parametrize(
    ("status", "tip"),
    [
        (400, "makes no sense to it: look at -l"),
        (401, "the credentials are not accepted"),
        (403, "the user lacks this right"),
        (404, "kubectl get, or -n NAMESPACE"),
        (500, "readyz"),
        (503, "readyz"),
    ],
)
def test_refusal_carries_status_reason_and_tip(server: ApiServer, api: Api, status: int, tip: str) -> None:
    for verb in ("list", "get", "watch"):
        server.fail(verb, status, "pods", times=1)
    for ask in (
        lambda: api.list(PODS),
        lambda: api.get("/api/v1/namespaces/default/pods/web"),
        lambda: api.watch(PODS, {}, "1", seconds=1),
    ):
        with pytest.raises(StatusError) as caught:
            ask()
        error = caught.value
        assert error.status == status
        assert error.message.startswith(f"the API server says {status}: ")
        assert len(error.message) > len("the API server says 500: ")
        assert tip in (error.tip or "")
        assert (error.is_gone, error.is_missing) == (False, status == 404)


def test_watch_gives_what_has_happened_since_and_what_happens(server: ApiServer, api: Api) -> None:
    server.create(objects.pod("old"))
    version = str(server.version)
    server.create(objects.pod("missed"))
    events = api.watch(PODS, {}, version, seconds=5)
    assert server.wait_for(lambda: server.watching("pods") == 1)
    server.annotate("pods", "default", "old", {"bandwidth": "x"})
    server.delete("pods", "default", "missed")
    found = [(kind, item["metadata"]["name"]) for kind, item in (next(events) for _ in range(3))]
    assert found == [("ADDED", "missed"), ("MODIFIED", "old"), ("DELETED", "missed")]


def test_watch_gives_bookmarks_and_ends_when_its_time_is_up(server: ApiServer, api: Api) -> None:
    server.bookmark_interval = 0.2
    started = time.monotonic()
    kinds = {kind for kind, _ in api.watch(PODS, {}, str(server.version), seconds=1)}
    assert kinds == {"BOOKMARK"}
    assert 0.8 < time.monotonic() - started < 4
    assert server.asked("watch")[0].query["timeoutSeconds"] == "1"


def test_lines_in_many_pieces_are_put_together(server: ApiServer, api: Api) -> None:
    server.slow_watches(size=13, pause=0)
    version = str(server.version)
    server.create(objects.pod("ünïcödé", annotations={"bandwidth": "€" * 100}))
    _, item = next(api.watch(PODS, {}, version, seconds=5))
    assert item["metadata"]["annotations"]["bandwidth"] == "€" * 100


def test_line_without_end_is_refused(server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podmgr.cluster.api._MAX_LINE_BYTES", 2000)
    events = api.watch(PODS, {}, str(server.version), seconds=5)
    assert server.wait_for(lambda: server.watching("pods") == 1)
    server.send_line(b"x" * 3000)
    with pytest.raises(UnreachableError, match="an event of more than 2000 bytes"):
        next(events)


@pytest.mark.parametrize("as_event", [True, False])
def test_version_that_is_too_old_is_gone(server: ApiServer, api: Api, as_event: bool) -> None:
    server.gone_as_event = as_event
    server.forget_history()
    with pytest.raises(StatusError) as caught:
        next(api.watch(PODS, {}, "1", seconds=5))
    assert caught.value.is_gone


@pytest.mark.parametrize("politely", [True, False])
def test_half_a_line_is_no_event(server: ApiServer, api: Api, politely: bool) -> None:
    version = str(server.version)
    server.create(objects.pod("whole"))
    events = api.watch(PODS, {}, version, seconds=5)
    assert next(events)[0] == "ADDED"
    server.cut_watches(politely=politely)
    with pytest.raises(UnreachableError):
        next(events)


def test_leaving_a_watch_closes_its_connection(server: ApiServer, api: Api) -> None:
    server.create(objects.pod("a"))
    events = api.watch(PODS, {}, "1", seconds=60)
    next(events)
    cast(Any, events).close()
    assert server.wait_for(lambda: server.watching() == 0)


def test_closing_lets_go_of_all_connections(server: ApiServer, access: Access) -> None:
    api = Api(access)
    api.list(PODS)
    assert server.connections() == 1
    api.close()
    assert server.wait_for(lambda: server.connections() == 0)


def test_requests_share_one_connection(server: ApiServer, api: Api) -> None:
    for _ in range(5):
        api.list(PODS)
        with pytest.raises(StatusError):
            api.get("/api/v1/namespaces/default/pods/none-such")
    assert server.connections() == 1


def test_server_that_is_not_there_is_unreachable(server: ApiServer, api: Api) -> None:
    server.stop()
    with pytest.raises(UnreachableError) as caught:
        api.list(PODS)
    assert caught.value.message == f"the API server {server.url} cannot be reached: Connection refused"
    server.start()
    assert api.list(PODS)[0] == []


def test_watch_is_given_little_more_than_its_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def request(*_: object, read_seconds: float = 0, **__: object) -> None:
        asked.append(read_seconds)
        raise UnreachableError("enough")

    monkeypatch.setattr(api, "_request", request)
    for seconds in (30, 180):
        with pytest.raises(UnreachableError):
            api.watch(PODS, {}, "1", seconds=seconds)
    assert asked == [45, 120]


def test_server_that_does_not_answer_is_unreachable(
    server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api._request, "__kwdefaults__", {"body": None, "read_seconds": 0.1})
    server.hang("list")
    with pytest.raises(UnreachableError, match="timed out"):
        api.list(PODS)


# Answers that no API server gives


class Raw:
    """Answers each request with the next of these bytes, the last one for ever, and hangs up.

    With `more`, it does not hang up: this comes again and again, for five seconds.
    """

    def __init__(self, *answers: bytes, more: bytes = b"") -> None:
        self._answers = list(answers)
        self._more = more
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                asked = more = connection.recv(65_536)
                while more and b"\r\n\r\n" not in asked:
                    asked += (more := connection.recv(65_536))
                connection.sendall(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
                with suppress(OSError):
                    for _ in range(500 if self._more else 0):
                        connection.sendall(self._more)
                        time.sleep(0.01)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def answer(body: bytes, status: int = 200, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %d Reason\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, size, body)


def stream(*lines: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    servers: list[Raw] = []

    def serve(*answers: bytes, more: bytes = b"") -> Api:
        servers.append(Raw(*answers, more=more))
        with ApiServer() as template:  # for its kubeconfig alone
            template.url = f"http://127.0.0.1:{servers[-1].port}"
            return Api(Access(str(template.write_kubeconfig(tmp_path / "raw"))))

    yield serve
    for server in servers:
        server.close()


NO_API = {
    "no HTTP": b"garbage\r\n\r\n",
    "nothing": b"",
    "half of the head": b"HTTP/1.1 200 OK\r\nContent-",
    "half of the body": answer(b'{"kind": "PodList", "items": []', length=500),
    "no JSON": answer(b"<html>hello</html>"),
    "no UTF-8": answer(b'{"kind": "\xff"}'),
    "a list": answer(b"[]"),
    "items of nothing": answer(b'{"metadata": {}, "items": null}'),
    "a number": answer(b"5"),
    "nested too deep": answer(b"[" * 100_000),
    "no list": answer(b'{"status": "ok"}'),
    "a Status": answer(b'{"kind": "Status", "metadata": {}, "status": "Failure", "code": 500}'),
    "a Status with items": answer(b'{"kind": "Status", "metadata": {}, "items": null}'),
    "an object": answer(b'{"kind": "Pod", "metadata": {"resourceVersion": "7"}, "items": null}'),
    "an empty object": answer(b"{}"),
    "items that are none": answer(b'{"kind": "PodList", "metadata": {}, "items": ["x"]}'),
    "items that are a number": answer(b'{"kind": "PodList", "metadata": {}, "items": 5}'),
    "metadata that is a list": answer(b'{"kind": "PodList", "metadata": ["x"], "items": []}'),
}


@pytest.mark.parametrize("name", NO_API)
def test_list_that_is_none_is_unreachable_and_never_an_empty_one(raw: Callable[..., Api], name: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        raw(NO_API[name]).list(PODS)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("items", ["[]", "null"])
def test_empty_list_is_one(raw: Callable[..., Api], items: str) -> None:
    body = f'{{"kind": "PodList", "metadata": {{"resourceVersion": "7"}}, "items": {items}}}'
    assert raw(answer(body.encode())).list(PODS) == ([], "7")


def test_huge_answer_is_given_up(raw: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": []}'
    api = raw(answer(body + b" " * 2000))
    assert api.list(PODS) == ([], "7")
    monkeypatch.setattr("podmgr.cluster.api._MAX_ANSWER_BYTES", 2000)
    with pytest.raises(UnreachableError, match="or answers too much") as caught:
        api.list(PODS)
    assert caught.value.tip == "kubectl get --raw /readyz"


def test_endless_answer_is_given_up(raw: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podmgr.cluster.api._ANSWER_SECONDS", 0.2)
    api = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", more=b"1\r\n \r\n")
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="takes too long to answer"):
        api.list(PODS)
    assert time.monotonic() - started < 3


REFUSALS = {
    "with a Status": answer(b'{"kind": "Status", "message": "etcd is down"}', 500),
    "without a body": answer(b"", 500),
    "with HTML": answer(b"<html>", 500),
    "with half a body": answer(b'{"message": "et', 500, length=500),
    "with a list": answer(b"[]", 500),
    "with a number": answer(b"5", 500),
    "nested too deep": answer(b"[" * 100_000, 500),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_is_one_whatever_its_body(raw: Callable[..., Api], name: str) -> None:
    api = raw(REFUSALS[name])
    for ask in (lambda: api.list(PODS), lambda: api.watch(PODS, {}, "1", seconds=1)):
        with pytest.raises(StatusError) as caught:
            ask()
        assert caught.value.status == 500


def test_redirection_is_not_followed(raw: Callable[..., Api]) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(StatusError, match="the API server says 302: Found"):
        raw(moved).list(PODS)


NO_EVENTS = {
    "garbage": b"garbage\n",
    "half an object": b'{"type": "ADDED"\n',
    "no UTF-8": b'{"type": "\xff"}\n',
    "a list": b"[]\n",
    "a number": b"5\n",
    "no type": b'{"object": {}}\n',
    "no object": b'{"type": "ADDED"}\n',
    "an object that is none": b'{"type": "ADDED", "object": "x"}\n',
    "a type that is none": b'{"type": 5, "object": {}}\n',
    "metadata that is a list": b'{"type": "ADDED", "object": {"metadata": ["x"]}}\n',
    "nested too deep": b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", NO_EVENTS)
def test_line_that_is_no_event_means_a_new_list(raw: Callable[..., Api], name: str) -> None:
    good = b'{"type": "ADDED", "object": {"metadata": {"name": "a"}}}\n'
    events = raw(stream(good, NO_EVENTS[name])).watch(PODS, {}, "1", seconds=1)
    assert next(events)[0] == "ADDED"
    with pytest.raises(StatusError, match="something that is no event") as caught:
        next(events)
    assert not caught.value.is_gone


def test_blank_lines_are_no_events(raw: Callable[..., Api]) -> None:
    events = raw(stream(b"\n", b'{"type": "ADDED", "object": {}}\n\n', b"  \n")).watch(
        PODS, {}, "1", seconds=1
    )
    assert list(events) == [("ADDED", {})]


@pytest.mark.parametrize(
    ("object_", "status"),
    [('{"code": 410, "message": "too old"}', 410), ('{"code": "410"}', 0), ("{}", 0)],
)
def test_error_event_is_a_refusal(raw: Callable[..., Api], object_: str, status: int) -> None:
    line = f'{{"type": "ERROR", "object": {object_}}}\n'
    with pytest.raises(StatusError) as caught:
        list(raw(stream(line.encode())).watch(PODS, {}, "1", seconds=1))
    assert caught.value.status == status


BROKEN_STREAMS = {
    "cut between two lines": stream(b'{"type": "ADDED", "object": {}}\n')[: -len(b"0\r\n\r\n")],
    "chunk that is none": stream(b'{"type": "ADDED", "object": {}}\n').replace(b"0\r\n\r\n", b"zz\r\n"),
    "half a line": stream(b'{"type": "ADDED", "object": {}}\n', b'{"type": "ADDED", "object": {}}'),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_stream_that_breaks_gives_what_came_before(raw: Callable[..., Api], name: str) -> None:
    events = raw(BROKEN_STREAMS[name]).watch(PODS, {}, "1", seconds=1)
    assert next(events) == ("ADDED", {})
    with pytest.raises(UnreachableError):
        next(events)
