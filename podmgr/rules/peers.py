"""What the peers of a match stand for: addresses, and for services the ports on them. Pure.

A CIDR and `dns` say it themselves; the others are looked up in a cluster, by whoever knows one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from podmgr.errors import UsageError
from podmgr.rules.match import DNS_PORT, Match, Peer, PeerKind

MOST_BITS = 136
_FAMILY_BITS = 8


class Prefix(NamedTuple):
    """The first `bits` (0 to 136) of 17 bytes: 4 or 6, and an address of that family."""

    address: bytes
    bits: int

    def __str__(self) -> str:
        from ipaddress import IPv4Address, IPv6Address

        if not self.bits:
            return "everything"
        family, raw = self.address[0], self.address[1:]
        address = IPv4Address(raw[:4]) if family == 4 else IPv6Address(raw)
        return f"{address}/{self.bits - _FAMILY_BITS}"

    def start(self, bits: int) -> bytes:
        """The first so many bits, and then nothing to the end of the byte."""
        whole, rest = bits >> 3, bits & 7
        if not rest:
            return self.address[:whole]
        return self.address[:whole] + bytes([self.address[whole] >> 8 - rest << 8 - rest])

    def contains(self, other: Prefix) -> bool:
        """Whether all that the other has is also its own."""
        return self.bits <= other.bits and self.start(self.bits) == other.start(self.bits)


class Near:
    """Says of a prefix whether it is within one of these, or around one."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._prefixes = frozenset(prefixes)
        self._starts: dict[int, set[bytes]] = {}
        for prefix in self._prefixes:
            self._starts.setdefault(prefix.bits, set()).add(prefix.start(prefix.bits))
        self._around: dict[int, set[bytes]] = {}

    def __contains__(self, prefix: Prefix) -> bool:
        for bits, starts in self._starts.items():
            if bits <= prefix.bits and prefix.start(bits) in starts:
                return True
        around = self._around.get(prefix.bits)
        if around is None:
            longer = (one for one in self._prefixes if one.bits > prefix.bits)
            around = self._around[prefix.bits] = {one.start(prefix.bits) for one in longer}
        return prefix.start(prefix.bits) in around


class Pair(NamedTuple):
    """A port of a service as packets have it: with the ClusterIP its own, with an endpoint the target's.

    `service_port` is what the Service calls it, by which `port=` selects.
    """

    protocol: int
    port: int
    service_port: int


class Entry(NamedTuple):
    """Addresses that a peer stands for, with all their ports (None) or some.

    `is_taken_away`: they are none of its, as all that is known is none of the world.
    """

    prefix: Prefix
    pairs: frozenset[Pair] | None = None
    is_taken_away: bool = False


ANYWHERE = Prefix(bytes(17), 0)
ANY_NAMESPACE = "*"
_DNS = frozenset(Pair(protocol, DNS_PORT, DNS_PORT) for protocol in (6, 17))


class Tenant(NamedTuple):
    """Whose rules may name what: the namespace that they are of, and those that the operator lists.

    A refusal does not depend on what there is, so nobody learns from it what another namespace holds.
    """

    namespace: str
    others: frozenset[str] = frozenset()

    def may_name(self, peer: Peer) -> bool:
        named = peer.name if peer.kind is PeerKind.NAMESPACE else peer.namespace
        return named in ("", self.namespace) or bool({named, ANY_NAMESPACE} & self.others)


def prefix_of(text: str) -> Prefix:
    """The prefix of an address or a CIDR, as `match` writes them. Raises ValueError."""
    from ipaddress import ip_address  # 3 ms: few rules name one

    address, _, bits = text.partition("/")
    parsed = ip_address(address)
    length = int(bits or parsed.max_prefixlen)
    if not 0 <= length <= parsed.max_prefixlen:
        raise ValueError(f"no address has {length} bits")
    content = bytes([parsed.version]) + parsed.packed.ljust(16, b"\0")
    return Prefix(content, _FAMILY_BITS + length)


def in_namespace(peer: Peer, namespace: str) -> Peer:
    """The peer as any pod would name it: services and pods with their namespace."""
    if peer.kind not in (PeerKind.SERVICE, PeerKind.POD) or peer.namespace:
        return peer
    return peer._replace(namespace=namespace)


def require_no_names(match: Match) -> None:
    """Raise UsageError for a name where no cluster is asked what it stands for."""
    for peer in match.names:
        raise UsageError(
            f"{peer}: no cluster is asked here what that is",
            tip="an address, a CIDR or dns; names are looked up by podmgr apply pod/NAME and podmgr watch",
        )


def own_entries(peer: Peer) -> tuple[Entry, ...]:
    """What a peer stands for that is no name."""
    if peer.kind is PeerKind.DNS:
        return (Entry(ANYWHERE, _DNS),)
    return (Entry(prefix_of(peer.name)),)
