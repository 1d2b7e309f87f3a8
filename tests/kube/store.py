"""What the API server knows: objects, their versions, and what happened to them lately. No HTTP here.

Objects are values: a change makes a new dict that shares what did not change, so that history costs little.
Each is encoded once, when it changes; lists and all watchers send those same bytes.
"""

from __future__ import annotations

import bisect
import json
import marshal
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Obj = dict[str, Any]
Key = tuple[str, str]  # namespace ("" for what is in none) and name
Selector = Callable[[Obj], bool]


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object, as the API names it."""

    name: str
    kind: str
    prefix: str = "/api/v1"
    namespaced: bool = True
    # What a fieldSelector may ask for, beside the name and the namespace.
    fields: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    def typed(self, body: bytes) -> bytes:
        """An encoded object with its kind. Items of a list have none, as with the real server."""
        return f'{{"apiVersion":"{self.api_version}","kind":"{self.kind}",'.encode() + body[1:]

    def line(self, event: str, body: bytes) -> bytes:
        """One line of a watch."""
        return b'{"type":"%s","object":%s}\n' % (event.encode(), self.typed(body))


RESOURCES = {
    resource.name: resource
    for resource in (
        Resource("pods", "Pod", fields=("spec.nodeName", "status.phase")),
        Resource("services", "Service"),
        Resource("namespaces", "Namespace", namespaced=False, fields=("status.phase",)),
        Resource("nodes", "Node", namespaced=False),
        Resource(
            "events",
            "Event",
            fields=("involvedObject.name", "involvedObject.uid", "reason", "source", "type"),
        ),
        Resource("endpointslices", "EndpointSlice", "/apis/discovery.k8s.io/v1"),
        Resource("deployments", "Deployment", "/apis/apps/v1"),
        Resource("replicasets", "ReplicaSet", "/apis/apps/v1"),
        Resource("statefulsets", "StatefulSet", "/apis/apps/v1"),
        Resource("daemonsets", "DaemonSet", "/apis/apps/v1"),
        Resource("jobs", "Job", "/apis/batch/v1"),
        Resource("cronjobs", "CronJob", "/apis/batch/v1"),
    )
}
_BY_KIND = {resource.kind: resource for resource in RESOURCES.values()}

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class StatusError(Exception):
    """A refusal, with what the real server says in its Status."""

    def __init__(self, code: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or _REASONS.get(code, "Unknown")

    def as_object(self) -> Obj:
        kind = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return kind | {"message": self.message, "reason": self.reason, "code": self.code}

    def as_line(self) -> bytes:
        """As a watch says it when the stream has begun."""
        return b'{"type":"ERROR","object":%s}\n' % encode(self.as_object())


@dataclass(frozen=True, slots=True)
class Event:
    """One change: before is None for a new object, after for a deleted one."""

    version: int
    before: Obj | None
    after: Obj | None
    body: bytes  # after; or before, with the version of its deletion

    def line(self, resource: Resource, matches: Selector) -> bytes | None:
        """What a watcher with this selector sees of it: what stops matching is gone for it."""
        was = self.before is not None and matches(self.before)
        if self.after is not None and matches(self.after):
            return resource.line("MODIFIED" if was else "ADDED", self.body)
        if not was or self.before is None:
            return None
        return resource.line(
            "DELETED", self.body if self.after is None else _body(_stamped(self.before, self.version))
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines for a watcher, which version they lead up to, and from where to read on."""

    lines: list[bytes]
    version: int
    position: int


@dataclass(slots=True)
class _Log:
    """The latest events of one resource. `first` counts those dropped, `horizon` is the last of them."""

    events: deque[Event] = field(default_factory=deque)
    first: int = 0
    horizon: int = 0

    def drop(self, keep: int) -> None:
        while len(self.events) > keep:
            self.horizon = self.events.popleft().version
            self.first += 1


