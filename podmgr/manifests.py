"""Kubernetes manifests in files: the pods in them, their services and their namespaces."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from podmgr import documents
from podmgr.annotations import (
    STANDARD_KEYS,
    AnnotatedNamespace,
    AnnotatedService,
    PodRules,
    hints,
    rules_of_pod,
)
from podmgr.cluster import mapping, misplaced_on, static_hash_of, texts
from podmgr.errors import PodmgrError, UnknownKeyError, UsageError, printable
from podmgr.plan import PodRef
from podmgr.rules import is_own_key

_TIP = "-f takes a manifest, or - for standard input"
_WORKLOADS = frozenset(
    {"CronJob", "DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"}
)


@dataclass(frozen=True, slots=True)
class ManifestPod:
    """A pod, or a workload's pod template, and the rules that hold on it.

    `cgroup_uids` are the names that its cgroup may carry; none if no API server has seen it.
    `misplaced` are annotations of the workload itself, `hints` such as may be anybody's.
    """

    target: str
    ref: PodRef
    cgroup_uids: tuple[str, ...]
    has_host_network: bool
    rules: PodRules
    misplaced: tuple[UnknownKeyError, ...] = ()
    hints: tuple[str, ...] = ()


class _Item(NamedTuple):
    """An object, of which file."""

    path: str
    kind: str
    content: Mapping[str, Any]

    @property
    def metadata(self) -> Mapping[str, Any]:
        return mapping(self.content.get("metadata"))

    @property
    def name(self) -> str:
        return _text(self.metadata.get("name")) or "unnamed"

    @property
    def where(self) -> str:
        return f"{self.kind.lower()}/{self.name}"


def read_pods(
    paths: Sequence[str], default_namespace: str = "default", *, reads_standard: bool = False
) -> list[ManifestPod]:
    """The pods of these manifests (`-` is standard input), with their rules, of which there is one or more.

    Raises PodmgrError if a file cannot be read, or if there is no pod in them.
    """
    if twice := next((path for path in paths if list(paths).count(path) > 1), None):
        raise UsageError(f"-f {twice} twice", tip="name each file once")
    items = [item for path in paths for item in _items(path, _content(path))]
    pods = [(item, template) for item in items if (template := _pod_template(item))]
    if not pods:
        raise _no_pod(", ".join(paths), items)
    return [_pod(item, template, items, default_namespace, reads_standard) for item, template in pods]


def _pod(
    item: _Item,
    template: Mapping[str, Any],
    items: Sequence[_Item],
    default_namespace: str,
    reads_standard: bool,
) -> ManifestPod:
    path, where = item.path, item.where
    metadata = mapping(template.get("metadata"))
    namespace = _text(metadata.get("namespace")) or default_namespace
    services = [
        _service(other)
        for other in items
        if other.kind == "Service"
        and (_text(other.metadata.get("namespace")) or default_namespace) == namespace
    ]
    spaces = [
        AnnotatedNamespace(namespace, _annotations(other.path, other.where, other.metadata))
        for other in items
        if other.kind == "Namespace" and _text(other.metadata.get("name")) == namespace
    ]
    uid = _uid(path, metadata)
    static = static_hash_of(metadata)
    own = _annotations(path, where, metadata)
    rules = rules_of_pod(
        item.name,
        own,
        texts(metadata.get("labels")),
        services,
        next(iter(spaces), None),
        kind=item.kind.lower(),
        reads_standard=reads_standard,
    )
    return ManifestPod(
        target=where,
        ref=PodRef(namespace, item.name, uid),
        cgroup_uids=tuple(name for name in (uid, static) if name),
        has_host_network=bool(mapping(template.get("spec")).get("hostNetwork")),
        rules=rules,
        misplaced=() if template is item.content else misplaced_on(where, item.content),
        hints=tuple(hints(where, own, reads_standard=reads_standard)),
    )


def _content(path: str) -> str:
    if re.match(r"https?://", path):
        raise PodmgrError(f"podmgr fetches no {path}", tip=f"curl -fsSL {path} | podmgr apply -f -")
    try:
        if path == "-":
            content = sys.stdin.buffer.read(documents.MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(documents.MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise PodmgrError(f"{path} is a folder", tip="name its files: -f a.yaml -f b.yaml") from error
    except OSError as error:
        raise PodmgrError(f"{path}: {error.strerror}", tip=_TIP) from error
    except ValueError as error:
        raise PodmgrError(f"{printable(path)}: no name of a file", tip=_TIP) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PodmgrError(f"{path}: not UTF-8 text", tip=_TIP) from error


def _items(path: str, text: str) -> Iterator[_Item]:
    """The objects of a file, also those in lists. Items of a PodList are pods, whether they say so or not."""
    for document in documents.read(path, text):
        kind = _text(mapping(document).get("kind"))
        if not kind:
            raise PodmgrError(f"{path} is not a manifest", tip="a manifest has apiVersion, kind and metadata")
        if not kind.endswith("List"):
            yield _Item(path, kind, document)
            continue
        members = document.get("items")
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                yield _Item(path, _text(member.get("kind")) or kind.removesuffix("List"), member)


def _no_pod(paths: str, items: Sequence[_Item]) -> PodmgrError:
    """What is there instead of a pod."""
    others = sorted({item.kind for item in items})
    what = f"holds 0 pods, but {printable(', '.join(others))[:200]}" if others else "holds 0 pods"
    return PodmgrError(
        f"{paths} {what}",
        tip="rules are annotations of a Pod, or of the pod template of a Deployment and its like",
    )


def _pod_template(item: _Item) -> Mapping[str, Any]:
    """The pod of an object; an empty one if it makes none."""
    spec = mapping(item.content.get("spec"))
    if item.kind == "Pod":
        return item.content
    if item.kind == "CronJob":
        spec = mapping(mapping(spec.get("jobTemplate")).get("spec"))
    template = dict(mapping(spec.get("template")))
    if item.kind not in _WORKLOADS and "containers" not in mapping(template.get("spec")):
        return {}  # what is called a template there is something else
    if template:
        inner = dict(mapping(template.get("metadata")))
        inner.setdefault("namespace", item.metadata.get("namespace"))
        template["metadata"] = inner
    return template


def _text(value: object) -> str:
    """What should be text and is; numbers are taken, what is anything else is as if it were not there."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _service(item: _Item) -> AnnotatedService:
    return AnnotatedService(
        item.name,
        texts(mapping(mapping(item.content.get("spec")).get("selector"))),
        _annotations(item.path, item.where, item.metadata),
        _text(item.metadata.get("creationTimestamp")),
    )


def _annotations(path: str, where: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The annotations; ours must be text, as the API server demands."""
    found: dict[str, str] = {}
    for key, value in mapping(metadata.get("annotations")).items():
        if isinstance(value, str):
            found[key] = value
        elif is_own_key(key) or key in STANDARD_KEYS:
            raise PodmgrError(
                f"{path}: {printable(where)}: the annotation {key} is not text",
                tip=f'put it into quotes: {key}: "..."',
            )
    return found


def _uid(path: str, metadata: Mapping[str, Any]) -> str:
    """The pod's UID, which names a folder: no other characters than those of a UID."""
    uid = _text(metadata.get("uid"))
    if not re.fullmatch(r"[A-Za-z0-9-]{0,63}", uid, re.ASCII):
        raise PodmgrError(f"{path}: {printable(uid)[:80]!r} is not a UID", tip="leave metadata.uid out")
    return uid
