"""A pod behind a node, and the world beyond: three namespaces, and what is measured between them.

    pod eth0 -- pod0 node world0 -- eth0 world

The node routes, or it is a bridge, as with some plugins of CNI: what it forwards then keeps its socket.
podmgr runs in the node's namespace, as it does on a real node. Everything is gone with the
processes that hold the namespaces, but the cgroup, which is removed.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import inside, wait_for_listener
from podmgr.kernel import bpf_syscall, cgroup_life, cgroups
from podmgr.kernel.bpf_syscall import Counters
from podmgr.kernel.netns_life import hold_namespace
from tests.capture import Arrivals

POD, WORLD = "198.18.0.2", "198.18.1.2"
POD6, WORLD6 = "fd00:db8:0::2", "fd00:db8:1::2"
_NODE_POD, _NODE_WORLD = "198.18.0.1", "198.18.1.1"
_NODE_POD6, _NODE_WORLD6 = "fd00:db8:0::1", "fd00:db8:1::1"
UDP_PAYLOAD_BYTES = 1448

_labs = itertools.count()


@dataclass(frozen=True)
class Lab:
    """The processes that hold the namespaces, the pod's cgroup, and where podmgr keeps its state."""

    state_dir: Path
    cgroup: Cgroup
    pod: int
    node: int
    world: int

    @property
    def bpffs(self) -> Path:
        """Where podmgr's pins are: apart from the machine's own."""
        return Path("/sys/fs/bpf", self.cgroup.path.name)

    @property
    def target(self) -> str:
        """The pod, as podmgr's commands take it."""
        return f"cgroup/{self.cgroup.path}"

    def sh(self, pid: int, command: str) -> str:
        """A command in the namespace of a process; what it printed. It must succeed."""
        done = subprocess.run(inside(pid, command.split()), capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def set(self, pid: int, setting: str, value: str) -> None:
        """A file of /proc/sys, as the namespace of a process has it."""
        code = f"open('/proc/sys/{setting}', 'w').write('{value}')"
        subprocess.run(inside(pid, [sys.executable, "-c", code]), check=True)

    def in_pod(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """A command of the pod: in its namespace and its cgroup."""
        joining = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(self.cgroup.path / "cgroup.procs")]
        return subprocess.Popen([*joining, *inside(self.pod, argv)], stdout=subprocess.PIPE, text=True)

    def beside_pod(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """A command in the pod's namespace that is none of its cgroup's."""
        return subprocess.Popen(inside(self.pod, argv), stdout=subprocess.PIPE, text=True)

    def in_world(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        dying = ["setpriv", "--pdeathsig", "KILL", *argv]  # with us, also where nobody reaps it
        return subprocess.Popen(inside(self.world, dying), stdout=subprocess.PIPE, text=True)

    def podmgr(self, *words: str) -> str:
        """podmgr on the node. It must succeed."""
        argv = inside(self.node, [sys.executable, "-m", "podmgr", *words])
        own = {"PODMGR_STATE_DIR": str(self.state_dir), "PODMGR_BPFFS": str(self.bpffs)}
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(os.environ) | own)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    @contextmanager
    def under(self, *rules: str, options: Sequence[str] = ()) -> Iterator[None]:
        """These rules on the pod while the block runs."""
        words = [word for rule in rules for word in ("--rule", rule)]
        self.podmgr("apply", self.target, *words, *options)
        try:
            yield
        finally:
            self.podmgr("clean", self.target)

    def counters(self) -> Counters:
        """Those of the one rule on the pod."""
        (path,) = (self.bpffs / str(self.cgroup.id)).glob("*-maps/podmgr_counters")
        found = bpf_syscall.pinned_counters(path)
        assert found is not None
        return found

    @contextmanager
    def under_netem(self, *words: str, both: bool = False) -> Iterator[None]:
        """netem as the root qdisc of the pod's interface while the block runs; `both`: of the node's too."""
        ends = [(self.pod, "eth0"), *([(self.node, "pod0")] * both)]
        with ExitStack() as stack:
            for pid, name in ends:
                stack.enter_context(self.root(f"netem limit 100000 {' '.join(words)}", pid, name))
            yield

    @contextmanager
    def root(self, qdisc: str, pid: int | None = None, name: str = "eth0") -> Iterator[None]:
        """Somebody's root qdisc while the block runs: of the pod's interface, or of another."""
        self.sh(pid or self.pod, f"tc qdisc add dev {name} root {qdisc}")
        try:
            yield
        finally:
            self.sh(pid or self.pod, f"tc qdisc del dev {name} root")


@contextmanager
def lab(*, rtt_ms: int = 0, is_bridged: bool = False) -> Iterator[Lab]:
    """The three of them; `rtt_ms` is added by netem on the way from the world, behind the node."""
    root = cgroups.find_root(None)
    cgroup = cgroup_life.create(root, f"podmgr-lab{next(_labs)}-{os.getpid()}")
    holders = []
    state = tempfile.TemporaryDirectory(prefix="podmgr-lab-")
    try:
        for _ in range(3):
            holders.append(hold_namespace())
        made = Lab(Path(state.name), cgroup, *(holder.pid for holder in holders))
        cgroup_life.join(cgroup, made.pod)
        _connect(made)
        if is_bridged:
            _bridge(made)
        if rtt_ms:
            made.sh(made.world, f"tc qdisc add dev eth0 root netem delay {rtt_ms}ms limit 100000")
        yield made
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
        cgroup_life.kill(cgroup)
        cgroup_life.remove(cgroup)
        state.cleanup()


def _connect(made: Lab) -> None:
    for name, end, mac, peer_mac in (
        ("pod0", made.pod, "02:00:00:00:00:01", "02:00:00:00:00:02"),
        ("world0", made.world, "02:00:00:00:01:01", "02:00:00:00:01:02"),
    ):
        made.sh(
            made.node, f"ip link add {name} address {mac} type veth peer eth0 address {peer_mac} netns {end}"
        )
    ends = (
        (made.pod, "eth0", POD, POD6),
        (made.world, "eth0", WORLD, WORLD6),
        (made.node, "pod0", _NODE_POD, _NODE_POD6),
        (made.node, "world0", _NODE_WORLD, _NODE_WORLD6),
    )
    for pid, name, address, address6 in ends:
        made.sh(pid, f"ip addr add {address}/24 dev {name}")
        made.sh(pid, f"ip -6 addr add {address6}/64 dev {name} nodad")
        made.sh(pid, f"ip link set {name} up")
        made.sh(pid, "ip link set lo up")
    # Known neighbours: packets that wait for an address to be resolved may be lost there.
    for pid, name, mac, addresses in (
        (made.pod, "eth0", "02:00:00:00:00:01", (_NODE_POD, _NODE_POD6)),
        (made.world, "eth0", "02:00:00:00:01:01", (_NODE_WORLD, _NODE_WORLD6)),
        (made.node, "pod0", "02:00:00:00:00:02", (POD, POD6)),
        (made.node, "world0", "02:00:00:00:01:02", (WORLD, WORLD6)),
    ):
        for address in addresses:
            made.sh(pid, f"ip neigh add {address} lladdr {mac} nud permanent dev {name}")
    for pid, gateway, gateway6 in (
        (made.pod, _NODE_POD, _NODE_POD6),
        (made.world, _NODE_WORLD, _NODE_WORLD6),
    ):
        made.sh(pid, f"ip route add default via {gateway}")
        made.sh(pid, f"ip -6 route add default via {gateway6}")
        # What TCP learnt on one run is not the next one's start.
        made.set(pid, "net/ipv4/tcp_no_metrics_save", "1")
    for setting in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        made.set(made.node, setting, "1")


def _bridge(made: Lab) -> None:
    """Pod and world are neighbours, and the node forwards their frames; of IPv4 alone."""
    made.sh(made.node, "ip link add br0 type bridge")
    for name in ("pod0", "world0"):
        made.sh(made.node, f"ip link set {name} master br0")
    made.sh(made.node, "ip link set br0 up")
    for pid, address, mac in ((made.pod, WORLD, "02:00:00:00:01:02"), (made.world, POD, "02:00:00:00:00:02")):
        made.sh(pid, f"ip neigh add {address} lladdr {mac} nud permanent dev eth0")
        made.sh(pid, f"ip route add {address}/32 dev eth0")


@dataclass(frozen=True)
class Transfer:
    """What iperf3 saw."""

    bits_per_second: float
    retransmits: int
    payload: tuple[tuple[float, int], ...] = ()  # what the client saw: start of each 100 ms, and bytes


def tcp(made: Lab, seconds: float, *, host: str = WORLD) -> Transfer:
    """Payload of one flow of TCP from the pod to the world."""
    return start_tcp(made, seconds, host=host)()


def start_tcp(
    made: Lab,
    seconds: float,
    *,
    flows: int = 1,
    ingress: bool = False,
    settling_seconds: float = 0,
    host: str = WORLD,
    port: int = 5201,
    pacing_bits_per_second: float = 0,
) -> Callable[[], Transfer]:
    """The same of several flows, or the other way; the call that comes back waits for the end.

    What is carried in the seconds of settling does not count. Each flow may pace itself (SO_MAX_PACING_RATE).
    """
    words = ["-R"] if ingress else []
    words += ["--fq-rate", f"{pacing_bits_per_second:.0f}"] if pacing_bits_per_second else []
    return _iperf(
        made, ["-t", f"{seconds:g}", "-O", f"{settling_seconds:g}", "-P", str(flows), *words], host, port
    )


def start_udp(
    made: Lab, seconds: float, bits_per_second: float, *, ingress: bool = False
) -> Callable[[], Transfer]:
    """Payload of UDP that arrives, of so much that is sent."""
    words = ["-R"] if ingress else []
    rate = str(int(bits_per_second))
    return _iperf(
        made, ["-u", "-b", rate, "-l", str(UDP_PAYLOAD_BYTES), "-t", f"{seconds:g}", *words], WORLD, 5202
    )


def _iperf(made: Lab, words: list[str], host: str, port: int) -> Callable[[], Transfer]:
    server = made.in_world(["iperf3", "-s", "-1", "-p", str(port)])
    try:
        wait_for_listener(made.world, port)
        client = made.in_pod(["iperf3", "-c", host, "-p", str(port), "-J", "-i", "0.1", *words])
    except BaseException:
        server.kill()
        server.wait()
        raise

    def finish() -> Transfer:
        try:
            output, _ = client.communicate()
        finally:
            server.kill()
            server.wait()
        document: dict[str, Any] = json.loads(output)
        end = document["end"]
        payload = tuple((item["sum"]["start"], item["sum"]["bytes"]) for item in document["intervals"])
        if "-u" in words:
            total = end.get("sum_received", end["sum"])
            return Transfer(total["bits_per_second"], 0, payload)
        if "sum_sent" not in end:  # it gave up: a limit has starved its control connection too
            return Transfer(0, 0, payload)
        retransmits = end["sum_sent"].get("retransmits", 0)
        return Transfer(end["sum_received"]["bits_per_second"], retransmits, payload)

    return finish


@contextmanager
def admissions(made: Lab) -> Iterator[list[Arrivals]]:
    """What the one rule on the pod lets pass while the block runs, by its counters, every 5 ms.

    For what drops packets behind the last interface.
    """
    (path,) = (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters")
    rows: list[tuple[float, int]] = []
    is_over = threading.Event()

    def look() -> None:
        before = 0
        while not is_over.wait(0.005):
            counters = bpf_syscall.pinned_counters(path)
            passed = counters.passed_bytes if counters else before
            if passed > before:
                rows.append((time.monotonic(), passed - before))
            before = passed

    looking = threading.Thread(target=look)
    looking.start()
    result: list[Arrivals] = []
    try:
        yield result
    finally:
        is_over.set()
        looking.join()
        start = rows[0][0] if rows else 0.0
        result.append(Arrivals(tuple((moment - start, size) for moment, size in rows)))
