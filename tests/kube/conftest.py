"""`podmgr watch` against the tests' API server, with real cgroups and real programs.

    PODMGR_TEST_KUBECONFIG=~/.kube/config pytest tests/kube

runs the tests that use `cluster` on a real cluster, of which this machine must be a node. They
make a namespace, pods and services there, and remove them. No other podmgr may watch this node.
PODMGR_TEST_NODE is the node's name (default: the node that is this machine),
PODMGR_TEST_IMAGE what the pods run (default: registry.k8s.io/pause:3.10). All other tests use
the API server of `tests.kube.apiserver`, always.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.cluster.this_node import find_node
from podmgr.kernel import cgroup_life, cgroups
from podmgr.reconcile.observe import observe
from podmgr.settings import Settings
from tests.kernel.conftest import EXAMPLES, network_of_ones_own, settings, why_not_here
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import Cluster, Real, RunningPod, Simulated, eventually
from tests.kube.watching import Watching, end, environment_of

__all__ = ["settings"]  # a fixture of the kernel's tests, on the cgroup root of these

_KUBECONFIG = "PODMGR_TEST_KUBECONFIG"
_IMAGE = "registry.k8s.io/pause:3.10"

_NEED_KERNEL = {"settings", "shared", "cluster", "begin"}

Watch = Callable[..., Watching]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = why_not_here()
    if why is not None:
        for item in items:
            if "tests/kube" in item.path.as_posix() and _NEED_KERNEL & set(getattr(item, "fixturenames", ())):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="package", autouse=True)
def own_network() -> Iterator[None]:
    """With the simulated cluster, host-network pods are in a network of the tests' own."""
    if os.environ.get(_KUBECONFIG) or why_not_here() is not None:
        yield
        return
    with network_of_ones_own():
        yield


@pytest.fixture
def cgroup_root() -> Iterator[Path]:
    """A cgroup that stands for the mount; the test leaves it empty."""
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-kube-{os.getpid()}")
    yield root.path
    cgroup_life.kill(root)
    cgroup_life.remove(root)


@pytest.fixture
def simulated(settings: Settings, tmp_path: Path) -> Iterator[Simulated]:
    """A cluster of this test's own."""
    cluster = Simulated(settings, tmp_path)
    cluster.api.start()
    yield cluster
    cluster.close()


@pytest.fixture
def api(simulated: Simulated) -> ApiServer:
    """Its API server, with a namespace `default` and a node."""
    return simulated.api


@pytest.fixture
def cluster_pod(simulated: Simulated) -> Callable[..., RunningPod]:
    """Makes pods in it: a cgroup `kubepods/pod<uid>` with a process, and the Pod object."""
    return simulated.pod


@pytest.fixture
def watching(simulated: Simulated, tmp_path: Path) -> Iterator[Watch]:
    """Starts `podmgr watch` and waits until all is in order, unless `waits` is False.

    At the end what still runs is stopped, and nothing must be left.
    """
    watches: list[Watching] = []

    def start(*words: str, waits: bool = True, **options: Any) -> Watching:
        watch = Watching(simulated, tmp_path / f"log-{len(watches)}", *words, **options)
        watches.append(watch)
        if waits:
            watch.is_in_order()
        return watch

    yield start
    end(watches)


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Simulated, Watching]]:
    """A cluster and a watch of it that go on over many tests: a start takes over a second."""
    folder = tmp_path_factory.mktemp("shared")
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-kube-shared-{os.getpid()}")
    settings = Settings(
        folder / "state",
        Path(f"/sys/fs/bpf/podmgr-test-{os.getpid()}-shared"),
        cgroup_root=root.path,
        program_dir=EXAMPLES,
        trusts_invoker=True,
    )
    cluster = Simulated(settings, folder)
    cluster.api.start()
    watch = Watching(cluster, folder / "log", "--resync", "1h", "--metrics-address", "127.0.0.1:0")
    try:
        watch.is_in_order()
        yield cluster, watch
    finally:
        try:
            end([watch])
        finally:
            cluster.close()
            cgroup_life.kill(root)
            cgroup_life.remove(root)


_numbers = itertools.count()


@pytest.fixture
def watched(shared: tuple[Simulated, Watching], monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    """The shared cluster, in a namespace of this test's own, which is empty again afterwards."""
    cluster, watch = shared
    for name, value in environment_of(cluster.settings).items():
        monkeypatch.setenv(name, value)
    cluster.use_namespace(f"test-{next(_numbers)}")
    yield cluster
    cluster.clear()
    assert watch.process.poll() is None, watch.tail()
    eventually(lambda: not observe(cluster.settings)[0], why=watch.tail)


@pytest.fixture
def watch(shared: tuple[Simulated, Watching]) -> Watching:
    """The watch of the shared cluster."""
    return shared[1]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The cluster of PODMGR_TEST_KUBECONFIG, with a watch of it."""
    kubeconfig = Path(os.environ[_KUBECONFIG]).expanduser()
    folder = tmp_path_factory.mktemp("real")
    settings = Settings(folder / "state", Path(f"/sys/fs/bpf/podmgr-test-{os.getpid()}-real"))
    node = find_node(Api(Access(str(kubeconfig))), os.environ.get("PODMGR_TEST_NODE"))
    cluster = Real(settings, kubeconfig, node, os.environ.get("PODMGR_TEST_IMAGE", _IMAGE))
    watch = Watching(cluster, folder / "log")
    try:
        watch.is_in_order()
        yield cluster
    finally:
        end([watch])


@pytest.fixture
def real_cluster(real: Real) -> Iterator[Real]:
    """That cluster, in a namespace of this test's own."""
    real.use_namespace(f"podmgr-test-{os.getpid()}-{next(_numbers)}")
    yield real
    real.clear()


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A cluster with a watch of it: the real one if there is one, else the simulated one."""
    cluster: Cluster = request.getfixturevalue("real_cluster" if os.environ.get(_KUBECONFIG) else "watched")
    return cluster
