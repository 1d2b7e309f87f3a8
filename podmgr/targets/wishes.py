"""From cgroups, a manifest and rules on the command line to wishes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from podmgr.attachment import Cgroup, Target, Wish
from podmgr.errors import PodmgrError, UsageError
from podmgr.kernel import cgroups
from podmgr.kernel.pod_cgroups import PodIndex
from podmgr.programs.profiles import finder
from podmgr.reconcile.outcome import Action, Outcome, Report
from podmgr.rules.keys import KEYS
from podmgr.rules.peers import require_no_names
from podmgr.rules.precedence import PodRules
from podmgr.rules.rule import Rule
from podmgr.rules.source import CLI, Layer, Source, SourcedRule
from podmgr.settings import Settings
from podmgr.targets.cgroup import resolve

if TYPE_CHECKING:
    from podmgr.targets.manifests import ManifestPod

_MOST_NAMED = 10


def from_targets(
    names: Sequence[str], rules: Sequence[Rule], settings: Settings
) -> tuple[list[Wish], list[Outcome]]:
    """A wish for each target, and an outcome for each that there is not.

    Raises UsageError where the command line makes no sense.
    """
    if not names:
        raise UsageError(
            "no target", tip="pod/NAME, deploy/NAME, ns/NAME, -l LABELS, -A, or cgroup/PATH with --rule"
        )
    if not rules:
        raise UsageError(
            "no rule", tip="--rule 'bandwidth=10 mbps egress'; to remove rules: podmgr clean TARGET"
        )
    for rule in rules:
        require_no_names(rule.match)
    sourced = tuple(SourcedRule(rule, CLI) for rule in rules)
    wishes: list[Wish] = []
    failed: list[Outcome] = []
    root = functools.cache(functools.partial(cgroups.find_root, settings.cgroup_root))
    for name in dict.fromkeys(names):
        try:
            wishes.append(Wish(resolve(name, root()), sourced))
        except UsageError:
            raise
        except PodmgrError as error:
            failed.append(Outcome(name, None, Action.FAILED, None, error))
    return wishes, failed


def from_manifests(
    paths: Sequence[str],
    cgroup: str | None,
    names: Sequence[str],
    rules: Sequence[Rule],
    settings: Settings,
    *,
    namespace: str | None = None,
    reads_standard: bool = False,
    report: Report,
) -> tuple[list[Wish], list[Outcome]]:
    """The wishes of the manifests' pods; `rules` override their annotations.

    Of several pods the targets among `names` say which are meant. A cgroup stands for one pod.
    `namespace` is that of objects that name none; if it is given, no other is meant. An annotation
    that cannot be read, or is where none is read, is an outcome; the others hold.

    Raises PodmgrError for the rest.
    """
    places = [name for name in names if name.startswith("cgroup/")]
    places += [f"cgroup/{cgroup}"] if cgroup is not None else []
    chosen = [name for name in names if not name.startswith("cgroup/")]
    if len(places) > 1:
        raise UsageError("-f takes one cgroup", tip="podmgr apply -f pod.yaml --cgroup PATH")
    for rule in rules:
        require_no_names(rule.match)
    from podmgr.targets import manifests  # 3 ms, and only -f needs it

    there = manifests.read_pods(
        paths,
        namespace,
        reads_standard=reads_standard,
        profiles=finder(settings),
        warn=lambda line: report(f"warning: {line}"),
    )
    pods = _chosen(there, chosen, namespace, ", ".join(paths))
    if places and len(pods) > 1:
        example = f"podmgr apply {pods[0].target} -f FILE"
        raise UsageError("a cgroup stands for one pod", tip=f"name one: {example}")
    wishes: list[Wish] = []
    failed: list[Outcome] = []
    for pod in pods:
        errors = (*pod.rules.errors, *pod.misplaced)
        failed += [Outcome(pod.target, None, Action.FAILED, None, error, pod.ref) for error in errors]
        for line in pod.rules.warnings:
            report(f"warning: {line}")
        for line in pod.hints:
            report(f"hint: {line}")
        own, nameless = _without_names(pod)
        failed += nameless
        if wanted := overridden(own, rules):
            place = _place_of(pod, places, settings)
            target = Target(pod.target, place, pod.ref, counts_loopback=pod.has_host_network)
            space = Source(
                Layer.NAMESPACE, pod.ref.namespace
            )  # what it holds the pod to, a file need not say
            unseen = frozenset((space, key) for key in KEYS)
            wishes.append(Wish(target, wanted, unreadable=unseen | own.unreadable))
    if not wishes and not failed:
        raise PodmgrError(
            f"{', '.join(pod.target for pod in pods)} has no rule",
            tip='annotate it: bandwidth: "10 mbps egress"; or give --rule',
        )
    return wishes, failed


def _without_names(pod: ManifestPod) -> tuple[PodRules, list[Outcome]]:
    """Its rules but for those that name what only a cluster knows, and an outcome for each of these."""
    kept, failed = [], []
    unreadable = set(pod.rules.unreadable)
    for sourced in pod.rules.rules:
        try:
            require_no_names(sourced.rule.match)
            kept.append(sourced)
        except UsageError as error:
            unreadable.add((sourced.source, sourced.rule.key))
            failed.append(Outcome(pod.target, sourced.rule, Action.FAILED, None, error, pod.ref))
    return pod.rules._replace(rules=tuple(kept), unreadable=frozenset(unreadable)), failed


def _chosen(
    pods: Sequence[ManifestPod], names: Sequence[str], namespace: str | None, paths: str
) -> list[ManifestPod]:
    """The pods that are meant: those of these names and this namespace, or the only one."""
    where = f" in namespace {namespace}" if namespace else ""
    meant = [pod for pod in pods if namespace in (None, pod.ref.namespace)]
    if not names:
        if not meant:
            raise PodmgrError(f"{paths} holds no pod{where}", tip=f"there is {_listed(pods)}")
        return [_only(meant, f"{len(meant)} pods{where}: {_listed(meant)}", meant, paths)]
    found = []
    for name in names:
        namesakes = [pod for pod in meant if pod.target == name]
        if not namesakes:
            raise PodmgrError(f"{paths} holds no {name}{where}", tip=f"there is {_listed(pods)}")
        found.append(_only(namesakes, f"several {name}: {_listed(namesakes)}", meant, paths))
    return found


def _only(
    candidates: Sequence[ManifestPod], what: str, meant: Sequence[ManifestPod], paths: str
) -> ManifestPod:
    """The one pod of these; an error that says how to choose one if there are several."""
    first, *others = candidates
    if not others:
        return first
    namesakes = [pod.ref.namespace for pod in meant if pod.target == first.target]
    if namesakes.count(first.ref.namespace) > 1:
        again = f"{first.target} of namespace {first.ref.namespace}"
        raise PodmgrError(f"{paths} holds {again} twice", tip="leave one of them out")
    option = f" -n {first.ref.namespace}" if len(namesakes) > 1 else ""
    raise PodmgrError(f"{paths} holds {what}", tip=f"say which: podmgr apply {first.target}{option} -f FILE")


def _listed(pods: Sequence[ManifestPod]) -> str:
    """Their names, and their namespaces if there is more than the default one."""
    has_namespaces = {pod.ref.namespace for pod in pods} != {"default"}
    shown = [f"{pod.target} in {pod.ref.namespace}" if has_namespaces else pod.target for pod in pods]
    return ", ".join(shown[:_MOST_NAMED]) + (", …" if len(pods) > _MOST_NAMED else "")


def _place_of(pod: ManifestPod, places: Sequence[str], settings: Settings) -> Cgroup:
    if places:
        return resolve(places[0], cgroups.find_root(settings.cgroup_root)).cgroup
    return _cgroup_of(pod, settings)


def _cgroup_of(pod: ManifestPod, settings: Settings) -> Cgroup:
    """The cgroup of a pod that runs on this machine, found by its UID."""
    if not pod.cgroup_uids:
        raise UsageError(
            f"{pod.target} has no UID: which cgroup is it?",
            tip="add --cgroup PATH, or take the pod from the cluster: kubectl get pod NAME -o yaml",
        )
    index = PodIndex(cgroups.find_root(settings.cgroup_root))
    (found,) = index.find([pod.cgroup_uids])
    if found is None:
        raise index.why_none(pod.cgroup_uids, may_be_named=True)
    return found


def overridden(own: PodRules, rules: Sequence[Rule]) -> tuple[SourcedRule, ...]:
    """A pod's rules, with those of the command line over all that a namespace does not enforce."""
    keys = {rule.collision_key for rule in rules}
    enforced = [sourced.rule for sourced in own.rules if sourced.is_enforced]
    kept = [item for item in own.rules if item.is_enforced or item.rule.collision_key not in keys]
    return (*kept, *(SourcedRule(rule, CLI) for rule in rules if rule not in enforced))
