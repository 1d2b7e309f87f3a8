"""The first datagrams of a pod: how many leave it before its rule is in force, with poll, inotify and NRI.

The pod's first act is to send 10,000. Its rule drops them all, so what its interface has sent was unruled.
Kubelet and the runtime are played: the API server tells of the pod, its cgroup is made, its network and a
process in it, and some milliseconds later comes the process that sends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from podmgr.kernel import cgroup_life, cgroups
from podmgr.settings import Settings
from tests.bench.effort import Effort
from tests.bench.findings import Claim, Findings, Table
from tests.bench.node import p99
from tests.kube.cluster import RunningPod, Simulated, eventually
from tests.kube.runtime import Runtime, pod_message
from tests.kube.watching import Watching, podmgr

EFFORT = Effort(rounds=1)

DATAGRAMS = 10_000
NRI_PODS, OTHER_PODS = 100, 20
API_SECONDS = 0.1  # from the API server's word to the cgroup: kubelet's own work
MADE_SECONDS = 0.1  # from the cgroup to the sandbox: volumes, the network
AT_TC, AT_CGROUP = "uniform egress 100%", "uniform egress 100% hook=cgroup"

_SANDBOX = """
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
ip -batch - <<END
link add eth0 address 02:00:00:00:00:01 type veth peer name peer0
addr add 198.18.0.2/24 dev eth0
link set eth0 up
link set peer0 up
neigh add 198.18.0.1 lladdr 02:00:00:00:00:02 nud permanent dev eth0
END
echo
read -r cgroup
echo $$ > "$cgroup"
echo
exec sleep 1000 > /dev/null
"""
_CONTAINER = f"""
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(flush=True)
cgroup = sys.stdin.readline().strip()
open(cgroup, "w").write("0")
sent = 0
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # of the pod's own cgroup
for _ in range({DATAGRAMS}):
    try:
        sent += sender.sendto(b"x" * 64, ("198.18.0.1", 9)) > 0
    except OSError:
        pass
print(open("/proc/self/net/dev").read().partition("eth0:")[2].split()[9], flush=True)
sys.stdin.readline()
"""
# In place of what the kernel would refuse: all else of watch is as it is.
_WITHOUT_INOTIFY = """
import podmgr.kernel.inotify as inotify


def refused():
    raise inotify.FullError("switched off")


