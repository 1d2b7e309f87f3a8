"""A session with a runtime: the tests' own, on a real socket."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.errors import PodmgrError
from podmgr.runtime import nri
from podmgr.runtime.nri import Sandbox, Session
from podmgr.runtime.ttrpc import UNIMPLEMENTED, ClosedError
from podmgr.runtime.wire import WireError
from tests.kube.runtime import Runtime, pod_message, put
from tests.unit.samples import eventually

UID = "846f24d4-50e1-452e-91c0-7dfcee8503e9"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(tmp_path / "nri.sock", wait_seconds=20)
    made.start()
    yield made
    made.stop()


class Judge:
    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self.seen: list[Sandbox] = []
        self.lets = threading.Event()
        self.lets.set()
        self.left: list[float] = []

    def __call__(self, sandbox: Sandbox, deadline: float) -> str:
        self.left.append(deadline - time.monotonic())
        self.seen.append(sandbox)
        self.lets.wait(20)
        return self.reason


def served(runtime: Runtime, judge: Judge) -> Session:
    session = Session(runtime.path, judge)
    session.wait_until_configured()
    threading.Thread(target=_serve, args=[session], daemon=True).start()
    eventually(lambda: len(runtime.plugins) == 1)
    return session


def _serve(session: Session) -> None:
    with pytest.raises(PodmgrError):
        session.serve()


def test_it_is_registered_and_asked_of_sandboxes_alone(runtime: Runtime) -> None:
    session = served(runtime, Judge())
    assert session.runtime == "containerd v9.9"
    (plugin,) = runtime.plugins
    assert (plugin.name, plugin.events) == ("10-podmgr", 1)
    session.close()


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("reason", ["", "no such program"])
def test_pod_starts_or_not_as_is_judged(runtime: Runtime, is_old: bool, reason: str) -> None:
    runtime.is_old = is_old
    judge = Judge(reason)
    session = served(runtime, judge)
    message = pod_message(
        UID, "web", "shop", annotations={"a/b": "ä"}, cgroup_parent="/kubepods/x", network="/run/netns/1"
    )
    reply = runtime.run_pod(message)
    assert (reply.code == 0, reply.message) == (not reason, f"podmgr: {reason}" if reason else "")
    assert judge.seen == [Sandbox("shop", "web", UID, {}, {"a/b": "ä"}, "/kubepods/x", Path("/run/netns/1"))]
    session.close()


def test_hosts_network_is_known(runtime: Runtime) -> None:
    judge = Judge()
    session = served(runtime, judge)
    runtime.run_pod(pod_message(UID, network=None))
    runtime.run_pod(pod_message(UID, network=""))
    assert [(one.has_host_network, one.network) for one in judge.seen] == [(True, None), (False, None)]
    session.close()


def test_it_is_to_answer_before_the_runtime_gives_up(runtime: Runtime) -> None:
    judge = Judge()
    for runtime.wait_seconds in (0.4, 20.0):
        session = served(runtime, judge)
        runtime.run_pod(pod_message(UID))
        session.close()
        runtime.plugins.clear()
    assert judge.left[0] < 0.4 and judge.left[1] < nri.MOST_SECONDS


def test_many_pods_are_judged_at_once(runtime: Runtime) -> None:
    judge = Judge()
    judge.lets.clear()
    session = served(runtime, judge)
    threads = [
        threading.Thread(target=runtime.run_pod, args=[pod_message(UID, f"web-{number}")])
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(judge.seen) == 20)
    judge.lets.set()
    for thread in threads:
        thread.join()
    session.close()


def test_reason_is_cut_to_what_a_frame_takes(runtime: Runtime) -> None:
    session = served(runtime, Judge("ä" * 10_000))
    assert runtime.run_pod(pod_message(UID)).message.startswith("podmgr: ää")
    session.close()


@pytest.mark.parametrize("method", ["Shutdown", "StopPodSandbox", "CreateContainer"])
def test_other_calls_are_answered(runtime: Runtime, method: str) -> None:
    session = served(runtime, Judge())
    reply = runtime.plugins[0].call(method, put(1, pod_message(UID)))
    assert reply.code == (UNIMPLEMENTED if method == "CreateContainer" else 0)
    session.close()


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClosedError, match="cannot connect") as caught:
        Session(tmp_path / "nobody", Judge())
    assert "--nri-socket" in (caught.value.tip or "")


def test_runtime_that_goes_ends_the_session(runtime: Runtime) -> None:
    session = Session(runtime.path, Judge())
    session.wait_until_configured()
    threading.Timer(0.2, runtime.stop).start()
    with pytest.raises(ClosedError, match="runtime"):
        session.serve()


def test_what_is_no_nri_is_refused(tmp_path: Path) -> None:
    """A frame that would take all memory is not waited for."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        session = Session(tmp_path / "s", Judge())
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(struct.pack(">II", 1, 1 << 30))
            with pytest.raises(WireError, match="1073741824 bytes"):
                session.wait_until_configured()
    session.close()
