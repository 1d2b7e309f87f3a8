"""Asking a cluster what pods were told: the pods that are meant, and what else matters to them.

Apart from `kubectl podmgr get`, which alone uses it: what a library may ask, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from podmgr.cluster import workloads
from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.objects import Cluster, annotation_keys, mapping, misplaced_on
from podmgr.cluster.reasons import COMPONENT
from podmgr.cluster.told import Look, Told, notices_of, pods_of
from podmgr.errors import PodmgrError
from podmgr.rules.annotations import hints
from podmgr.rules.profiles import rules_of_built_in
from podmgr.rules.words import Profiles

_FORBIDDEN = 403
_MOST_ASKED_ONE_BY_ONE = 1  # from two pods on, the Events of a namespace are one question

Report = Callable[[str], None]  # takes one line for the user, beside the results


class Answer(NamedTuple):
    """`failed` are the targets of which nothing can be told, and why."""

    rows: list[Told]
    failed: list[tuple[str, PodmgrError]]


def ask(
    api: Api,
    names: Sequence[str],
    *,
    namespace: str | None,
    labels: str = "",
    reads_standard: bool = False,
    profiles: Profiles = rules_of_built_in,
    report: Report,
) -> Answer:
    """What was told to the pods that `names` stand for, or to all of a namespace (None: of all).

    Raises PodmgrError if the cluster cannot be asked.
    """
    items, failed = _pods(api, names, namespace, labels)
    for item in items:
        where = f"pod/{mapping(item.get('metadata')).get('name')}"
        for line in hints(where, annotation_keys(item), reads_standard=reads_standard):
            report(f"hint: {line}")
    look = Look(datetime.now(UTC), Cluster(reads_standard=reads_standard, profiles=profiles))
    pods = pods_of(items)
    spaces = sorted({pod.ref.namespace for pod in pods})
    everywhere = namespace is None and not names
    look.put(items, _services(api, spaces, everywhere), _namespaces(api, spaces, everywhere, report))
    uids = [pod.ref.uid for pod in pods]
    look.events = None
    try:
        look.events = notices_of(_events(api, spaces, everywhere, uids))
    except StatusError as error:
        if error.status != _FORBIDDEN:
            raise
        report("warning: Events may not be read, so what became of the rules is not known")
    rows = []
    for pod in sorted(pods, key=lambda pod: pod.ref):
        rows += look.of(pod)
        for line in look.cluster.rules(pod).warnings:
            if "gives way to" not in line:  # that stands among the rows
                report(f"warning: {line}")
    return Answer(rows, failed)


def _pods(
    api: Api, names: Sequence[str], namespace: str | None, labels: str
) -> tuple[list[workloads.Item], list[tuple[str, PodmgrError]]]:
    """Each once."""
    if not names:
        return workloads.pods_with(api, namespace, labels), []
    place = namespace or api.namespace
    found: dict[str, workloads.Item] = {}
    failed: list[tuple[str, PodmgrError]] = []
    for name in names:
        kind, _, plain = name.partition("/")
        try:
            item, pods = workloads.with_pods(api, kind, plain, place)
        except StatusError as error:
            if not error.is_missing:
                raise
            where = "" if kind == "namespace" else f" in namespace {place}"
            failed.append((name, PodmgrError(f"there is none{where}", tip="kubectl get, or -n NAMESPACE")))
            continue
        if workloads.is_workload(kind):
            failed += [(name, error) for error in misplaced_on(name, item)]
        found |= {str(mapping(pod.get("metadata")).get("uid")): pod for pod in pods}
    return list(found.values()), failed


def _services(api: Api, spaces: Sequence[str], everywhere: bool) -> list[workloads.Item]:
    places: Iterable[str | None] = [None] if everywhere else spaces
    return [item for space in places for item in api.list(workloads.folder_of("service", space))[0]]


def _namespaces(api: Api, spaces: Sequence[str], everywhere: bool, report: Report) -> list[workloads.Item]:
    found: list[workloads.Item] = []
    for space in [None] if everywhere else spaces:
        try:
            if space is None:
                found += api.list(workloads.folder_of("namespace", None))[0]
            else:
                found.append(api.get(workloads.path_of("namespace", space, space)))
        except StatusError as error:
            if error.status != _FORBIDDEN:
                raise
            what = "namespaces" if space is None else f"namespace {space}"
            report(f"warning: the annotations of {what} may not be read")
    return found


def _events(api: Api, spaces: Sequence[str], everywhere: bool, uids: Sequence[str]) -> list[workloads.Item]:
    """Of podmgr's; the server looks who posted them."""
    query = {"fieldSelector": f"source={COMPONENT}"}
    if len(uids) <= _MOST_ASKED_ONE_BY_ONE:
        query["fieldSelector"] += "".join(f",involvedObject.uid={uid}" for uid in uids)
    paths = ["/api/v1/events"] if everywhere else [f"/api/v1/namespaces/{space}/events" for space in spaces]
    return [item for path in paths for item in api.list(path, query)[0]]
