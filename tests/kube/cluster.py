"""Clusters in which `podmgr watch` is tested: a simulated one, or a real one.

In the simulated one this machine is the node, the API server is in this process, and the test is
kubelet: a pod is an object in the API server, and a cgroup with a process in it. In a real one
this machine must be a node of it; pods are asked for and waited for. What both can do is in
`Cluster`: enough for the tests that run in both.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life, cgroups, pod_cgroups
from podmgr.reconcile.observe import Observed, observe
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import attached
from tests.kernel.tcdump import Interfaces
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.kube.store import Obj

NODE = "node-1"
SECONDS = 20.0  # for what should come at once: the machine may be busy
REAL_SECONDS = 120.0  # for a real cluster to start or end a pod

# A process in the cgroup; it says so when it is there, and its network.
_CONTAINER = """
if [ -n "$1" ]; then
    ip -batch - <<END
link add eth0 type veth peer name peer0
link set eth0 up
link set lo up
END
fi
echo $$ > "$0"
echo
exec sleep 1000 > /dev/null
"""

T = TypeVar("T")
Annotations = Mapping[str, str | None]


def eventually(
    check: Callable[[], T],
    *,
    seconds: float = SECONDS,
    pause: float = 0.005,
    why: Callable[[], object] = lambda: "",
) -> T:
    """What `check` gives as soon as that is true; fails, saying why, if it never is."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"not so within {seconds:.0f} s: {why()}"
        time.sleep(pause)
    return value


@dataclass
class RunningPod:
    """A pod, and where it is on this machine. `cgroup` None: kubelet has not made it yet."""

    namespace: str
    name: str
    uid: str
    cgroup: Cgroup | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    has_host_network: bool = False
    _interfaces: dict[int, Interfaces] = field(default_factory=dict)  # by the namespace's number

    @property
    def place(self) -> Cgroup:
        """The cgroup that it has."""
        assert self.cgroup is not None
        return self.cgroup

    def programs(self, direction: Direction | None = None) -> tuple[int, ...]:
        """The ids of the programs on it, of one direction or both, as the kernel has them.

        On its cgroup, and on the interfaces of the network that its processes live in.
        """
        directions = Direction if direction is None else [direction]
        on_cgroup = [id for side in directions for id in attached(self.place, side)]
        return tuple(dict.fromkeys([*on_cgroup, *self._on_interfaces(direction)]))

    def _on_interfaces(self, direction: Direction | None) -> tuple[int, ...]:
        for pid in cgroup_life.processes(self.place) if not self._interfaces else ():
            path = Path(f"/proc/{pid}/ns/net")
            with suppress(FileNotFoundError):
                self._interfaces[path.stat().st_ino] = Interfaces(path)
        found = [id for there in self._interfaces.values() for id in there.programs(direction)]
        return tuple(dict.fromkeys(found))

    def run(self, argv: Sequence[str]) -> str:
        """Run a command as a process of the pod; what it printed."""
        join = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(_container(self) / "cgroup.procs")]
        join += self.enter()
        return subprocess.run([*join, *argv], capture_output=True, text=True, check=True).stdout

    def enter(self) -> list[str]:
        """What puts a command into the pod's network."""
        alive = [process.pid for process in self.processes if process.poll() is None]
        return ["nsenter", f"--net=/proc/{alive[0]}/ns/net"] if alive else []

    def lose_programs(self) -> None:
        """Somebody takes all its programs off, but does not unload them."""
        for side in Direction:
            for number in attached(self.place, side):
                argv = ["bpftool", "cgroup", "detach", str(self.place.path), side, "id", str(number)]
                subprocess.run(argv, capture_output=True, check=True)
            argv = [*self.enter(), "tc", "filter", "del", "dev", "eth0", side]
            subprocess.run(argv, capture_output=True, check=False)

    def forget_network(self) -> None:
        """Let go of it: what looks into a network keeps it."""
        while self._interfaces:
            self._interfaces.popitem()[1].close()


