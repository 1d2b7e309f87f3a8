"""What the peers of a match stand for: addresses, and for services the ports on them. Pure.

A CIDR and `dns` say it themselves; the others are looked up in a cluster, by whoever knows one.
"""

from __future__ import annotations

from typing import NamedTuple

from podmgr.rules.match import DNS_PORT, Peer, PeerKind

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96: IPv4 among IPv6
_MAPPED_BITS = 96


class Prefix(NamedTuple):
    """The first `bits` (0 to 128) of 16 bytes; an IPv4 address as IPv4-mapped IPv6."""

    address: bytes
    bits: int

    def __str__(self) -> str:
        from ipaddress import IPv4Address, IPv6Address

        if self.bits >= _MAPPED_BITS and self.address.startswith(_MAPPED):
            return f"{IPv4Address(self.address[12:])}/{self.bits - _MAPPED_BITS}"
        return f"{IPv6Address(self.address)}/{self.bits}"


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


ANYWHERE = Prefix(bytes(16), 0)
_DNS = frozenset(Pair(protocol, DNS_PORT, DNS_PORT) for protocol in (6, 17))


def prefix_of(text: str) -> Prefix:
    """The prefix of an address or a CIDR, as `match` writes them. Raises ValueError."""
    from ipaddress import ip_address  # 3 ms: few rules name one

    address, _, bits = text.partition("/")
    packed = ip_address(address).packed
    if len(packed) == 4:
        return Prefix(_MAPPED + packed, int(bits or 32) + _MAPPED_BITS)
    return Prefix(packed, int(bits or 128))


def own_entries(peer: Peer) -> tuple[Entry, ...]:
    """What a peer stands for that is no name."""
    if peer.kind is PeerKind.DNS:
        return (Entry(ANYWHERE, _DNS),)
    return (Entry(prefix_of(peer.name)),)
