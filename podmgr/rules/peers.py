"""What the peers of a match stand for: addresses, and for services the ports on them. Pure.

A CIDR and `dns` say it themselves; the others are looked up in a cluster, by whoever knows one.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from podmgr.rules.match import DNS_PORT, Peer, PeerKind

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96: IPv4 among IPv6
_MAPPED_BITS = 96


class Prefix(NamedTuple):
    """The first `bits` (0 to 128) of 16 bytes; an IPv4 address as IPv4-mapped IPv6."""

    address: bytes
    bits: int

    def __str__(self) -> str:
        if self.bits >= _MAPPED_BITS and self.address.startswith(_MAPPED):
            return f"{socket.inet_ntop(socket.AF_INET, self.address[12:])}/{self.bits - _MAPPED_BITS}"
        return f"{socket.inet_ntop(socket.AF_INET6, self.address)}/{self.bits}"


class Pair(NamedTuple):
    """A port of a service as packets have it: with the ClusterIP its own, with an endpoint the target's.

    `service_port` is what the Service calls it, by which `port=` selects.
    """

    protocol: int
    port: int
    service_port: int


class Entry(NamedTuple):
    """Addresses that a peer stands for, with all their ports (None) or some."""

    prefix: Prefix
    pairs: frozenset[Pair] | None = None


ANYWHERE = Prefix(bytes(16), 0)
_DNS = frozenset(Pair(protocol, DNS_PORT, DNS_PORT) for protocol in (6, 17))


def prefix_of(text: str) -> Prefix:
    """The prefix of an address or a CIDR, as `match` writes them. Raises ValueError."""
    address, _, bits = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address)
    except OSError as error:
        raise ValueError(f"{text[:60]!r} is no address") from error
    if family == socket.AF_INET:
        return Prefix(_MAPPED + packed, int(bits or 32) + _MAPPED_BITS)
    return Prefix(packed, int(bits or 128))


def own_entries(peer: Peer) -> tuple[Entry, ...]:
    """What a peer stands for that is no name."""
    if peer.kind is PeerKind.DNS:
        return (Entry(ANYWHERE, _DNS),)
    return (Entry(prefix_of(peer.name)),)
