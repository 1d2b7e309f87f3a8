"""Kubernetes manifests in files: the pods in them, their services and their namespaces.

Apart from `wishes`, which alone uses it: only -f needs YAML.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from podmgr.attachment import PodRef
from podmgr.cluster import documents
from podmgr.cluster.objects import annotation_keys, mapping, misplaced_on, static_hash_of, texts
from podmgr.errors import PodmgrError, RuleError, UnknownKeyError, UsageError, printable
from podmgr.rules.annotations import hints
from podmgr.rules.keys import KEYS, PREFIX, STANDARD_KEYS, is_own_key
from podmgr.rules.precedence import AnnotatedNamespace, AnnotatedService, NotText, PodRules, rules_of_pod
from podmgr.rules.profiles import rules_of_built_in
from podmgr.rules.source import POD, parse_source
from podmgr.rules.words import Profiles

_MOST_SHOWN = 1_000  # characters of what is no text
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

    def namespace(self, default: str) -> str:
        """Its own, or for a Namespace its name."""
        if self.kind == "Namespace":
            return self.name
        return _text(self.metadata.get("namespace")) or default

    @property
    def where(self) -> str:
        return f"{self.kind.lower()}/{self.name}"


def read_pods(
    paths: Sequence[str],
    namespace: str | None = None,
    *,
    reads_standard: bool = False,
    profiles: Profiles = rules_of_built_in,
    warn: Callable[[str], None] = lambda _: None,
) -> list[ManifestPod]:
    """The pods of these manifests (`-` is standard input), with their rules, of which there is one or more.

    `namespace` is that of objects that name none ("default" if it is None). `profiles` says what the
    name of one stands for. `warn` is told of rules
    that hold on none of the pods; if a namespace is given, of that one.

    Raises PodmgrError if a file cannot be read, or if there is no pod in them.
    """
    if twice := next((path for path in paths if list(paths).count(path) > 1), None):
        raise UsageError(f"-f {twice} twice", tip="name each file once")
    items = [item for path in paths for item in _items(path, _content(path))]
    templates = [(item, template) for item in items if (template := _pod_template(item))]
    if not templates:
        raise _no_pod(", ".join(paths), items)
    default = namespace or "default"
    for item in items:
        if namespace in (None, item.namespace(default)) and (why := _unused(item, templates, default)):
            warn(f"{item.where}: {why}")
    return [_pod(item, template, items, default, reads_standard, profiles) for item, template in templates]


def _unused(item: _Item, templates: Sequence[tuple[_Item, Mapping[str, Any]]], default: str) -> str:
    """Why rules that this object carries hold on no pod of the files; "" if they do, or if it has none."""
    keys = [key for key in annotation_keys(item.content) if is_own_key(key)]
    prefixed = [key for key in sorted(keys) if key.startswith(PREFIX)]
    if item.kind == "Service":
        service = _service(item)
        selected = (
            service.selects(texts(mapping(template.get("metadata")).get("labels")))
            for other, template in templates
            if other.namespace(default) == item.namespace(default)
        )
        return "it has rules, but selects no pod here" if keys and not any(selected) else ""
    if item.kind == "Namespace":
        is_used = any(other.namespace(default) == item.name for other, _ in templates)
        return "it has rules, but no pod here is in it" if keys and not is_used else ""
    if prefixed and all(item is not other for other, _ in templates):
        return (
            f"the annotation {prefixed[0][:120]} of such an object is not read; rules are annotations of pods"
        )
    return ""


def _pod(
    item: _Item,
    template: Mapping[str, Any],
    items: Sequence[_Item],
    default_namespace: str,
    reads_standard: bool,
    profiles: Profiles,
) -> ManifestPod:
    where = item.where
    metadata = mapping(template.get("metadata"))
    namespace = item.namespace(default_namespace)
    labels = texts(metadata.get("labels"))
    services = [
        other
        for other in items
        if other.kind == "Service"
        and other.namespace(default_namespace) == namespace
        and _service(other).selects(labels)
    ]
    spaces = [other for other in items if other.kind == "Namespace" and other.name == namespace][:1]
    uid = _uid(item.path, metadata)
    static = static_hash_of(metadata)
    own = _annotations(metadata)
    rules = rules_of_pod(
        item.name,
        own,
        labels,
        [_service(other) for other in services],
        AnnotatedNamespace(namespace, _annotations(spaces[0].metadata)) if spaces else None,
        kind=item.kind.lower(),
        reads_standard=reads_standard,
        profiles=profiles,
    )
    sources = [
        (POD, where, metadata),
        *((parse_source(other.where), other.where, other.metadata) for other in (*services, *spaces)),
    ]
    broken = {source: error for source, place, data in sources if (error := _no_mapping(place, data))}
    rules = rules._replace(
        errors=(*rules.errors, *broken.values()),
        unreadable=rules.unreadable | {(source, key) for source in broken for key in KEYS},
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
    shown = "standard input" if path == "-" else path
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
        raise PodmgrError(f"{shown}: not UTF-8 text", tip=_TIP) from error


def _items(path: str, text: str) -> Iterator[_Item]:
    """The objects of a file, also those in lists. Items of a PodList are pods, whether they say so or not."""
    for document in documents.read(path, text, tip="-f takes manifests, as YAML or JSON"):
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
    template = mapping(spec.get("template"))
    if item.kind not in _WORKLOADS and "containers" not in mapping(template.get("spec")):
        return {}  # what is called a template there is something else
    return template


def _text(value: object) -> str:
    """What should be text and is; numbers are taken, what is anything else is as if it were not there."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _service(item: _Item) -> AnnotatedService:
    return AnnotatedService(
        item.name,
        texts(mapping(mapping(item.content.get("spec")).get("selector"))),
        _annotations(item.metadata),
        _text(item.metadata.get("creationTimestamp")),
    )


def _annotations(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The annotations; null is as if it were not there, and what of ours is no text is NotText."""
    found: dict[str, str] = {}
    for key, value in mapping(metadata.get("annotations")).items():
        if isinstance(value, str):
            found[key] = value
        elif value is not None and (is_own_key(key) or key in STANDARD_KEYS):
            found[key] = _as_json(value)
    return found


def _no_mapping(where: str, metadata: Mapping[str, Any]) -> RuleError | None:
    """The error of an object whose annotations are a list, or a text."""
    annotations = metadata.get("annotations")
    if annotations is None or isinstance(annotations, dict):
        return None
    return RuleError(
        "not keys with values",
        key="annotations",
        value=_as_json(annotations),
        column=1,
        expected='such as annotations: {bandwidth: "10 mbps egress"}',
        where=where,
    )


def _as_json(value: object) -> NotText:
    return NotText(json.dumps(value)[:_MOST_SHOWN])


def _uid(path: str, metadata: Mapping[str, Any]) -> str:
    """The pod's UID, which names a folder: no other characters than those of a UID."""
    uid = _text(metadata.get("uid"))
    if not re.fullmatch(r"[A-Za-z0-9-]{0,63}", uid, re.ASCII):
        raise PodmgrError(f"{path}: {printable(uid)[:80]!r} is not a UID", tip="leave metadata.uid out")
    return uid
