"""Which pods a Kubernetes object stands for, asked of the API server.

A pod is itself; a service, a deployment and their like are the pods that their selector selects;
a cron job is its jobs; a namespace is all its pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from podmgr.cluster.api import Api
from podmgr.cluster.objects import is_name, pod_of
from podmgr.errors import PodmgrError, UsageError, printable

_PATHS = {
    "pod": ("/api/v1", "pods"),
    "service": ("/api/v1", "services"),
    "deployment": ("/apis/apps/v1", "deployments"),
    "replicaset": ("/apis/apps/v1", "replicasets"),
    "statefulset": ("/apis/apps/v1", "statefulsets"),
    "daemonset": ("/apis/apps/v1", "daemonsets"),
    "job": ("/apis/batch/v1", "jobs"),
    "cronjob": ("/apis/batch/v1", "cronjobs"),
    "namespace": ("/api/v1", "namespaces"),
}
_OPERATORS = {"In": "in", "NotIn": "notin"}

Item = dict[str, Any]


def pods_of(api: Api, kind: str, name: str, namespace: str) -> list[Item]:
    """The pods of one object, as JSON. Raises StatusError if there is no such object."""
    return with_pods(api, kind, name, namespace)[1]


def with_pods(api: Api, kind: str, name: str, namespace: str) -> tuple[Item, list[Item]]:
    """The object and its pods, as JSON. Raises StatusError if there is no such object."""
    item = api.get(path_of(kind, name, namespace))
    return item, pods_of_item(api, kind, item, name if kind == "namespace" else namespace)


def path_of(kind: str, name: str, namespace: str) -> str:
    """Where the API server has an object. Raises UsageError for what is no name."""
    require_name(name)
    return f"{folder_of(kind, require_name(namespace))}/{name}"


def folder_of(kind: str, namespace: str | None) -> str:
    """Where the API server has the objects of a kind: in a namespace, or in all (None)."""
    group, plural = _PATHS[kind]
    is_in_none = namespace is None or kind == "namespace"
    return f"{group}/{plural}" if is_in_none else f"{group}/namespaces/{namespace}/{plural}"


def require_name(name: str) -> str:
    """A name that may stand in a path of the API. Raises UsageError."""
    if not is_name(name):
        raise UsageError(
            f"{printable(name)[:80]!r} is not a Kubernetes name", tip="lower-case letters, digits, - and ."
        )
    return name


def is_workload(kind: str) -> bool:
    """Whether it makes pods of a template, whose annotations count and not its own."""
    return kind not in ("pod", "service", "namespace")


def pods_of_item(api: Api, kind: str, item: Item, namespace: str) -> list[Item]:
    """The pods that an object stands for. Raises PodmgrError for a service that selects none."""
    if kind == "namespace":
        return pods_with(api, namespace, "")
    if kind == "pod":
        return [item]
    spec = item.get("spec") or {}
    if kind == "cronjob":
        jobs = api.list(folder_of("job", namespace))[0]
        owned = [job for job in jobs if _is_owned_by(job, item)]
        return [pod for job in owned for pod in _selected(api, namespace, job["spec"]["selector"])]
    selector = spec.get("selector") or {}
    if kind == "service":
        if not selector:
            raise PodmgrError("it selects no pods: it has no selector", tip="name the pods: pod/NAME")
        selector = {"matchLabels": selector}
    return _selected(api, namespace, selector)


def pods_with(api: Api, namespace: str | None, labels: str) -> list[Item]:
    """The pods with these labels (kubectl's -l; "" is all) in a namespace, or in all (None)."""
    path = folder_of("pod", None if namespace is None else require_name(namespace))
    return api.list(path, {"labelSelector": labels} if labels else {})[0]


def uids(items: Iterable[Item]) -> set[str]:
    """Of these pods, as the ledger has them."""
    return {pod.ref.uid for pod in map(pod_of, items) if pod is not None}


def _selected(api: Api, namespace: str, selector: Mapping[str, Any]) -> list[Item]:
    return pods_with(api, namespace, label_query(selector))


def label_query(selector: Mapping[str, Any]) -> str:
    """A workload's selector (matchLabels and matchExpressions) as a query, such as `a=b,c in (d)`."""
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression["key"], expression["operator"]
        if operator in _OPERATORS:
            terms.append(f"{key} {_OPERATORS[operator]} ({','.join(expression.get('values') or ())})")
        else:
            terms.append(key if operator == "Exists" else f"!{key}")
    return ",".join(terms)


def _is_owned_by(item: Item, owner: Item) -> bool:
    owners = item["metadata"].get("ownerReferences") or ()
    return any(reference.get("uid") == owner["metadata"]["uid"] for reference in owners)
