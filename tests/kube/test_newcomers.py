"""Rules are on a pod before its first process, and at tc as soon as that is there."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from statistics import median

import pytest

from podmgr.kernel import cgroup_life
from podmgr.rules.rule import Direction
from tests.kernel.conftest import assert_unloaded, attached
from tests.kube.cluster import RunningPod, Simulated, eventually
from tests.kube.conftest import Watch

RULES = {"bandwidth": "10 mbps egress", "loss": "uniform egress 1%"}
LIMIT, LOSS = "bandwidth=10 mbps egress", "loss=uniform egress 1%"


def on_cgroup(pod: RunningPod) -> int:
    return len(attached(pod.place, Direction.EGRESS))


@pytest.mark.parametrize(
    "below", ["kubepods", "kubepods/burstable", "kubepods.slice/kubepods-burstable.slice"]
)
def test_rules_are_on_a_cgroup_before_its_first_process(
    simulated: Simulated, watching: Watch, below: str
) -> None:
    watch = watching()
    pod = simulated.pod(annotations=RULES, is_running=False, phase="Pending")
    simulated.make_cgroup(pod, below=below)
    eventually(lambda: on_cgroup(pod) == 1, why=watch.tail)
    assert not cgroup_life.is_populated(pod.place)
    assert simulated.rules(pod) == {LIMIT: "pod"}
    program = attached(pod.place, Direction.EGRESS)
    simulated.start_container(pod)
    simulated.settles(pod, {LIMIT: "pod", LOSS: "pod"})
    assert attached(pod.place, Direction.EGRESS) == program  # and what was there stays
    assert not watch.said("cannot|no process|failed")
    assert [reason for reason, _ in simulated.events(pod) if reason == "RuleFailed"] == []


def test_custom_program_for_interfaces_waits_for_them(
    simulated: Simulated, watching: Watch, tmp_path: Path
) -> None:
    source = '#include <linux/bpf.h>\n__attribute__((section("tc"), used)) int f(void *c) { return -1; }\n'
    source += 'char l[] __attribute__((section("license"), used)) = "GPL";\n'
    rules = {"ebpf-limit": "late egress", "bandwidth": "10 mbps egress"}
    programs = tmp_path / "own"
    programs.mkdir()
    (programs / "late.bpf.c").write_text(source)
    watch = watching("--program-dir", str(programs))
    pod = simulated.pod(annotations=rules, is_running=False, phase="Pending")
    simulated.make_cgroup(pod)
    eventually(lambda: on_cgroup(pod) == 1, why=watch.tail)
    simulated.start_container(pod)
    simulated.settles(pod, {LIMIT: "pod", "ebpf-limit=late egress": "pod"})
    assert [reason for reason, _ in simulated.events(pod) if reason == "RuleFailed"] == []


def test_pod_that_the_api_server_tells_of_later_is_served_all_the_same(
    simulated: Simulated, watching: Watch
) -> None:
    watch = watching()
    pod = RunningPod(simulated.namespace, "web", str(uuid.uuid4()))
    simulated.make_cgroup(pod)
    time.sleep(0.1)
    simulated.pod(annotations=RULES, is_running=False, phase="Pending", uid=pod.uid)
    eventually(lambda: on_cgroup(pod) == 1, why=watch.tail)


def test_static_pod_is_heard_by_its_hash(simulated: Simulated, watching: Watch) -> None:
    watch = watching()
    static_hash = uuid.uuid4().hex
    annotations = {**RULES, "kubernetes.io/config.hash": static_hash}
    pod = simulated.pod(annotations=annotations, is_running=False, phase="Pending")
    simulated.make_cgroup(pod, f"pod{static_hash}")
    eventually(lambda: on_cgroup(pod) == 1, why=watch.tail)


def test_nothing_is_left_of_a_pod_that_never_ran(simulated: Simulated, watching: Watch) -> None:
    watch = watching()
    pod = simulated.pod(annotations=RULES, is_running=False, phase="Pending")
    simulated.make_cgroup(pod)
    programs = eventually(lambda: attached(pod.place, Direction.EGRESS), why=watch.tail)
    simulated.delete("pods", pod.name)
    eventually(lambda: not simulated.observed(pod), why=watch.tail)
    assert_unloaded(programs)


def test_sandbox_that_is_made_anew_has_its_rules_at_once(simulated: Simulated, watching: Watch) -> None:
    """No word of the API server's is needed."""
    watching()
    pod = simulated.pod(annotations=RULES)
    simulated.settles(pod, {LIMIT: "pod", LOSS: "pod"})
    pod.processes[0].kill()
    pod.processes[0].wait()
    pod.forget_network()
    eventually(lambda: not cgroup_life.is_populated(pod.place))
    simulated.start_container(pod)
    eventually(lambda: len(pod.programs(Direction.EGRESS)) == 2)


def test_rules_are_there_in_a_moment(simulated: Simulated, watching: Watch) -> None:
    """Much sooner than a look every two seconds has them; the bench has the figures."""
    watching()
    made, started = [], []
    for number in range(5):
        pod = simulated.pod(f"web-{number}", annotations=RULES, is_running=False, phase="Pending")
        time.sleep(0.3)  # in which kubelet mounts volumes, and programs are compiled
        simulated.make_cgroup(pod)
        began = time.monotonic()
        eventually(lambda pod=pod: on_cgroup(pod) == 1, pause=0.001)  # type: ignore[misc]
        made.append(time.monotonic() - began)
        simulated.start_container(pod)
        began = time.monotonic()
        eventually(lambda pod=pod: len(pod.programs()) == 2, pause=0.001)  # type: ignore[misc]
        started.append(time.monotonic() - began)
    assert median(made) < 0.5 and median(started) < 0.5, (made, started)


def test_kubelets_folder_may_vanish_and_come_back(simulated: Simulated, watching: Watch) -> None:
    watch = watching()
    assert simulated.settings.cgroup_root is not None
    for number in range(2):
        pod = simulated.pod(f"web-{number}", annotations=RULES, is_running=False, phase="Pending")
        simulated.make_cgroup(pod, below="kubepods/burstable")
        eventually(lambda pod=pod: on_cgroup(pod) == 1, why=watch.tail)  # type: ignore[misc]
        simulated.delete("pods", pod.name)
        (simulated.settings.cgroup_root / "kubepods/burstable").rmdir()
        (simulated.settings.cgroup_root / "kubepods").rmdir()
