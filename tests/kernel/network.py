"""Networks to act on, what travels through them, and what tc has there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import Pod
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life
from podmgr.kernel.tc import require_qdisc
from tests.kernel.conftest import run

PORT = 4100


@dataclass(frozen=True)
class Place:
    """Where a command runs: in the network of a process (None: the tests'), and in a cgroup."""

    pid: int | None = None
    cgroup: Cgroup | None = None

    def argv(self, *words: str) -> list[str]:
        return [*inside(self.pid), *words]

    @property
    def prepare(self) -> Callable[[], None]:
        """For the child, before the command."""
        cgroup = self.cgroup
        return proc.die_with_parent if cgroup is None else lambda: cgroup_life.join(cgroup)

    def run(self, *words: str) -> str:
        done = proc.run(self.argv(*words), prepare=self.prepare)
        assert done.succeeded, (done.argv, done.stderr)
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return proc.start(self.argv(*words), prepare=self.prepare, streams=subprocess.PIPE)


def inside(pid: int | None) -> list[str]:
    """What puts a command into the network of a process."""
    return [] if pid is None else ["nsenter", f"--net=/proc/{pid}/ns/net"]


def tc(pid: int | None, words: str) -> str:
    """tc in the network of a process; what it printed."""
    return run(*inside(pid), "tc", *words.split())


def ip(pid: int | None, words: str) -> str:
    return run(*inside(pid), "ip", *words.split())


def tc_state(pid: int | None) -> str:
    """All qdiscs and all filters of all interfaces there, as tc tells them."""
    names = [row["ifname"] for row in json.loads(ip(pid, "-j link show"))]
    asked = [f"filter show dev {name} {side}" for name in names for side in ("egress", "ingress", "root")]
    argv = [*inside(pid), "tc", "-force", "-batch", "-"]
    lines = "\n".join(["qdisc show", *asked]) + "\n"
    return subprocess.run(argv, input=lines, capture_output=True, text=True, check=False).stdout


def programs(pid: int | None, device: str = "eth0", side: str = "egress") -> list[int]:
    """The ids of the programs on one side of an interface, in the order in which they see a packet."""
    done = subprocess.run(
        [*inside(pid), "tc", "-j", "filter", "show", "dev", device, side],
        capture_output=True,
        text=True,
        check=False,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return [row["options"]["prog"]["id"] for row in rows if "prog" in row.get("options", {})]


def qdisc_kinds(pid: int | None, device: str = "eth0") -> set[str]:
    """The kinds of the qdiscs on an interface."""
    return {row["kind"] for row in json.loads(tc(pid, f"-j qdisc show dev {device}"))}


def kernel_has_fq() -> bool:
    try:
        require_qdisc("fq")
    except PodmgrError:
        return False
    return True


@dataclass(frozen=True)
class Outside:
    """What the interface `out0` of the tests' own network leads to."""

    pid: int
    address: str = "198.18.10.2"
    address6: str = "fd00:db8:10::2"


@contextmanager
def outside() -> Iterator[Outside]:
    """An interface `out0` in the tests' own network, and what it leads to."""
    with namespace() as pid:
        ip(None, f"link add out0 type veth peer in0 netns {pid}")
        for where, device, end in ((None, "out0", 1), (pid, "in0", 2)):
            ip(where, f"addr add 198.18.10.{end}/24 dev {device}")
            ip(where, f"-6 addr add fd00:db8:10::{end}/64 dev {device} nodad")
            ip(where, f"link set {device} up")
        try:
            await_neighbour(Place(), "198.18.10.2")
            yield Outside(pid)
        finally:
            ip(None, "link del out0")


@contextmanager
def namespace() -> Iterator[int]:
    """A network namespace; the process that holds it."""
    holder = proc.start(
        ["unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec sleep infinity"],
        prepare=proc.die_with_parent,
        streams=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    with holder.stdout, holder.stdin:
        try:
            assert holder.stdout.readline()
            yield holder.pid
        finally:
            holder.kill()
            holder.wait()


def datagrams(
    sender: Place,
    receiver: Place,
    host: str,
    count: int,
    *,
    ports: Sequence[int] = (PORT,),
    size_bytes: int = 100,
) -> tuple[int, list[int]]:
    """Send `count` datagrams to each port, in turn: how many sendto() refused, and how many arrived."""
    refused: list[int] = []

    def send() -> None:
        argv = (sys.executable, "-I", "-S", "-c", _SEND_DATAGRAMS, host, str(count), str(size_bytes))
        refused.append(int(sender.run(*argv, *map(str, ports))))

    arrived = received(receiver, send, ports=ports)
    return refused[0], arrived


def received(receiver: Place, send: Callable[[], object], *, ports: Sequence[int] = (PORT,)) -> list[int]:
    """How many datagrams arrive at each port while `send` runs, and until nothing more comes."""
    process = receiver.start(sys.executable, "-I", "-S", "-c", _RECEIVE_DATAGRAMS, *map(str, ports))
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline()
            send()
            process.stdin.close()
            found: list[int] = json.loads(process.stdout.readline())
            return found
        finally:
            process.kill()
            process.wait()


_RECEIVE_DATAGRAMS = """
import json, select, socket, sys
socks = []
for port in sys.argv[1:]:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 30)  # SO_RCVBUFFORCE: nothing is lost here
    sock.bind(("::", int(port)))
    sock.setblocking(False)
    socks.append(sock)
print("ready", flush=True)
seen, ended = [0] * len(socks), False
while True:
    ready = select.select(socks + ([] if ended else [sys.stdin]), [], [], 0.4 if ended else None)[0]
    if not ready:
        break
    if sys.stdin in ready:
        ended = True
    for number, sock in enumerate(socks):
        try:
            while sock in ready:
                sock.recv(65535)
                seen[number] += 1
        except BlockingIOError:
            pass
print(json.dumps(seen), flush=True)
"""
_SEND_DATAGRAMS = """
import socket, sys
host, count, payload = sys.argv[1], int(sys.argv[2]), bytes(int(sys.argv[3]))
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
errors = 0
for _ in range(count):
    for port in sys.argv[4:]:
        try:
            sock.sendto(payload, (host, int(port)))
        except OSError:
            errors += 1
print(errors)
"""


def await_neighbour(place: Place, host: str) -> None:
    """Until a first datagram is no error: the neighbour is known, and the interface is up."""
    place.run(sys.executable, "-I", "-S", "-c", _ARRIVES, host)


_ARRIVES = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 9))
for _ in range(500):
    try:
        sock.send(b"")
        time.sleep(0.01)
        sock.send(b"")
    except ConnectionRefusedError:
        sys.exit()
    except OSError:
        time.sleep(0.01)
sys.exit("nobody is there")
"""


def pings(place: Place, host: str, count: int) -> int:
    """Ask so many echoes of a host; how many came back."""
    return int(place.run(sys.executable, "-I", "-S", "-c", _PING, host, str(count)))


_PING = """
import select, socket, struct, sys
host, count = sys.argv[1], int(sys.argv[2])
is_6 = ":" in host
request, reply = (128, 129) if is_6 else (8, 0)
family, protocol = (socket.AF_INET6, 58) if is_6 else (socket.AF_INET, 1)
sock = socket.socket(family, socket.SOCK_RAW, protocol)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)
seen = set()

