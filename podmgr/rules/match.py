"""Which of a pod's packets a rule is about: peer, except, port, local-port, proto and container. Pure.

What names stand for, in addresses, `rules.peers` says when somebody has looked them up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple

from podmgr.errors import Fail, printable

MAX_TERMS = 64  # that one rule may have: protocols by ports by local ports
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}  # icmp is both families', see bpf/match.h
WITH_PORTS = frozenset({6, 17, 132})
DNS_PORT = 53
PORTS = "ports from 1 to 65535, such as 53, 8000-8099 or 80,443"
PROTOCOLS_ARE = f"proto=NAME, several by commas: {', '.join(PROTOCOLS)}, or a number from 0 to 255"
CONTAINERS_ARE = "container=NAME, several by commas, as in the pod's spec"
MAX_ITEMS = 64

_PORT = re.compile(r"[0-9]{1,10}", re.ASCII)
LABEL_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
PEER_FORMS = (
    "an address or CIDR, svc/NAME, svc/NAMESPACE/NAME, pod/NAME, pod/LABEL=VALUE, ns/NAME, node, world or "
    "dns; several by commas"
)


class PeerKind(StrEnum):
    """What the name of a peer is one of; `cidr` is none, but addresses."""

    CIDR = "cidr"
    SERVICE = "svc"
    POD = "pod"
    NAMESPACE = "ns"
    NODE = "node"
    WORLD = "world"
    DNS = "dns"


_ALONE = (PeerKind.NODE, PeerKind.WORLD, PeerKind.DNS)


class Peer(NamedTuple):
    """With whom a packet is exchanged. `namespace` "" is that of the rule's pod.

    `name` is a CIDR, the name of a Service, Pod or Namespace, or LABEL=VALUE of pods.
    """

    kind: PeerKind
    name: str = ""
    namespace: str = ""

    @property
    def is_name(self) -> bool:
        """Whether somebody must look up what it stands for. A dns is anybody's port."""
        return self.kind not in (PeerKind.CIDR, PeerKind.DNS)

    def __str__(self) -> str:
        if self.kind is PeerKind.CIDR:
            return self.name
        return "/".join(filter(None, (self.kind, self.namespace, self.name)))


class Ports(NamedTuple):
    """From the first to the last, both included."""

    first: int
    last: int

    @property
    def is_range(self) -> bool:
        return self.first != self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" if self.is_range else str(self.first)


class Match(NamedTuple):
    """All that is said must be so; what is not said (an empty tuple) does not matter.

    `ports` are the peer's, `protocols` numbers of IP, each sorted and once.
    """

    peers: tuple[Peer, ...] = ()
    excepts: tuple[Peer, ...] = ()
    ports: tuple[Ports, ...] = ()
    local_ports: tuple[Ports, ...] = ()
    protocols: tuple[int, ...] = ()
    containers: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[Peer, ...]:
        """The peers that must be looked up."""
        return tuple(peer for peer in (*self.peers, *self.excepts) if peer.is_name)

    @property
    def words(self) -> list[str]:
        """As options of a rule."""
        fields = zip(OPTIONS, self, strict=True)
        return [f"{name}={','.join(map(_text_of(name), values))}" for name, values in fields if values]


def explained(match: Match) -> list[tuple[str, str]]:
    """The match as a (label, text) row; none if it is everything."""
    words = {
        "with ": match.peers,
        "not with ": match.excepts,
        "the peer's port ": match.ports,
        "the pod's port ": match.local_ports,
        "": [name_of(number) for number in match.protocols],
        "of container ": match.containers,
    }
    parts = [said + " or ".join(map(str, values)) for said, values in words.items() if values]
    return [("packets", "; ".join(parts))] if parts else []


OPTIONS = ("peer", "except", "port", "local-port", "proto", "container")
EVERYTHING = Match()


def with_option(match: Match, name: str, text: str, fail: Fail) -> Match:
    """The match with one more option, which is not in it yet. Raises RuleError by way of `fail`."""
    field = Match._fields[OPTIONS.index(name)]
    return match._replace(**{field: _READERS[name](text, fail)})


def require_satisfiable(match: Match, fail: Fail) -> None:
    """Raise RuleError for a match that no packet can have."""
    has_ports = bool(match.ports or match.local_ports)
    without = [name_of(number) for number in match.protocols if number not in WITH_PORTS]
    if has_ports and without:
        raise fail(f"{without[0]} has no ports", "proto=tcp, udp or sctp with ports")
    peers_are_dns = bool(match.peers) and all(peer.kind is PeerKind.DNS for peer in match.peers)
    if peers_are_dns and match.protocols and not {6, 17} & set(match.protocols):
        raise fail("nothing can match: dns is UDP and TCP", "peer=dns with proto=udp, tcp or none")
    if peers_are_dns and match.ports and not any(one.first <= DNS_PORT <= one.last for one in match.ports):
        raise fail(f"nothing can match: dns is port {DNS_PORT}", "peer=dns without port=")
    if match.peers and all(any(_covers(other, peer) for other in match.excepts) for peer in match.peers):
        raise fail("nothing can match: except takes away all of peer", "another except=")
    terms = max(1, len(match.ports)) * max(1, len(match.local_ports)) * max(1, len(match.protocols))
    if terms > MAX_TERMS:
        raise fail(
            f"{terms} combinations of ports and protocols", f"{MAX_TERMS} at most: use ranges, or more rules"
        )


def name_of(protocol: int) -> str:
    """The name of an IP protocol, or its number as text."""
    return next((name for name, number in PROTOCOLS.items() if number == protocol), str(protocol))


