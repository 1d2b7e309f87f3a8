"""A pod to throw away, and what can be measured on it: for `demo`, tests and benchmarks.

The pod is a cgroup and a network namespace with one end of a veth pair; the world is another
namespace with the other end. Both namespaces live through a process each, which dies with us:
nothing has a name that a crash could leave behind, but the cgroup, which `clean` finds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life, scratch
from podmgr.kernel.netns_life import hold_namespace, release

POD_ADDRESS, WORLD_ADDRESS = "198.18.0.1", "198.18.0.2"  # RFC 2544: networks for benchmarks
POD_ADDRESS6, WORLD_ADDRESS6 = "fd00:db8::1", "fd00:db8::2"
_POD_MAC, _WORLD_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
WIRE_PER_PAYLOAD = 1514 / 1448  # a full frame carries 1448 bytes of TCP payload
_IPERF_PORT = 5201
PROBE = (sys.executable, "-I", str(Path(__file__).with_name("probe.py")))  # wherever it is started
_READY_SECONDS = 30.0  # an emulated machine is slow


class Pod(NamedTuple):
    """The throw-away pod and the world outside it, each with the process that holds its namespace."""

    cgroup: Cgroup
    pid: int
    world_pid: int

    def run(self, argv: Sequence[str]) -> str:
        """Run a command in the pod; what it printed."""
        return checked(proc.run(inside(self.pid, argv), prepare=lambda: cgroup_life.join(self.cgroup)))

    def start_outside(self, argv: Sequence[str], *, streams: int) -> proc.Process:
        """Start a command in the world; it ends when we end."""
        return proc.start(inside(self.world_pid, argv), prepare=proc.die_with_parent, streams=streams)


@contextmanager
def throw_away_pod(root: Path) -> Iterator[Pod]:
    """A pod that is gone when the block ends. Raises PodmgrError if the kernel refuses a part."""
    cgroup = scratch.create(root, "demo")
    holders: list[proc.Process] = []
    try:
        holders.append(hold_namespace())
        holders.append(hold_namespace())
        # After the namespace was made: its own sockets are not the pod's, as with a real one.
        cgroup_life.join(cgroup, holders[0].pid)
        pod, world = (holder.pid for holder in holders)
        _ip(pod, f"link add eth0 address {_POD_MAC} type veth peer eth0 address {_WORLD_MAC} netns {world}")
        _configure(pod, POD_ADDRESS, POD_ADDRESS6)
        _configure(world, WORLD_ADDRESS, WORLD_ADDRESS6)
        # Known neighbours: packets that wait for an address to be resolved may be lost there.
        for pid, mac, addresses in (
            (pod, _WORLD_MAC, (WORLD_ADDRESS, WORLD_ADDRESS6)),
            (world, _POD_MAC, (POD_ADDRESS, POD_ADDRESS6)),
        ):
            for address in addresses:
                _ip(pid, f"neigh add {address} lladdr {mac} nud permanent dev eth0")
        yield Pod(cgroup, pod, world)
    finally:
        for holder in holders:
            release(holder)
        cgroup_life.kill(cgroup)
        cgroup_life.remove(cgroup)


def send_datagrams(pod: Pod, port: int, count: int, *, host: str = WORLD_ADDRESS) -> tuple[int, int, int]:
    """Send from the pod to the world: how many were sent, refused by sendto(), and received."""
    sent, received = _probed(pod, ["receive", str(port)], ["send", host, str(port), str(count)])
    return sent["sent"], sent["errors"], received["received"]


def time_datagrams(pod: Pod, port: int, count: int, gap_ms: int) -> list[tuple[int, float]]:
    """Send such from the pod to the world: of each that arrived, in that order, its number and its delay in
    milliseconds.
    """
    words = ["stamp", WORLD_ADDRESS, str(port), str(count), str(gap_ms)]
    _, received = _probed(pod, ["time", str(port)], words)
    return [(number, delay_ms) for number, delay_ms in received["arrivals"]]


def _probed(pod: Pod, receiving: Sequence[str], sending: Sequence[str]) -> tuple[Any, Any]:
    """What the probe prints in the pod, and what it prints outside."""
    receiver = pod.start_outside([*PROBE, *receiving], streams=proc.PIPE)
    assert receiver.stdin is not None and receiver.stdout is not None
    try:
        receiver.stdout.readline()
        sent = json.loads(pod.run([*PROBE, *sending]))
        receiver.stdin.close()
        return sent, json.loads(receiver.stdout.readline())
    finally:
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()


def throughput(pod: Pod, seconds: int) -> float:
    """Bits per second on the wire, from the pod to the world: payload received, times 1514/1448."""
    server = pod.start_outside(["iperf3", "-s", "-1"], streams=proc.DEVNULL)
    try:
        wait_for_listener(server.pid, _IPERF_PORT)
        result = json.loads(pod.run(["iperf3", "-c", WORLD_ADDRESS, "-t", str(seconds), "-J"]))
        return float(result["end"]["sum_received"]["bits_per_second"]) * WIRE_PER_PAYLOAD
    finally:
        server.kill()
        server.wait()


def checked(done: proc.Completed) -> str:
    """What a command printed. Raises PodmgrError if it failed."""
    if not done.succeeded:
        raise PodmgrError(
            f"{' '.join(done.argv)} failed", detail=(done.stderr + done.stdout)[-1000:], tip="podmgr doctor"
        )
    return done.stdout


def _configure(pid: int, address: str, address6: str) -> None:
    for command in (
        f"addr add {address}/24 dev eth0",
        "link set eth0 up",
        "link set lo up",
        f"-6 addr add {address6}/64 dev eth0 nodad",
    ):
        _ip(pid, command)


def _ip(pid: int, command: str) -> None:
    """`ip` in the namespace of a process."""
    checked(proc.run(inside(pid, ["ip", *command.split()])))


def inside(pid: int, argv: Sequence[str]) -> list[str]:
    """The command, run in the network namespace of a process."""
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *argv]


def wait_for_listener(pid: int, port: int) -> None:
    """Wait until somebody listens on the port in the process's network. Raises PodmgrError."""
    deadline = time.monotonic() + _READY_SECONDS
    wanted = f":{port:04X} "
    while True:
        tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
        lines = [line for table in tables if table.exists() for line in table.read_text().splitlines()]
        if any(wanted in line and " 0A " in line for line in lines):
            return
        if time.monotonic() > deadline:
            raise PodmgrError(f"nothing listens on port {port}", tip="iperf3 --version")
        time.sleep(0.01)
