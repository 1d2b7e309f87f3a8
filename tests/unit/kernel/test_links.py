"""Links as they are made: a veth pair between two real namespaces, read back with ip."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from typing import Any

import pytest

from podmgr.kernel import netlink
from podmgr.kernel.links import End, Links
from podmgr.kernel.netlink import RefusedError

HERE, THERE = End("podmgr-here", b"\x02\0\0\0\0\1"), End("eth0", b"\x02\0\0\0\0\2")


@pytest.fixture
def fds(make_stranger: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Descriptors of two namespaces."""
    with ExitStack() as stack:
        opened = [os.open(f"/proc/{make_stranger()}/ns/net", os.O_RDONLY) for _ in range(2)]
        for fd in opened:
            stack.callback(os.close, fd)
        yield opened[0], opened[1]


@pytest.fixture
def ends(fds: tuple[int, int]) -> Iterator[tuple[Links, Links]]:
    """Two namespaces, with a veth pair between them."""
    with netlink.opened(fds[0]) as here, netlink.opened(fds[1]) as there:
        Links(here).add_veth(HERE, THERE, fds[1])
        yield Links(here), Links(there)


def ip(fd: int, *words: str) -> Any:
    argv = ["nsenter", f"--net=/proc/self/fd/{fd}", "ip", "-j", *words]
    return json.loads(subprocess.run(argv, check=True, pass_fds=[fd], capture_output=True).stdout)


def test_each_end_is_in_its_namespace_under_its_name(ends: tuple[Links, Links], fds: tuple[int, int]) -> None:
    here, there = ends
    for fd, links, end, mac in ((fds[0], here, HERE, 1), (fds[1], there, THERE, 2)):
        (row,) = ip(fd, "link", "show", "dev", end.name)
        assert (row["ifindex"], row["address"]) == (links.index(end.name), f"02:00:00:00:00:0{mac}")
        assert "UP" not in row["flags"]
        links.set_up(row["ifindex"])
        assert "UP" in ip(fd, "link", "show", "dev", end.name)[0]["flags"]


def test_pair_goes_with_either_end(ends: tuple[Links, Links]) -> None:
    here, there = ends
    here.delete(here.index(HERE.name))
    for links, end in ((here, HERE), (there, THERE)):
        with pytest.raises(RefusedError) as caught:
            links.index(end.name)
        assert caught.value.errno == errno.ENODEV


def test_name_that_is_taken_is_refused(ends: tuple[Links, Links], fds: tuple[int, int]) -> None:
    with pytest.raises(RefusedError) as caught:
        ends[0].add_veth(HERE, End("eth1", THERE.mac), fds[1])
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("address", "gateway", "family"),
    [
        (IPv4Interface("198.18.0.2/30"), IPv4Address("198.18.0.1"), "-4"),
        (IPv6Interface("fd00:1::2/64"), IPv6Address("fd00:1::1"), "-6"),
    ],
)
def test_addresses_neighbours_and_routes_are_there_at_once(
    ends: tuple[Links, Links], fds: tuple[int, int], address: Any, gateway: Any, family: str
) -> None:
    links, fd = ends[1], fds[1]
    index = links.index(THERE.name)
    links.set_up(index)
    links.add_address(index, address)
    links.add_neighbour(index, gateway, HERE.mac)
    links.add_default_route(index, gateway)
    (row,) = ip(fd, family, "address", "show", "dev", "eth0", "scope", "global")
    (told,) = row["addr_info"]
    assert (told["local"], told["prefixlen"]) == (str(address.ip), address.network.prefixlen)
    assert not told.get("tentative")
    (neighbour,) = ip(fd, family, "neigh", "show", str(gateway), "dev", "eth0")
    assert (neighbour["lladdr"], neighbour["state"]) == ("02:00:00:00:00:01", ["PERMANENT"])
    (route,) = ip(fd, family, "route", "show", "default")
    assert (route["gateway"], route["dev"]) == (str(gateway), "eth0")


def test_networks_are_those_of_all_routes_but_the_default_ones(ends: tuple[Links, Links]) -> None:
    links = ends[1]
    index = links.index(THERE.name)
    links.set_up(index)
    links.add_address(index, IPv4Interface("198.18.0.2/30"))
    links.add_default_route(index, IPv4Address("198.18.0.1"))
    found = set(links.networks())
    assert {IPv4Network("198.18.0.0/30"), IPv4Network("198.18.0.2/32")} <= found
    assert IPv4Network("0.0.0.0/0") not in found