def _covers(other: Peer, peer: Peer) -> bool:
    if other == peer:
        return True
    if not other.kind is peer.kind is PeerKind.CIDR:
        return False
    from ipaddress import ip_network

    outer, inner = ip_network(other.name), ip_network(peer.name)
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _text_of(option: str) -> Callable[[object], str]:
    return (lambda number: name_of(int(str(number)))) if option == "proto" else str


def _items(text: str, fail: Fail, expected: str) -> list[str]:
    items = text.split(",")
    if not all(items):
        raise fail("a name is missing between the commas" if text else "nothing behind =", expected)
    if len(items) > MAX_ITEMS:
        raise fail(f"{len(items)} at once", f"{MAX_ITEMS} at most")
    return items


def _peers(text: str, fail: Fail) -> tuple[Peer, ...]:
    return tuple(sorted({_peer(item, fail) for item in _items(text, fail, PEER_FORMS)}))


def _peer(text: str, fail: Fail) -> Peer:
    head, slash, rest = text.partition("/")
    kind = head.lower()
    if kind in _ALONE and not slash:
        return Peer(PeerKind(kind))
    if kind == PeerKind.SERVICE and slash:
        namespace, _, name = rest.rpartition("/")
        if LABEL_NAME.fullmatch(name) and (not namespace or LABEL_NAME.fullmatch(namespace)):
            return Peer(PeerKind.SERVICE, name, namespace)
        raise fail(f"{_shown(rest)} names no service", "svc/NAME or svc/NAMESPACE/NAME")
    if kind == PeerKind.POD and slash:
        label, equals, value = rest.partition("=")
        if equals and LABEL_KEY.fullmatch(label) and LABEL_VALUE.fullmatch(value):
            return Peer(PeerKind.POD, rest)
        if not equals and SUBDOMAIN.fullmatch(rest):
            return Peer(PeerKind.POD, rest)
        raise fail(f"{_shown(rest)} names no pods", "pod/NAME or pod/LABEL=VALUE")
    if kind == PeerKind.NAMESPACE and slash:
        if LABEL_NAME.fullmatch(rest):
            return Peer(PeerKind.NAMESPACE, rest)
        raise fail(f"{_shown(rest)} names no namespace", "ns/NAME")
    if "." in text or ":" in text:
        return Peer(PeerKind.CIDR, _cidr(text, fail))
    raise fail(f"{_shown(text)} is no peer", PEER_FORMS)


def _cidr(text: str, fail: Fail) -> str:
    from ipaddress import ip_interface  # 3 ms: few rules name one

    try:
        interface = ip_interface(text)
    except ValueError:
        raise fail(f"{_shown(text)} is neither an address nor a CIDR", PEER_FORMS) from None
    if "%" in text:
        raise fail(f"{_shown(text)}: an address with a zone", PEER_FORMS)
    if "." in text.partition("/")[2]:
        raise fail(f"{_shown(text)}: a mask instead of a prefix", f"{interface.network}")
    network = interface.network
    if interface.ip != network.network_address:
        expected = f"{network} for the whole network, or {interface.ip} for the address"
        raise fail(f"{_shown(text)} has bits behind its prefix", expected)
    return str(interface.ip) if network.prefixlen == network.max_prefixlen else str(network)


def _ports(text: str, fail: Fail) -> tuple[Ports, ...]:
    return tuple(sorted({_range(item, fail) for item in _items(text, fail, PORTS)}))


def _range(text: str, fail: Fail) -> Ports:
    first, dash, last = text.partition("-")
    ends = (first, last) if dash else (first, first)
    if not all(_PORT.fullmatch(end) for end in ends):
        raise fail(f"{_shown(text)} is no port", PORTS)
    ports = Ports(*map(int, ends))
    if not (1 <= ports.first <= 65_535 and 1 <= ports.last <= 65_535):
        raise fail(f"{text} is out of range", PORTS)
    if ports.first > ports.last:
        raise fail(f"{text} is written backwards", f"{ports.last}-{ports.first}")
    return ports


def _protocols(text: str, fail: Fail) -> tuple[int, ...]:
    return tuple(sorted({_protocol(item, fail) for item in _items(text, fail, PROTOCOLS_ARE)}))


def _protocol(text: str, fail: Fail) -> int:
    number = PROTOCOLS.get(text.lower())
    if number is not None:
        return number
    if text.lower() in ("icmpv6", "icmp6", "ipv6-icmp"):
        raise fail(f"unknown protocol {_shown(text)}", "proto=icmp, which is of both families")
    if not _PORT.fullmatch(text) or int(text) > 255:
        raise fail(f"unknown protocol {_shown(text)}", PROTOCOLS_ARE)
    return PROTOCOLS["icmp"] if int(text) == 58 else int(text)  # ICMPv6 is icmp


def _containers(text: str, fail: Fail) -> tuple[str, ...]:
    names: Iterable[str] = _items(text, fail, CONTAINERS_ARE)
    for name in names:
        if not LABEL_NAME.fullmatch(name):
            raise fail(f"{_shown(name)} names no container", CONTAINERS_ARE)
    return tuple(sorted(set(names)))


def _shown(text: str) -> str:
    return repr(printable(text)[:60])


_READERS: dict[str, Callable[[str, Fail], Any]] = {
    "peer": _peers,
    "except": _peers,
    "port": _ports,
    "local-port": _ports,
    "proto": _protocols,
    "container": _containers,
}
