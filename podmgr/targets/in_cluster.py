"""From targets in a cluster to wishes: `podmgr apply pod/NAME`, `deploy/NAME`, `-l`, `-A`.

Asks the API server once for what is meant and again while pods are still to come; only pods of
this node are wished anything.

Apart from `apply`, which alone uses it: targets that are cgroups shall load nothing of a cluster.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from podmgr.attachment import Cgroup, Target, Wish
from podmgr.cluster import workloads
from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.lookup import Lookup
from podmgr.cluster.names import name_all
from podmgr.cluster.objects import Cluster, Pod, annotation_keys, mapping, misplaced_on, pod_of
from podmgr.cluster.this_node import find_node
from podmgr.errors import PodmgrError
from podmgr.kernel.cgroups import find_root
from podmgr.kernel.pod_cgroups import PodIndex
from podmgr.programs.profiles import finder
from podmgr.reconcile import ledger
from podmgr.reconcile.ledger import DamagedLedgerError
from podmgr.reconcile.outcome import Action, Outcome, Report
from podmgr.rules.annotations import hints
from podmgr.rules.match import Peer, PeerKind
from podmgr.rules.peers import in_namespace
from podmgr.rules.rule import Rule
from podmgr.rules.source import Layer
from podmgr.settings import Settings
from podmgr.targets.names import Scope
from podmgr.targets.wishes import overridden

_POLL_SECONDS = 0.5


@dataclass(slots=True)
class _Found:
    """One look: the pods to be wished something, the others, and what is still waited for."""

    here: dict[str, tuple[Pod, Cgroup]] = field(default_factory=dict)
    elsewhere: dict[str, Pod] = field(default_factory=dict)
    waiting: dict[str, PodmgrError] = field(default_factory=dict)
    misplaced: dict[str, tuple[PodmgrError, ...]] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)


class UnreadError(PodmgrError):
    """What a layer says in a namespace may not be read; what it has set before stays."""

    def __init__(self, layer: Layer, namespace: str, right: str, error: StatusError) -> None:
        where = f"namespace/{namespace}"
        what = "its annotations" if layer is Layer.NAMESPACE else "the annotations of its services"
        super().__init__(
            f"{where}: {what} may not be read, and what they have set stays as it is: {error.message}",
            tip=f"it takes the right to {right}; the ClusterRole in k3s/podmgr.yaml has it",
        )
        self.layer, self.namespace, self.where = layer, namespace, where


@dataclass
class ClusterWishes:
    """What a command line asks of a cluster. `timeout_seconds` is how long it waits for pods."""

    api: Api
    scope: Scope
    settings: Settings
    timeout_seconds: float
    report: Report
    node: str | None = None
    reads_standard: bool = False
    peer_namespaces: frozenset[str] = frozenset()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _unread: list[UnreadError] = field(default_factory=list)

    def make(self, names: Sequence[str], rules: Sequence[Rule]) -> tuple[list[Wish], list[Outcome]]:
        """A wish for each pod of this node that has rules, and an outcome for each other.

        `rules` override the annotations. Raises PodmgrError if the cluster cannot be asked.
        """
        node = find_node(self.api, self.node)
        found = self._wait(names, node)
        outcomes = [Outcome(name, None, Action.FAILED, None, error) for name, error in found.waiting.items()]
        outcomes += [
            Outcome(name, None, Action.FAILED, None, error)
            for name, errors in found.misplaced.items()
            for error in errors
        ]
        for line in found.hints:
            self.report(f"hint: {line}")
        for other, count in Counter(pod.node for pod in found.elsewhere.values()).items():
            self.report(f"{count} {'pod is' if count == 1 else 'pods are'} on node {other}: run podmgr there")
        outcomes += [
            Outcome(f"pod/{pod.ref.name}", None, Action.SKIPPED, pod=pod.ref)
            for pod in found.elsewhere.values()
        ]
        wishes, failed = self._wishes(found, rules, Lookup(self.api, node))
        outcomes += [Outcome(error.where, None, Action.FAILED, None, error) for error in self._unread]
        if not wishes and not failed and not outcomes:
            what = f"no pod of {', '.join(names)}" if names else "no pod that is selected"
            raise PodmgrError(
                f"{what} has a rule",
                tip='annotate the pod or its service: bandwidth: "10 mbps egress"; or give --rule',
            )
        return wishes, outcomes + failed

    @property
    def namespace(self) -> str:
        return self.scope.namespace or self.api.namespace

    def _wait(self, names: Sequence[str], node: str) -> _Found:
        """Look until all that is meant is there, or the time is up."""
        deadline = self.clock() + self.timeout_seconds
        index = PodIndex(find_root(self.settings.cgroup_root))
        reported: set[str] = set()
        while True:
            found = self._look(names, node, index)
            if not found.waiting or self.clock() >= deadline:
                return found
            for name in found.waiting.keys() - reported:
                reported.add(name)
                self.report(f"waiting for {name}: {found.waiting[name].message}")
            self.sleep(min(_POLL_SECONDS, max(0.0, deadline - self.clock())))

    def _look(self, names: Sequence[str], node: str, index: PodIndex) -> _Found:
        found = _Found()
        pods: dict[str, Pod] = {}
        asked: dict[str, list[Pod]] = {}
        for name, items in self._items(names, found):
            for item in items:
                where = f"pod/{mapping(item.get('metadata')).get('name')}"
                found.hints += hints(where, annotation_keys(item), reads_standard=self.reads_standard)
            asked[name] = [pod for pod in map(pod_of, items) if pod is not None]
            pods |= {pod.ref.uid: pod for pod in asked[name] if not pod.has_ended}
        found.elsewhere = {uid: pod for uid, pod in pods.items() if pod.node not in ("", node)}
        near = {uid: pod for uid, pod in pods.items() if pod.node in ("", node)}
        claims = self._claims(near.values(), node)
        places = index.find(claims.cgroup_uids(pod) for pod in near.values())
        for (uid, pod), cgroup in zip(near.items(), places, strict=True):
            if cgroup is not None:
                found.here[uid] = (pod, cgroup)
            elif pod.is_terminating:
                del pods[uid]  # it has no processes any more, and gets none
            elif not pod.node:
                found.waiting[f"pod/{pod.ref.name}"] = PodmgrError("is not scheduled to a node yet")
            else:
                found.waiting[f"pod/{pod.ref.name}"] = index.why_none(claims.cgroup_uids(pod))
        for name, meant in asked.items():
            if name and not any(pod.ref.uid in pods for pod in meant):
                ended = "has ended" if name.startswith("pod/") and meant else "has no running pod"
                found.waiting[name] = PodmgrError(ended, tip="kubectl get pods -o wide")
        return found

    def _claims(self, pods: Collection[Pod], node: str) -> Cluster:
        """All pods of the node if one of these is a static pod: which of them has the cgroup?"""
        cluster = Cluster()
        if any(pod.static_hash for pod in pods):
            cluster.replace_pods(self.api.list("/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"})[0])
        return cluster

    def _items(self, names: Sequence[str], found: _Found) -> Iterator[tuple[str, list[workloads.Item]]]:
        if not names:
            namespace = None if self.scope.all_namespaces else self.namespace
            yield "", workloads.pods_with(self.api, namespace, self.scope.labels)
        for name in names:
            kind, _, plain = name.partition("/")
            try:
                item, pods = workloads.with_pods(self.api, kind, plain, self.namespace)
                if workloads.is_workload(kind) and (wrong := misplaced_on(name, item)):
                    found.misplaced[name] = wrong
                yield name, pods
            except StatusError as error:
                if not error.is_missing:
                    raise
                where = "" if kind == "namespace" else f" in namespace {self.namespace}"
                found.waiting[name] = PodmgrError(f"there is none{where}", tip="kubectl get, or -n NAMESPACE")

    def _wishes(
        self, found: _Found, rules: Sequence[Rule], lookup: Lookup
    ) -> tuple[list[Wish], list[Outcome]]:
        cluster = self._cluster(pod for pod, _ in found.here.values())
        try:
            attached = {row.cgroup_id for row in ledger.read(self.settings.state_dir)}
        except DamagedLedgerError:
            attached = set()  # the transaction sets it aside
        wishes: list[Wish] = []
        failed: list[Outcome] = []
        said: dict[Peer, Peer] = {}
        for pod, cgroup in found.here.values():
            target = Target(f"pod/{pod.ref.name}", cgroup, pod.ref, counts_loopback=pod.has_host_network)
            own = cluster.rules(pod)
            for line in own.warnings:
                self.report(f"warning: {line}")
            failed += [
                Outcome(target.name, None, Action.FAILED, None, error, pod.ref) for error in own.errors
            ]
            named = name_all(overridden(own, rules), (), pod.ref.namespace, lookup)
            failed += [
                Outcome(target.name, sourced.rule, Action.FAILED, None, error, pod.ref)
                for sourced, error in named.refused
            ]
            for line in named.remarks:
                self.report(f"warning: {target.name}: {line}")
            for line in pod.lacks(sourced.rule for sourced in named.rules):
                self.report(f"warning: {line}")
            if named.rules or cgroup.id in attached:
                unreadable = own.unreadable | named.unreadable
                wish = Wish(target, named.rules, unreadable=unreadable, enforcing=own.enforcing)
                wish = wish._replace(peers=named.peers, containers=dict(pod.containers))
                wishes.append(wish._replace(unseen=self._unseen(pod)))
            said |= {in_namespace(peer, pod.ref.namespace): peer for peer in named.peers}
        for peer, written in said.items():
            if count := lookup(peer).addresses:
                name = written if list(said.values()).count(written) == 1 else peer
                self.report(f"{name} {_counted(count, peer)} now; only podmgr watch follows them")
        return wishes, failed

    def _cluster(self, pods: Iterable[Pod]) -> Cluster:
        """The services and namespaces that matter to these pods; `_unread` says which may not be seen."""
        cluster = Cluster(
            reads_standard=self.reads_standard,
            peer_namespaces=self.peer_namespaces,
            profiles=finder(self.settings),
        )
        services: list[workloads.Item] = []
        for namespace in sorted({pod.ref.namespace for pod in pods}):
            path = f"/api/v1/namespaces/{namespace}"
            with self._if_allowed(Layer.SERVICE, namespace, "list services"):
                services += self.api.list(f"{path}/services")[0]
            with self._if_allowed(Layer.NAMESPACE, namespace, "get namespaces"):
                cluster.put_namespace(self.api.get(path))
        cluster.replace_services(services)
        return cluster

    @contextmanager
    def _if_allowed(self, layer: Layer, namespace: str, right: str) -> Iterator[None]:
        try:
            yield
        except StatusError as error:
            if not error.is_refusal:
                raise
            self._unread.append(UnreadError(layer, namespace, right, error))

    def _unseen(self, pod: Pod) -> frozenset[Layer]:
        return frozenset(error.layer for error in self._unread if error.namespace == pod.ref.namespace)


def _counted(addresses: int, peer: Peer) -> str:
    what = f"{addresses} address{'' if addresses == 1 else 'es'}"
    return f"is all but {what} and networks" if peer.kind is PeerKind.WORLD else f"is {what}"
