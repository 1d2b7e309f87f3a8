"""What of a cluster's objects says which addresses a name stands for: services, slices, pods, nodes. Pure.

Owns what is remembered of each, which is little, and tells what a list or an event has changed.
What a name then stands for is `peers`' business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from podmgr.cluster.objects import has_ended, is_name, mapping, texts
from podmgr.rules.match import PROTOCOLS
from podmgr.rules.peers import MOST_BITS, Prefix, prefix_of

SERVICE_OF_SLICE = "kubernetes.io/service-name"  # the label


class Resource(StrEnum):
    """What is looked at, as the API names it."""

    SERVICES = "services"
    SLICES = "endpointslices"
    PODS = "pods"
    NODES = "nodes"


class Part(NamedTuple):
    """Some of the cluster's objects: those of a namespace, the one of a name, or all ("")."""

    resource: Resource
    namespace: str = ""
    name: str = ""

    @property
    def whole(self) -> Part:
        return Part(self.resource)

    @property
    def path(self) -> str:
        group = "/apis/discovery.k8s.io/v1" if self.resource is Resource.SLICES else "/api/v1"
        return group + (f"/namespaces/{self.namespace}" if self.namespace else "") + f"/{self.resource}"

    @property
    def query(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self.name}"} if self.name else {}

    def __str__(self) -> str:
        where = f"{self.resource} of {self.namespace}" if self.namespace else str(self.resource)
        return f"{where} named {self.name}" if self.name else where


class Port(NamedTuple):
    """Of a service or of its endpoints, which have the same `name`; `number` None: all ports there are."""

    name: str
    protocol: int
    number: int | None


class Service(NamedTuple):
    """`cluster_ips` are none of a headless service; `others` are externalIPs and a load balancer's."""

    cluster_ips: tuple[Prefix, ...]
    others: tuple[Prefix, ...]
    ports: tuple[Port, ...]
    is_external_name: bool = False


class Slice(NamedTuple):
    """Endpoints of a service that have the same ports."""

    service: str
    addresses: tuple[Prefix, ...]
    ports: tuple[Port, ...]


class PodAddresses(NamedTuple):
    """`labels` are LABEL=VALUE. A pod on the host's network has the node's addresses."""

    addresses: tuple[Prefix, ...]
    labels: frozenset[str]
    is_on_host: bool = False


class Node(NamedTuple):
    """A node's own addresses, and the networks that its pods' are of."""

    addresses: tuple[Prefix, ...]
    pod_networks: tuple[Prefix, ...]


Record = Service | Slice | PodAddresses | Node


class Change(NamedTuple):
    """An object is another one now; None: there is none."""

    resource: Resource
    namespace: str
    name: str
    before: Record | None
    after: Record | None

    @property
    def sides(self) -> list[Record]:
        return [record for record in (self.before, self.after) if record is not None]


@dataclass(slots=True)
class Directory:
    """The objects of some parts of a cluster."""

    _tables: dict[tuple[Resource, str], dict[str, Record]] = field(default_factory=dict)
    _networks: dict[int, set[int]] | None = None  # of pods, by their length; None: to be made

    def put(self, resource: Resource, item: Mapping[str, Any]) -> list[Change]:
        """An object was added or has changed."""
        namespace, name = _key(resource, item)
        return self._set(resource, namespace, name, _record(resource, item))

    def remove(self, resource: Resource, item: Mapping[str, Any]) -> list[Change]:
        """An object was deleted."""
        return self._set(resource, *_key(resource, item), None)

    def replace(self, part: Part, items: Iterable[Mapping[str, Any]]) -> list[Change]:
        """All objects of a part."""
        found = {_key(part.resource, item): item for item in items}
        changes = [change for item in found.values() for change in self.put(part.resource, item)]
        gone = [key for key in self._keys(part) if key not in found]
        return changes + [change for key in gone for change in self._set(part.resource, *key, None)]

    def forget(self, part: Part) -> None:
        """Nobody keeps a part up to date any more."""
        for key in list(self._keys(part)):
            self._set(part.resource, *key, None)

    def service(self, namespace: str, name: str) -> Service | None:
        found = self._table(Resource.SERVICES, namespace).get(name)
        return found if isinstance(found, Service) else None

    def slices(self, namespace: str, service: str) -> Iterator[Slice]:
        for found in self._table(Resource.SLICES, namespace).values():
            if isinstance(found, Slice) and found.service == service:
                yield found

    def pods(self, namespace: str) -> Iterator[tuple[str, PodAddresses]]:
        for name, found in self._table(Resource.PODS, namespace).items():
            if isinstance(found, PodAddresses):
                yield name, found

    def pod(self, namespace: str, name: str) -> PodAddresses | None:
        found = self._table(Resource.PODS, namespace).get(name)
        return found if isinstance(found, PodAddresses) else None

    def node(self, name: str) -> Node | None:
        found = self._table(Resource.NODES, "").get(name)
        return found if isinstance(found, Node) else None

    def all_of(self, resource: Resource) -> Iterator[Record]:
        """Of all namespaces."""
        for (other, _), table in self._tables.items():
            if other is resource:
                yield from table.values()

    def is_in_pod_network(self, address: Prefix) -> bool:
        """Whether some node's pods have addresses of this network."""
        if self._networks is None:
            self._networks = {}
            for node in self.all_of(Resource.NODES):
                for network in node.pod_networks if isinstance(node, Node) else ():
                    self._networks.setdefault(network.bits, set()).add(_first_bits(network, network.bits))
        return any(
            bits <= address.bits and _first_bits(address, bits) in there
            for bits, there in self._networks.items()
        )

    def _table(self, resource: Resource, namespace: str) -> Mapping[str, Record]:
        return self._tables.get((resource, namespace), {})

    def _keys(self, part: Part) -> list[tuple[str, str]]:
        return [
            (namespace, name)
            for (resource, namespace), table in self._tables.items()
            if resource is part.resource and part.namespace in ("", namespace)
            for name in table
            if part.name in ("", name)
        ]

    def _set(self, resource: Resource, namespace: str, name: str, record: Record | None) -> list[Change]:
        table = self._tables.setdefault((resource, namespace), {})
        before = table.pop(name, None)
        if record is not None:
            table[name] = record
        if not table:
            del self._tables[resource, namespace]
        if before == record:
            return []
        if resource is Resource.NODES:
            self._networks = None
        return [Change(resource, namespace, name, before, record)]