def drain(seconds):
    while select.select([sock], [], [], seconds)[0]:
        data = sock.recv(2000)
        data = data if is_6 else data[(data[0] & 15) * 4:]
        kind, _, _, name, number = struct.unpack("!BBHHH", data[:8])
        if (kind, name) == (reply, 4711):
            seen.add(number)

for number in range(count):
    total = (request << 8) + 4711 + number
    total = (total & 65535) + (total >> 16)
    checksum = 0 if is_6 else ~total & 65535  # the kernel computes that of ICMPv6
    sock.sendto(struct.pack("!BBHHH", request, 0, checksum, 4711, number), (host, 0))
    drain(0)
drain(0.5)
print(len(seen))
"""


def transfer(pod: Pod, host: str, payload_bytes: int) -> int:
    """So many bytes by TCP from the pod to the world, to the last one; the segments sent again."""
    receiver = pod.start_outside([sys.executable, "-c", _RECEIVE_STREAM, str(PORT)], streams=subprocess.PIPE)
    assert receiver.stdin is not None and receiver.stdout is not None
    with receiver.stdin, receiver.stdout:
        receiver.stdout.readline()
        again = pod.run([sys.executable, "-c", _SEND_STREAM, host, str(PORT), str(payload_bytes)])
        assert json.loads(receiver.stdout.readline()) == payload_bytes
        assert receiver.wait() == 0
    return int(again)


_SEND_STREAM = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(bytes(int(sys.argv[3])))
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    print(int.from_bytes(info[100:104], sys.byteorder))  # tcpi_total_retrans
"""
_RECEIVE_STREAM = """
import socket, sys
with socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    received = 0
    while data := connection.recv(1 << 20):
        received += len(data)
    print(received, flush=True)
    connection.close()
"""


def waits_until(check: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes true in that time."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def namespace_number(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def program_folder(folder: Path, **sources: str) -> Path:
    """A program folder with these programs, and the examples' dropper."""
    folder.mkdir(mode=0o700, exist_ok=True)
    examples = Path(__file__).parents[2] / "examples"
    (folder / "dropper.bpf.c").write_text((examples / "dropper.bpf.c").read_text())
    for name, source in sources.items():
        (folder / f"{name}.bpf.c").write_text(source)
    return folder