class Store:
    """Objects and their history. Every method may be called from any thread.

    What goes in and what comes out are copies. `objects` are the store's own: to replace or delete one
    there is a change that no watcher hears of. Do not write into one.
    """

    def __init__(self, *, history: int = 5000) -> None:
        self.history = history
        self.version = 1
        self.lock = threading.RLock()
        self.objects: dict[str, dict[Key, Obj]] = {name: {} for name in RESOURCES}
        self._bodies: dict[tuple[str, Key], tuple[Obj, bytes]] = {}
        self._logs = {name: _Log() for name in RESOURCES}
        self._snapshots: dict[str, tuple[int, list[bytes]]] = {}

    def create(self, obj: Obj) -> Obj:
        resource = _BY_KIND[obj["kind"]]
        obj = _copy(obj)
        obj.setdefault("apiVersion", resource.api_version)
        meta = obj.setdefault("metadata", {})
        _drop_empty(meta)
        if not meta.get("name") and "generateName" in meta:
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        if resource.namespaced:
            meta["namespace"] = meta.get("namespace") or "default"
        meta["uid"] = meta.get("uid") or str(uuid.uuid4())
        meta["creationTimestamp"] = meta.get("creationTimestamp") or now()
        key = (meta.get("namespace", ""), meta["name"])
        with self.lock:
            if key in self.objects[resource.name]:
                raise StatusError(409, f'{resource.name} "{key[1]}" already exists', "AlreadyExists")
            return self._write(resource, key, obj)

    def get(self, resource: str, namespace: str, name: str) -> Obj:
        with self.lock:
            return _copy(self._find(resource, namespace, name)[1])

    def replace(self, obj: Obj) -> Obj:
        """As PUT does: the uid stays, and a resourceVersion must be the one the object has."""
        resource = _BY_KIND[obj["kind"]]
        obj = _copy(obj)
        meta = obj["metadata"]
        with self.lock:
            key, before = self._find(resource.name, meta.get("namespace", "default"), meta["name"])
            for fixed in ("uid", "creationTimestamp"):
                meta[fixed] = before["metadata"][fixed]
            meta.setdefault("resourceVersion", before["metadata"]["resourceVersion"])
            return self._update(resource, key, before, obj)

    def patch(self, resource: str, namespace: str, name: str, patch: Obj, *, is_kept: bool = True) -> Obj:
        """A JSON merge patch (RFC 7386): None removes. Not kept: a dry run."""
        patch = _copy(patch)
        with self.lock:
            key, before = self._find(resource, namespace, name)
            return self._update(RESOURCES[resource], key, before, _merged(before, patch), is_kept=is_kept)

    def annotate(
        self, resource: str, namespace: str, name: str, annotations: dict[str, str | None] | None
    ) -> Obj:
        """Set annotations; a value of None removes one, and None for all removes them all."""
        return self.patch(resource, namespace, name, {"metadata": {"annotations": annotations}})

    def delete(self, resource: str, namespace: str, name: str) -> Obj:
        with self.lock:
            key, _ = self._find(resource, namespace, name)
            return self._write(RESOURCES[resource], key, None)

    def events(self) -> list[Obj]:
        """The Event objects that were posted, in their order."""
        with self.lock:
            return [self.get("events", *key) for key in self.objects["events"]]

    def forget_history(self) -> None:
        """As etcd after a compaction: every version that was ever given out is too old now."""
        with self.lock:
            self.version += 1
            for log in self._logs.values():
                log.drop(0)
                log.horizon = self.version
            self._snapshots.clear()

    def page(self, resource: Resource, matches: Selector, limit: int = 0, token: str = "") -> bytes:
        """The encoded List. Later pages are of the same state as the first one."""
        with self.lock:
            name, _, offset = token.partition(".")
            start = int(offset or 0)
            if not token:
                objects = self.objects[resource.name]
                chosen = [(key, objects[key]) for key in sorted(objects) if matches(objects[key])]
                version, bodies = self.version, [self._encoded(resource.name, *pair) for pair in chosen]
            elif name in self._snapshots:
                version, bodies = self._snapshots[name]
            else:
                raise StatusError(410, "The provided continue parameter is too old")
            meta: Obj = {"resourceVersion": str(version)}
            end = start + limit if limit else len(bodies)
            if end < len(bodies):
                name = name or uuid.uuid4().hex
                self._snapshots[name] = (version, bodies)
                while len(self._snapshots) > 16:  # of clients that never came back
                    del self._snapshots[next(iter(self._snapshots))]
                meta |= {"continue": f"{name}.{end}", "remainingItemCount": len(bodies) - end}
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta}
        return encode(head)[:-1] + b',"items":[' + b",".join(bodies[start:end]) + b"]}"

    def follow(self, resource: Resource, matches: Selector, version: str) -> Batch:
        """Where a watch begins: after that version, or with all there is now."""
        with self.lock:
            log = self._logs[resource.name]
            if version in {"", "0"}:
                pairs = self.objects[resource.name].items()
                bodies = [self._encoded(resource.name, key, obj) for key, obj in pairs if matches(obj)]
                lines = [resource.line("ADDED", body) for body in bodies]
                return Batch(lines, self.version, log.first + len(log.events))
            if not version.isdecimal():
                raise StatusError(400, f'Invalid value: "{version}": strconv.ParseUint: invalid syntax')
            if int(version) < log.horizon:
                raise self._too_old(version, log)
            passed = bisect.bisect_right(log.events, int(version), key=lambda event: event.version)
            return self.read(resource, matches, log.first + passed)

    def read(self, resource: Resource, matches: Selector, position: int) -> Batch:
        """What has happened since; Expired (410) if it is not known any more."""
        with self.lock:
            log = self._logs[resource.name]
            if position < log.first:
                raise self._too_old("?", log)
            count = len(log.events)
            events = [log.events[index] for index in range(position - log.first, count)]
            version, position = self.version, log.first + count
        lines = [line for event in events if (line := event.line(resource, matches))]
        return Batch(lines, version, position)

    def _changed(self, resource: str) -> None:
        """Called with the lock held after each event."""

    def _find(self, resource: str, namespace: str, name: str) -> tuple[Key, Obj]:
        key = (namespace if RESOURCES[resource].namespaced else "", name)
        if key not in self.objects[resource]:
            raise StatusError(404, f'{resource} "{name}" not found')
        return key, self.objects[resource][key]

    def _update(self, resource: Resource, key: Key, before: Obj, after: Obj, *, is_kept: bool = True) -> Obj:
        if after["metadata"].get("resourceVersion") != before["metadata"].get("resourceVersion"):
            raise StatusError(409, f'Operation cannot be fulfilled on {resource.name} "{key[1]}": modified')
        _drop_empty(after["metadata"])
        if after == before:  # the real server gives such a write no version and no event
            return self.get(resource.name, *key)
        return self._write(resource, key, after) if is_kept else _copy(after)

    def _write(self, resource: Resource, key: Key, after: Obj | None) -> Obj:
        objects = self.objects[resource.name]
        before = objects.get(key)
        self.version += 1
        obj = _stamped(after or before or {}, self.version)
        body = _body(obj)
        if after is None:
            del objects[key]
            self._bodies.pop((resource.name, key), None)
        else:
            objects[key] = obj
            self._bodies[resource.name, key] = (obj, body)
        log = self._logs[resource.name]
        log.events.append(Event(self.version, before, None if after is None else obj, body))
        log.drop(self.history)
        self._changed(resource.name)
        return _copy(obj)

    def _encoded(self, resource: str, key: Key, obj: Obj) -> bytes:
        """The bytes kept, unless a test put another object there by hand."""
        kept, body = self._bodies.get((resource, key), (None, b""))
        if kept is not obj:
            body = _body(obj)
            self._bodies[resource, key] = (obj, body)
        return body

    def _too_old(self, version: str, log: _Log) -> StatusError:
        return StatusError(410, f"too old resource version: {version} ({log.horizon})")


_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def encode(obj: Obj) -> bytes:
    """Compact, and in UTF-8 as the real server."""
    return _encoder.encode(obj).encode()


def _copy(obj: Obj) -> Obj:
    copied: Obj = marshal.loads(marshal.dumps(obj))  # a tenth of what deepcopy takes
    return copied


def now() -> str:
    """A time as metadata has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _drop_empty(meta: Obj) -> None:
    """The real server keeps no empty map."""
    for name in ("annotations", "labels"):
        if name in meta and not meta[name]:
            del meta[name]


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _stamped(obj: Obj, version: int) -> Obj:
    return obj | {"metadata": obj["metadata"] | {"resourceVersion": str(version)}}


def _body(obj: Obj) -> bytes:
    return encode({name: value for name, value in obj.items() if name not in {"apiVersion", "kind"}})
