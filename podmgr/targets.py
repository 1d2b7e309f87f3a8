"""TARGET on the command line: `cgroup/PATH`, or a Kubernetes object in kubectl's spelling."""

from __future__ import annotations

import os
from pathlib import Path

from podmgr import cgroups
from podmgr.desired import Target
from podmgr.errors import UsageError, printable
from podmgr.settings import Settings

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
        tip="write cgroup/PATH, such as cgroup/system.slice/web.service",
    )


def resolve(text: str, settings: Settings) -> Target:
    """The cgroup that a target names. Raises PodmgrError if there is none."""
    name = canonical(text)
    if not name.startswith("cgroup/"):
        raise UsageError(
            f"{printable(name)}: this version reaches pods by their cgroup only, not through a cluster",
            tip="podmgr apply -f pod.yaml --cgroup PATH, or podmgr apply cgroup/PATH",
        )
    root = cgroups.find_root(settings.cgroup_root)
    cgroup = cgroups.locate(root, text.removeprefix("cgroup/"))
    return Target(cgroups.display_name(root, cgroup), cgroup)
