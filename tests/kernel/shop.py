"""A pod that talks to two services, in a cluster whose API server is the tests' own; the rest is real.

The pod's network is a lab's, and in the lab's world all addresses answer that the services have.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from podmgr.demo.throwaway import inside
from podmgr.kernel import cgroup_life
from podmgr.settings import Settings
from tests.answers import ICMP, TCP, UDP, Packet, unanswered
from tests.kube import objects
from tests.kube.cluster import SECONDS, RunningPod, Simulated, eventually
from tests.kube.store import Obj
from tests.kube.watching import Watching, end
from tests.lab import Lab

Watch = Callable[..., Watching]

DB, CACHE, LATE = "198.18.1.10", "198.18.1.20", "198.18.1.30"  # ClusterIPs
DB_POD, DB_NEW, CACHE_POD = "198.18.1.11", "198.18.1.12", "198.18.1.21"
DB6, DB_POD6 = "fd00:db8:1::10", "fd00:db8:1::11"
ADDRESSES = (DB, CACHE, LATE, DB_POD, DB_NEW, CACHE_POD, DB6, DB_POD6)
ALL = [
    *(Packet(peer, TCP, port) for peer in ADDRESSES for port in (80, 8080)),
    *(Packet(peer, UDP, port) for peer in ADDRESSES for port in (53, 80)),
    *(Packet(peer, ICMP) for peer in ADDRESSES),
]
PORTS: tuple[Obj, ...] = (  # of a service; its endpoints have others
    {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
    {"name": "query", "port": 53, "protocol": "UDP", "targetPort": 80},
)


@dataclass
class Shop:
    """The namespace `shop`, and the pod `web` in it."""

    made: Lab
    cluster: Simulated
    pod: RunningPod

    def service(self, name: str, *addresses: str) -> None:
        made = objects.service(name, "shop")
        made["spec"] |= {"clusterIP": addresses[0], "clusterIPs": list(addresses), "ports": list(PORTS)}
        self.cluster.api.create(made)

    def endpoints(self, name: str, address: str) -> None:
        ports = [{**port, "port": port["targetPort"]} for port in PORTS]
        suffix = "v6" if ":" in address else "v4"
        self.cluster.api.create(
            objects.endpoint_slice(name, "shop", addresses=[address], ports=ports, suffix=suffix)
        )

    def move(self, name: str, address: str) -> None:
        """Its endpoint is another one now."""
        endpoint = {"addresses": [address], "conditions": {"ready": True}}
        self.cluster.api.patch("endpointslices", "shop", f"{name}-v4", {"endpoints": [endpoint]})

    def annotate(self, *rules: str) -> None:
        self.cluster.annotate("pods", "web", {"loss": "; ".join(rules)})

    def hit(self) -> set[Packet]:
        return unanswered(self.made, ALL)

    def becomes(self, hit: set[Packet]) -> None:
        """Wait until exactly these packets are hit."""
        eventually(lambda: self.hit() == hit, pause=0.1, why=lambda: sorted(self.hit() ^ hit))

    def program_ids(self) -> set[int | None]:
        return {item.attachment.program_id for item in self.cluster.observed(self.pod) if item.is_active}

    def starts(self) -> set[str]:
        """The marks of when its rules began."""
        return {path.name for path in self.cluster.settings.bpffs.glob(f"starts/{self.pod.uid}/*")}

    def told(self, reason: str) -> list[str]:
        return [message for said, message in self.cluster.events(self.pod) if said == reason]


def pairs(cluster_ip: str, *endpoints: str) -> set[Packet]:
    """What a service's packets are, before the translation and after it."""
    return {
        Packet(cluster_ip, TCP, 80),
        Packet(cluster_ip, UDP, 53),
        *(Packet(address, TCP, 8080) for address in endpoints),
        *(Packet(address, UDP, 80) for address in endpoints),
    }


ALL_OF_DB = pairs(DB, DB_POD) | pairs(DB6, DB_POD6)


@contextmanager
def shop(made: Lab, settings: Settings, folder: Path) -> Iterator[Shop]:
    """With `db` and `cache` in it; the pod has no rules."""
    assert settings.cgroup_root is not None
    cluster = Simulated(settings, folder)
    cluster.api.start()
    cluster.use_namespace("shop")
    uid = str(uuid.uuid4())
    cgroup = cgroup_life.create(settings.cgroup_root, f"pod{uid}")
    process = subprocess.Popen(inside(made.pod, ["sleep", "10000"]))
    cgroup_life.join(cgroup, process.pid)
    shop = Shop(made, cluster, RunningPod("shop", "web", uid, cgroup, [process]))
    shop.service("db", DB, DB6)
    shop.endpoints("db", DB_POD)
    shop.endpoints("db", DB_POD6)
    shop.service("cache", CACHE)
    shop.endpoints("cache", CACHE_POD)
    cluster.api.create(objects.pod("web", "shop", uid=uid))
    try:
        yield shop
    finally:
        cluster.close()
        process.kill()
        process.wait()
        cgroup_life.kill(cgroup)
        cgroup_life.remove(cgroup)


@contextmanager
def watching_of(shop: Shop, folder: Path, seconds: float = SECONDS) -> Iterator[Watch]:
    """Starts `podmgr watch`, as often as it is asked; at the end nothing may be left."""
    watches: list[Watching] = []

    def start(*words: str) -> Watching:
        watch = Watching(shop.cluster, folder / f"log-{len(watches)}", *words)
        watches.append(watch)
        watch.hears("in order", seconds=seconds)
        return watch

    yield start
    end(watches)
