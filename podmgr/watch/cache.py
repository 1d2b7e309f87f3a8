"""What the API server has of this node: a copy that informers keep up to date, each in its thread.

Owns the copy, the lock over it, and what is said of the connection. What becomes of a change is
the caller's business.

Apart from `loop`, which alone uses it: informers' threads fill it, and their lock stays inside.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.informer import Informer
from podmgr.cluster.objects import Cluster, Pod, pod_of
from podmgr.errors import PodmgrError
from podmgr.rules.precedence import PodRules
from podmgr.rules.profiles import rules_of_built_in
from podmgr.rules.source import Layer
from podmgr.rules.words import Profiles
from podmgr.watch.journal import Journal
from podmgr.watch.ruled import RuledPod

_TURN_SECONDS = 0.5
_TOLD_SECONDS, _MOST_TOLD = 60.0, 1024
_NO_RULES = PodRules((), (), ())
_LAYERS = {"namespaces": Layer.NAMESPACE, "services": Layer.SERVICE}

_TakesAll = Callable[[Iterable[Mapping[str, Any]]], set[str]]
_Takes = Callable[[Mapping[str, Any]], set[str]]


class Cache:
    """`on_change` is given the UIDs of the pods whose rules a change may touch, by an informer's thread."""

    def __init__(
        self,
        connect: Callable[[], Api],
        on_change: Callable[[set[str]], None],
        journal: Journal,
        stopping: threading.Event,
        *,
        reads_standard: bool = False,
        peer_namespaces: frozenset[str] = frozenset(),
        profiles: Profiles = rules_of_built_in,
    ) -> None:
        self._connect = connect
        self._on_change = on_change
        self._journal = journal
        self._stopping = stopping
        self._cluster = Cluster(
            reads_standard=reads_standard, peer_namespaces=peer_namespaces, profiles=profiles
        )
        self._lock = threading.Lock()  # over the cluster
        self._informers: list[Informer] = []
        self._told: dict[str, tuple[Pod, float]] = {}  # by the runtime alone, and when
        self._unseen = frozenset(_LAYERS.values())

    def start(self, node: str) -> None:
        """Follow the pods of this node, and all services and namespaces."""
        cluster, here = self._cluster, {"fieldSelector": f"spec.nodeName={node}"}
        self._follow(
            "namespaces", cluster.replace_namespaces, cluster.put_namespace, cluster.remove_namespace
        )
        self._follow("services", cluster.replace_services, cluster.put_service, cluster.remove_service)
        self._follow("pods", cluster.replace_pods, cluster.put_pod, cluster.remove_pod, here)

    def _follow(
        self,
        name: str,
        replace: _TakesAll,
        put: _Takes,
        remove: _Takes,
        query: Mapping[str, str] | None = None,
    ) -> None:
        informer = Informer(
            name,
            f"/api/v1/{name}",
            query or {},
            self._connect,
            _Sink(self._change, lambda items: replace(items) | self._seen(name), put, remove),
            self._stopping,
            on_lost=self._lost,
            on_found=lambda name: self._journal.info(f"{name}: the API server answers again"),
        )
        self._informers.append(informer)
        threading.Thread(target=informer.run, name=name, daemon=True).start()

    def _lost(self, name: str, error: PodmgrError) -> None:
        after = "the rules stay"
        if _is_refusal(error):
            error = PodmgrError(error.message, tip=_RIGHTS.format(name=name))
            if _LAYERS.get(name) in self._unseen:
                after = f"what {name} have set before stays, and the rules of others are put in force"
        self._journal.failure(error, before=f"{name}: ", after=f"; {after}, trying again")

    def _seen(self, name: str) -> set[str]:
        """Whom it concerns that a first list is here: all pods, since now it can be told what must go."""
        if _LAYERS.get(name) not in self._unseen:
            return set()
        self._unseen -= {_LAYERS[name]}
        return set(self._cluster.pods)

    def _change(self, change: Callable[[], set[str]]) -> None:
        with self._lock:
            touched = change()
        if touched:
            self._on_change(touched)

    def wait_until_listed(self, turned: Callable[[], None]) -> None:
        """Until all of it is here, or `stopping`: rules of half a cluster would be wrong ones.

        Not until what may not be read is: a pod's own rules hold without its namespace's, of which what is
        there stays. Without the pods there are none. `turned` is called all the while.
        """
        for informer in self._informers:
            while not informer.is_listed.wait(_TURN_SECONDS) and not self._stopping.is_set():
                turned()
                if informer.name in _LAYERS and _is_refusal(informer.failure):
                    break

    def connected(self) -> dict[str, bool]:
        """Whether each resource is followed at present."""
        return {
            informer.name: informer.is_listed.is_set() and informer.failure is None
            for informer in self._informers
        }

    def uids(self) -> set[str]:
        """Of all pods of the node."""
        with self._lock:
            return set(self._cluster.pods) | set(self._told)

    def introduce(self, item: Mapping[str, Any]) -> set[str]:
        """The UIDs of a pod of which the runtime has told, as JSON, perhaps before the API server does."""
        pod = pod_of(item)
        if pod is None:
            return set()
        if known := self.uids_called(pod.ref.uid):
            return known
        with self._lock:
            while len(self._told) >= _MOST_TOLD:
                self._told.pop(next(iter(self._told)))
            self._told[pod.ref.uid] = (pod, time.monotonic())
        return {pod.ref.uid}

    def forget_told(self, uids: Iterable[str]) -> None:
        """These have no cgroup: if the API server has not told of them for long, they are gone."""
        for uid in uids:
            _, at = self._told.get(uid, (None, math.inf))
            if time.monotonic() - at > _TOLD_SECONDS:
                self._told.pop(uid, None)

    def uids_called(self, uid: str) -> set[str]:
        """Of the pods whose cgroup may carry this name: a static pod's carries a hash."""
        with self._lock:
            if uid in self._cluster.pods:
                return {uid}
            return {pod.ref.uid for pod in self._cluster.pods.values() if pod.static_hash == uid}

    def wanted(self, uids: Iterable[str]) -> dict[str, RuledPod]:
        """These pods as they are now, with the rules that they shall have."""
        with self._lock:
            return {uid: self._wanted(uid) for uid in uids}

    def _wanted(self, uid: str) -> RuledPod:
        pod = self._cluster.pods.get(uid)
        if pod is not None:
            self._told.pop(uid, None)
        elif uid in self._told:
            pod = self._told[uid][0]
        if pod is None:
            return RuledPod(None, _NO_RULES)
        rules, cgroup_uids = self._cluster.rules(pod), self._cluster.cgroup_uids(pod)
        return RuledPod(pod, rules, cgroup_uids, unseen=self._unseen)

    def enforces(self, namespace: str) -> bool:
        """Whether the namespace enforces its rules, as far as that may be read: it may."""
        with self._lock:
            return Layer.NAMESPACE in self._unseen or self._cluster.enforces(namespace)


_RIGHTS = "it takes the rights to list and watch {name}; the ClusterRole in k3s/podmgr.yaml has them"


def _is_refusal(error: PodmgrError | None) -> bool:
    return isinstance(error, StatusError) and error.is_refusal


@dataclass(frozen=True, slots=True)
class _Sink:
    """An informer's news, given to methods that return the UIDs of the pods they may touch."""

    apply: Callable[[Callable[[], set[str]]], None]
    on_replace: _TakesAll
    on_put: _Takes
    on_remove: _Takes

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None:
        self.apply(lambda: self.on_replace(items))

    def put(self, item: Mapping[str, Any]) -> None:
        self.apply(lambda: self.on_put(item))

    def remove(self, item: Mapping[str, Any]) -> None:
        self.apply(lambda: self.on_remove(item))
