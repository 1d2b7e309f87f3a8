"""Kubernetes manifests in files: the one pod that is meant, its services and its namespace."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from podmgr.annotations import AnnotatedNamespace, AnnotatedService, PodRules, rules_of_pod
from podmgr.cluster import mapping, static_hash_of, texts
from podmgr.errors import PodmgrError, printable
from podmgr.plan import PodRef
from podmgr.rules import bare_key

_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class ManifestPod:
    """A pod, or a workload's pod template, and the rules that hold on it.

    `cgroup_uids` are the names that its cgroup may carry; none if no API server has seen it.
    """

    target: str
    ref: PodRef
    cgroup_uids: tuple[str, ...]
    has_host_network: bool
    rules: PodRules


def read_pod(path: str, default_namespace: str = "default") -> ManifestPod:
    """The one pod of a manifest (`-` is standard input), with its rules.

    Raises PodmgrError if the file cannot be read, or holds no pod or several.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise PodmgrError(f"{path}: {reason}", tip="-f takes a manifest, or - for standard input") from error
    objects = list(_objects(path, text))
    pods = [(kind, name, template) for kind, name, template in map(_pod_template, objects) if template]
    if len(pods) != 1:
        raise PodmgrError(
            f"{path} holds {len(pods)} pods", tip="one Pod, or one workload with a pod template, per cgroup"
        )
    kind, name, template = pods[0]
    metadata = mapping(template.get("metadata"))
    namespace = str(metadata.get("namespace") or default_namespace)
    services = [
        _service(path, item)
        for item in objects
        if item.get("kind") == "Service"
        and str(mapping(item.get("metadata")).get("namespace") or default_namespace) == namespace
    ]
    spaces = [
        AnnotatedNamespace(namespace, _annotations(path, f"namespace/{namespace}", mapping(item["metadata"])))
        for item in objects
        if item.get("kind") == "Namespace" and mapping(item.get("metadata")).get("name") == namespace
    ]
    uid = _uid(path, metadata)
    static = static_hash_of(metadata)
    rules = rules_of_pod(
        name,
        _annotations(path, f"{kind}/{name}", metadata),
        texts(metadata.get("labels")),
        services,
        next(iter(spaces), None),
    )
    return ManifestPod(
        target=f"{kind}/{name}",
        ref=PodRef(namespace, name, uid),
        cgroup_uids=tuple(item for item in (uid, static) if item),
        has_host_network=bool(mapping(template.get("spec")).get("hostNetwork")),
        rules=rules,
    )


def _objects(path: str, text: str) -> Iterator[Mapping[str, Any]]:
    import yaml  # 45 ms: only where manifests are read

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(path, yaml.parse(text, Loader=loader))
        documents = list(yaml.load_all(text, Loader=loader))
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise PodmgrError(f"{path} is not YAML", detail=str(error), tip="-f takes a manifest") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict) or "kind" not in document:
            raise PodmgrError(f"{path} is not a manifest", tip="a manifest has apiVersion, kind and metadata")
        items = document.get("items") if str(document["kind"]).endswith("List") else [document]
        yield from (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()


def _check_depth(path: str, events: Iterable[Any]) -> None:
    """Refuse what would overrun the stack of the YAML library, which recurses in C."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if depth > _MAX_DEPTH:
            raise PodmgrError(f"{path} is nested too deeply", tip="-f takes a manifest")


def _pod_template(item: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """Kind, name and the pod of an object; an empty pod if it makes none."""
    kind = str(item.get("kind", "")).lower()
    metadata = mapping(item.get("metadata"))
    name = str(metadata.get("name") or "unnamed")
    spec = mapping(item.get("spec"))
    if kind == "pod":
        return kind, name, item
    if kind == "cronjob":
        spec = mapping(mapping(spec.get("jobTemplate")).get("spec"))
    template = dict(mapping(spec.get("template")))
    if template:
        inner = dict(mapping(template.get("metadata")))
        inner.setdefault("namespace", metadata.get("namespace"))
        template["metadata"] = inner
    return kind, name, template


def _service(path: str, item: Mapping[str, Any]) -> AnnotatedService:
    metadata = mapping(item.get("metadata"))
    name = str(metadata.get("name") or "unnamed")
    selector = mapping(mapping(item.get("spec")).get("selector"))
    return AnnotatedService(
        name,
        texts(selector),
        _annotations(path, f"service/{name}", metadata),
        _timestamp(metadata.get("creationTimestamp")),
    )


def _annotations(path: str, where: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The annotations; ours must be text, as the API server demands."""
    found: dict[str, str] = {}
    for key, value in mapping(metadata.get("annotations")).items():
        if isinstance(value, str):
            found[str(key)] = value
        elif bare_key(str(key)):
            raise PodmgrError(
                f"{path}: {printable(where)}: the annotation {key} is not text",
                tip=f'put it into quotes: {key}: "..."',
            )
    return found


def _uid(path: str, metadata: Mapping[str, Any]) -> str:
    """The pod's UID, which names a folder: no other characters than those of a UID."""
    uid = str(metadata.get("uid") or "")
    if not re.fullmatch(r"[A-Za-z0-9-]{0,63}", uid, re.ASCII):
        raise PodmgrError(f"{path}: {printable(uid)[:80]!r} is not a UID", tip="leave metadata.uid out")
    return uid


def _timestamp(value: object) -> str:
    """RFC 3339 in UTC, so that it sorts as text; YAML reads one without quotes as a time."""
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value or "")
