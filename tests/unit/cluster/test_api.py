"""The API server: where it is found, who we are there, and that every bad answer is one of two errors."""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from podmgr.cluster.api import (
    Access,
    Api,
    StatusError,
    UnreachableError,
    find_access,
    find_node,
    require_name,
)
from podmgr.errors import PodmgrError, UsageError
from tests import certificates
from tests.kube import objects
from tests.kube.apiserver import ApiServer

PODS = "/api/v1/pods"


# Where the credentials are


class Machine:
    """Where kubeconfigs may lie on a machine that has none yet."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.home, self.caller = folder / "root", folder / "alice"
        self.k3s = folder / "k3s.yaml"
        self.account = folder / "serviceaccount"
        monkeypatch.setattr("podmgr.cluster.api._K3S", self.k3s)
        monkeypatch.setattr("podmgr.cluster.api._SERVICE_ACCOUNT", self.account)
        monkeypatch.setenv("HOME", str(self.home))
        for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "SUDO_USER"):
            monkeypatch.delenv(name, raising=False)
        users = {"alice": str(self.caller)}

        def getpwnam(name: str) -> pwd.struct_passwd:
            return pwd.struct_passwd((name, "x", 1000, 1000, "", users[name], "/bin/sh"))

        monkeypatch.setattr(pwd, "getpwnam", getpwnam)

    def has(self, *places: str) -> None:
        """A kubeconfig, or what stands for one, in each of these places."""
        for place in places:
            if place == "home":
                _touch(self.home / ".kube/config")
            elif place == "caller":
                self.monkeypatch.setenv("SUDO_USER", "alice")
                _touch(self.caller / ".kube/config")
            elif place == "k3s":
                _touch(self.k3s)
            elif place == "variable":
                self.monkeypatch.setenv("KUBECONFIG", "/a:/b")
            elif place == "pod":
                self.monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.43.0.1")
                _touch(self.account / "token")

    def found(self, place: str) -> str | None:
        return {
            "variable": "/a:/b",
            "pod": None,
            "home": str(self.home / ".kube/config"),
            "caller": str(self.caller / ".kube/config"),
            "k3s": str(self.k3s),
        }[place]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


ORDER = ["variable", "pod", "home", "caller", "k3s"]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_kubeconfig_is_the_first_that_there_is(machine: Machine, first: int) -> None:
    machine.has(*ORDER[first:])
    assert find_access() == Access(machine.found(ORDER[first]))


@pytest.mark.parametrize("place", ORDER)
def test_one_place_is_enough(machine: Machine, place: str) -> None:
    machine.has(place)
    assert find_access() == Access(machine.found(place))


def test_flag_goes_before_all_others(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(*ORDER)
    _touch(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert find_access("mine", "prod") == Access(str(tmp_path / "mine"), "prod")


@pytest.mark.parametrize("name", ["none-such", ".", "\x1b[31m"])
def test_flag_that_names_no_file_is_an_error_whatever_else_there_is(machine: Machine, name: str) -> None:
    machine.has(*ORDER)
    with pytest.raises(PodmgrError, match="no kubeconfig at") as caught:
        find_access(name)
    assert caught.value.message.isprintable()


def test_context_is_of_a_kubeconfig_so_the_pods_account_is_passed_over(machine: Machine) -> None:
    machine.has("pod", "k3s")
    assert find_access(context="prod") == Access(str(machine.k3s), "prod")


def test_empty_variable_is_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("home")
    monkeypatch.setenv("KUBECONFIG", "")
    assert find_access() == Access(machine.found("home"))


def test_pod_without_an_account_is_no_place(machine: Machine) -> None:
    machine.has("pod", "home")
    (machine.account / "token").unlink()
    assert find_access() == Access(machine.found("home"))


def test_caller_that_is_unknown_is_passed_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("k3s")
    monkeypatch.setenv("SUDO_USER", "nobody-such")
    assert find_access() == Access(machine.found("k3s"))


def test_home_that_may_not_be_read_is_passed_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """root may not read a home on NFS."""
    machine.has("caller", "k3s")
    stat = os.stat

    def refuse(path: str | Path, **options: Any) -> os.stat_result:
        if str(path).startswith(str(machine.caller)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert find_access() == Access(machine.found("k3s"))


def test_user_without_a_home_is_no_bug(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("k3s")
    monkeypatch.delenv("HOME")

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert find_access() == Access(machine.found("k3s"))


@pytest.mark.usefixtures("machine")
def test_none_at_all_is_an_error() -> None:
    with pytest.raises(PodmgrError, match="no kubeconfig: not in KUBECONFIG") as caught:
        find_access()
    assert caught.value.tip == "name one with --kubeconfig FILE"


# Credentials


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


@pytest.fixture
def access(server: ApiServer, tmp_path: Path) -> Access:
    return Access(str(server.write_kubeconfig(tmp_path / "kubeconfig", namespace="shop")))


@pytest.fixture
def api(access: Access) -> Iterator[Api]:
    made = Api(access)
    yield made
    made.close()


def test_server_and_namespace_are_the_contexts(server: ApiServer, access: Access, tmp_path: Path) -> None:
    assert (Api(access).server, Api(access).namespace) == (server.url, "shop")
    content = json.loads(Path(access.kubeconfig or "").read_text())
    content["contexts"].append({"name": "bare", "context": {"cluster": "other", "user": "test"}})
    content["clusters"].append({"name": "other", "cluster": {"server": "https://example.com:6443/"}})
    path = tmp_path / "two"
    path.write_text(json.dumps(content))
    other = Api(Access(str(path), "bare"))
    assert (other.server, other.namespace) == ("https://example.com:6443", "default")


def test_kubeconfig_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PodmgrError, match="gone: "):
        Api(Access(str(tmp_path / "gone")))


def test_context_that_there_is_not_is_an_error(access: Access) -> None:
    with pytest.raises(PodmgrError, match="none-such"):
        Api(Access(access.kubeconfig, "none-such"))


def test_service_account_that_is_incomplete_is_an_error(machine: Machine) -> None:
    machine.has("pod")
    with pytest.raises(PodmgrError, match="the service account"):
        Api(Access(None))


def test_service_account_is_the_pods_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("pod")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    authority = certificates.Authority().pem
    for name, content in {"token": b"t-1\n", "ca.crt": authority, "namespace": b"podmgr\n"}.items():
        (machine.account / name).write_bytes(content)
    made = Api(find_access())
    assert (made.server, made.namespace) == ("https://10.43.0.1:443", "podmgr")
    assert "bearer t-1" in [value.lower() for value in made._headers.values()]
    (machine.account / "token").write_text("t-2")
    (machine.account / "namespace").write_text("")
    renewed = Api(find_access())
    assert renewed.namespace == "default"
    assert "bearer t-2" in [value.lower() for value in renewed._headers.values()]


@pytest.mark.parametrize("with_file", [True, False])
def test_token_is_sent_as_it_is_on_disk_when_the_connection_is_made(
    server: ApiServer, tmp_path: Path, with_file: bool
) -> None:
    server.tokens = {"first"}
    token = tmp_path / "token"
    token.write_text("first")

    def connect(value: str) -> Api:
        token.write_text(value)
        path = tmp_path / f"kubeconfig-{value}"
        named: Mapping[str, Any] = {"token_file": token} if with_file else {"token": value}
        return Api(Access(str(server.write_kubeconfig(path, **named))))

    assert connect("first").list(PODS)[0] == []
    server.tokens = {"second"}
    with pytest.raises(StatusError) as caught:
        connect("first").list(PODS)
    assert caught.value.status == 401
    assert connect("second").list(PODS)[0] == []


def test_kubeconfig_is_not_written_to(access: Access) -> None:
    path = Path(access.kubeconfig or "")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    Api(access).list(PODS)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


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


# This node


def nodes(*names: str, error: PodmgrError | None = None) -> Api:
    class Fake:
        asked = 0

        def list(self, path: str) -> tuple[Sequence[Mapping[str, Any]], str]:
            assert path == "/api/v1/nodes"
            if error is not None:
                raise error
            return [{"metadata": {"name": name}} for name in names], "1"

    return cast(Api, Fake())


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The machine is called worker-1, unless the test says otherwise."""
    monkeypatch.delenv("NODE_NAME", raising=False)

    def call(name: str) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: name)

    call("worker-1")
    return call


