"""Annotating objects of a cluster: which are meant, what would change, and the changing.

All of them are looked at before the first is changed: what one of them refuses stops all.

Apart from `kubectl podmgr annotate`, which alone uses it: what a library may do, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from podmgr.cluster import workloads
from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.dryrun import DryRun
from podmgr.cluster.objects import mapping, texts
from podmgr.errors import PodmgrError, UsageError

_ATTEMPTS = 5
_CONFLICT = 409
_ENDED = ("Succeeded", "Failed")
_TEMPLATES = {"cronjob": ("spec", "jobTemplate", "spec", "template")}

Decide = Callable[[Mapping[str, str]], dict[str, str | None]]  # from the annotations there: what changes


class Done(StrEnum):
    """What became of an annotation, or of an object."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class Place(NamedTuple):
    """Annotations of one object: its own, or with `is_template` those that its pods get."""

    kind: str
    namespace: str  # "" for a namespace
    name: str
    is_template: bool = False

    @property
    def target(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def shown(self) -> str:
        """As a user reads it."""
        return f"{self.target} (pod template)" if self.is_template else self.target

    @property
    def path(self) -> str:
        return workloads.path_of(self.kind, self.name, self.namespace or self.name)

    @property
    def fields(self) -> tuple[str, ...]:
        """Where in the object the metadata stand that hold them."""
        template = _TEMPLATES.get(self.kind, ("spec", "template")) if self.is_template else ()
        return (*template, "metadata", "annotations")


class Result(NamedTuple):
    """What became of one annotation of one object; `key` "" is the object as a whole."""

    place: Place
    key: str
    value: str | None
    done: Done
    error: PodmgrError | None = None


class Meant(NamedTuple):
    """What a command line means: objects of one kind, by name, or by labels ("" is any)."""

    kind: str
    names: tuple[str, ...] = ()
    labels: str = ""
    namespace: str | None = None  # None: all
    is_template: bool = False


def find(api: Api, meant: Sequence[Meant]) -> tuple[dict[Place, workloads.Item], list[Result]]:
    """The objects whose annotations are meant, and a failure for each that is not there or has no pods.

    A workload stands for the pods that it has now, or with `is_template` for its pod template.
    """
    found: dict[Place, workloads.Item] = {}
    failed: list[Result] = []
    for wish in meant:
        for name, item in _objects(api, wish, failed):
            namespace = str(mapping(item.get("metadata")).get("namespace") or "")
            place = Place(wish.kind, namespace, name, wish.is_template)
            if not workloads.is_workload(wish.kind) or wish.is_template:
                found[place] = item
                continue
            pods = workloads.pods_of_item(api, wish.kind, item, namespace)
            living = [pod for pod in pods if mapping(pod.get("status")).get("phase") not in _ENDED]
            if not living:
                error = PodmgrError(
                    "it has no pods now", tip="--template writes it into the template of pods to come"
                )
                failed.append(Result(place, "", None, Done.FAILED, error))
            found |= {Place("pod", namespace, str(pod["metadata"]["name"])): pod for pod in living}
    return found, failed


def _objects(api: Api, wish: Meant, failed: list[Result]) -> Iterator[tuple[str, workloads.Item]]:
    if not wish.names:
        path = workloads.folder_of(wish.kind, wish.namespace and workloads.require_name(wish.namespace))
        for item in api.list(path, {"labelSelector": wish.labels} if wish.labels else {})[0]:
            yield str(item["metadata"]["name"]), item
        return
    namespace = "" if wish.kind == "namespace" else wish.namespace or api.namespace
    for name in wish.names:
        place = Place(wish.kind, namespace, name, wish.is_template)
        try:
            yield name, api.get(place.path)
        except StatusError as error:
            if not error.is_missing:
                raise
            where = f" in namespace {namespace}" if namespace else ""
            missing = PodmgrError(f"there is none{where}", tip="kubectl get, or -n NAMESPACE")
            failed.append(Result(place, "", None, Done.FAILED, missing))


def require_template(kind: str) -> None:
    """Raises UsageError for a kind that has no pod template, or none that may change."""
    if not workloads.is_workload(kind):
        raise UsageError(f"a {kind} has no pod template", tip="leave --template out")
    if kind == "job":
        raise UsageError(
            "the pod template of a job cannot be changed", tip="without --template: the pods that it has now"
        )


def annotations_of(place: Place, item: Mapping[str, Any]) -> dict[str, str]:
    """The annotations there."""
    found: Any = item
    for field in place.fields:
        found = mapping(mapping(found).get(field))
    return texts(found)


def write(
    api: Api, found: Mapping[Place, workloads.Item], decide: Decide, dry_run: DryRun = DryRun.NONE
) -> list[Result]:
    """Change them all, or none if `decide` refuses one: it raises PodmgrError then. A row for each change."""
    results: list[Result] = []
    for place, item in found.items():
        try:
            decide(annotations_of(place, item))
        except PodmgrError as error:
            results.append(Result(place, "", None, Done.FAILED, error))
    if results:
        return results
    for place, item in found.items():
        try:
            results += _written(api, place, item, decide, dry_run)
        except PodmgrError as error:
            results.append(Result(place, "", None, Done.FAILED, error))
    return results


def _written(
    api: Api, place: Place, item: Mapping[str, Any], decide: Decide, dry_run: DryRun
) -> list[Result]:
    """One object. If somebody else changes it meanwhile, it is looked at anew: theirs is not overwritten."""
    for attempt in range(_ATTEMPTS):
        there = annotations_of(place, item)
        changes = decide(there)
        if not changes:
            return [Result(place, "", None, Done.UNCHANGED)]
        if dry_run is not DryRun.CLIENT:
            try:
                api.patch(
                    place.path,
                    _patch(place, item, changes),
                    {"dryRun": "All"} if dry_run is DryRun.SERVER else {},
                )
            except StatusError as error:
                if error.status != _CONFLICT or attempt == _ATTEMPTS - 1:
                    raise
                item = api.get(place.path)
                continue
        return [Result(place, key, value, _done(there, key, value)) for key, value in changes.items()]
    raise AssertionError  # the last attempt has raised


def _patch(place: Place, item: Mapping[str, Any], changes: Mapping[str, str | None]) -> dict[str, Any]:
    """With the version that was looked at: the server refuses it if the object is another by now."""
    patch: dict[str, Any] = dict(changes)
    for field in reversed(place.fields):
        patch = {field: patch}
    version = mapping(item.get("metadata")).get("resourceVersion")
    return {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": version}}


def _done(there: Mapping[str, str], key: str, value: str | None) -> Done:
    return Done.REMOVED if value is None else Done.CHANGED if key in there else Done.ADDED
