"""What the peers of a match stand for: addresses, and for services the ports on them. Pure.

A CIDR and `dns` say it themselves; the others are looked up in a cluster, by whoever knows one.
"""

from __future__ import annotations

from typing import NamedTuple

from podmgr.rules.match import DNS_PORT, Peer, PeerKind

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
_DNS = frozenset(Pair(protocol, DNS_PORT, DNS_PORT) for protocol in (6, 17))


def prefix_of(text: str) -> Prefix:
    """The prefix of an address or a CIDR, as `match` writes them. Raises ValueError."""
    from ipaddress import ip_address  # 3 ms: few rules name one

    address, _, bits = text.partition("/")
    parsed = ip_address(address)
    content = bytes([parsed.version]) + parsed.packed.ljust(16, b"\0")
    return Prefix(content, _FAMILY_BITS + int(bits or parsed.max_prefixlen))


def own_entries(peer: Peer) -> tuple[Entry, ...]:
    """What a peer stands for that is no name."""
    if peer.kind is PeerKind.DNS:
        return (Entry(ANYWHERE, _DNS),)
    return (Entry(prefix_of(peer.name)),)
