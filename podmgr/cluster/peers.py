"""What the names of peers stand for, by what a directory knows. Pure.

A service: its ClusterIPs, externalIPs and load balancer's addresses with its own ports, and its
endpoints, ready or not, with theirs. Pods: their addresses, but for the node's. The world: all
that is not taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from podmgr.cluster.directory import Change, Directory, Node, Part, PodAddresses, Resource, Service, Slice
from podmgr.errors import PodmgrError, UsageError
from podmgr.rules.match import Peer, PeerKind
from podmgr.rules.peers import ANYWHERE, Entry, Pair, Prefix


class Resolved(NamedTuple):
    """What a peer stands for. `error`: no rule can name it. `remark`: why it is less than one may think.

    With `is_known` False nobody has looked yet.
    """

    entries: tuple[Entry, ...] = ()
    error: PodmgrError | None = None
    remark: str = ""
    is_known: bool = True

    @property
    def is_refused(self) -> bool:
        """Whether rules that name it cannot hold now."""
        return self.error is not None or not self.is_known

    @property
    def addresses(self) -> int:
        """How many it stands for, networks counted as one; of the world, how many it does not."""
        return len({entry.prefix for entry in self.entries if entry.prefix != ANYWHERE})


UNKNOWN = Resolved(is_known=False)


def parts_of(peer: Peer, node: str) -> tuple[Part, ...]:
    """What must be known of the cluster; the peer has its namespace."""
    match peer.kind:
        case PeerKind.SERVICE:
            return (Part(Resource.SERVICES, peer.namespace), Part(Resource.SLICES, peer.namespace))
        case PeerKind.POD:
            return (Part(Resource.PODS, peer.namespace),)
        case PeerKind.NAMESPACE:
            return (Part(Resource.PODS, peer.name),)
        case PeerKind.NODE:
            return (Part(Resource.NODES, "", node),)
        case PeerKind.WORLD:
            return (Part(Resource.NODES), Part(Resource.SERVICES), Part(Resource.PODS))
    return ()


def resolve(directory: Directory, peer: Peer, node: str) -> Resolved:
    """What a peer, with its namespace, stands for on a node."""
    match peer.kind:
        case PeerKind.SERVICE:
            return _service(directory, peer)
        case PeerKind.POD | PeerKind.NAMESPACE:
            return _pods(directory, peer)
        case PeerKind.NODE:
            known = directory.node(node)
            found = known.addresses if known else ()
            return Resolved(_plain(found), remark="" if found else f"{node} has no address yet")
        case PeerKind.WORLD:
            return Resolved((Entry(ANYWHERE), *_taken_away(directory)))
    return UNKNOWN


def concerns(directory: Directory, change: Change, peer: Peer, node: str) -> bool:
    """Whether the change may be one of what a peer, with its namespace, stands for."""
    match peer.kind:
        case PeerKind.SERVICE:
            if change.namespace != peer.namespace:
                return False
            slices = [side for side in change.sides if isinstance(side, Slice)]
            is_its_own = change.resource is Resource.SERVICES and change.name == peer.name
            return is_its_own or any(side.service == peer.name for side in slices)
        case PeerKind.POD:
            pods = [side for side in change.sides if isinstance(side, PodAddresses)]
            is_near = change.namespace == peer.namespace
            return is_near and any(_is_meant(peer.name, change.name, side) for side in pods)
        case PeerKind.NAMESPACE:
            return change.resource is Resource.PODS and change.namespace == peer.name
        case PeerKind.NODE:
            return change.resource is Resource.NODES and change.name == node
        case PeerKind.WORLD:
            pods = [side for side in change.sides if isinstance(side, PodAddresses)]
            return change.resource in (Resource.NODES, Resource.SERVICES) or any(
                _outside(directory, side) for side in pods
            )
    return False


def _service(directory: Directory, peer: Peer) -> Resolved:
    service = directory.service(peer.namespace, peer.name)
    if service is None:
        return Resolved(remark=f"there is no such service in namespace {peer.namespace} yet")
    if service.is_external_name:
        error = UsageError(
            "is an ExternalName service, which has no addresses", tip="name addresses or CIDRs instead"
        )
        return Resolved(error=error)
    own = frozenset(Pair(port.protocol, port.number or 0, port.number or 0) for port in service.ports)
    found = dict.fromkeys((*service.cluster_ips, *service.others), own)
    all_ports: set[Prefix] = set()
    for piece in directory.slices(peer.namespace, peer.name):
        pairs = _target_pairs(service, piece)
        for address in piece.addresses:
            if pairs is None:
                all_ports.add(address)
            else:
                found[address] = found.get(address, frozenset()) | pairs
    entries = {prefix: Entry(prefix, pairs) for prefix, pairs in found.items() if pairs}
    entries |= {prefix: Entry(prefix) for prefix in all_ports}
    return Resolved(tuple(entries[prefix] for prefix in sorted(entries)))


def _target_pairs(service: Service, piece: Slice) -> frozenset[Pair] | None:
    """The ports of endpoints, with the service's of the same name; None: all.

    A headless service may have no ports, and a port no number: then the endpoints have all.
    """
    if not service.ports and not service.cluster_ips:
        return None
    pairs = set()
    for target in piece.ports:
        for port in service.ports:
            if (port.name, port.protocol) == (target.name, target.protocol):
                if target.number is None:
                    return None
                pairs.add(Pair(target.protocol, target.number, port.number or 0))
    return frozenset(pairs)


def _pods(directory: Directory, peer: Peer) -> Resolved:
    if peer.kind is PeerKind.NAMESPACE:
        namespace, meant = peer.name, list(directory.pods(peer.name))
    elif "=" not in peer.name:
        namespace, one = peer.namespace, directory.pod(peer.namespace, peer.name)
        meant = [(peer.name, one)] if one is not None else []
    else:
        namespace = peer.namespace
        meant = [(name, pod) for name, pod in directory.pods(namespace) if peer.name in pod.labels]
    on_host = sorted(name for name, pod in meant if pod.is_on_host)
    entries = _plain(address for _, pod in meant if not pod.is_on_host for address in pod.addresses)
    remark = "" if entries else f"no pod of it has an address in namespace {namespace} yet"
    if on_host:
        remark = f"left out, as its address is the node's (host network): {_some(on_host)}"
    return Resolved(entries, remark=remark)


def _is_meant(selector: str, name: str, pod: PodAddresses) -> bool:
    return selector in pod.labels if "=" in selector else selector == name


def _taken_away(directory: Directory) -> list[Entry]:
    """What is not the world. Only what no tenant may choose: of services, the ClusterIPs."""
    found: set[Prefix] = set()
    for record in directory.all_of(Resource.NODES):
        if isinstance(record, Node):
            found.update(record.addresses, record.pod_networks)
    for record in directory.all_of(Resource.SERVICES):
        if isinstance(record, Service):
            found.update(record.cluster_ips)
    for record in directory.all_of(Resource.PODS):
        if isinstance(record, PodAddresses):
            found.update(_outside(directory, record))
    return [Entry(prefix, is_taken_away=True) for prefix in sorted(found)]


def _outside(directory: Directory, pod: PodAddresses) -> list[Prefix]:
    """A pod's addresses that no network of pods holds, and no node."""
    if pod.is_on_host:
        return []
    return [address for address in pod.addresses if not directory.is_in_pod_network(address)]


def _plain(addresses: Iterable[Prefix]) -> tuple[Entry, ...]:
    return tuple(map(Entry, sorted(set(addresses))))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def may_not_be_seen(error: PodmgrError) -> PodmgrError:
    """Why rules fail that name what podmgr has no right to look up."""
    return PodmgrError(f"may not be looked up: {error.message}", tip=error.tip)
