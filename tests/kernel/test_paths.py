"""Where packets really go: pods with bridges, bonds, tunnels and the like, those that this kernel has.

Each packet meets a rule once: counted by a limit that nothing reaches, and judged by a loss.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import pytest

from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import POD_ADDRESS, WORLD_ADDRESS, Pod
from podmgr.settings import Settings
from tests.kernel.conftest import counters, run, under
from tests.kernel.network import PORT, Place, await_neighbour, datagrams, ip, received
from tests.vm.machine import KERNEL_VARIABLE

COUNT, NOISE = 2_000, 40
GUEST, GUEST_MAC, TUNNEL_PORT = "198.18.0.77", "02:00:00:00:00:77", 4_500

# What stands in the pod and in the world, and what the pod's and the world's end are called.
STACKS = {
    "vlan": "link add link eth0 name up0 type vlan id 7",
    "macvlan": "link add link eth0 name up0 type macvlan mode bridge",
    "ipvlan": "link add link eth0 name up0 type ipvlan mode l2",
    "vxlan": "link add up0 type vxlan id 7 local {own} remote {other} dstport 4789 dev eth0",
    "ipip": "link add up0 type ipip local {own} remote {other}",
    "gre": "link add up0 type gre local {own} remote {other}",
}
# What the machine's kernel has and not every other: there `tests/vm/test_vm.py` runs these.
IN_THE_MACHINE = ("vlan", "ipvlan", "ipip", "gre", "bond", "wireguard")
TUNNELS = ("vxlan", "ipip", "gre", "wireguard", "tun")


def ends(pod: Pod) -> tuple[Place, Place]:
    return Place(pod.pid, pod.cgroup), Place(pod.world_pid)


def make_stack(pod: Pod, kind: str) -> None:
    """Interfaces `up0` above eth0 on both sides. Raises CalledProcessError where the kernel has none."""
    sides = ((pod.pid, POD_ADDRESS, WORLD_ADDRESS), (pod.world_pid, WORLD_ADDRESS, POD_ADDRESS))
    for pid, own, other in sides:
        ip(pid, STACKS[kind].format(own=own, other=other))


def make_bond(pod: Pod) -> None:
    """The same, of a bond that stands beside eth0, whose port leads to the world."""
    for pid in (pod.pid, pod.world_pid):
        ip(pid, "link add up0 type bond mode active-backup miimon 10")
    ip(pod.pid, f"link add net1 type veth peer net1 netns {pod.world_pid}")
    for pid in (pod.pid, pod.world_pid):
        ip(pid, "link set net1 master up0")
        ip(pid, "link set net1 up")


def make_wireguard(pod: Pod) -> None:
    """The same, as a VPN inside the pod makes it. Its keys come from wg, which the virtual machine has."""
    keys = {pid: run("wg", "genkey").strip() for pid in (pod.pid, pod.world_pid)}
    for own, other, address in (
        (pod.pid, pod.world_pid, WORLD_ADDRESS),
        (pod.world_pid, pod.pid, POD_ADDRESS),
    ):
        ip(own, "link add up0 type wireguard")
        public = run("sh", "-c", f"echo {keys[other]} | wg pubkey").strip()
        Place(own).run(
            *("sh", "-c", f"echo {keys[own]} | wg set up0 listen-port 51820 private-key /dev/stdin"),
        )
        Place(own).run(
            *("wg", "set", "up0", "peer", public, "allowed-ips", "0.0.0.0/0", "endpoint", f"{address}:51820")
        )


def start_tun(pod: Pod, stack: ExitStack) -> None:
    """The same, of a program on both sides that sends packets of a tun device by UDP."""
    for place, other in zip(ends(pod), (WORLD_ADDRESS, POD_ADDRESS), strict=True):
        process = place.start(sys.executable, "-I", "-S", "-c", _TUNNEL, other, str(TUNNEL_PORT))
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None and process.stdin is not None
        stack.enter_context(process.stdout)
        stack.enter_context(process.stdin)
        assert process.stdout.readline() == b"ready\n"


_TUNNEL = """
import fcntl, os, select, socket, struct, sys
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"up0", 0x1001))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 30)
sock.bind(("", int(sys.argv[2])))
sock.connect((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    for ready in select.select([tun, sock], [], [])[0]:
        try:
            if ready is sock:
                os.write(tun, sock.recv(65535))
            else:
                sock.send(os.read(tun, 65535))
        except OSError:
            pass
"""


@contextmanager
def joined(pod: Pod, kind: str) -> Iterator[bool]:
    """Addresses on `up0` on both sides; False if the kernel has no such interfaces."""
    with ExitStack() as stack:
        try:
            if kind == "tun":
                start_tun(pod, stack)
            elif kind == "bond":
                make_bond(pod)
            elif kind == "wireguard":
                make_wireguard(pod)
            else:
                make_stack(pod, kind)
        except (subprocess.CalledProcessError, FileNotFoundError):
            yield False
            return
        for pid, end in ((pod.pid, 1), (pod.world_pid, 2)):
            ip(pid, f"addr add 198.18.11.{end}/24 dev up0")
            ip(pid, "link set up0 mtu 1400 txqueuelen 100000 up")
        yield True


@pytest.mark.parametrize("kind", [*STACKS, "bond", "wireguard", "tun"])
def test_each_packet_meets_a_rule_once(pod: Pod, settings: Settings, kind: str) -> None:
    with joined(pod, kind) as there:
        if not there:
            assert kind in IN_THE_MACHINE and KERNEL_VARIABLE not in os.environ
            return
        in_pod, in_world = ends(pod)
        sides = {
            "egress": lambda: datagrams(in_pod, in_world, "198.18.11.2", COUNT)[1][0],
            "ingress": lambda: datagrams(in_world, in_pod, "198.18.11.1", COUNT)[1][0],
        }
        await_neighbour(Place(pod.pid), "198.18.11.2")
        _assert_met_once(pod, settings, sides, is_moved=kind in TUNNELS)


def _assert_met_once(
    pod: Pod, settings: Settings, sides: Mapping[str, Callable[[], int]], *, is_moved: bool
) -> None:
    """`sides` sends datagrams that way, and tells how many arrived.

    What leaves passes the cgroup hook first, what arrives tc first; at tc loss stands before a limit.
    """
    limits = {side: f"bandwidth=400 gbps {side}" for side in sides}
    losses = {side: f"loss=uniform {side} 50%" for side in sides}
    with under(settings, pod.cgroup, *limits.values(), *losses.values()) as listed:
        for side, send in sides.items():
            before = {rule: counters(listed(), rule) for rule in (limits[side], losses[side])}
            arrived = send()
            after = {rule: counters(listed(), rule) for rule in before}
            low, high = binomial_interval(COUNT, 0.5)
            assert low <= arrived <= high, side
            passed, dropped = (after[losses[side]][at] - before[losses[side]][at] for at in (0, 2))
            assert dropped - (COUNT - arrived) in range(NOISE), side
            assert passed - arrived in range(NOISE), side
            reach = COUNT if side == "egress" and not is_moved else arrived
            assert after[limits[side]][0] - before[limits[side]][0] - reach in range(NOISE), side
            assert listed()[limits[side]].attachment.hook == ("tc" if is_moved else "cgroup")


def test_virtual_machine_behind_a_bridge_meets_the_rules_of_its_pod(pod: Pod, settings: Settings) -> None:
    """As KubeVirt builds it: eth0 is a port of a bridge, and beside it the machine's tap."""
    for words in (
        "link add k6t-eth0 type bridge",
        "link set k6t-eth0 up",
        "link set eth0 master k6t-eth0",
        "tuntap add tap0 mode tap",
        "link set tap0 master k6t-eth0 txqueuelen 100000 up",
    ):
        ip(pod.pid, words)
    ip(pod.world_pid, f"neigh add {GUEST} lladdr {GUEST_MAC} nud permanent dev eth0")
    mac = _mac(pod)
    in_pod, in_world = ends(pod)

    def out() -> int:
        argv = (sys.executable, "-I", "-S", "-c", _GUEST_SENDS, mac, GUEST_MAC, GUEST, WORLD_ADDRESS)
        return received(in_world, lambda: in_pod.run(*argv, str(PORT), str(COUNT)))[0]

    def back() -> int:
        guest = in_pod.start(sys.executable, "-I", "-S", "-c", _GUEST_RECEIVES, str(PORT))
        assert guest.stdout is not None and guest.stdin is not None
        with guest.stdout, guest.stdin:
            assert guest.stdout.readline()
            datagrams(in_world, in_world, GUEST, COUNT)
            guest.stdin.close()
            count = int(guest.stdout.readline())
            guest.wait()
            return count

    with suppress(AssertionError):
        out()  # the bridge's ports take a moment until they forward
    _assert_met_once(pod, settings, {"egress": out, "ingress": back}, is_moved=True)


@pytest.mark.parametrize(("kind", "flag", "link_header"), [("tun", 1, 0), ("tap", 2, 14)])
@pytest.mark.parametrize("family", [4, 6])
def test_what_a_program_segments_counts_with_the_link_header_that_there_is(
    pod: Pod, settings: Settings, kind: str, flag: int, link_header: int, family: int
) -> None:
    """3,000 bytes of TCP in one write, to be sent in segments of 1,000, as virtual machines do."""
    ip(pod.pid, f"tuntap add up0 mode {kind} vnet_hdr")
    ip(pod.pid, "link set up0 up")
    rule = "loss=uniform ingress 0% interface=up0"
    ip_header = 20 if family == 4 else 40
    with under(settings, pod.cgroup, rule) as listed:
        Place(pod.pid).run(sys.executable, "-I", "-S", "-c", _SEGMENTED, str(flag), str(family))
        passed, size, _, _ = counters(listed(), rule)
    assert (passed, size) == (3, 3 * (link_header + ip_header + 20) + 3_000)


_SEGMENTED = """
import fcntl, os, struct, sys
flag, family = int(sys.argv[1]), int(sys.argv[2])
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"up0", flag | 0x1000 | 0x4000))
tcp = struct.pack("!HHIIBBHHH", 4000, 4001, 1, 1, 0x50, 0x10, 1000, 0, 0) + bytes(3000)
if family == 4:
    ends = b"\\x0a\\0\\0\\1", b"\\x0a\\0\\0\\2"
    head = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(tcp), 0, 0, 64, 6, 0, *ends)
else:
    ends = b"\\xfd" + bytes(15), b"\\xfd" + bytes(14) + b"\\1"
    head = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, *ends)
ether = bytes(12) + (b"\\x08\\0" if family == 4 else b"\\x86\\xdd")
link = ether if flag == 2 else b""
start = len(link) + len(head)
offload = struct.pack("BBHHHH", 1, 1 if family == 4 else 4, start + 20, 1000, start, 16)
os.write(device, offload + link + head + tcp)
"""


def _mac(pod: Pod) -> str:
    words = ip(pod.world_pid, "-o link show eth0").split()
    return words[words.index("link/ether") + 1]


_TAP = """
import fcntl, os, select, socket, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
"""
_GUEST_SENDS = (
    _TAP
    + """
import time
time.sleep(0.2)
to, own = (bytes.fromhex(word.replace(":", "")) for word in sys.argv[1:3])
payload = bytes(100)
udp = struct.pack("!HHHH", 4000, int(sys.argv[5]), 8 + len(payload), 0) + payload
ends = map(socket.inet_aton, sys.argv[3:5])
head = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(udp), 0, 0, 64, 17, 0, *ends)
total = sum(struct.unpack("!10H", head))
total = (total & 65535) + (total >> 16)
head = head[:10] + struct.pack("!H", ~((total & 65535) + (total >> 16)) & 65535) + head[12:]
for _ in range(int(sys.argv[6])):
    os.write(tap, to + own + b"\\x08\\x00" + head + udp)
"""
)
_GUEST_RECEIVES = (
    _TAP
    + """
print("ready", flush=True)
seen, ended = 0, False
while ready := select.select([tap] if ended else [tap, sys.stdin], [], [], 0.4 if ended else None)[0]:
    if tap in ready:
        frame = os.read(tap, 65535)
        is_udp = frame[12:14] == b"\\x08\\x00" and frame[23] == 17
        seen += is_udp and frame[36:38] == int(sys.argv[1]).to_bytes(2, "big")
    elif sys.stdin in ready:
        ended = True
print(seen, flush=True)
"""
)
