"""delay on a pod that talks to two peers: one is as far away as was asked for, the other as near as ever."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from podmgr.settings import Settings
from tests.answers import OTHER, answering
from tests.kernel.conftest import cgroup_root, settings
from tests.kernel.shop import ADDRESSES, CACHE, CACHE_POD, DB, DB_NEW, DB_POD, Shop, shop, watching_of
from tests.kube.cluster import eventually
from tests.lab import WORLD, Lab, lab

__all__ = ["cgroup_root", "settings"]  # fixtures of the kernel's tests

TIMES = 20
SECONDS = 180.0  # for processes to start: the machine is emulated
FAR_MS, NEAR_MS = 80, 30  # at most, where another process may come between
Ends = tuple[str, int]

# A datagram to each and its answer, one after the other; the first to each does not count.
_ASKING = """
import json, socket, sys, time
ends, times = json.loads(sys.argv[1]), int(sys.argv[2])
found = []
for address, port in ends:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, port))
    sock.settimeout(5)
    took = []
    for number in range(times + 1):
        began = time.monotonic()
        sock.send(b"x")
        sock.recv(100)
        took.append(time.monotonic() - began)
    found.append(took[1:])
print(json.dumps(found))
"""


def round_trips(made: Lab, *ends: Ends) -> list[float]:
    """To each address and port from the pod, the median in milliseconds."""
    asking = made.in_pod([sys.executable, "-c", _ASKING, json.dumps(ends), str(TIMES)])
    output, _ = asking.communicate()
    assert asking.returncode == 0
    return [1000 * median(took) for took in json.loads(output)]


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made, *ADDRESSES):
        yield made


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_one_address_is_far_and_the_other_near(made: Lab, direction: str) -> None:
    with made.under(f"delay=50ms {direction} peer={WORLD}"):
        far, near = round_trips(made, (WORLD, 53), (OTHER, 53))
    print(f"{direction}: {far:.2f} ms and {near:.2f} ms")
    assert 50 <= far < FAR_MS
    assert near < NEAR_MS


def test_one_service_is_far_and_the_other_near(made: Lab, settings: Settings, tmp_path: Path) -> None:
    """Through its ClusterIP and directly; an endpoint that comes is far too, and one that goes is not."""
    with shop(made, settings, tmp_path) as place, watching_of(place, tmp_path, SECONDS) as watching:
        place.cluster.annotate("pods", "web", {"delay": "50ms egress peer=svc/db"})
        watching()
        eventually(lambda: len(place.program_ids()) == 1, seconds=SECONDS)
        assert_far(place, (DB, 53), (DB_POD, 80))
        assert_near(place, (CACHE, 53), (CACHE_POD, 80), (DB, 80), (DB_POD, 53), (DB_NEW, 80))
        programs = place.program_ids()
        place.move("db", DB_NEW)
        eventually(lambda: round_trips(made, (DB_NEW, 80))[0] >= 50, seconds=SECONDS)
        assert_far(place, (DB, 53), (DB_NEW, 80))
        assert_near(place, (DB_POD, 80))
        assert place.program_ids() == programs


def assert_far(place: Shop, *ends: Ends) -> None:
    found = round_trips(place.made, *ends)
    print(f"far: {found}")
    assert all(50 <= trip < FAR_MS for trip in found), found


def assert_near(place: Shop, *ends: Ends) -> None:
    found = round_trips(place.made, *ends)
    print(f"near: {found}")
    assert all(trip < NEAR_MS for trip in found), found
