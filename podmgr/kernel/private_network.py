"""A network for one command: a namespace, and a veth pair that leads from it to podmgr's own network.

Apart from `cli.running`, which alone uses it, since it knows nothing of rules or of commands. What is
made goes with the last process in the namespace, however podmgr ends, but for the nft table.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from pathlib import Path
from typing import NamedTuple

from podmgr import proc
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import masquerade, netlink, netns_life
from podmgr.kernel.links import End, Links
from podmgr.kernel.netlink import RefusedError
from podmgr.proc import Runner

Report = Callable[[str], None]
Note = Callable[[str, str], None]  # writes down what is made next: what it is, and its name

HOST_VARIABLES = ("PODMGR_NET_HOST", "PODMGR_NET_HOST6")  # of the command: this machine, from within
POOL = IPv4Network("198.18.0.0/15")  # RFC 2544: for benchmarks, and so nobody's on the Internet
_PREFIX_BITS = 30  # two addresses
_NETWORKS = 1 << (_PREFIX_BITS - POOL.prefixlen)
_STEP = 7919  # has no divisor in common with their number: all come in turn, and neighbours stay apart
_LOOPBACK_INDEX = 1  # in each namespace
_INSIDE = "eth0"


class Ends(NamedTuple):
    """Two addresses of one network: of the node's side, and of the side inside."""

    node: IPv4Interface | IPv6Interface
    inside: IPv4Interface | IPv6Interface


@dataclass
class PrivateNetwork:
    """A namespace that a process holds, and its connection. `ends` has one or two pairs: IPv4, IPv6."""

    holder: proc.Process
    namespace_fd: int
    name: str  # of the node's side of the veth
    index: int
    ends: list[Ends]
    _undo: Callable[[], None] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """By which address this machine is reached from within."""
        return {name: str(ends.node.ip) for name, ends in zip(HOST_VARIABLES, self.ends, strict=False)}

    def enter(self) -> None:
        """Called in a child: it lives there from here on. Raises OSError."""
        netns_life.enter(self.namespace_fd)

    def lead_beyond(self, runner: Runner, note: Note) -> str:
        """Lead beyond this machine. Returns a line on what is in the way of it, "" if nothing is."""
        if reason := masquerade.obstacle():
            return f"nothing beyond this machine is reached: {reason}"
        self._undo = lambda: masquerade.remove(self.name, runner=runner)
        note("table", self.name)
        try:
            networks = [ends.node.network for ends in self.ends]
            masquerade.add(self.name, networks, runner=runner)
        except PodmgrError as error:
            self._undo = None
            return f"nothing beyond this machine is reached: {error.message}"
        if listing := masquerade.closed_chain(runner=runner):
            return f"beyond this machine its firewall may drop what is not admitted: {listing}"
        return ""

    def close(self) -> None:
        """Remove all of it; a second time it does nothing. Raises PodmgrError."""
        with proc.uninterrupted():
            if self.namespace_fd < 0:
                return
            try:
                if self._undo:
                    self._undo()
            finally:
                with suppress(PodmgrError), netlink.here() as route:  # gone already is fine
                    Links(route).delete(self.index)
                netns_life.release(self.holder)
                os.close(self.namespace_fd)
                self.namespace_fd = -1


@contextmanager
def private_network(
    *, runner: Runner, report: Report, note: Note = lambda _what, _name: None
) -> Iterator[PrivateNetwork]:
    """A network that is gone when the block ends; what can be reached from it is reported.

    What is made is noted before, for who finds it after a crash: see `delete`.
    Raises PermissionDeniedError without the right to make one, PodmgrError.
    """
    if not masquerade.obstacle():
        for name in masquerade.sweep(runner=runner):
            report(f"removed the nft table inet {name}, left by a crash")
    note("network", name := masquerade.new_name())
    network = _made(name)
    try:
        hosts = " and ".join(f"{host} ({name})" for name, host in network.environment.items())
        report(f"note: within, this machine is {hosts}")
        if obstacle := network.lead_beyond(runner, note):
            report(f"note: within, {obstacle}")
        if server := _loopback_nameserver():
            report(
                f"note: within, names are not resolved: /etc/resolv.conf names {server}, out of reach there"
            )
        yield network
    finally:
        network.close()


