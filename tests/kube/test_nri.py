"""A pod starts with its rules in force: the runtime waits for them. The runtime is the tests' own."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.kernel import cgroup_life
from podmgr.rules.rule import Direction
from tests.kernel.conftest import attached
from tests.kube.cluster import SECONDS, RunningPod, Simulated, eventually
from tests.kube.conftest import Watch
from tests.kube.runtime import Reply, Runtime, pod_message
from tests.kube.watching import Watching

RULES = {"bandwidth": "10 mbps egress", "loss": "uniform egress 1%"}
LIMIT, LOSS = "bandwidth=10 mbps egress", "loss=uniform egress 1%"


@pytest.fixture(params=[False, True], ids=["RunPodSandbox", "StateChange"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """A runtime of today, and one of before NRI 0.12."""
    made = Runtime(tmp_path / "nri.sock", is_old=request.param, wait_seconds=SECONDS)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(tmp_path / "nri.sock", wait_seconds=SECONDS)
    made.start()
    yield made
    made.stop()


def asked_by(runtime: Runtime, watching: Watch, *words: str) -> Watching:
    watch = watching(*(words or ["--nri"]), "--nri-socket", str(runtime.path))
    watch.hears("asked by containerd v9.9 before pods start")
    eventually(lambda: len(runtime.plugins) == 1)
    return watch


def sandbox(simulated: Simulated, pod: RunningPod) -> None:
    """The runtime has made the pod's network, and a process that holds it."""
    simulated.make_cgroup(pod)
    simulated.start_container(pod)


def run(runtime: Runtime, pod: RunningPod, annotations: dict[str, str] | None = None) -> Reply:
    return runtime.run_pod(
        pod_message(
            pod.uid, pod.name, pod.namespace, annotations=annotations if annotations is not None else RULES
        )
    )


def starts(runtime: Runtime, pod: RunningPod) -> None:
    """It does so in the end: a sandbox that failed kubelet makes again."""
    eventually(lambda: run(runtime, pod).code == 0, why=lambda: run(runtime, pod))


def test_rules_are_in_force_when_the_runtime_is_answered(
    simulated: Simulated, watching: Watch, either: Runtime
) -> None:
    asked_by(either, watching, "--nri=required")
    assert either.plugins[0].name == "10-podmgr"
    for number in range(5):
        pod = simulated.pod(f"web-{number}", annotations=RULES, is_running=False, phase="Pending")
        sandbox(simulated, pod)
        starts(either, pod)
        assert simulated.rules(pod) == {LIMIT: "pod", LOSS: "pod"}
        assert len(pod.programs()) == 2


def test_pod_without_rules_is_not_held_up(simulated: Simulated, watching: Watch, runtime: Runtime) -> None:
    asked_by(runtime, watching)
    pod = simulated.pod(is_running=False, phase="Pending")
    reply = run(runtime, pod, {})
    assert reply.code == 0


def test_pod_of_which_the_api_server_has_not_told_has_its_rules_and_its_services(
    simulated: Simulated, watching: Watch, runtime: Runtime
) -> None:
    """What the runtime cannot know is known, and the runtime knows what the API server has not told."""
    simulated.annotate("namespaces", "default", {"loss": "uniform ingress 3%"})
    watch = asked_by(runtime, watching, "--nri=required")
    pod = RunningPod("default", "web", str(uuid.uuid4()))
    sandbox(simulated, pod)
    starts(runtime, pod)
    wanted = {LIMIT: "pod", LOSS: "pod", "loss=uniform ingress 3%": "namespace/default"}
    assert simulated.rules(pod) == wanted
    programs = pod.programs()
    simulated.pod(annotations=RULES, is_running=False, phase="Running", uid=pod.uid)
    time.sleep(0.3)
    assert (simulated.rules(pod), pod.programs()) == (wanted, programs), watch.tail()


