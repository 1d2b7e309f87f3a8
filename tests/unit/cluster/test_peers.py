"""What names stand for: services, pods, namespaces, the node and the world, of a directory's objects."""

from __future__ import annotations

from typing import Any

import pytest

from podmgr.cluster.directory import Change, Directory, Part, Resource
from podmgr.cluster.peers import Resolved, concerns, parts_of, resolve
from podmgr.errors import UsageError
from podmgr.rules.match import Match, Peer, PeerKind
from podmgr.rules.peers import ANYWHERE, Entry, Tenant, in_namespace, require_no_names
from tests.kube import objects
from tests.unit.samples import parsed

SVC, POD, NS = PeerKind.SERVICE, PeerKind.POD, PeerKind.NAMESPACE
DB = Peer(SVC, "db", "shop")
NODE, WORLD = Peer(PeerKind.NODE), Peer(PeerKind.WORLD)
HERE = "node-1"
HTTP = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}
DNS = {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}

Obj = dict[str, Any]


def service(name: str = "db", ports: list[Any] | None = None, status: Obj | None = None, **spec: Any) -> Obj:
    made = objects.service(name, "shop")
    made["spec"] |= {"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"]} | spec
    made["spec"]["ports"] = [HTTP] if ports is None else ports
    return made | {"status": status or {}}


def endpoints(*addresses: str, ports: list[Obj] | None = None, **more: Any) -> Obj:
    found = [{"name": "http", "port": 8080, "protocol": "TCP"}] if ports is None else ports
    return objects.endpoint_slice("db", "shop", addresses=addresses, ports=found, **more)


def pod(name: str, *addresses: str, labels: dict[str, str] | None = None, **more: Any) -> Obj:
    made = objects.pod(name, "shop", labels=labels, **more)
    made["status"] |= {"podIPs": [{"ip": address} for address in addresses]}
    return made


def node(name: str, *addresses: str, networks: tuple[str, ...] = ()) -> Obj:
    made = objects.node(name)
    kinds = ("InternalIP", "ExternalIP")
    made["status"]["addresses"] = [
        *({"type": kind, "address": address} for kind, address in zip(kinds, addresses, strict=False)),
        {"type": "Hostname", "address": name},
    ]
    made["spec"] = {"podCIDRs": list(networks)}
    return made


RESOURCES = {
    "Service": Resource.SERVICES,
    "EndpointSlice": Resource.SLICES,
    "Pod": Resource.PODS,
    "Node": Resource.NODES,
}


def directory(*items: Obj) -> Directory:
    made = Directory()
    for item in items:
        made.put(RESOURCES[item["kind"]], item)
    return made


def shown(resolved: Resolved) -> dict[str, object]:
    """By address: its ports as PROTOCOL:PORT=SERVICE_PORT, or None for all; "-" for what is taken away."""

    def what(entry: Entry) -> object:
        if entry.is_taken_away:
            return "-"
        if entry.pairs is None:
            return None
        return " ".join(sorted(f"{pair.protocol}:{pair.port}={pair.service_port}" for pair in entry.pairs))

    assert len({entry.prefix for entry in resolved.entries}) == len(resolved.entries)
    return {str(entry.prefix): what(entry) for entry in resolved.entries}


