"""Interfaces that stand on others: of what passes both, the socket is seen twice.

Apart from `placement`, which alone uses it: that is long, and this is about interfaces, not about rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from podmgr.kernel.tc import Interface

# Of what goes through one of these, the socket layer sees the packet inside and the packet outside.
TUNNELS = frozenset(
    {"amt", "bareudp", "erspan", "geneve", "gre", "gretap", "gtp", "ip6erspan", "ip6gre", "ip6gretap"}
    | {"ip6tnl", "ipip", "sit", "tun", "vti", "vti6", "vxlan", "wireguard", "xfrm"}
)
_WITHOUT_SOCKET = frozenset({"tun", "wireguard"})  # the packet outside is not of who sent the one inside


def that_see_sockets_once(found: Sequence[Interface]) -> Sequence[Interface]:
    """Without those whose packets pass another of them, as VLANs' and tunnels' do, with their socket."""
    there = {item.index: item for item in found}

    def is_above(item: Interface) -> bool:
        if item.kind == "veth" or item.peer_namespace_id is not None:
            return False  # what passes such a pair has lost its socket
        return item.peer_index in there or item.kind == "vrf" or item.kind in TUNNELS - _WITHOUT_SOCKET

    return [item for item in found if not is_above(item)]