def _first_bits(prefix: Prefix, bits: int) -> int:
    return int.from_bytes(prefix.address, "big") >> (MOST_BITS - bits)


def _key(resource: Resource, item: Mapping[str, Any]) -> tuple[str, str]:
    """Its namespace and name; a node is in none."""
    metadata = mapping(item.get("metadata"))
    namespace = "" if resource is Resource.NODES else str(metadata.get("namespace") or "default")
    return sys.intern(namespace), str(metadata.get("name") or "")


def _record(resource: Resource, item: Mapping[str, Any]) -> Record | None:
    """What matters of an object; None for one that stands for nothing."""
    if not is_name(_key(resource, item)[1]):
        return None
    if resource is Resource.SERVICES:
        return _service(mapping(item.get("spec")), mapping(item.get("status")))
    if resource is Resource.SLICES:
        return _slice(item)
    if resource is Resource.PODS:
        return _pod(item)
    return _node(mapping(item.get("spec")), mapping(item.get("status")))


def _service(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Service:
    ports = [_port(port, "port") for port in _mappings(spec.get("ports"))]
    ingresses = _mappings(mapping(status.get("loadBalancer")).get("ingress"))
    others = [*_list(spec.get("externalIPs")), *(ingress.get("ip") for ingress in ingresses)]
    return Service(
        _prefixes(_list(spec.get("clusterIPs")) or [spec.get("clusterIP")]),
        _prefixes(others),
        tuple(port for port in ports if port is not None and port.number is not None),
        is_external_name=spec.get("type") == "ExternalName",
    )


def _slice(item: Mapping[str, Any]) -> Slice | None:
    """All its endpoints, whatever their conditions: connections last longer than an endpoint is ready."""
    service = texts(mapping(item.get("metadata")).get("labels")).get(SERVICE_OF_SLICE)
    if not service or item.get("addressType") not in ("IPv4", "IPv6"):
        return None
    endpoints = _mappings(item.get("endpoints"))
    ports = [_port(port, "port") for port in _mappings(item.get("ports"))]
    return Slice(
        sys.intern(service),
        _prefixes(address for endpoint in endpoints for address in _list(endpoint.get("addresses"))),
        tuple(port for port in ports if port is not None),
    )


def _pod(item: Mapping[str, Any]) -> PodAddresses | None:
    """One that has ended has no address: another may have it by now."""
    status = mapping(item.get("status"))
    if has_ended(str(status.get("phase") or "")):
        return None
    labels = texts(mapping(item.get("metadata")).get("labels"))
    ips = [address.get("ip") for address in _mappings(status.get("podIPs"))] or [status.get("podIP")]
    return PodAddresses(
        _prefixes(ips),
        frozenset(sys.intern(f"{key}={value}") for key, value in labels.items()),
        is_on_host=bool(mapping(item.get("spec")).get("hostNetwork")),
    )


def _node(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Node:
    addresses = _mappings(status.get("addresses"))
    return Node(
        _prefixes(one.get("address") for one in addresses if one.get("type") in ("InternalIP", "ExternalIP")),
        _prefixes(_list(spec.get("podCIDRs")) or [spec.get("podCIDR")]),
    )


def _port(port: Mapping[str, Any], key: str) -> Port | None:
    protocol = PROTOCOLS.get(str(port.get("protocol") or "TCP").lower())
    number = port.get(key)
    if protocol is None or not (number is None or isinstance(number, int)):
        return None
    return Port(sys.intern(str(port.get("name") or "")), protocol, number)


def _prefixes(values: Iterable[object]) -> tuple[Prefix, ...]:
    """Those that are addresses, or CIDRs; "None" is the ClusterIP of a headless service."""
    found = set()
    for value in values:
        try:
            found.add(prefix_of(str(value)))
        except ValueError:
            continue
    return tuple(sorted(prefix for prefix in found if 0 <= prefix.bits <= MOST_BITS))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]
