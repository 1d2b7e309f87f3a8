"""What a node remembers of its cluster: the rules after any events, and whose rules an event may touch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.attachment import PodRef
from podmgr.cluster.objects import STATIC_POD_HASH, Cluster, Pod, namespace_of, pod_of, service_of, texts
from podmgr.rules.grammar import parse_value
from podmgr.rules.keys import ENFORCE
from podmgr.rules.precedence import AnnotatedNamespace, AnnotatedService, PodRules

Item = dict[str, Any]

WEB = {"app": "web"}
SLOW = {"bandwidth": "10 mbps egress"}
HASH = "f87be1b7b104c9de4fc88b23866881f2"
MIRROR = "kubernetes.io/config.mirror"


def pod(
    uid: str = "u1",
    annotations: Mapping[str, str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    phase: str = "Running",
    version: str = "1",
    **spec: object,
) -> Item:
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"pod-{uid}",
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": version,
            "labels": WEB if labels is None else labels,
            "annotations": annotations or {},
        },
        "spec": {"nodeName": "node-1", **spec},
        "status": {"phase": phase},
    }


def service(
    name: str = "front",
    annotations: Mapping[str, str] | None = None,
    *,
    selector: Mapping[str, str] | None = None,
    namespace: str = "default",
    created: str = "2024-01-01T00:00:00Z",
) -> Item:
    return {
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": created,
            "annotations": annotations or {},
        },
        "spec": {"selector": WEB if selector is None else selector},
    }


def namespace(name: str = "default", annotations: Mapping[str, str] | None = None) -> Item:
    return {"kind": "Namespace", "metadata": {"name": name, "annotations": annotations or {}}}


def built(*items: Item) -> Cluster:
    """A cluster that was listed once."""
    cluster = Cluster()
    cluster.replace_namespaces(item for item in items if item["kind"] == "Namespace")
    cluster.replace_services(item for item in items if item["kind"] == "Service")
    cluster.replace_pods(item for item in items if item["kind"] == "Pod")
    return cluster


def cgroup_uids(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    return {uid: cluster.cgroup_uids(found) for uid, found in cluster.pods.items()}


def rules(cluster: Cluster, uid: str = "u1") -> list[tuple[str, str]]:
    found = cluster.rules(cluster.pods[uid])
    return [(str(item.rule), str(item.source)) for item in found.rules]


# The rules of a pod


def test_pod_has_the_rules_of_its_own_its_services_and_its_namespace() -> None:
    cluster = built(
        pod("u1", {"bandwidth": "1 mbps egress"}),
        service("front", {"bandwidth": "2 mbps egress; 2 mbps ingress"}),
        namespace("default", {"loss": "uniform egress 1%", "bandwidth": "3 mbps ingress"}),
    )
    assert sorted(rules(cluster)) == [
        ("bandwidth=1 mbps egress", "pod"),
        ("bandwidth=2 mbps ingress", "service/front"),
        ("loss=uniform egress 1%", "namespace/default"),
    ]


def test_a_profile_is_what_the_node_says_that_it_is() -> None:
    cluster = Cluster(profiles=lambda name: parse_value("delay", f"{len(name)}ms egress"))
    cluster.replace_pods([pod(annotations={"podmgr.io/profile": "office"})])
    assert rules(cluster) == [("delay=6ms egress", "pod")]


def test_services_and_namespaces_of_others_do_not_matter() -> None:
    cluster = built(
        pod("u1", namespace="a"),
        service("front", SLOW, namespace="b"),
        service("back", SLOW, namespace="a", selector={"app": "db"}),
        namespace("b", SLOW),
    )
    assert rules(cluster) == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pod_that_has_ended_has_no_rules_and_no_complaints(phase: str) -> None:
    cluster = built(pod("u1", {"bandwidth": "nonsense", "loss": "uniform egress 1%"}, phase=phase))
    assert cluster.pods["u1"].has_ended
    assert cluster.rules(cluster.pods["u1"]) == PodRules((), (), ())


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown", ""])
def test_pod_in_any_other_phase_has_its_rules(phase: str) -> None:
    assert rules(built(pod("u1", SLOW, phase=phase))) == [("bandwidth=10 mbps egress", "pod")]


def test_enforcing_namespace_holds_beside_the_rules_of_the_pod() -> None:
    cluster = built(pod("u1", SLOW), namespace("default", {"bandwidth": "1 mbps egress", ENFORCE: "true"}))
    assert sorted(rules(cluster)) == [
        ("bandwidth=1 mbps egress", "namespace/default"),
        ("bandwidth=10 mbps egress", "pod"),
    ]


# Whose rules a change may touch


def test_pod_that_changes_in_what_does_not_matter_touches_nothing() -> None:
    cluster = built(pod("u1", SLOW))
    assert cluster.put_pod(pod("u1", SLOW | {"other/annotation": "x"}, version="2")) == set()


@pytest.mark.parametrize(
    "changed",
    [
        pod("u1", {"bandwidth": "11 mbps egress"}),
        pod("u1"),
        pod("u1", SLOW, labels={"app": "db"}),
        pod("u1", SLOW, phase="Succeeded"),
        pod("u1", SLOW, hostNetwork=True),
    ],
    ids=["annotation", "no annotation", "label", "ended", "host network"],
)
def test_pod_that_changes_in_what_matters_is_touched(changed: Item) -> None:
    cluster = built(pod("u1", SLOW), pod("u2", SLOW))
    assert cluster.put_pod(changed) == {"u1"}
    assert cluster.put_pod(changed) == set()


def test_pod_that_was_made_again_is_another_pod() -> None:
    cluster = built(pod("u1", SLOW))
    again = pod("u2", SLOW)
    again["metadata"]["name"] = "pod-u1"
    assert cluster.put_pod(again) == {"u2"}
    assert cluster.remove_pod(pod("u1")) == {"u1"}
    assert set(cluster.pods) == {"u2"}


def test_removing_a_pod_that_is_not_known_touches_nothing() -> None:
    cluster = built(pod("u1"))
    assert cluster.remove_pod(pod("u2")) == set()
    assert cluster.remove_pod({}) == set()


def test_list_of_pods_touches_what_is_new_what_changed_and_what_is_gone() -> None:
    cluster = built(pod("same", SLOW), pod("changed", SLOW), pod("gone", SLOW))
    assert cluster.replace_pods([pod("same", SLOW, version="9"), pod("changed"), pod("new")]) == {
        "changed",
        "gone",
        "new",
    }


def test_service_touches_the_pods_that_it_selects_and_those_it_did() -> None:
    cluster = built(
        pod("web"), pod("db", labels={"app": "db"}), pod("other", labels={}), pod("far", namespace="far")
    )
    assert cluster.put_service(service("front", SLOW)) == {"web"}
    assert cluster.put_service(service("front", SLOW)) == set()
    assert cluster.put_service(service("front", SLOW, selector={"app": "db"})) == {"web", "db"}
    assert cluster.remove_service(service("front")) == {"db"}
    assert cluster.remove_service(service("front")) == set()


def test_service_without_rules_touches_nothing() -> None:
    cluster = built(pod("u1"))
    assert cluster.put_service(service("front", {"other/annotation": "x"})) == set()


def test_service_that_loses_its_annotation_touches_its_pods() -> None:
    cluster = built(pod("u1"), service("front", SLOW))
    assert cluster.put_service(service("front")) == {"u1"}
    assert rules(cluster) == []


def test_services_of_one_name_in_two_namespaces_are_two() -> None:
    cluster = built(pod("a", namespace="a"), pod("b", namespace="b"), service("front", SLOW, namespace="a"))
    assert cluster.put_service(service("front", SLOW, namespace="b")) == {"b"}
    assert cluster.remove_service(service("front", namespace="a")) == {"a"}
    assert rules(cluster, "b")


def test_namespace_touches_all_its_pods() -> None:
    cluster = built(pod("u1"), pod("u2", labels={}), pod("far", namespace="far"))
    assert cluster.put_namespace(namespace("default", SLOW)) == {"u1", "u2"}
    assert cluster.put_namespace(namespace("default", SLOW | {"other": "x"})) == set()
    assert cluster.put_namespace(namespace("default", {**SLOW, ENFORCE: "true"})) == {"u1", "u2"}
    assert cluster.remove_namespace(namespace("default")) == {"u1", "u2"}
    assert cluster.remove_namespace(namespace("default")) == set()


@pytest.mark.parametrize("replace", [Cluster.replace_services, Cluster.replace_namespaces])
def test_list_that_lacks_what_carried_rules_takes_them_away(
    replace: Callable[[Cluster, Iterable[Item]], set[str]],
) -> None:
    cluster = Cluster()
    cluster.replace_pods([pod("u1"), pod("far", namespace="far")])
    items = [service("front", SLOW)] if replace is Cluster.replace_services else [namespace("default", SLOW)]
    assert replace(cluster, items) == {"u1"}
    assert replace(cluster, items) == set()
    assert replace(cluster, []) == {"u1"}
    assert rules(cluster) == []


# Any events lead to the same rules as one list of what there is then

LABELS = st.sampled_from([{}, WEB, {"app": "db"}, {"app": "web", "tier": "a"}])
VALUES = {
    "bandwidth": ["1 mbps egress", "2 mbps egress", "2 mbps egress; 3 mbps ingress", "nonsense"],
    "podmgr.io/bandwidth": ["4 mbps ingress", ""],
    "loss": ["uniform egress 1%", "uniform ingress 2%"],
    "ebpf-limit": ["dropper egress"],
    "unrelated": ["1"],
}
ANNOTATIONS = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}
)
NAMESPACES = st.sampled_from(["a", "b"])
PODS = st.builds(
    lambda uid, annotations, labels, phase: pod(
        uid, annotations, labels=labels, phase=phase, namespace=uid[0]
    ),
    st.sampled_from(["a1", "a2", "b1"]),  # a pod never changes its namespace
    ANNOTATIONS,
    LABELS,
    st.sampled_from(["Pending", "Running", "Failed"]),
)
SERVICES = st.builds(
    lambda name, annotations, selector, space, created: service(
        name, annotations, selector=selector, namespace=space, created=created
    ),
    st.sampled_from(["x", "y"]),
    ANNOTATIONS,
    LABELS,
    NAMESPACES,
    st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]),
)
SPACES = st.builds(
    lambda name, annotations, enforce: namespace(
        name, annotations | ({} if enforce is None else {ENFORCE: enforce})
    ),
    NAMESPACES,
    ANNOTATIONS,
    st.sampled_from([None, "true", "TRUE ", "false", "perhaps"]),
)


def key(item: Item) -> tuple[str, ...]:
    """What makes it the same object for the API server."""
    metadata = item["metadata"]
    return (
        (item["kind"], metadata["uid"])
        if "uid" in metadata
        else (
            item["kind"],
            metadata.get("namespace", ""),
            metadata["name"],
        )
    )


def events(items: st.SearchStrategy[Item]) -> st.SearchStrategy[tuple[str, list[Item]]]:
    return st.one_of(
        st.tuples(st.sampled_from(["put", "put", "remove"]), st.lists(items, min_size=1, max_size=1)),
        st.tuples(st.just("replace"), st.lists(items, max_size=3, unique_by=key)),
    )


EVENTS = st.one_of(
    st.tuples(st.just("pod"), events(PODS)),
    st.tuples(st.just("service"), events(SERVICES)),
    st.tuples(st.just("namespace"), events(SPACES)),
)


def happen(cluster: Cluster, kind: str, action: str, items: list[Item]) -> set[str]:
    name = f"replace_{kind}s" if action == "replace" else f"{action}_{kind}"
    touched: set[str] = getattr(cluster, name)(items if action == "replace" else items[0])
    return touched


def all_rules(cluster: Cluster) -> dict[str, PodRules]:
    return {uid: cluster.rules(pod) for uid, pod in cluster.pods.items()}


def told(found: PodRules | None) -> object:
    """Rules that can be compared: errors are no values."""
    return found and (found.rules, [str(e) for e in found.errors], found.warnings, found.unreadable)


@given(st.lists(EVENTS, max_size=25))
def test_any_events_lead_to_the_rules_of_the_final_state_and_every_touched_pod_is_named(
    history: list[tuple[str, tuple[str, list[Item]]]],
) -> None:
    cluster = Cluster()
    state: dict[tuple[str, ...], Item] = {}
    for kind, (action, items) in history:
        before = all_rules(cluster)
        touched = happen(cluster, kind, action, items)
        after = all_rules(cluster)
        changed = {
            uid
            for uid in before.keys() | after.keys()
            if told(before.get(uid)) != told(after.get(uid)) or (uid in before) != (uid in after)
        }
        assert changed <= touched
        assert touched <= before.keys() | after.keys()
        if action == "replace":
            state = {known: item for known, item in state.items() if known[0].lower() != kind}
        if action == "remove":
            state.pop(key(items[0]), None)
        else:
            state.update({key(item): item for item in items})
    fresh = built(*state.values())
    assert cluster.pods == fresh.pods
    found, expected = all_rules(cluster), all_rules(fresh)
    assert {uid: told(item) for uid, item in found.items()} == {
        uid: told(item) for uid, item in expected.items()
    }
    assert cluster._services == fresh._services  # and nothing is kept of what is gone
    assert cluster._namespaces == fresh._namespaces


@given(st.lists(EVENTS, max_size=10), EVENTS)
def test_same_event_a_second_time_touches_nothing(
    history: list[tuple[str, tuple[str, list[Item]]]], last: tuple[str, tuple[str, list[Item]]]
) -> None:
    cluster = Cluster()
    for kind, (action, items) in [*history, last]:
        happen(cluster, kind, action, items)
    kind, (action, items) = last
    assert happen(cluster, kind, action, items) == set()


# Objects of the API


def test_pod_is_read_as_far_as_it_matters() -> None:
    item = pod(
        "u1",
        {"bandwidth": "1 mbps egress", "podmgr.io/loss": "x", "other/bandwidth": "y", ENFORCE: "true"},
        hostNetwork=True,
    )
    item["metadata"]["annotations"][STATIC_POD_HASH] = HASH
    assert pod_of(item) == Pod(
        ref=PodRef("default", "pod-u1", "u1"),
        labels=WEB,
        annotations={"bandwidth": "1 mbps egress", "podmgr.io/loss": "x", ENFORCE: "true"},
        node="node-1",
        phase="Running",
        has_host_network=True,
        static_hash=HASH,
    )


def test_static_pods_cgroup_may_carry_its_hash() -> None:
    cluster = built(pod("u1", {STATIC_POD_HASH: HASH}), pod("u2"), pod("u3"))
    assert cgroup_uids(cluster) == {"u1": ("u1", HASH), "u2": ("u2",), "u3": ("u3",)}


@pytest.mark.parametrize(
    "forged",
    [
        "846f24d4-50e1-452e-91c0-7dfcee8503e9",  # another pod's UID: its cgroup is called so
        "u2",
        HASH.upper(),
        HASH[:-1],
        HASH + "0",
        HASH[:-1] + "g",
        "../" + HASH,
        HASH + "\n",
        "",
    ],
)
def test_hash_that_no_kubelet_makes_names_no_cgroup(forged: str) -> None:
    cluster = built(pod("u1", {STATIC_POD_HASH: forged, MIRROR: forged}), pod("u2"))
    assert cgroup_uids(cluster) == {"u1": ("u1",), "u2": ("u2",)}
    assert not cluster.pods["u1"].is_mirror


def claiming(uid: str, created: str, *, mirror: str = "", **more: Any) -> Item:
    item = pod(uid, {STATIC_POD_HASH: HASH, **({MIRROR: mirror} if mirror else {})}, **more)
    item["metadata"]["creationTimestamp"] = created
    return item


OLD, NEW = "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("pods", "owner"),
    [
        ([claiming("a", OLD), claiming("b", NEW, mirror=HASH)], "b"),
        ([claiming("a", OLD, mirror="0" * 32), claiming("b", NEW, mirror=HASH)], "b"),
        ([claiming("a", NEW, mirror=HASH), claiming("b", OLD, mirror=HASH)], "b"),
        ([claiming("a", NEW), claiming("b", OLD)], "b"),
        ([claiming("a", OLD), claiming("b", OLD)], "a"),
        ([claiming("a", NEW, namespace="far"), claiming("b", OLD)], "b"),
    ],
    ids=["mirror", "mirror of another", "older mirror", "older", "first UID", "other namespace"],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_of_pods_with_one_hash_one_has_the_cgroup(pods: list[Item], owner: str, is_reversed: bool) -> None:
    cluster = built(*(reversed(pods) if is_reversed else pods))
    other = ({"a", "b"} - {owner}).pop()
    assert cgroup_uids(cluster) == {owner: (owner, HASH), other: (other,)}
    found = cluster.pods[other]
    cluster.remove_pod({"metadata": {"uid": owner}})
    assert cluster.cgroup_uids(found) == (other, HASH)


def test_claim_of_a_pod_that_is_not_among_them_is_weighed_too() -> None:
    newer, mirror = pod_of(claiming("c", NEW)), pod_of(claiming("d", NEW, mirror=HASH))
    assert newer is not None and mirror is not None
    assert built(claiming("a", OLD)).cgroup_uids(newer) == ("c",)
    assert built(claiming("a", OLD)).cgroup_uids(mirror) == ("d", HASH)
    assert Cluster().cgroup_uids(newer) == ("c", HASH)


@pytest.mark.parametrize(
    ("annotations", "enforces"),
    [
        ({**SLOW, ENFORCE: "true"}, True),
        ({**SLOW, ENFORCE: "yes"}, True),
        ({"bandwidth": "nonsense", ENFORCE: "true"}, True),
        ({**SLOW, ENFORCE: "false"}, False),
        (SLOW, False),
        ({ENFORCE: "true"}, False),
        ({}, False),
    ],
    ids=["true", "mistyped", "unreadable", "false", "unsaid", "nothing to enforce", "nothing"],
)
def test_namespace_enforces_what_it_has(annotations: dict[str, str], enforces: bool) -> None:
    cluster = built(namespace("default", annotations), namespace("far"))
    assert cluster.enforces("default") is enforces
    assert not cluster.enforces("far")
    assert not cluster.enforces("no-such")
    cluster.remove_namespace(namespace("default"))
    assert not cluster.enforces("default")


@pytest.mark.parametrize("uid", ["", "../x", "a/b", "a.b", "a b", "x" * 64, "ü", "u1\n", None, 0, []])
def test_pod_without_a_uid_that_could_name_a_folder_is_left_out(uid: object) -> None:
    item = pod("u1")
    item["metadata"]["uid"] = uid
    assert pod_of(item) is None
    cluster = Cluster()
    assert cluster.put_pod(item) == set()
    assert cluster.replace_pods([item, pod("u2")]) == {"u2"}
    assert cluster.remove_pod(item) == set()


def test_service_and_namespace_are_read_as_far_as_they_matter() -> None:
    annotations = {**SLOW, "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    assert service_of(service("front", annotations, namespace="a")) == AnnotatedService(
        "front", WEB, SLOW, "2024-01-01T00:00:00Z"
    )
    assert namespace_of(namespace("a", annotations | {ENFORCE: "true"})) == AnnotatedNamespace(
        "a", {**SLOW, ENFORCE: "true"}
    )


@pytest.mark.parametrize("item", [{}, {"metadata": None}, {"metadata": [], "spec": "", "status": 1}])
def test_object_with_nothing_in_it_is_read_as_nothing(item: Item) -> None:
    assert pod_of(item) is None
    assert service_of(item) == AnnotatedService("", {}, {})
    assert namespace_of(item) == AnnotatedNamespace("", {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": "b", "n": 1}, {"a": "b", "n": "1"}),
        ({"a": None, "b": ["x"], "c": {}}, {}),
        (None, {}),
        ("text", {}),
        ([("a", "b")], {}),
    ],
)
def test_texts_are_text_to_text(value: object, expected: dict[str, str]) -> None:
    assert texts(value) == expected


def test_containers_are_known_by_their_ids_once_they_are_started() -> None:
    item = pod()
    item["status"] |= {
        "containerStatuses": [
            {"name": "app", "containerID": f"containerd://{'a1' * 32}"},
            {"name": "side", "state": {"waiting": {}}},
            "x",
        ],
        "initContainerStatuses": [{"name": "first", "containerID": "cri-o://../../etc"}],
        "ephemeralContainerStatuses": None,
    }
    found = pod_of(item)
    assert found is not None
    assert found.containers == (("app", "a1" * 32), ("first", ""), ("side", ""))


def test_a_container_that_a_running_pod_does_not_have_is_told() -> None:
    rules = parse_value("loss", "1% egress container=app,nowhere; 2% egress container=nowhere,side")
    item = pod()
    item["status"]["containerStatuses"] = [{"name": "app"}, {"name": "side"}]
    found = pod_of(item)
    assert found is not None
    assert found.lacks(rules) == ["pod/pod-u1: there is no container nowhere, a rule waits for it"]
    item["status"]["phase"] = "Pending"
    starting = pod_of(item)
    assert starting is not None
    assert starting.lacks(rules) == []


def test_a_container_that_is_started_anew_is_a_change() -> None:
    cluster = Cluster()
    item = pod()
    item["status"]["containerStatuses"] = [{"name": "app", "containerID": f"containerd://{'a' * 64}"}]
    cluster.put_pod(item)
    again = pod()
    again["status"]["containerStatuses"] = [{"name": "app", "containerID": f"containerd://{'b' * 64}"}]
    assert cluster.put_pod(again) == {"u1"}
