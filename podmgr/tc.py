"""tc and ip, asked for JSON: which interfaces a cgroup's processes send through, and their qdiscs.

Looks only. A namespace is entered through an open descriptor, after checking that the process
it came from is still in the cgroup.
"""

from __future__ import annotations

import json
import os
from typing import Any

from podmgr import cgroups
from podmgr.cgroups import Cgroup
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.proc import Runner

_HOOKS = ("clsact", "ingress")  # listed as qdiscs, but they queue nothing


def interfaces_without_fq(cgroup: Cgroup, *, runner: Runner) -> dict[str, str]:
    """Interface to its root qdisc, for those that leave the cgroup's namespaces without fq.

    Those are the interfaces of the default routes, or all that are up. A cgroup without
    processes is taken to live in our own namespace.
    """
    lacking: dict[str, str] = {}
    fds = _namespaces(cgroup) or [os.open("/proc/self/ns/net", os.O_RDONLY)]
    try:
        for fd in fds:
            lacking.update(_without_fq(fd, runner))
    finally:
        for fd in fds:
            os.close(fd)
    return lacking


def _without_fq(namespace_fd: int, runner: Runner) -> dict[str, str]:
    def ask(*argv: str) -> list[dict[str, Any]]:
        command = ["nsenter", f"--net=/proc/self/fd/{namespace_fd}", *argv]
        done = runner(command, pass_fds=[namespace_fd])
        try:
            rows: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        except ValueError as error:
            raise PodmgrError(f"{argv[0]} answered what is not JSON", detail=done.stderr) from error
        if not done.succeeded:
            raise PodmgrError(f"cannot look at the pod's interfaces: {done.stderr.strip()}")
        return rows

    links = {
        link["ifname"]
        for link in ask("ip", "-j", "link", "show", "up")
        if link and "LOOPBACK" not in link["flags"]  # iproute2 prints {} for what is down
    }
    routed = {route.get("dev") for route in ask("ip", "-j", "route", "show", "default")}
    kinds = dict.fromkeys(links & routed or links, "none")
    children: dict[str, set[str]] = {}
    for qdisc in ask("tc", "-j", "qdisc", "show"):
        if qdisc.get("root"):
            kinds.update({qdisc["dev"]: qdisc["kind"]} if qdisc["dev"] in kinds else {})
        elif qdisc["kind"] not in _HOOKS:
            children.setdefault(qdisc["dev"], set()).add(qdisc["kind"])
    return {
        name: kind
        for name, kind in kinds.items()
        if kind != "fq" and not (kind == "mq" and children.get(name) == {"fq"})
    }


def _namespaces(cgroup: Cgroup) -> list[int]:
    """A descriptor of each network namespace that a process of the cgroup lives in.

    Raises PermissionDeniedError if one may not be opened: ours would be taken for the pod's.
    """
    found: dict[int, int] = {}
    for pid in cgroups.processes(cgroup):
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        except PermissionError as error:
            for fd in found.values():
                os.close(fd)
            raise PermissionDeniedError(
                f"not allowed to look at the network of process {pid}",
                tip="it takes the capabilities SYS_PTRACE and SYS_ADMIN",
            ) from error
        except OSError:
            continue  # it has ended
        inode = os.fstat(fd).st_ino
        if inode in found or pid not in cgroups.processes(cgroup):
            os.close(fd)
        else:
            found[inode] = fd
    return list(found.values())