class Cluster(ABC):
    """A cluster of which this machine is a node. Objects are made in one namespace of it."""

    def __init__(self, settings: Settings, kubeconfig: Path, node: str, namespace: str) -> None:
        self.settings = settings
        self.kubeconfig = kubeconfig
        self.node = node
        self.namespace = namespace

    @abstractmethod
    def pod(
        self,
        name: str = "web",
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> RunningPod:
        """A pod that runs on this machine."""

    @abstractmethod
    def service(
        self, name: str, selector: Mapping[str, str], annotations: Mapping[str, str] | None = None
    ) -> None:
        """A service."""

    @abstractmethod
    def patch(self, resource: str, name: str, patch: Obj) -> None:
        """A JSON merge patch on a pod, service or namespace."""

    @abstractmethod
    def delete(self, resource: str, name: str) -> None:
        """Delete a pod or service; a pod's processes and cgroup end with it."""

    @abstractmethod
    def clear(self) -> None:
        """Remove what was made in the namespace."""

    def annotate(self, resource: str, name: str, annotations: Annotations | None) -> None:
        """Set annotations; None removes one, or all."""
        self.patch(resource, name, {"metadata": {"annotations": annotations}})

    def observed(self, pod: RunningPod) -> list[Observed]:
        """What `list` shows of a pod."""
        rows, _ = observe(self.settings)
        return [item for item in rows if item.attachment.owner == pod.uid]

    def rules(self, pod: RunningPod) -> dict[str, str]:
        """The rules in force on a pod, as `list` has them, with their sources."""
        return {
            str(item.attachment.rule): str(item.attachment.source)
            for item in self.observed(pod)
            if item.is_active
        }

    def settles(
        self, pod: RunningPod, rules: Mapping[str, str] | None = None, *, seconds: float = SECONDS
    ) -> None:
        """Wait until exactly these rules, by source, are on a pod, and the kernel has no other program."""
        wanted = dict(rules or {})
        eventually(
            lambda: self.rules(pod) == wanted and len(pod.programs()) == len(wanted),
            seconds=seconds,
            why=lambda: f"{pod.name} has {self.rules(pod)} and programs {pod.programs()}, not {wanted}",
        )


class Simulated(Cluster):
    """An API server in this process. What it lacks is reached through `api`.

    `folder` is where its kubeconfig goes; its pods are below the settings' cgroup root.
    """

    def __init__(self, settings: Settings, folder: Path, namespace: str = "default") -> None:
        self.api = ApiServer()
        self.api.create(objects.node(NODE))
        self._pods: list[RunningPod] = []
        super().__init__(settings, self.api.write_kubeconfig(folder / "kubeconfig"), NODE, namespace)
        self.api.create(objects.namespace(namespace))

    def pod(
        self,
        name: str = "web",
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        uid: str | None = None,
        called: str | None = None,
        is_running: bool = True,
        **more: Any,
    ) -> RunningPod:
        """A pod with a cgroup called after its UID, or `called` so; `more` as `objects.pod` takes it."""
        has_host_network = bool(more.get("host_network"))
        pod = RunningPod(self.namespace, name, uid or str(uuid.uuid4()), has_host_network=has_host_network)
        if is_running:
            self.start(pod, called)
        self.api.create(
            objects.pod(
                name,
                self.namespace,
                uid=pod.uid,
                labels=dict(labels or {}),
                annotations=dict(annotations or {}),
                **more,
            )
        )
        return pod

    def start(self, pod: RunningPod, called: str | None = None) -> None:
        """Make the pod's cgroup, and a container's in it, with a process."""
        self.make_cgroup(pod, called)
        self.start_container(pod)

    def make_cgroup(self, pod: RunningPod, called: str | None = None, below: str = "kubepods") -> None:
        """Make the pod's cgroup, in which no process lives yet."""
        assert self.settings.cgroup_root is not None
        parent = self.settings.cgroup_root / below
        parent.mkdir(parents=True, exist_ok=True)
        pod.cgroup = cgroup_life.create(parent, called or f"pod{pod.uid}")
        self._pods.append(pod)

    def start_container(self, pod: RunningPod) -> None:
        """As at the start, and when kubelet starts it again: a new cgroup below the pod's.

        The first one makes the pod's network, unless that is the host's; the others share it.
        """
        container = cgroup_life.create(pod.place.path, f"container-{len(pod.processes)}")
        argv = ["sh", "-c", _CONTAINER, str(container.path / "cgroup.procs")]
        if pod.has_host_network:
            pass
        elif alive := pod.enter():
            argv = [*alive, *argv]
        else:
            argv = ["unshare", "--net", *argv, "makes"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        pod.processes.append(process)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline()

    def end(self, pod: RunningPod) -> None:
        """The pod's processes and its cgroup are gone."""
        for process in pod.processes:
            process.kill()
            process.wait()
        pod.forget_network()
        if pod.cgroup is not None:
            cgroup_life.kill(pod.cgroup)
            cgroup_life.remove(pod.cgroup)
        with suppress(ValueError):
            self._pods.remove(pod)

    def service(
        self,
        name: str,
        selector: Mapping[str, str],
        annotations: Mapping[str, str] | None = None,
        created: str | None = None,
    ) -> None:
        self.api.create(
            objects.service(
                name,
                self.namespace,
                selector=dict(selector),
                annotations=dict(annotations or {}),
                created=created,
            )
        )

    def patch(self, resource: str, name: str, patch: Obj) -> None:
        self.api.patch(resource, self.namespace, name, patch)

    def delete(self, resource: str, name: str) -> None:
        self.api.delete(resource, self.namespace, name)
        if resource == "pods":
            for pod in [pod for pod in self._pods if (pod.namespace, pod.name) == (self.namespace, name)]:
                self.end(pod)

    def events(self, pod: RunningPod) -> list[tuple[str, str]]:
        """Reason and message of the Events that were posted on a pod, in their order."""
        return [
            (event["reason"], event["message"])
            for event in self.api.events()
            if event["involvedObject"]["uid"] == pod.uid
        ]

    def use_namespace(self, name: str, annotations: Mapping[str, str] | None = None) -> None:
        """Make a namespace, where objects are made from now on."""
        self.api.create(objects.namespace(name, annotations=dict(annotations or {})))
        self.namespace = name

    def clear(self) -> None:
        """Delete all pods and services, and end the pods."""
        for resource in ("services", "pods"):
            for namespace, name in list(self.api.objects[resource]):
                self.api.delete(resource, namespace, name)
        for pod in list(self._pods):
            self.end(pod)

    def close(self) -> None:
        self.api.close()
        for pod in list(self._pods):
            self.end(pod)
        assert self.settings.cgroup_root is not None
        for name in ("kubepods", "kubepods.slice"):
            cgroup_life.remove(Cgroup(self.settings.cgroup_root / name, 0))


class Real(Cluster):
    """A cluster that is there already. Makes namespaces, and removes them with all that is in them.

    The user of the kubeconfig must have the right to do so, and for the rest what podmgr needs.
    """

    def __init__(self, settings: Settings, kubeconfig: Path, node: str, image: str) -> None:
        config: Any = importlib.import_module("kubernetes.config")  # it has no types
        client: Any = importlib.import_module("kubernetes.client")
        self._core = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        self._image = image
        super().__init__(settings, kubeconfig, node, "default")

    def pod(
        self,
        name: str = "web",
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> RunningPod:
        made = self._core.create_namespaced_pod(
            self.namespace,
            {
                "metadata": {
                    "name": name,
                    "labels": dict(labels or {}),
                    "annotations": dict(annotations or {}),
                },
                "spec": {
                    "nodeName": self.node,
                    "containers": [{"name": "web", "image": self._image}],
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [{"operator": "Exists"}],
                },
            },
        )
        pod = RunningPod(self.namespace, name, str(made.metadata.uid))
        root = cgroups.find_root(self.settings.cgroup_root)
        pod.cgroup = eventually(lambda: pod_cgroups.pods(root).found.get(pod.uid), seconds=REAL_SECONDS)
        return pod

    def service(
        self, name: str, selector: Mapping[str, str], annotations: Mapping[str, str] | None = None
    ) -> None:
        self._core.create_namespaced_service(
            self.namespace,
            {
                "metadata": {"name": name, "annotations": dict(annotations or {})},
                "spec": {"selector": dict(selector), "ports": [{"port": 80}]},
            },
        )

    def patch(self, resource: str, name: str, patch: Obj) -> None:
        if resource == "namespaces":
            self._core.patch_namespace(name, patch)
        elif resource == "services":
            self._core.patch_namespaced_service(name, self.namespace, patch)
        else:
            self._core.patch_namespaced_pod(name, self.namespace, patch)

    def delete(self, resource: str, name: str) -> None:
        if resource == "services":
            self._core.delete_namespaced_service(name, self.namespace)
        else:
            self._core.delete_namespaced_pod(name, self.namespace)

    def use_namespace(self, name: str) -> None:
        """Make a namespace, where objects are made from now on."""
        self._core.create_namespace({"metadata": {"name": name}})
        self.namespace = name

    def clear(self) -> None:
        """Remove that namespace; this goes on when it returns."""
        self._core.delete_namespace(self.namespace)


def ending(pod: RunningPod, folder: Path, tool: str) -> Path:
    """To be first in PATH: `tool` in this folder ends the pod, its network first, and then does its work."""
    folder.mkdir()
    path = folder / tool
    enter, pids = " ".join(pod.enter()), " ".join(str(process.pid) for process in pod.processes)
    end = f"{enter} ip link delete eth0 2> /dev/null; "
    end += f"while grep -qs 'populated 1' {pod.place.path}/cgroup.events; "
    end += f"do kill -9 {pids} 2> /dev/null; sleep 0.01; done"
    path.write_text(f'#!/bin/sh\n{end}\nexec {shutil.which(tool)} "$@"\n')
    path.chmod(0o755)
    return folder


def _container(pod: RunningPod) -> Path:
    """The cgroup of the pod's container of today."""
    return pod.place.path / f"container-{len(pod.processes) - 1}"


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The lines of a log of --log-format json, but for a half-written last one.

    What is said before there is a log, for example on a bad option, is no JSON; it is left out too.
    """
    text = log.read_text()
    lines = text[: text.rfind("\n") + 1].split("\n")
    return [json.loads(line) for line in lines if line.startswith("{")]
