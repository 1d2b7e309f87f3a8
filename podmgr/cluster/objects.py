"""What of a cluster matters on one node, kept up to date by lists and events. Pure.

Owns what is remembered of pods, services and namespaces, and says whose rules a change may
touch: the pods, by UID. Objects are the JSON of the Kubernetes API. Of a pod with no rule no
more is kept than its labels: annotations that are not podmgr's are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from podmgr.attachment import PodRef
from podmgr.errors import UnknownKeyError
from podmgr.rules.annotations import misplaced
from podmgr.rules.keys import STANDARD_KEYS, is_own_key
from podmgr.rules.peers import Tenant
from podmgr.rules.precedence import AnnotatedNamespace, AnnotatedService, PodRules, rules_of_pod
from podmgr.rules.profiles import rules_of_built_in
from podmgr.rules.rule import Rule
from podmgr.rules.words import Profiles

STATIC_POD_HASH = "kubernetes.io/config.hash"

_MIRROR = "kubernetes.io/config.mirror"  # set by kubelet, with the same hash
_HASH = re.compile(r"[0-9a-f]{32}", re.ASCII)  # no pod's UID looks like that
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_UID = re.compile(r"[A-Za-z0-9-]{1,63}", re.ASCII)
_CONTAINER_ID = re.compile(r"[A-Za-z0-9]{12,128}", re.ASCII)
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API server has it. `rules.precedence` are podmgr's own."""

    ref: PodRef
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    node: str
    phase: str
    has_host_network: bool = False
    static_hash: str = ""
    is_mirror: bool = False
    created: str = ""
    containers: tuple[tuple[str, str], ...] = ()  # names and ids; "" of those that were not started
    is_terminating: bool = False  # deleted: what of it runs is ended, and nothing is started again

    def lacks(self, rules: Iterable[Rule]) -> list[str]:
        """A line for each container of rules that a running pod does not have."""
        names = {name for rule in rules for name in rule.match.containers} - dict(self.containers).keys()
        return [
            f"pod/{self.ref.name}: there is no container {name}, a rule waits for it"
            for name in sorted(names)
            if self.phase == "Running"
        ]

    @property
    def has_ended(self) -> bool:
        """Its containers have run to their end and are not started again."""
        return has_ended(self.phase)