def free_network(used: Collection[IPv4Network], start: int) -> IPv4Network:
    """A network of two addresses that overlaps none of those in use; where to begin is up to the caller.

    Routes that are wider than all that may be chosen, such as a default route, are in nobody's way.
    Raises PodmgrError if all are taken.
    """
    taken = [network for network in used if network.prefixlen >= POOL.prefixlen and network.overlaps(POOL)]
    for turn in range(_NETWORKS):
        offset = (start + turn * _STEP) % _NETWORKS << (32 - _PREFIX_BITS)
        network = IPv4Network((POOL.network_address + offset, _PREFIX_BITS))
        if not any(network.overlaps(other) for other in taken):
            return network
    raise PodmgrError(f"all of {POOL} is in use here", tip=f"ip route show root {POOL} table all")


def delete(name: str) -> None:
    """Take its connection away from a network that a crash has left. Gone already is fine.

    Raises PodmgrError.
    """
    try:
        with netlink.here() as route:
            links = Links(route)
            links.delete(links.index(name))
    except RefusedError as error:
        if error.errno != errno.ENODEV:
            raise


def _made(name: str) -> PrivateNetwork:
    holder = netns_life.hold_namespace()
    fd = -1
    try:
        fd = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return _connected(holder, fd, name)
    except BaseException as error:
        netns_life.release(holder)  # and with it what was made
        if fd >= 0:
            os.close(fd)
        if isinstance(error, RefusedError):
            raise _refused(error) from error
        raise


def _connected(holder: proc.Process, fd: int, name: str) -> PrivateNetwork:
    """The veth pair, its addresses, and the routes through it."""
    node, inside = End(name, _mac()), End(_INSIDE, _mac())
    with netlink.here() as here, netlink.opened(fd) as there:
        outer, inner = Links(here), Links(there)
        outer.add_veth(node, inside, fd)
        outer_index, inner_index = outer.index(node.name), inner.index(inside.name)
        for links, index in ((inner, _LOOPBACK_INDEX), (outer, outer_index), (inner, inner_index)):
            links.set_up(index)

        def connect(ends: Ends) -> None:
            outer.add_address(outer_index, ends.node)
            inner.add_address(inner_index, ends.inside)
            outer.add_neighbour(outer_index, ends.inside.ip, inside.mac)
            inner.add_neighbour(inner_index, ends.node.ip, node.mac)
            inner.add_default_route(inner_index, ends.node.ip)

        # Who makes one at the same time has another index, and so begins elsewhere.
        ends4 = _ends(free_network(outer.networks(), outer_index))
        connect(ends4)
        ends6 = _ends(IPv6Network((b"\xfd" + os.urandom(5) + bytes(10), 64)))  # RFC 4193
        try:
            connect(ends6)
        except RefusedError:  # IPv6 is switched off on this machine
            return PrivateNetwork(holder, fd, node.name, outer_index, [ends4])
        return PrivateNetwork(holder, fd, node.name, outer_index, [ends4, ends6])


def _ends(network: IPv4Network | IPv6Network) -> Ends:
    if isinstance(network, IPv4Network):
        node, inside = (IPv4Interface((network[number], network.prefixlen)) for number in (1, 2))
        return Ends(node, inside)
    node6, inside6 = (IPv6Interface((network[number], network.prefixlen)) for number in (1, 2))
    return Ends(node6, inside6)


def _mac() -> bytes:
    """One that is given out locally, and nobody's."""
    return b"\x02" + os.urandom(5)


def _refused(error: RefusedError) -> PodmgrError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(
            f"not allowed to make a network: {error.message}", tip="it takes the capability NET_ADMIN"
        )
    return PodmgrError(f"cannot make a network: {error.message}", tip="modprobe veth, if the kernel has it")


def _loopback_nameserver(path: Path = Path("/etc/resolv.conf")) -> str:
    """A name server that listens on the machine's own loopback interface alone; "" if there is none."""
    with suppress(OSError):
        for words in map(str.split, path.read_text(errors="replace").splitlines()):
            with suppress(ValueError, IndexError):
                if words[:1] == ["nameserver"] and ip_address(words[1]).is_loopback:
                    return words[1]
    return ""
