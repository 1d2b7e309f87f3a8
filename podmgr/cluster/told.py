"""What pods were told, by annotations, and what became of it, by the Events that podmgr posted on them.

Pure: objects are the JSON of the Kubernetes API. An Event tells of a rule by its text, as `watch.events`
writes it. Events do not last: of a rule that was attached long ago there may be none any more.

Apart from `asking`, which alone uses it: that asks, and this is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from podmgr.cluster import reasons
from podmgr.cluster.objects import Cluster, Pod, mapping, pod_of
from podmgr.errors import RuleError
from podmgr.rules.keys import bare_key
from podmgr.rules.precedence import PodRules
from podmgr.rules.rule import Rule
from podmgr.rules.source import POD, Layer, Source

EVENTS_LAST = timedelta(hours=1)  # kube-apiserver's --event-ttl, unless it is set

_PROFILE = "profile"
_HOOK = re.compile(r"\((?:.*, )?(\w+) hook")

Item = Mapping[str, Any]


class State(StrEnum):
    """What is known of a rule on a pod."""

    ACTIVE = "active"  # podmgr has said that it is attached
    BYPASSED = "bypassed"  # attached, while packets pass it by
    FAILED = "failed"
    OVER = "over"  # its time is
    REMOVED = "removed"  # it was attached, and podmgr has taken it away
    PENDING = "pending"  # no Event yet
    UNKNOWN = "unknown"  # an Event may have been there
    BEATEN = "beaten"  # a stronger rule holds in its place
    UNREADABLE = "unreadable"


class Told(NamedTuple):
    """A rule on a pod. `rule` "" is the pod as a whole; `since` is the Event's time (RFC 3339), or ""."""

    pod: Pod
    rule: str
    source: str
    state: State
    message: str = ""
    hook: str = ""
    since: str = ""


class Notice(NamedTuple):
    """An Event of podmgr's on a pod."""

    reason: str
    message: str
    time: str
    order: tuple[str, int]

    @property
    def items(self) -> list[str]:
        """What it says of each rule."""
        return self.message.split(" | " if self.reason == reasons.FAILED else "; ")

    @property
    def is_cut(self) -> bool:
        """It had more to say than fits into an Event."""
        return self.message.endswith("…") or bool(re.search(r"and \d+ more$", self.message))


@dataclass
class Look:
    """What was seen of a cluster at one moment. `events` None: they may not be read."""

    now: datetime
    cluster: Cluster = field(default_factory=Cluster)
    events: Mapping[str, Sequence[Notice]] | None = None  # of each pod by UID, the newest first
    _written: dict[tuple[str, str], str] = field(default_factory=dict)

    def put(self, pods: Iterable[Item], services: Iterable[Item], namespaces: Iterable[Item]) -> None:
        """The objects that carry rules."""
        pods, services, namespaces = list(pods), list(services), list(namespaces)
        self.cluster.replace_pods(pods)
        self.cluster.replace_services(services)
        self.cluster.replace_namespaces(namespaces)
        for layer, items in (
            (Layer.POD, pods),
            (Layer.SERVICE, services),
            (Layer.NAMESPACE, namespaces),
        ):
            for item in items:
                metadata = mapping(item.get("metadata"))
                place = str(metadata.get("namespace") or "")
                self._written[layer, f"{place}/{metadata.get('name')}"] = written(metadata)

    def of(self, pod: Pod) -> list[Told]:
        """A row for each rule that the pod was told, and for each that cannot be read."""
        rules = self.cluster.rules(pod)
        notices = None if self.events is None else self.events.get(pod.ref.uid, ())
        rows = [self._held(pod, item.rule, item.source, notices) for item in rules.rules]
        rows += [
            Told(pod, str(rule), str(source), State.BEATEN, _winner(rules, rule))
            for source, rule in sorted(rules.beaten, key=str)
        ]
        rows += [_unreadable(pod, error, notices or ()) for error in rules.errors]
        return rows + list(_others(pod, rows, notices or ()))

    def _held(self, pod: Pod, rule: Rule, source: Source, notices: Sequence[Notice] | None) -> Told:
        if notices is None:
            return Told(pod, str(rule), str(source), State.UNKNOWN, "its Events may not be read")
        if rule.timing.until_ns and rule.timing.until_ns <= _ns(self.now):
            return Told(pod, str(rule), str(source), State.OVER, "its time is over")
        for notice in notices:
            if (found := _told_by(notice, str(rule))) is not None:
                state, message, hook = found
                if state is State.ACTIVE and self._is_over(rule, notice.time):
                    state, message = State.OVER, "its time is over"
                return Told(pod, str(rule), str(source), state, message, hook, notice.time)
        if not pod.node:
            return Told(pod, str(rule), str(source), State.PENDING, "the pod has no node yet")
        if any(notice.is_cut for notice in notices):
            return Told(pod, str(rule), str(source), State.UNKNOWN, "an Event had no room to tell of it")
        if self._is_older_than_events(pod, source):
            return Told(pod, str(rule), str(source), State.UNKNOWN, "no Event tells of it any more")
        return Told(pod, str(rule), str(source), State.PENDING, "no Event yet: does podmgr watch this node?")

    def _is_over(self, rule: Rule, attached: str) -> bool:
        """By the clock of who asks: it was attached then, or earlier."""
        start, until_ns = _time(attached), rule.timing.until_ns or _ns(self.now) + 1
        ends_ns = None if start is None else rule.timing.ends_ns(_ns(start), until_ns)
        return ends_ns is not None and ends_ns <= _ns(self.now)

    def _is_older_than_events(self, pod: Pod, source: Source) -> bool:
        name = pod.ref.namespace + "/" + (source.name if source.layer is Layer.SERVICE else pod.ref.name)
        layer = source.layer if source.layer in (Layer.SERVICE, Layer.NAMESPACE) else Layer.POD
        name = f"/{source.name}" if layer is Layer.NAMESPACE else name
        newest = max(pod.created, self._written.get((layer, name), ""))
        since = _time(newest)
        return since is not None and self.now - since > EVENTS_LAST


