"""TARGET on the command line: `cgroup/PATH`, or Kubernetes objects in kubectl's spellings.

Knows nothing of the kernel: `kubectl podmgr` reads names where there is none of ours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from podmgr.errors import UsageError, printable

# kubectl's names and short names, to the name that `list` shows.
KUBERNETES_KINDS = {
    alias: kind
    for kind, aliases in {
        "pod": ("pods", "po"),
        "service": ("services", "svc"),
        "deployment": ("deployments", "deploy"),
        "replicaset": ("replicasets", "rs"),
        "statefulset": ("statefulsets", "sts"),
        "daemonset": ("daemonsets", "ds"),
        "job": ("jobs",),
        "cronjob": ("cronjobs", "cj"),
        "namespace": ("namespaces", "ns"),
    }.items()
    for alias in (kind, *aliases)
}


class Scope(NamedTuple):
    """What kubectl's -n, -A and -l say. `labels` "" is any; `has_all`: all pods of the scope are meant."""

    namespace: str | None = None
    all_namespaces: bool = False
    labels: str = ""
    has_all: bool = False

    @property
    def names_pods(self) -> bool:
        """Whether it means pods by itself, without a target."""
        return self.all_namespaces or bool(self.labels) or self.has_all


def read(words: Sequence[str], scope: Scope) -> tuple[list[str], Scope]:
    """The targets, in canonical form but for paths of cgroups, each once; and the scope.

    `pod web-0 web-1` is `pod/web-0 pod/web-1`, and `pods` all pods of the scope, as in kubectl.
    Raises UsageError for what cannot be meant.
    """
    if words and words[0] in KUBERNETES_KINDS:
        kind = KUBERNETES_KINDS[words[0]]
        if len(words) == 1 and kind != "pod":
            raise UsageError(f"which {kind}?", tip=f"podmgr ... {kind}/NAME")
        scope = scope._replace(has_all=len(words) == 1)
        words = [f"{kind}/{name}" for name in words[1:]]
    names = list(dict.fromkeys(word if word.startswith("cgroup/") else canonical(word) for word in words))
    in_cluster = [name for name in names if not name.startswith("cgroup/")]
    if in_cluster and scope.labels:
        raise UsageError("-l selects pods, and targets name them: one of the two", tip="leave -l out")
    if in_cluster and scope.all_namespaces:
        raise UsageError("a name means one object, -A all namespaces", tip="-n NAMESPACE instead of -A")
    if scope.all_namespaces and scope.namespace:
        raise UsageError("-A is all namespaces, -n is one", tip="leave one of them out")
    return names, scope


def canonical(text: str, root: Path | None = None) -> str:
    """`po/web` as `pod/web`; `cgroup/PATH` as `list` shows it, given the mount.

    Raises UsageError for anything else.
    """
    kind, slash, name = text.partition("/")
    if slash and name and kind == "cgroup":
        path = os.path.normpath(name)
        return f"cgroup/{os.path.relpath(path, root) if root and path.startswith('/') else path}"
    if slash and name and kind in KUBERNETES_KINDS:
        return f"{KUBERNETES_KINDS[kind]}/{name}"
    raise UsageError(
        f"{printable(text)!r} is not a target",
        tip="write pod/NAME, svc/NAME, deploy/NAME, ns/NAME, or cgroup/PATH",
    )
