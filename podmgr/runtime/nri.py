"""NRI, the Node Resource Interface: podmgr as a plugin that the runtime asks before a pod's containers start.

Owns its messages (containerd/nri, pkg/api/api.proto) and a session, from registering to the end of the
connection. What a pod needs, and when to connect again, is the caller's business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from podmgr.errors import PodmgrError
from podmgr.runtime.ttrpc import FAILED_PRECONDITION, OK, UNIMPLEMENTED, Answer, Call, ClosedError, Connection
from podmgr.runtime.wire import Message, encoded

NAME, INDEX = "podmgr", "10"  # plugins are asked in the order of their index

MOST_SECONDS = 2.0  # that a runtime waits for a plugin, unless it is configured otherwise
_MARGIN_SECONDS = 0.2  # who answers too late is not asked any more
_REGISTER_SECONDS = 5.0

_PLUGIN, _RUNTIME = "nri.pkg.api.v1alpha1.Plugin", "nri.pkg.api.v1alpha1.Runtime"
_RUN_POD_SANDBOX = 1  # of enum Event; as a mask, bit 0
_NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod that the runtime is about to run.

    `cgroup_parent` is the pod's cgroup, as kubelet names it, "" if the runtime does not say; `network` is
    where its network namespace has a name, None if it has none.
    """

    namespace: str
    name: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]
    cgroup_parent: str = ""
    network: Path | None = None
    has_host_network: bool = False


# Why the pod shall not run; "" if it may. `deadline` is of time.monotonic(): an answer after it is not heard.
Judge = Callable[[Sandbox, float], str]


class Session:
    """One connection. `judge` is called by a thread of its own for each pod."""

    def __init__(self, path: Path, judge: Judge) -> None:
        """Connect and register. Raises PodmgrError."""
        self._judge = judge
        self._connection = Connection(path)
        self._wait_seconds = MOST_SECONDS
        self.runtime = ""  # its name and version, once it has told
        self._registering = self._connection.call(_RUNTIME, "RegisterPlugin", encoded({1: NAME, 2: INDEX}))

    def wait_until_configured(self) -> None:
        """Raises PodmgrError if the runtime does not take us."""
        deadline = time.monotonic() + _REGISTER_SECONDS
        while not self.runtime:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ClosedError("the runtime does not answer over NRI", tip="is it NRI's socket?")
            self._take(left)

    def serve(self) -> None:
        """Answer until the connection ends, as which this raises ClosedError."""
        while True:
            self._take(None)

    def close(self) -> None:
        self._connection.close()

    def _take(self, timeout_seconds: float | None) -> None:
        message = self._connection.read(timeout_seconds)
        if isinstance(message, Answer):
            if message.number == self._registering and message.code != OK:
                raise ClosedError(f"the runtime refuses the plugin: {message.message}")
        elif message is not None:
            self._answer(message)

    def _answer(self, call: Call) -> None:
        if call.service != _PLUGIN:
            self._connection.answer(call, code=UNIMPLEMENTED, message=f"unknown service {call.service}")
        elif call.method == "Configure":
            self._connection.answer(call, encoded({2: 1 << _RUN_POD_SANDBOX - 1}))
            self._configured(Message(call.content))
        elif call.method == "Synchronize":  # pods that run have their rules from the cluster
            self._connection.answer(call, encoded({2: Message(call.content).number(3)}))
        elif call.method == "RunPodSandbox":
            self._run(call, Message(call.content).message(1))
        elif call.method == "StateChange":  # as before NRI 0.12
            event = Message(call.content)
            if event.number(1) == _RUN_POD_SANDBOX:
                self._run(call, event.message(2))
            else:
                self._connection.answer(call)
        elif call.method in ("Shutdown", "StopPodSandbox", "RemovePodSandbox"):
            self._connection.answer(call)
        else:
            self._connection.answer(call, code=UNIMPLEMENTED, message=f"podmgr has no {call.method}")

    def _configured(self, request: Message) -> None:
        if milliseconds := request.number(5):
            self._wait_seconds = min(MOST_SECONDS, milliseconds / 1000)
        self.runtime = f"{request.text(2)} {request.text(3)}".strip() or "a runtime"

    def _run(self, call: Call, pod: Message) -> None:
        seconds = min(self._wait_seconds, call.timeout_ns / 1e9) if call.timeout_ns else self._wait_seconds
        deadline = time.monotonic() + max(0.0, seconds - min(_MARGIN_SECONDS, seconds / 4))
        sandbox = sandbox_of(pod)
        threading.Thread(
            target=self._judge_and_answer, args=(call, sandbox, deadline), name="sandbox", daemon=True
        ).start()

    def _judge_and_answer(self, call: Call, sandbox: Sandbox, deadline: float) -> None:
        reason = self._judge(sandbox, deadline)
        try:
            if reason:
                self._connection.answer(call, code=FAILED_PRECONDITION, message=f"podmgr: {reason}")
            else:
                self._connection.answer(call)
        except PodmgrError:
            pass  # the session ends, and who reads it says so


def sandbox_of(pod: Message) -> Sandbox:
    """Out of NRI's PodSandbox."""
    linux = pod.message(8)
    namespaces = linux.messages(5)
    networks = [item.text(2) for item in namespaces if item.text(1) == _NETWORK]
    return Sandbox(
        namespace=pod.text(4),
        name=pod.text(2),
        uid=pod.text(3),
        labels=pod.texts(5),
        annotations=pod.texts(6),
        cgroup_parent=linux.text(3),
        network=Path(networks[0]) if networks and networks[0] else None,
        has_host_network=bool(namespaces) and not networks,
    )
