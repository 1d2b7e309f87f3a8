"""The links of a network namespace: veth pairs, addresses, neighbours and routes are made, and removed.

Apart from `tc`, which looks at interfaces and changes what hangs on them alone. The messages are
those of linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h and linux/veth.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from podmgr.kernel.netlink import RouteSocket, attribute, attributes

Address = IPv4Address | IPv6Address

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 20, 24, 26, 28

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, changed flags
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=8BI")  # family, two prefix lengths, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFF_UP = 0x1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80


class End(NamedTuple):
    """One end of a veth pair; `mac` are six bytes."""

    name: str
    mac: bytes

    @property
    def attributes(self) -> bytes:
        return attribute(_IFLA_IFNAME, self.name.encode() + b"\0") + attribute(_IFLA_ADDRESS, self.mac)


class Links:
    """Those of one namespace. Everything raises RefusedError."""

    def __init__(self, route: RouteSocket) -> None:
        self._route = route

    def add_veth(self, here: End, there: End, namespace_fd: int) -> None:
        """A pair of which one end is here, and the other in that namespace. Both are down."""
        peer = (
            bytes(_LINK.size) + there.attributes + attribute(_IFLA_NET_NS_FD, struct.pack("=i", namespace_fd))
        )
        data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
        info = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth\0") + data)
        self._route.create(_NEWLINK, bytes(_LINK.size) + here.attributes + info)

    def index(self, name: str) -> int:
        """The number of an interface."""
        answer = self._route.ask(_GETLINK, bytes(_LINK.size) + attribute(_IFLA_IFNAME, name.encode() + b"\0"))
        return int(_LINK.unpack_from(answer)[2])

    def set_up(self, index: int) -> None:
        self._route.change(_NEWLINK, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP))

    def delete(self, index: int) -> None:
        """With the other end of a pair."""
        self._route.delete(_DELLINK, _LINK.pack(0, 0, index, 0, 0))

    def add_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """At once: nobody is asked whether it is taken."""
        packed = address.ip.packed
        head = _ADDRESS.pack(_family(address.ip), address.network.prefixlen, _IFA_F_NODAD, 0, index)
        told = attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        self._route.create(_NEWADDR, head + told)

    def add_neighbour(self, index: int, address: Address, mac: bytes) -> None:
        """One that need not be asked for: packets that wait for an answer may be lost."""
        head = _NEIGHBOUR.pack(_family(address), index, _NUD_PERMANENT, 0, 0)
        self._route.create(
            _NEWNEIGH, head + attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, mac)
        )

    def add_default_route(self, index: int, gateway: Address) -> None:
        head = _ROUTE.pack(_family(gateway), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
        told = attribute(_RTA_GATEWAY, gateway.packed) + attribute(_RTA_OIF, struct.pack("=i", index))
        self._route.create(_NEWROUTE, head + told)

    def networks(self) -> list[IPv4Network]:
        """What the routes of all tables lead to, a host being a network of 32 bits."""
        found = []
        for answer in self._route.dump(_GETROUTE, _ROUTE.pack(AF_INET, *bytes(7), 0)):
            family, length, *_ = _ROUTE.unpack_from(answer)
            told = attributes(answer, _ROUTE.size)
            if family == AF_INET and _RTA_DST in told:
                found.append(IPv4Network((told[_RTA_DST], length), strict=False))
        return found


def _family(address: Address) -> int:
    return AF_INET if address.version == 4 else AF_INET6