@dataclass(slots=True)
class Cluster:
    """The pods of a node, and the services and namespaces that carry rules.

    The methods return the UIDs of the pods whose rules may have changed. `reads_standard`:
    Kubernetes' own annotations of pods count, too. `peer_namespaces` are those that rules may name
    besides their own; `profiles` says what the name of a profile stands for.
    """

    pods: dict[str, Pod] = field(default_factory=dict)
    reads_standard: bool = False
    peer_namespaces: frozenset[str] = frozenset()
    profiles: Profiles = rules_of_built_in
    _services: dict[str, dict[str, AnnotatedService]] = field(default_factory=dict)
    _namespaces: dict[str, AnnotatedNamespace] = field(default_factory=dict)

    def rules(self, pod: Pod) -> PodRules:
        """The rules that hold on a pod; none on one that has ended."""
        if pod.has_ended:
            return PodRules((), (), ())
        return rules_of_pod(
            pod.ref.name,
            pod.annotations,
            pod.labels,
            self._services.get(pod.ref.namespace, {}).values(),
            self._namespaces.get(pod.ref.namespace),
            reads_standard=self.reads_standard,
            tenant=Tenant(pod.ref.namespace, self.peer_namespaces),
            profiles=self.profiles,
        )

    def cgroup_uids(self, pod: Pod) -> tuple[str, ...]:
        """The names that a pod's cgroup may carry: its UID, and a static pod's hash.

        Who may make pods may write any hash into an annotation, so of several pods with the same
        one only one has it: the mirror that kubelet made, or else the oldest.
        """
        rivals = [other for other in self.pods.values() if other.static_hash == pod.static_hash]
        first = min([pod, *rivals], key=lambda other: (not other.is_mirror, other.created, other.ref.uid))
        return (pod.ref.uid, pod.static_hash) if pod.static_hash and first == pod else (pod.ref.uid,)

    def enforces(self, namespace: str) -> bool:
        """Whether a namespace holds its pods to rules, also to such as cannot be read now."""
        space = self._namespaces.get(namespace)
        found = rules_of_pod("", {}, {}, (), space, profiles=self.profiles)
        return bool(found.enforcing and (found.rules or found.unreadable))

    def put_pod(self, item: Mapping[str, Any]) -> set[str]:
        """A pod was added or has changed; a change that does not matter here touches nothing."""
        pod = pod_of(item)
        if pod is None or self.pods.get(pod.ref.uid) == pod:
            return set()
        self.pods[pod.ref.uid] = pod
        return {pod.ref.uid} | self._rivals(pod)

    def remove_pod(self, item: Mapping[str, Any]) -> set[str]:
        """A pod was deleted, or has left the node."""
        uid = str(mapping(item.get("metadata")).get("uid") or "")
        pod = self.pods.pop(uid, None)
        return set() if pod is None else {uid} | self._rivals(pod)

    def replace_pods(self, items: Iterable[Mapping[str, Any]]) -> set[str]:
        """The whole list."""
        before, self.pods = self.pods, {}
        for item in items:
            self.put_pod(item)
        return {uid for uid in before.keys() | self.pods.keys() if before.get(uid) != self.pods.get(uid)}

    def _rivals(self, pod: Pod) -> set[str]:
        """The pods that name the same cgroup by its hash."""
        if not pod.static_hash:
            return set()
        return {other.ref.uid for other in self.pods.values() if other.static_hash == pod.static_hash}

    def put_service(self, item: Mapping[str, Any]) -> set[str]:
        """A service was added or has changed."""
        service = service_of(item)
        return self._set_service(_namespace(item), service.name, service if service.annotations else None)

    def remove_service(self, item: Mapping[str, Any]) -> set[str]:
        """A service was deleted."""
        return self._set_service(_namespace(item), _name(item), None)

    def replace_services(self, items: Iterable[Mapping[str, Any]]) -> set[str]:
        """The whole list."""
        wanted = {(_namespace(item), _name(item)): item for item in items}
        known = [(space, name) for space, services in self._services.items() for name in services]
        touched: set[str] = set()
        for space, name in known:
            if (space, name) not in wanted:
                touched |= self._set_service(space, name, None)
        for item in wanted.values():
            touched |= self.put_service(item)
        return touched

    def put_namespace(self, item: Mapping[str, Any]) -> set[str]:
        """A namespace was added or has changed."""
        namespace = namespace_of(item)
        return self._set_namespace(namespace.name, namespace if namespace.annotations else None)

    def remove_namespace(self, item: Mapping[str, Any]) -> set[str]:
        """A namespace was deleted."""
        return self._set_namespace(_name(item), None)

    def replace_namespaces(self, items: Iterable[Mapping[str, Any]]) -> set[str]:
        """The whole list."""
        wanted = {_name(item): item for item in items}
        touched: set[str] = set()
        for name in list(self._namespaces.keys() - wanted.keys()):
            touched |= self._set_namespace(name, None)
        for item in wanted.values():
            touched |= self.put_namespace(item)
        return touched

    def _set_service(self, space: str, name: str, service: AnnotatedService | None) -> set[str]:
        services = self._services.setdefault(space, {})
        before = services.pop(name, None)
        if service is not None:
            services[name] = service
        if not services:
            del self._services[space]
        if before == service:
            return set()
        sides = [side for side in (before, service) if side is not None]
        return {
            pod.ref.uid for pod in self._pods_in(space) if any(side.selects(pod.labels) for side in sides)
        }

    def _set_namespace(self, name: str, namespace: AnnotatedNamespace | None) -> set[str]:
        before = self._namespaces.pop(name, None)
        if namespace is not None:
            self._namespaces[name] = namespace
        return set() if before == namespace else {pod.ref.uid for pod in self._pods_in(name)}

    def _pods_in(self, namespace: str) -> Iterator[Pod]:
        return (pod for pod in self.pods.values() if pod.ref.namespace == namespace)