def written(metadata: Item) -> str:
    """When an object was made, or its annotations were last written to (RFC 3339); "" if nothing says so."""
    times = [str(metadata.get("creationTimestamp") or "")]
    for entry in metadata.get("managedFields") or ():
        fields = mapping(mapping(mapping(entry).get("fieldsV1")).get("f:metadata"))
        if "f:annotations" in fields:
            times.append(str(entry.get("time") or ""))
    return max(times)


def notices_of(events: Iterable[Item]) -> dict[str, list[Notice]]:
    """podmgr's Events, of each pod by UID, the newest first."""
    found: dict[str, list[Notice]] = {}
    for event in events:
        if mapping(event.get("source")).get("component") != reasons.COMPONENT:
            continue
        uid = str(mapping(event.get("involvedObject")).get("uid") or "")
        metadata = mapping(event.get("metadata"))
        time = str(event.get("lastTimestamp") or metadata.get("creationTimestamp") or "")
        version = str(metadata.get("resourceVersion") or "")
        order = (time, int(version) if version.isdecimal() else 0)  # times have whole seconds
        notice = Notice(str(event.get("reason") or ""), str(event.get("message") or ""), time, order)
        found.setdefault(uid, []).append(notice)
    for notices in found.values():
        notices.sort(key=lambda notice: notice.order, reverse=True)
    return found


def pods_of(items: Iterable[Item]) -> list[Pod]:
    """The pods that have not ended."""
    return [pod for pod in map(pod_of, items) if pod is not None and not pod.has_ended]


def _told_by(notice: Notice, rule: str) -> tuple[State, str, str] | None:
    """The state, a message and the hook, if the Event tells of this rule."""
    if notice.reason == reasons.BYPASSED:
        return (State.BYPASSED, notice.message, "") if notice.message.startswith(f"'{rule}'") else None
    for item in notice.items:
        if notice.reason == reasons.FAILED and item.startswith(f"{rule}: "):
            return State.FAILED, item.removeprefix(f"{rule}: "), ""
        if item == rule or item.startswith(f"{rule} ("):
            if notice.reason == reasons.APPLIED:
                hook = _HOOK.match(item.removeprefix(rule).strip())
                return State.ACTIVE, "", hook[1] if hook else ""
            if notice.reason == reasons.OVER:
                return State.OVER, "its time is over", ""
            if notice.reason == reasons.REMOVED:
                return State.REMOVED, "podmgr took it away", ""
    return None


def _winner(rules: PodRules, beaten: Rule) -> str:
    for item in rules.rules:
        if item.rule.collision_key == beaten.collision_key and not item.is_enforced:
            return f"by {item.rule} of {item.source}"
    return ""


def _unreadable(pod: Pod, error: RuleError, notices: Sequence[Notice]) -> Told:
    """A profile that is not known here may be one of the node's own, unless that says so itself."""
    where = error.where or ""
    source = str(POD) if where == f"pod/{pod.ref.name}" else where
    message = error.message.removeprefix(f"{where}: ").removeprefix(f"{error.key}: ")
    rule = f"{error.key}={error.value}" if error.value else error.key
    if bare_key(error.key) == _PROFILE and not any(notice.reason == reasons.FAILED for notice in notices):
        message += ", here: the node may have it"
        return Told(pod, rule, source, State.UNKNOWN, f"{message}; {error.tip}")
    return Told(pod, rule, source, State.UNREADABLE, f"{message}; {error.tip}")


def _others(pod: Pod, rows: Sequence[Told], notices: Sequence[Notice]) -> Iterator[Told]:
    """What the last Event says that failed, and is of none of the rows: of the pod as a whole, or of a rule
    that the node's podmgr cannot read.
    """
    if not notices or notices[0].reason != reasons.FAILED:
        return
    for item in notices[0].items:
        is_of_a_row = any(
            item.startswith(f"{row.rule}: ")
            or (row.state is State.UNREADABLE and row.rule.partition("=")[0] in item)
            for row in rows
        )
        if not is_of_a_row:
            yield Told(pod, "", str(POD), State.FAILED, item, "", notices[0].time)


def _ns(moment: datetime) -> int:
    """Since 1970."""
    return int(moment.timestamp()) * 10**9


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