def test_node_is_as_named_then_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    unasked = nodes(error=UnreachableError("nobody was to ask"))
    monkeypatch.setenv("NODE_NAME", "from-environment")
    assert find_node(unasked, "from-flag") == "from-flag"
    assert find_node(unasked, None) == "from-environment"
    monkeypatch.setenv("NODE_NAME", "")
    with pytest.raises(UnreachableError):
        find_node(unasked, None)


@pytest.mark.parametrize(
    ("called", "names", "node"),
    [
        ("worker-1", ["worker-0", "worker-1", "worker-10"], "worker-1"),
        ("WORKER-1", ["worker-0", "worker-1"], "worker-1"),
        ("worker-1.example.com", ["worker-0", "worker-1"], "worker-1"),
        ("worker-1", ["worker-0.example.com", "worker-1.example.com"], "worker-1.example.com"),
        ("worker-1", ["worker-1.a", "worker-1"], "worker-1"),
        ("worker-1.b", ["worker-1.a", "worker-1.b"], "worker-1.b"),
        ("laptop", ["k3s-server"], "k3s-server"),
    ],
    ids=["exact", "case", "host has a domain", "node has a domain", "exact first", "domains", "only one"],
)
def test_node_is_the_one_that_is_called_like_the_host_or_the_only_one(
    host: Callable[[str], None], called: str, names: list[str], node: str
) -> None:
    host(called)
    assert find_node(nodes(*names), None) == node


