"""Which attachments `list` and `clean` are to show or remove.

Pods and namespaces are looked up in the ledger: they may be gone from the cluster. Only what a
service, a workload or -l selects is asked of the API server.

Apart from `cli.options`, which alone uses it: `list` without targets selects nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from podmgr.attachment import Attachment, Selection
from podmgr.errors import PodmgrError, UsageError
from podmgr.kernel import cgroups
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.settings import Settings
from podmgr.targets.cgroup import resolve
from podmgr.targets.names import Scope, canonical

if TYPE_CHECKING:  # 10 ms, and only what a cluster must be asked for needs it
    from podmgr.cluster.api import Api

_IN_LEDGER = ("pod", "namespace")


def select(
    names: Sequence[str],
    scope: Scope,
    rows: Sequence[Attachment],
    settings: Settings,
    connect: Callable[[], Api],
) -> tuple[Selection | None, list[Outcome]]:
    """What is meant (None: everything), and an outcome for each target with nothing on it.

    Raises UsageError for what cannot be a target or is ambiguous.
    """
    if scope.namespace == "":  # everything is not what is meant
        raise UsageError("-n names no namespace", tip="-n NAMESPACE, or leave -n out")
    if not names and not scope.names_pods and scope.namespace is None:
        return None, []
    if not names:
        return _in_scope(scope, rows, connect), []
    found = Selection()
    failed: list[Outcome] = []
    by_target = _by_target(rows)
    root = functools.cache(functools.partial(cgroups.find_root, settings.cgroup_root))
    for name in names:
        try:
            found |= (
                _cgroup(name, by_target, root())
                if name.startswith("cgroup/")
                else _in_cluster(name, scope, rows, connect)
            )
        except UsageError:
            raise
        except PodmgrError as error:
            failed.append(Outcome(name, None, Action.FAILED, None, error))
    return found, failed


def _by_target(rows: Sequence[Attachment]) -> dict[str, list[Attachment]]:
    found: dict[str, list[Attachment]] = {}
    for row in rows:
        found.setdefault(row.target, []).append(row)
    return found


def _cgroup(name: str, rows: Mapping[str, Sequence[Attachment]], root: Path) -> Selection:
    """By path, or, when the cgroup is gone, by the name that the ledger has for it."""
    known = _of(rows.get(canonical(name, root), ()))
    try:
        return known | resolve(name, root).selection
    except UsageError:
        raise
    except PodmgrError:
        if not known.cgroup_ids:
            raise
    return known


def _in_cluster(name: str, scope: Scope, rows: Sequence[Attachment], connect: Callable[[], Api]) -> Selection:
    kind, _, plain = name.partition("/")
    known = [row for row in rows if _is_called(row, kind, plain, scope.namespace)]
    spaces = sorted({row.pod.namespace for row in known if row.pod})
    if kind != "namespace" and len(spaces) > 1:
        raise UsageError(f"{name} is in the namespaces {', '.join(spaces)}", tip="say which: -n NAMESPACE")
    if not known and kind not in _IN_LEDGER:
        from podmgr.cluster import workloads

        api = connect()
        uids = workloads.uids(workloads.pods_of(api, kind, plain, scope.namespace or api.namespace))
        known = [row for row in rows if row.holder in uids]
    if not known:
        raise PodmgrError(f"nothing of podmgr's is on {name}", tip="podmgr list shows what there is")
    return _of(known)


def _in_scope(scope: Scope, rows: Sequence[Attachment], connect: Callable[[], Api]) -> Selection:
    """All pods with rules, of a namespace or of all, that have the labels asked for."""
    known = [row for row in rows if row.pod and scope.namespace in (None, row.pod.namespace)]
    if scope.labels:
        from podmgr.cluster import workloads

        api = connect()
        namespace = None if scope.all_namespaces else scope.namespace or api.namespace
        uids = workloads.uids(workloads.pods_with(api, namespace, scope.labels))
        known = [row for row in known if row.holder in uids]
    return _of(known)


def _is_called(row: Attachment, kind: str, plain: str, namespace: str | None) -> bool:
    """Whether a row is of the object, by the name in the ledger."""
    if row.pod is None or namespace not in (None, row.pod.namespace):
        return False
    if kind == "namespace":
        return row.pod.namespace == plain
    return row.target == f"{kind}/{plain}" or (kind == "pod" and row.pod.name == plain)


def _of(rows: Iterable[Attachment]) -> Selection:
    listed = list(rows)
    return Selection(frozenset(row.cgroup_id for row in listed), frozenset(row.holder for row in listed))
