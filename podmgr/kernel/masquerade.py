"""The way beyond this machine for a network that podmgr made: nft masquerades it, where the machine forwards.

What is made is one table, named as the node's side of the network's veth, with a chain that is named
after its maker. Settings of the machine and tables of others are looked at, and never changed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from podmgr import proc
from podmgr.errors import PodmgrError, printable
from podmgr.kernel import netlink, scratch
from podmgr.kernel.tc import TrafficControl
from podmgr.proc import Runner

PREFIX = "podmgr-"  # of interface and table; six hexadecimal digits follow
_TABLE = re.compile(PREFIX + "[0-9a-f]{6}")
_CHAIN = re.compile("of-([0-9]+-[0-9]+)")  # the maker
_VANISH_SECONDS = 2.0
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}

Network = IPv4Network | IPv6Network


def new_name() -> str:
    """For a network that is to be made: of its interface here, and of its table."""
    return PREFIX + os.urandom(3).hex()


def obstacle() -> str:
    """Why nothing is led beyond this machine; "" if there is no reason."""
    reasons = [] if _forwards(4) else ["it does not forward (net.ipv4.ip_forward is 0)"]
    reasons += [] if proc.find("nft") else ["nft is not installed (package nftables)"]
    return " and ".join(reasons)


def add(name: str, networks: Sequence[Network], *, runner: Runner) -> None:
    """Masquerade what leaves the networks by another interface than `name`, of the protocols that are
    forwarded. Raises PodmgrError if nft refuses it; nothing is made then.
    """
    rules = "\n".join(
        f'{"ip" if network.version == 4 else "ip6"} saddr {network} oifname != "{name}" masquerade'
        for network in networks
        if _forwards(network.version)
    )
    chain = f"chain of-{scratch.maker()} {{\ntype nat hook postrouting priority 100\n{rules}\n}}"
    done = runner(["nft", "-f", "-"], stdin=f"table inet {name} {{\n{chain}\n}}\n".encode())
    if not done.succeeded:
        reason = next(iter(done.stderr.splitlines()), "it failed")
        raise PodmgrError(f"nft: {printable(reason)}", tip="nft list tables")


def closed_chain(*, runner: Runner) -> str:
    """How to list a chain that drops what is forwarded by its policy, as Docker's does; "" if none does."""
    for chain in _listed("chain", runner):
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            return f"nft list chain {chain['family']} {chain['table']} {chain['name']}"
    return ""


def remove(name: str, *, runner: Runner) -> None:
    """Remove the network's table; none there is fine. Raises PodmgrError."""
    done = runner(["nft", "-f", "-"], stdin=f"add table inet {name}\ndelete table inet {name}\n".encode())
    if not done.succeeded:
        raise PodmgrError(
            f"cannot remove the nft table inet {name}",
            tip=f"nft delete table inet {name}",
            detail=done.stderr[-1000:],
        )


def sweep(*, runner: Runner) -> list[str]:
    """Remove the tables whose makers and interfaces are gone, as a crash leaves them; their names.

    An interface may take a moment to go after its maker. One that stays is of a maker that lives in
    another PID namespace, or of what it has left behind.
    """
    if not proc.find("nft"):
        return []
    ours = {
        chain["table"]: match[1]
        for chain in _listed("chain", runner)
        if _TABLE.fullmatch(chain["table"]) and (match := _CHAIN.fullmatch(chain["name"]))
    }
    orphaned = {name for name, maker in ours.items() if scratch.is_gone(maker)}
    deadline = time.monotonic() + _VANISH_SECONDS
    while (staying := orphaned & _interfaces()) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = sorted(orphaned - staying)
    for name in left:
        remove(name, runner=runner)
    return left


def _forwards(version: int) -> bool:
    try:
        return (Path("/proc/sys") / _FORWARDING[version]).read_text().strip() != "0"
    except OSError:
        return False


def _listed(kind: str, runner: Runner) -> list[dict[str, Any]]:
    """What nft lists of tables or chains; nothing where it cannot."""
    done = runner(["nft", "-j", "list", f"{kind}s"])
    if not done.succeeded:
        return []
    rows: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return [row[kind] for row in rows if kind in row]


def _interfaces() -> set[str]:
    with netlink.here() as route:
        return {item.name for item in TrafficControl(route).interfaces()}