def test_network_that_has_a_name_and_no_process_has_its_rules(
    simulated: Simulated, watching: Watch, runtime: Runtime, tmp_path: Path
) -> None:
    """As with CRI-O, which starts no process before the first container."""
    asked_by(runtime, watching, "--nri=required")
    pod = simulated.pod(annotations=RULES, is_running=False, phase="Pending")
    simulated.make_cgroup(pod)
    name = tmp_path / "netns"
    name.touch()
    links = "ip link add eth0 type veth peer name peer0 && ip link set eth0 up"
    subprocess.run(["unshare", f"--net={name}", "sh", "-c", links], check=True)
    try:
        message = pod_message(
            pod.uid,
            pod.name,
            pod.namespace,
            annotations=RULES,
            network=str(name),
            cgroup_parent=f"/kubepods/pod{pod.uid}",
        )
        eventually(lambda: runtime.run_pod(message).code == 0)
        assert not cgroup_life.is_populated(pod.place)
        assert simulated.rules(pod) == {LIMIT: "pod", LOSS: "pod"}
        process = subprocess.Popen(["nsenter", f"--net={name}", "sleep", "1000"])
        pod.processes.append(process)
        cgroup_life.join(pod.place, process.pid)
        time.sleep(0.3)
        assert simulated.rules(pod) == {LIMIT: "pod", LOSS: "pod"}
        assert len(pod.programs()) == 2
        simulated.delete("pods", pod.name)
    finally:
        subprocess.run(["umount", "--lazy", str(name)], check=True)  # watch may just look at it


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ({"loss": "nonsense"}, "loss: "),
        ({"ebpf-limit": "nosuch egress"}, "nosuch"),
        ({"delay": "10ms egress interface=eth7"}, "eth7"),
    ],
    ids=["unreadable", "no program", "no interface"],
)
def test_required_a_pod_that_cannot_be_served_does_not_start(
    simulated: Simulated, watching: Watch, runtime: Runtime, annotations: dict[str, str], reason: str
) -> None:
    watch = asked_by(runtime, watching, "--nri=required")
    pod = simulated.pod(annotations=annotations, is_running=False, phase="Pending")
    sandbox(simulated, pod)
    reply = run(runtime, pod, annotations)
    assert reply.code not in (0, None)
    assert reply.message.startswith("podmgr: ") and reason in reply.message
    assert watch.hears(r"is not started \(--nri=required\)")["pod"] == pod.name


def test_not_required_it_starts_and_that_is_said(
    simulated: Simulated, watching: Watch, runtime: Runtime
) -> None:
    watch = asked_by(runtime, watching)
    annotations = {"loss": "nonsense", "bandwidth": "10 mbps egress"}
    pod = simulated.pod(annotations=annotations, is_running=False, phase="Pending")
    sandbox(simulated, pod)
    assert run(runtime, pod, annotations)[:2] == (0, "")
    simulated.settles(pod, {LIMIT: "pod"})
    watch.hears("starts all the same: .*loss")


def test_pod_that_has_no_cgroup_is_waited_for_as_long_as_the_runtime_waits(
    simulated: Simulated, watching: Watch, runtime: Runtime
) -> None:
    asked_by(runtime, watching, "--nri=required")
    pod = simulated.pod(annotations=RULES, is_running=False, phase="Pending")
    reply = run(runtime, pod)
    assert "not in force yet" in reply.message
    assert 1.5 < reply.seconds < SECONDS
    sandbox(simulated, pod)
    starts(runtime, pod)


def test_restart_of_the_runtime_is_survived(simulated: Simulated, watching: Watch, runtime: Runtime) -> None:
    watch = asked_by(runtime, watching, "--nri=required")
    runtime.stop()
    watch.hears("NRI: the runtime .*; pods start unasked, trying again")
    runtime.start()
    watch.hears("asked by containerd", times=2)
    eventually(lambda: len(runtime.plugins) == 1)
    pod = simulated.pod(annotations=RULES, is_running=False, phase="Pending")
    sandbox(simulated, pod)
    starts(runtime, pod)
    assert simulated.rules(pod) == {LIMIT: "pod", LOSS: "pod"}


def test_runtime_without_nri_is_said_once_and_pods_have_their_rules(
    simulated: Simulated, watching: Watch, tmp_path: Path
) -> None:
    watch = watching("--nri", "--nri-socket", str(tmp_path / "nobody.sock"))
    watch.hears("cannot connect to .*nobody.sock")
    pod = simulated.pod(annotations=RULES)
    simulated.settles(pod, {LIMIT: "pod", LOSS: "pod"})
    assert len(watch.said("cannot connect")) == 1


def test_watch_that_ends_holds_up_no_pod(watching: Watch, runtime: Runtime) -> None:
    watch = asked_by(runtime, watching, "--nri=required")
    assert watch.stop() == 0
    eventually(lambda: not runtime.plugins[0].is_open)


def test_new_sandbox_of_a_pod_that_was_in_order_is_waited_for(
    simulated: Simulated, watching: Watch, runtime: Runtime
) -> None:
    asked_by(runtime, watching, "--nri=required")
    pod = simulated.pod(annotations=RULES)
    simulated.settles(pod, {LIMIT: "pod", LOSS: "pod"})
    pod.processes[0].kill()
    pod.processes[0].wait()
    pod.forget_network()
    eventually(lambda: not cgroup_life.is_populated(pod.place))
    simulated.start_container(pod)
    starts(runtime, pod)
    assert len(pod.programs(Direction.EGRESS)) == 2
    assert len(attached(pod.place, Direction.EGRESS)) == 1


def test_other_values_are_usage(watching: Watch) -> None:
    watch = watching("--nri=maybe", waits=False)
    assert watch.ended() == 2
    assert "--nri=maybe means nothing" in watch.tail()
