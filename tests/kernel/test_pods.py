"""Finding pods: recordings of real nodes, replayed as directories with processes in them.

A recording names each container with a process's path (`0::/...`), and at the end lists all
directories of the node, the empty ones that kubelet leaves among them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life, pod_cgroups
from tests.kernel.conftest import EXAMPLES, Cli, attached

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("v2-*.txt"))
GUARANTEED = "f6c79ff9-46d6-46ba-bbaa-623ab5473281"
STATIC = "f87be1b7b104c9de4fc88b23866881f2"
UID = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f_-]{27}|[0-9a-f]{32})(?:\.slice)?/")


class Node:
    """A recorded node below a cgroup that stands for its mount."""

    def __init__(self, root: Path, text: str) -> None:
        paths = re.findall(r"^ *0::(/.+)$", text, re.MULTILINE)
        folders = re.findall(r"^\.(/.+)$", text, re.MULTILINE)
        self.root = root
        self.containers = {path for path in paths if UID.search(path)}
        for folder in {*folders, *self.containers}:
            (root / folder[1:]).mkdir(parents=True, exist_ok=True)
        self.processes = [
            proc.start(
                ["sleep", "1000"],
                prepare=lambda path=path: cgroup_life.join(Cgroup(root / path[1:], 0)),  # type: ignore[misc]
                streams=subprocess.DEVNULL,
            )
            for path in sorted(self.containers)
        ]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for path in self.root.iterdir():
            if path.is_dir():
                cgroup_life.remove(Cgroup(path, path.stat().st_ino))


@pytest.fixture
def node(request: pytest.FixtureRequest, cgroup: Cgroup) -> Iterator[Node]:
    node = Node(cgroup.path, request.param.read_text())
    yield node
    node.end()


@pytest.mark.parametrize("node", RECORDINGS, ids=lambda path: str(path.stem), indirect=True)
def test_every_pod_of_a_recorded_node_is_found_where_its_containers_are(node: Node) -> None:
    found = pod_cgroups.pods(node.root).found
    for path in node.containers:
        match = UID.search(path)
        assert match is not None
        pod = found[match[1].replace("_", "-")]
        assert (node.root / path[1:]).is_relative_to(pod.path)
        assert pod.path.name.removesuffix(".slice").endswith(match[1])
    assert len(found) == len({UID.search(path)[1] for path in node.containers})  # type: ignore[index]


@pytest.mark.parametrize("node", RECORDINGS, ids=lambda path: str(path.stem), indirect=True)
def test_empty_directories_with_a_pods_name_are_no_pods(node: Node) -> None:
    ghost = node.root / "kubepods/besteffort/pod00000000-0000-4000-8000-000000000000"
    ghost.mkdir(parents=True)
    assert "00000000-0000-4000-8000-000000000000" not in pod_cgroups.pods(node.root).found


def test_a_pod_in_a_kind_node_is_found_in_its_nesting(cgroup: Cgroup) -> None:
    uid = "12345678-1234-4234-8234-123456789012"
    nested = f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid.replace('-', '_')}.slice"
    node = Node(cgroup.path, f"0::/system.slice/docker-abc.scope/{nested}/cri-containerd-abc.scope\n")
    try:
        assert pod_cgroups.pods(cgroup.path).found[uid].path.name.endswith(".slice")
    finally:
        node.end()


def test_a_node_with_cgroup_v1_alone_has_no_pods_here(cgroup: Cgroup) -> None:
    text = (Path(__file__).parent / "recordings/v1-systemd.txt").read_text()
    assert not re.findall(r"^ *0::/.*pod", text, re.MULTILINE)
    assert pod_cgroups.pods(cgroup.path).found == {}


@pytest.mark.parametrize("node", RECORDINGS[-1:], ids=["v2-systemd"], indirect=True)
@pytest.mark.parametrize(
    ("uid", "annotation", "pod"),
    [
        (GUARANTEED, "", GUARANTEED),
        ("99999999-9999-4999-8999-999999999999", f"kubernetes.io/config.hash: {STATIC}", STATIC),
    ],
)
def test_a_manifest_from_the_cluster_finds_its_cgroup_by_uid(
    podmgr: Cli, node: Node, uid: str, annotation: str, pod: str
) -> None:
    """`kubectl get pod web -o yaml | podmgr apply -f -`, also for a static pod."""
    text = f"""
kind: Pod
metadata:
  name: web
  uid: {uid}
  annotations:
    bandwidth: 1 mbps egress
    {annotation}
"""
    podmgr("apply", "-f", "-", "--cgroup-root", str(node.root), stdin=text)
    assert len(attached(pod_cgroups.pods(node.root).found[pod])) == 1
    assert podmgr.listed()[0]["target"] == "pod/web"


def test_a_manifest_of_a_pod_that_is_not_here_says_so(podmgr: Cli) -> None:
    text = "kind: Pod\nmetadata: {name: web, uid: abc, annotations: {loss: uniform egress 1%}}"
    assert "the pod's own node" in podmgr("apply", "-f", "-", stdin=text, code=1).stderr
    done = podmgr("apply", "-f", str(EXAMPLES / "bandwidth.yaml"), code=2)
    assert "--cgroup" in done.stderr