SERVICES: dict[str, tuple[list[Obj], dict[str, object]]] = {
    "its port and the target's": (
        [service(), endpoints("10.42.0.1", "10.42.0.2")],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": "6:8080=80", "10.42.0.2/32": "6:8080=80"},
    ),
    "both families": (
        [
            service(clusterIPs=["10.43.0.1", "fd43::1"]),
            endpoints("10.42.0.1"),
            endpoints("fd42::1", suffix="six"),
        ],
        {
            "10.43.0.1/32": "6:80=80",
            "fd43::1/128": "6:80=80",
            "10.42.0.1/32": "6:8080=80",
            "fd42::1/128": "6:8080=80",
        },
    ),
    "a named port that is another one on some pods": (
        [
            service(),
            endpoints("10.42.0.1"),
            endpoints("10.42.0.2", suffix="b", ports=[{"name": "http", "port": 9090, "protocol": "TCP"}]),
        ],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": "6:8080=80", "10.42.0.2/32": "6:9090=80"},
    ),
    "several ports and protocols": (
        [
            service(ports=[HTTP, DNS]),
            endpoints(
                "10.42.0.1",
                ports=[
                    {"name": "http", "port": 8080, "protocol": "TCP"},
                    {"name": "dns", "port": 5353, "protocol": "UDP"},
                ],
            ),
        ],
        {"10.43.0.1/32": "17:53=53 6:80=80", "10.42.0.1/32": "17:5353=53 6:8080=80"},
    ),
    "two ports with one target": (
        [
            service(ports=[HTTP, HTTP | {"name": "alt", "port": 8080}]),
            endpoints(
                "10.42.0.1",
                ports=[{"name": name, "port": 8080, "protocol": "TCP"} for name in ("http", "alt")],
            ),
        ],
        {"10.43.0.1/32": "6:8080=8080 6:80=80", "10.42.0.1/32": "6:8080=80 6:8080=8080"},
    ),
    "a port without a name": (
        [
            service(ports=[{"port": 80, "protocol": "TCP"}]),
            endpoints("10.42.0.1", ports=[{"name": "", "port": 8080, "protocol": "TCP"}]),
        ],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": "6:8080=80"},
    ),
    "an endpoint in two slices": (
        [service(), endpoints("10.42.0.1"), endpoints("10.42.0.1", "10.42.0.2", suffix="b")],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": "6:8080=80", "10.42.0.2/32": "6:8080=80"},
    ),
    "endpoints that are not ready: connections to them may last": (
        [service(), endpoints("10.42.0.1", ready=False)],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": "6:8080=80"},
    ),
    "headless": (
        [service(clusterIP="None", clusterIPs=["None"]), endpoints("10.42.0.1")],
        {"10.42.0.1/32": "6:8080=80"},
    ),
    "headless, without ports": (
        [service(ports=[], clusterIP="None", clusterIPs=["None"]), endpoints("10.42.0.1", ports=[])],
        {"10.42.0.1/32": None},
    ),
    "endpoints with all ports": (
        [service(), endpoints("10.42.0.1", ports=[{"name": "http", "port": None, "protocol": "TCP"}])],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": None},
    ),
    "addresses from outside": (
        [
            service(
                externalIPs=["192.0.2.1"],
                status={"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "lb.example"}]}},
            )
        ],
        {"10.43.0.1/32": "6:80=80", "192.0.2.1/32": "6:80=80", "192.0.2.2/32": "6:80=80"},
    ),
    "no endpoints": ([service()], {"10.43.0.1/32": "6:80=80"}),
    "others' slices": (
        [service(), objects.endpoint_slice("other", "shop", addresses=["10.42.0.9"])],
        {"10.43.0.1/32": "6:80=80"},
    ),
    "what makes no sense": (
        [
            service(ports=[HTTP, "x", {"port": "y"}], clusterIPs=["x", None, "10.43.0.1"]),
            endpoints("nonsense", "10.42.0.1"),
            endpoints("10.42.0.3", suffix="b") | {"addressType": "FQDN"},
        ],
        {"10.43.0.1/32": "6:80=80", "10.42.0.1/32": "6:8080=80"},
    ),
}


@pytest.mark.parametrize("case", SERVICES)
def test_a_service_is_its_addresses_with_its_ports_and_its_endpoints_with_theirs(case: str) -> None:
    items, expected = SERVICES[case]
    assert shown(resolve(directory(*items), DB, HERE)) == expected


def test_a_service_that_is_not_there_is_waited_for() -> None:
    found = resolve(directory(endpoints("10.42.0.1")), DB, HERE)
    assert (found.entries, found.is_refused) == ((), False)
    assert found.remark == "there is no such service in namespace shop yet"


def test_an_external_name_is_refused() -> None:
    found = resolve(directory(service(type="ExternalName", clusterIPs=[], clusterIP=None)), DB, HERE)
    assert found.is_refused and found.error is not None and "ExternalName" in found.error.message


PODS = [
    pod("web-0", "10.42.0.1", "fd42::1", labels={"app": "web"}),
    pod("web-1", "10.42.0.2", labels={"app": "web", "tier": ""}),
    pod("done", "10.42.0.3", labels={"app": "web"}, phase="Succeeded"),
    pod("new", labels={"app": "new"}) | {"status": {"phase": "Pending"}},
    pod("agent", "10.0.0.11", labels={"app": "agent"}, host_network=True),
    pod("agent-pod", "10.42.0.7", labels={"app": "agent"}),
    objects.pod("web-0", "other", labels={"app": "web"}),
]


@pytest.mark.parametrize(
    ("peer", "expected", "remark"),
    [
        (Peer(POD, "web-0", "shop"), ["10.42.0.1/32", "fd42::1/128"], ""),
        (Peer(POD, "app=web", "shop"), ["10.42.0.1/32", "10.42.0.2/32", "fd42::1/128"], ""),
        (Peer(POD, "tier=", "shop"), ["10.42.0.2/32"], ""),
        (Peer(POD, "done", "shop"), [], "no pod of it has an address in namespace shop yet"),
        (Peer(POD, "app=new", "shop"), [], "no pod of it has an address in namespace shop yet"),
        (Peer(POD, "agent", "shop"), [], "left out, as its address is the node's (host network): agent"),
        (Peer(POD, "app=agent", "shop"), ["10.42.0.7/32"], "left out, .*: agent"),
        (Peer(NS, "shop"), ["10.42.0.1/32", "10.42.0.2/32", "10.42.0.7/32", "fd42::1/128"], ": agent"),
        (Peer(NS, "none"), [], "no pod of it has an address in namespace none yet"),
    ],
    ids=str,
)
def test_pods_are_their_addresses_but_for_the_nodes(peer: Peer, expected: list[str], remark: str) -> None:
    found = resolve(directory(*PODS), peer, HERE)
    assert sorted(shown(found)) == expected
    assert all(entry.pairs is None for entry in found.entries)
    assert remark.rsplit(".*", maxsplit=1)[-1] in found.remark and bool(remark) is bool(found.remark)


NODES = [
    node("node-1", "10.0.0.11", "192.0.2.11", networks=("10.42.0.0/24", "fd42::/64")),
    node("node-2", "10.0.0.12", networks=("10.42.1.0/24",)),
]


def test_the_node_is_its_own_addresses() -> None:
    found = resolve(directory(*NODES), NODE, HERE)
    assert shown(found) == {"10.0.0.11/32": None, "192.0.2.11/32": None}
    assert resolve(directory(), NODE, HERE).remark == "node-1 has no address yet"


def test_the_world_is_all_but_pods_services_and_nodes() -> None:
    known = directory(*NODES, *PODS, service(externalIPs=["192.0.2.99"]), pod("far", "172.16.0.1"))
    expected = {
        *("10.0.0.11/32", "192.0.2.11/32", "10.0.0.12/32"),
        *("10.42.0.0/24", "fd42::/64", "10.42.1.0/24"),
        "10.43.0.1/32",
        "172.16.0.1/32",
    }
    found = shown(resolve(known, WORLD, HERE))
    other = next(item for item in PODS if item["metadata"]["namespace"] == "other")
    theirs = {f"{address['ip']}/32" for address in other["status"]["podIPs"]}
    assert found.pop("everything") is None
    assert found.keys() - theirs == expected and set(found.values()) == {"-"}


def test_no_tenant_chooses_what_is_not_the_world() -> None:
    """Else one could lift what is enforced on the world by a service of one's own."""
    chosen = service(externalIPs=["192.0.2.99"], status={"loadBalancer": {"ingress": [{"ip": "192.0.2.98"}]}})
    found = resolve(directory(chosen, endpoints("192.0.2.97")), WORLD, HERE)
    assert shown(found) == {"everything": None, "10.43.0.1/32": "-"}
    assert found.entries[0] == Entry(ANYWHERE)


# Changes


PEERS = [DB, Peer(POD, "web-0", "shop"), Peer(POD, "app=web", "shop"), Peer(NS, "shop"), NODE, WORLD]


def concerned(known: Directory, changes: list[Change]) -> list[str]:
    return [str(peer) for peer in PEERS if any(concerns(known, change, peer, HERE) for change in changes)]


def test_a_change_concerns_those_that_it_may_be_one_for() -> None:
    known = directory(*NODES, *PODS, service(), endpoints("10.42.0.1"))
    put = known.put
    assert concerned(known, put(Resource.SLICES, endpoints("10.42.0.9"))) == ["svc/shop/db"]
    assert concerned(known, put(Resource.SERVICES, service(ports=[DNS]))) == ["svc/shop/db", "world"]
    assert concerned(known, put(Resource.SERVICES, service("other"))) == ["world"]
    named = ["pod/shop/web-0", "pod/shop/app=web", "ns/shop"]
    assert concerned(known, put(Resource.PODS, pod("web-0", "10.42.0.8", labels={"app": "x"}))) == named
    assert concerned(known, put(Resource.PODS, pod("b", "10.42.0.8"))) == ["ns/shop"]
    assert concerned(known, put(Resource.PODS, pod("c", "172.16.0.1"))) == ["ns/shop", "world"]
    assert concerned(known, put(Resource.NODES, node("node-2", "10.0.0.13"))) == ["world"]
    assert concerned(known, put(Resource.NODES, node("node-1", "10.0.0.13"))) == ["node", "world"]
    assert concerned(known, known.remove(Resource.SLICES, endpoints())) == ["svc/shop/db"]


def test_what_does_not_matter_is_no_change() -> None:
    known = directory(*PODS, service(), endpoints("10.42.0.1"))
    assert known.put(Resource.PODS, pod("web-1", "10.42.0.2", labels={"app": "web", "tier": ""})) == []
    assert known.put(Resource.SLICES, endpoints("10.42.0.1", ready=False)) == []
    assert known.remove(Resource.SLICES, objects.endpoint_slice("db", "far")) == []


def test_a_list_takes_the_place_of_its_part_alone() -> None:
    known = directory(*PODS)
    shop = Part(Resource.PODS, "shop")
    changes = known.replace(shop, [pod("web-0", "10.42.0.9")])
    assert {change.name for change in changes} == {"web-0", "web-1", "new", "agent", "agent-pod"}
    assert [name for name, _ in known.pods("other")] == ["web-0"]
    known.forget(shop)
    assert list(known.pods("shop")) == []
    known.replace(shop.whole, [])
    assert list(known.pods("other")) == []


def test_only_what_is_named_is_looked_at() -> None:
    services, slices = Part(Resource.SERVICES, "shop"), Part(Resource.SLICES, "shop")
    assert parts_of(DB, HERE) == (services, slices)
    assert slices.path == "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
    assert parts_of(Peer(POD, "a=b", "shop"), HERE) == parts_of(Peer(NS, "shop"), HERE)
    (one,) = parts_of(NODE, HERE)
    assert (one.path, one.query) == ("/api/v1/nodes", {"fieldSelector": "metadata.name=node-1"})
    assert all(part == part.whole for part in parts_of(WORLD, HERE))


# Who may name what


@pytest.mark.parametrize("others", [set(), {"other"}, {"*"}], ids=str)
def test_names_of_other_namespaces_are_the_operators_to_allow(others: set[str]) -> None:
    tenant = Tenant("shop", frozenset(others))
    own = [Peer(SVC, "db"), DB, Peer(POD, "a=b"), Peer(NS, "shop"), NODE, WORLD]
    assert all(map(tenant.may_name, own))
    for peer in (Peer(SVC, "db", "other"), Peer(NS, "other")):
        assert tenant.may_name(peer) is bool(others)
    assert tenant.may_name(Peer(NS, "third")) is ("*" in others)


def test_a_name_without_a_namespace_is_of_the_pods_own() -> None:
    assert in_namespace(Peer(SVC, "db"), "shop") == DB
    assert in_namespace(Peer(SVC, "db", "far"), "shop") == Peer(SVC, "db", "far")
    assert in_namespace(Peer(NS, "far"), "shop") == Peer(NS, "far")
    assert in_namespace(NODE, "shop") == NODE


def test_where_no_cluster_is_asked_a_name_is_refused() -> None:
    require_no_names(Match(peers=(Peer(PeerKind.CIDR, "10.0.0.0/8"), Peer(PeerKind.DNS))))
    with pytest.raises(UsageError, match="svc/db: no cluster is asked"):
        require_no_names(parsed("loss=1% egress except=svc/db").match)