inotify.Inotify = refused
"""


@dataclass(frozen=True)
class Way:
    """`gap_seconds`: from the first process of the sandbox to the one that sends."""

    name: str
    rule: str
    pods: int
    gap_seconds: float
    has_inotify: bool = True
    has_nri: bool = False


WAYS = (
    Way("poll", AT_TC, OTHER_PODS, 0.1, has_inotify=False),
    Way("poll", AT_CGROUP, OTHER_PODS, 0.1, has_inotify=False),
    Way("inotify", AT_TC, OTHER_PODS, 0.0),
    Way("inotify", AT_TC, OTHER_PODS, 0.1),
    Way("inotify", AT_CGROUP, OTHER_PODS, 0.0),
    Way("NRI", AT_TC, NRI_PODS, 0.0, has_nri=True),
)


def measure(effort: Effort) -> Findings:
    """All results. Leaves nothing behind."""
    del effort
    rows, claims = [], []
    for way in WAYS:
        unruled, waited = _tried(way)
        late = sum(count > 0 for count in unruled)
        rows.append(
            (
                way.name,
                "cgroup" if way.rule == AT_CGROUP else "tc",
                1000 * way.gap_seconds,
                way.pods,
                late,
                median(unruled),
                max(unruled),
                1000 * median(waited) if way.has_nri else None,
                1000 * p99(waited) if way.has_nri else None,
            )
        )
        if way.has_nri:
            claims.append(Claim(f"pods of {way.pods} with an unruled datagram, with NRI", late, 0, ""))
    headings = (
        "way",
        "hook",
        "gap, ms",
        "pods",
        "pods with unruled ones",
        "unruled, median",
        "unruled, most",
        "runtime waits, p50 ms",
        "p99 ms",
    )
    table = Table(f"the first {DATAGRAMS:,} datagrams of a pod", headings, tuple(rows))
    return Findings(tables=(table,), claims=tuple(claims))


def _tried(way: Way) -> tuple[list[int], list[float]]:
    """Unruled datagrams of each pod, and how long the runtime waited for it."""
    unruled, waited = [], []
    with _cluster() as (cluster, folder):
        runtime = Runtime(folder / "nri.sock", wait_seconds=2.0)
        runtime.start()
        with _watch(cluster, folder, way, runtime) as watch:
            watch.is_in_order()
            if way.has_nri:
                eventually(lambda: bool(runtime.plugins))
            other = cluster.pod("other", annotations={"loss": way.rule})  # whose program stays compiled
            eventually(lambda: cluster.rules(other))
            for number in range(way.pods):
                sent, seconds = _first(cluster, way, f"web-{number}", runtime)
                unruled.append(sent)
                waited.append(seconds)
        runtime.stop()
    return unruled, waited


def _first(cluster: Simulated, way: Way, name: str, runtime: Runtime) -> tuple[int, float]:
    """A pod's life: its unruled datagrams, and the seconds that the runtime waited."""
    rules = {"loss": way.rule}
    pod = cluster.pod(name, annotations=rules, is_running=False, phase="Pending")
    sandbox = _started(["unshare", "--net", "sh", "-c", _SANDBOX])
    enter = ["nsenter", f"--net=/proc/{sandbox.pid}/ns/net"]
    container = _started([*enter, sys.executable, "-c", _CONTAINER])
    try:
        time.sleep(API_SECONDS)
        cluster.make_cgroup(pod)
        time.sleep(MADE_SECONDS)
        _join(pod, sandbox, "sandbox")
        seconds = 0.0
        if way.has_nri:
            reply = runtime.run_pod(pod_message(pod.uid, name, pod.namespace, annotations=rules))
            assert reply.code == 0, reply
            seconds = reply.seconds
        time.sleep(way.gap_seconds)
        return int(_join(pod, container, "container")), seconds
    finally:
        for process in (container, sandbox):
            process.kill()
            process.wait()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
        cluster.delete("pods", name)


def _started(argv: list[str]) -> subprocess.Popen[str]:
    """It is ready, and in the pod's network."""
    made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    made.stdout.readline()
    return made


def _join(pod: RunningPod, process: subprocess.Popen[str], name: str) -> str:
    """Let it live in a cgroup below the pod's; what it says then."""
    cgroup = cgroup_life.create(pod.place.path, name)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{cgroup.path}/cgroup.procs\n")
    process.stdin.flush()
    return process.stdout.readline()


@contextmanager
def _cluster() -> Iterator[tuple[Simulated, Path]]:
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-bench-first-{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as place:
        folder = Path(place)
        bpffs = Path(f"/sys/fs/bpf/podmgr-bench-first-{os.getpid()}")
        cluster = Simulated(Settings(folder / "state", bpffs, cgroup_root=root.path), folder)
        cluster.api.start()
        try:
            yield cluster, folder
        finally:
            cluster.close()
            podmgr(cluster.settings, "clean")
            cgroup_life.kill(root)
            cgroup_life.remove(root)


@contextmanager
def _watch(cluster: Simulated, folder: Path, way: Way, runtime: Runtime) -> Iterator[Watching]:
    words = ["--nri=required", "--nri-socket", str(runtime.path)] if way.has_nri else []
    environment = {}
    if not way.has_inotify:
        (folder / "sitecustomize.py").write_text(_WITHOUT_INOTIFY)
        environment["PYTHONPATH"] = f"{folder}{os.pathsep}{Path(__file__).parents[2]}"
    watch = Watching(cluster, folder / "log", *words, environment=environment)
    try:
        yield watch
    finally:
        if watch.process.poll() is None:
            watch.stop()