def pod_of(item: Mapping[str, Any]) -> Pod | None:
    """A Pod object as far as it matters; None without a UID and names that an API server admits."""
    metadata, spec = mapping(item.get("metadata")), mapping(item.get("spec"))
    uid, static_hash = str(metadata.get("uid") or ""), static_hash_of(metadata)
    if not all(_UID.fullmatch(uid) and is_name(name) for name in (_name(item), _namespace(item))):
        return None
    return Pod(
        ref=PodRef(_namespace(item), _name(item), uid),
        labels=texts(metadata.get("labels")),
        annotations=_own(metadata),
        node=str(spec.get("nodeName") or ""),
        phase=str(mapping(item.get("status")).get("phase") or ""),
        has_host_network=bool(spec.get("hostNetwork")),
        static_hash=static_hash,
        is_mirror=bool(static_hash) and mapping(metadata.get("annotations")).get(_MIRROR) == static_hash,
        created=str(metadata.get("creationTimestamp") or ""),
        containers=_containers(mapping(item.get("status"))),
        is_terminating=bool(metadata.get("deletionTimestamp")),
    )


def _containers(status: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for key in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        there = status.get(key)
        for item in map(mapping, there if isinstance(there, list) else ()):
            container_id = str(item.get("containerID") or "").rpartition("://")[2]
            if name := str(item.get("name") or ""):
                found[name] = container_id if _CONTAINER_ID.fullmatch(container_id) else ""
    return tuple(sorted(found.items()))


def static_hash_of(metadata: Mapping[str, Any]) -> str:
    """The hash that names a static pod's cgroup; "" if there is none."""
    found = str(mapping(metadata.get("annotations")).get(STATIC_POD_HASH) or "")
    return found if _HASH.fullmatch(found) else ""


def service_of(item: Mapping[str, Any]) -> AnnotatedService:
    """A Service object as far as it matters."""
    metadata = mapping(item.get("metadata"))
    return AnnotatedService(
        _name(item),
        texts(mapping(item.get("spec")).get("selector")),
        _own(metadata),
        str(metadata.get("creationTimestamp") or ""),
    )


def namespace_of(item: Mapping[str, Any]) -> AnnotatedNamespace:
    """A Namespace object as far as it matters."""
    return AnnotatedNamespace(_name(item), _own(mapping(item.get("metadata"))))


def misplaced_on(where: str, workload: Mapping[str, Any]) -> tuple[UnknownKeyError, ...]:
    """An error for each annotation of ours that a workload carries where nothing reads it."""
    jobs = mapping(mapping(workload.get("spec")).get("jobTemplate")) if where.startswith("cronjob/") else {}
    return misplaced(where, annotation_keys(workload), annotation_keys(jobs))


def annotation_keys(item: Mapping[str, Any]) -> list[str]:
    """All of an object, also those that are not podmgr's; one that is null is as if it were not there."""
    annotations = mapping(mapping(item.get("metadata")).get("annotations"))
    return [key for key, value in annotations.items() if value is not None]


def has_ended(phase: str) -> bool:
    """Whether a pod in this phase has no address of its own any more."""
    return phase in _ENDED


def is_name(text: str) -> bool:
    """Whether an API server admits it as the name of an object, which may stand in a path."""
    return _NAME.fullmatch(text) is not None


def texts(value: object) -> dict[str, str]:
    """A mapping of text to text, as the API server has it; what is neither text nor a number is left out."""
    return {str(key): str(item) for key, item in mapping(value).items() if isinstance(item, str | int)}


def _own(metadata: Mapping[str, Any]) -> dict[str, str]:
    annotations = texts(metadata.get("annotations"))
    return {key: value for key, value in annotations.items() if is_own_key(key) or key in STANDARD_KEYS}


def _name(item: Mapping[str, Any]) -> str:
    return str(mapping(item.get("metadata")).get("name") or "")


def _namespace(item: Mapping[str, Any]) -> str:
    return str(mapping(item.get("metadata")).get("namespace") or "default")


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: objects may hold anything anywhere."""
    return value if isinstance(value, dict) else {}