@pytest.mark.parametrize("names", [["a", "b"], ["worker-1.a", "worker-1.b"], []])
def test_node_that_cannot_be_told_is_an_error(names: list[str]) -> None:
    with pytest.raises(PodmgrError, match="which node is this") as caught:
        find_node(nodes(*names), None)
    assert caught.value.tip == "--node-name NAME, or NODE_NAME in the environment"


def test_many_nodes_are_not_all_named() -> None:
    with pytest.raises(PodmgrError, match=r"is none of 500 nodes: n0, n1, n2, n3, n4 …$"):
        find_node(nodes(*(f"n{number}" for number in range(500))), None)


def test_node_is_called_after_its_host_if_nodes_may_not_be_listed(host: Callable[[str], None]) -> None:
    host("Worker-1.Example.com")
    assert find_node(nodes(error=StatusError(403, "forbidden")), None) == "worker-1.example.com"


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_node_is_not_guessed_because_the_server_is_in_trouble(status: int) -> None:
    """The wrong name would be watched for ever: a node without pods."""
    with pytest.raises(StatusError) as caught:
        find_node(nodes(error=StatusError(status, "no")), None)
    assert caught.value.status == status


def test_node_is_found_at_a_real_server(server: ApiServer, api: Api, host: Callable[[str], None]) -> None:
    for name in ("node-1", "node-2"):
        server.create(objects.node(name))
    host("node-2")
    assert find_node(api, None) == "node-2"


# Names


@pytest.mark.parametrize("name", ["a", "web-1", "a.b.c", "0", "a" * 253])
def test_name_may_stand_in_a_path(name: str) -> None:
    assert require_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "a b", "A", "-a", "a-", ".", "..", "a" * 254, "ä", "a\n", "a%2f", "a?b", "\x1b"],
)
def test_anything_else_may_not(name: str) -> None:
    with pytest.raises(UsageError, match="is not a Kubernetes name") as caught:
        require_name(name)
    assert caught.value.message.isprintable()
