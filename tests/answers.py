"""Which packets of a pod get an answer: of each family, protocol and port, from two peers, all at once.

What leaves the pod has the peer's address as its destination, what arrives as its source; so one exchange
tells of either direction.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.lab import WORLD, WORLD6, Lab

OTHER, OTHER6 = "198.18.1.3", "fd00:db8:1::3"
UDP, TCP, ICMP = "udp", "tcp", "icmp"
PORTS = {UDP: (53, 80), TCP: (80, 8080)}
LOCAL_PORTS = (6000, 6001)


class Packet(NamedTuple):
    """What is asked: `port` is the peer's; ICMP has none."""

    peer: str
    protocol: str
    port: int = 0
    local_port: int = 0


ALL = [
    *(
        Packet(peer, protocol, port, local)
        for peer in (WORLD, OTHER, WORLD6, OTHER6)
        for protocol, ports in PORTS.items()
        for port in ports
        for local in LOCAL_PORTS
    ),
    *(Packet(peer, ICMP) for peer in (WORLD, OTHER, WORLD6, OTHER6)),
]

_ANSWERING = """
import json, select, socket, sys
ports = json.loads(sys.argv[1])
peers = sys.argv[2:]
servers = dict()
for peer in peers:
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    for port in ports["udp"]:
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind((peer, port))
        servers[server.fileno()] = (server, False)
    for port in ports["tcp"]:
        server = socket.create_server((peer, port), family=family, backlog=128)
        servers[server.fileno()] = (server, True)
poller = select.poll()
for fd in servers:
    poller.register(fd, select.POLLIN)
print("ready", flush=True)
while True:
    for fd, _ in poller.poll():
        server, is_tcp = servers[fd]
        if is_tcp:
            server.accept()[0].close()
        else:
            data, sender = server.recvfrom(2048)
            server.sendto(data, sender)
"""

# Sockets that nothing was heard of when nothing has come for so long.
_ASKING = """
import errno, json, select, socket, struct, sys
waiting, answered = dict(), set()
poller = select.poll()
for number, (peer, protocol, port, local) in enumerate(json.loads(sys.argv[1])):
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    if protocol == "icmp":
        kind = 1 if family == socket.AF_INET else 58
        asker = socket.socket(family, socket.SOCK_RAW, kind)
        head = 8 if family == socket.AF_INET else 128
        echo = struct.pack(">BBHHH", head, 0, 0, 4711, number)
        if family == socket.AF_INET:
            echo = struct.pack(">BBHHH", 8, 0, 0xFFFF - (0x800 + 4711 + number), 4711, number)
    else:
        asker = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asker.bind(("::" if ":" in peer else "", local))
    asker.setblocking(False)
    try:
        asker.connect((peer, port))
        if protocol == "udp":
            asker.send(b"%d" % number)
        elif protocol == "icmp":
            asker.send(echo)
    except BlockingIOError:
        pass
    except OSError as error:  # what is dropped at the cgroup hook is an error to some senders
        if error.errno not in (errno.ENOBUFS, errno.EPERM, errno.EINPROGRESS):
            raise
    waiting[asker.fileno()] = (asker, number, protocol, peer)
    poller.register(asker.fileno(), select.POLLOUT if protocol == "tcp" else select.POLLIN)
while waiting and (ready := poller.poll(int(sys.argv[2]))):
    for fd, events in ready:
        asker, number, protocol, peer = waiting[fd]
        if protocol == "icmp":
            data = asker.recv(2048)
            data = data if ":" in peer else data[20:]
            if (data[0], data[4:8]) != (0 if ":" not in peer else 129, struct.pack(">HH", 4711, number)):
                continue
        elif protocol == "tcp" and asker.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise SystemExit("a connection was refused")
        answered.add(number)
        poller.unregister(fd)
        del waiting[fd]
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asker.close()
print(json.dumps(sorted(answered)))
"""


@contextmanager
def answering(made: Lab, *more: str) -> Iterator[None]:
    """Two peers in the world answer while the block runs, and at these addresses too."""
    for address in (OTHER, OTHER6, *more):
        words = f"{address}/64 dev eth0 nodad" if ":" in address else f"{address}/24 dev eth0"
        made.sh(made.world, f"ip addr add {words}")
        made.sh(made.node, f"ip neigh add {address} lladdr 02:00:00:00:01:02 nud permanent dev world0")
    peers = [WORLD, OTHER, WORLD6, OTHER6, *more]
    server = made.in_world([sys.executable, "-c", _ANSWERING, json.dumps(PORTS), *peers])
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.wait()


def unanswered(made: Lab, packets: list[Packet] = ALL, quiet_ms: int = 250) -> set[Packet]:
    """The packets of the pod to which nothing came back, until nothing came for so long."""
    asking = made.in_pod([sys.executable, "-c", _ASKING, json.dumps(packets), str(quiet_ms)])
    output, _ = asking.communicate()
    assert asking.returncode == 0
    return set(packets) - {packets[number] for number in json.loads(output)}
