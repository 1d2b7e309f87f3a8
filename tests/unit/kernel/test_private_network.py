"""A network for one command: which addresses it gets, and which name servers it cannot reach."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import PodmgrError
from podmgr.kernel import private_network
from podmgr.kernel.private_network import POOL, free_network

NETWORKS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(int(POOL.network_address) - (1 << 17), int(POOL.broadcast_address) + (1 << 17)),
    st.integers(16, 32),
)


@given(st.lists(NETWORKS, max_size=8), st.integers(0, 2**31))
def test_chosen_network_is_of_the_pool_and_nobodys(used: list[IPv4Network], start: int) -> None:
    if {IPv4Network("198.18.0.0/16"), IPv4Network("198.19.0.0/16")} <= set(used):
        return
    found = free_network(used, start)
    assert found.subnet_of(POOL) and found.prefixlen == 30
    assert not any(found.overlaps(network) for network in used)


@pytest.mark.parametrize("wide", ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "198.0.0.0/8"])
def test_routes_wider_than_the_pool_are_in_nobodys_way(wide: str) -> None:
    assert free_network([IPv4Network(wide)], 7).subnet_of(POOL)


def test_those_that_choose_at_once_choose_apart() -> None:
    assert len({free_network([], start) for start in range(1000)}) == 1000


@pytest.mark.parametrize("used", [["198.18.0.0/15"], ["198.18.0.0/16", "198.19.0.0/16"]])
def test_pool_that_is_all_in_use_is_told(used: list[str]) -> None:
    with pytest.raises(PodmgrError, match=r"all of 198\.18\.0\.0/15 is in use here") as caught:
        free_network([IPv4Network(text) for text in used], 3)
    assert caught.value.tip == "ip route show root 198.18.0.0/15 table all"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("nameserver 10.0.0.53\n", ""),
        ("search x\nnameserver 127.0.0.53\noptions edns0\n", "127.0.0.53"),
        ("nameserver 10.0.0.53\nnameserver ::1\n", "::1"),
        ("# nameserver 127.0.0.1\nnameserver\nnameserver x\n", ""),
    ],
)
def test_name_server_on_the_loopback_interface_is_found(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert private_network._loopback_nameserver(path) == found
    assert private_network._loopback_nameserver(tmp_path / "none") == ""
