"""`podmgr doctor`: what this machine has of what podmgr needs, by trying rather than by guessing."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from podmgr import proc
from podmgr.attachment import Target, Wish
from podmgr.demo.throwaway import PROBE
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import bpf_syscall, cgroup_life, cgroups, confinement, mounts, scratch, tc
from podmgr.proc import Runner, find
from podmgr.reconcile.observe import observe
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Direction
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings

OLDEST_KERNEL = (5, 10)
# Since then net_cls and net_prio no longer make a socket forget its cgroup (kernel 8520e224f547).
KERNEL_WITHOUT_TRAP = (5, 15)

_TOOLS = (
    ("clang", True, "install clang"),
    ("bpftool", True, "install bpftool (on older Ubuntu: linux-tools-common and linux-tools-$(uname -r))"),
    ("ip", False, "install iproute2; the demo needs it"),
    ("prlimit", True, "install util-linux"),
    ("nsenter", False, "install util-linux; the demo needs it"),
    ("iperf3", False, "install iperf3; the demo needs it"),
    ("nft", False, "install nftables; run --net needs it to lead beyond this machine"),
)
_QDISCS = (
    (
        "fq",
        "without it delay, reorder and bandwidth algorithm=edt are refused (kernel module sch_fq); "
        "bandwidth algorithm=tbf needs none",
    ),
    ("netem", "nothing needs it yet (kernel module sch_netem)"),
)


class Status(StrEnum):
    """ok; missing: podmgr cannot work; lacking: some of it cannot; unknown: we may not look."""

    OK = "ok"
    UNKNOWN = "unknown"
    MISSING = "missing"
    LACKING = "lacking"


class Finding(NamedTuple):
    """One line: what was looked at, what was found, and what to do."""

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(
    settings: Settings, *, runner: Runner, named: str | None = None, context: str | None = None
) -> Iterator[Finding]:
    """All findings, as they are made; `named` is a kubeconfig. Leaves nothing behind."""
    yield _kernel()
    for check in (_syscall, _privileges, _cgroup2):
        yield _finding(check, settings)
    yield _trap()
    yield _bpffs(settings)
    yield _btf()
    yield _headers()
    tools_found = True
    for name, is_needed, advice in _TOOLS:
        finding = _tool(name, is_needed, advice, runner)
        tools_found = tools_found and finding.status is not Status.MISSING
        yield finding
    for kind, advice in _QDISCS:
        yield _qdisc(kind, advice)
    yield _cluster(named, context)
    yield (
        _self_test(settings, runner)
        if tools_found
        else Finding("self-test", Status.MISSING, "not tried", "install the tools above first")
    )


def _finding(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except PodmgrError as error:
        name = check.__name__.removeprefix("_").replace("cgroup2", "cgroup v2").replace("syscall", "bpf(2)")
        return Finding(name, Status.MISSING, error.message, error.tip or "")


def _kernel() -> Finding:
    release = platform.release()
    is_new_enough = _version(release) >= OLDEST_KERNEL
    status = Status.OK if is_new_enough else Status.MISSING
    return Finding(
        "kernel", status, f"{release} on {platform.machine()}", "" if is_new_enough else "5.10 or later"
    )


def _syscall(_: Settings) -> Finding:
    if bpf_syscall.is_available():
        return Finding("bpf(2)", Status.OK, "the kernel has it")
    return Finding("bpf(2)", Status.MISSING, "the kernel lacks it", "a kernel with CONFIG_BPF_SYSCALL=y")


def _privileges(settings: Settings) -> Finding:
    root = cgroups.find_root(settings.cgroup_root)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        bpf_syscall.attached_programs(fd, Direction.EGRESS)
    except PermissionDeniedError:
        return Finding(
            "privileges",
            Status.MISSING,
            f"user {os.geteuid()} may not use BPF",
            "run as root (sudo podmgr ...)",
        )
    finally:
        os.close(fd)
    if profile := confinement.apparmor_profile():
        return Finding("privileges", Status.LACKING, confinement.says(profile), confinement.ADVICE)
    return Finding("privileges", Status.OK, f"user {os.geteuid()} may use BPF")


def _cgroup2(settings: Settings) -> Finding:
    root = cgroups.find_root(settings.cgroup_root)
    layout = "hybrid" if any(mount.filesystem == "cgroup" for mount in mounts.table()) else "unified"
    return Finding("cgroup v2", Status.OK, f"{root} ({layout})")


def _trap() -> Finding:
    """Before 5.15, one use of a v1 net_cls or net_prio made all new sockets forget their cgroup."""
    name = "net_cls, net_prio"
    if _version(platform.release()) >= KERNEL_WITHOUT_TRAP:
        return Finding(name, Status.OK, "cannot bypass podmgr's programs on this kernel")
    table = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()]
    there = [row[0] for row in table if row[0] in ("net_cls", "net_prio") and row[-1] == "1"]
    disabled = re.search(r"\bcgroup_no_v1=(\S+)", Path("/proc/cmdline").read_text())
    disabled_names = disabled[1].split(",") if disabled else []
    if "all" in disabled_names or set(there) <= set(disabled_names):
        return Finding(name, Status.OK, "not there as cgroup v1 controllers")
    return Finding(
        name,
        Status.LACKING,
        f"{' and '.join(there)}, once used as cgroup v1, would bypass podmgr's programs until the next boot",
        "boot with cgroup_no_v1=net_prio,net_cls",
    )


def _bpffs(settings: Settings) -> Finding:
    if mounts.filesystem_of(settings.bpffs) == "bpf":
        return Finding("bpffs", Status.OK, f"{settings.bpffs} is on one")
    if settings.bpffs.is_relative_to("/sys/fs/bpf") and Path("/sys/fs/bpf").is_dir():
        return Finding("bpffs", Status.OK, "not mounted at /sys/fs/bpf yet; podmgr apply mounts it")
    return Finding("bpffs", Status.MISSING, f"{settings.bpffs} is not on one", "mount -t bpf bpf /sys/fs/bpf")


def _btf() -> Finding:
    if Path("/sys/kernel/btf/vmlinux").exists():
        return Finding("BTF", Status.OK, "/sys/kernel/btf/vmlinux")
    return Finding(
        "BTF", Status.LACKING, "the kernel does not describe its types", "not needed by the built-ins"
    )


def _headers() -> Finding:
    if Path("/usr/include/bpf/bpf_helpers.h").exists():
        return Finding("libbpf headers", Status.OK, "/usr/include/bpf")
    return Finding(
        "libbpf headers",
        Status.LACKING,
        "not in /usr/include/bpf",
        "install libbpf-dev, libbpf-devel or libbpf",
    )


def _tool(name: str, is_needed: bool, advice: str, runner: Runner) -> Finding:
    path = find(name)
    if path is None:
        return Finding(name, Status.MISSING if is_needed else Status.LACKING, "not installed", advice)
    option = "version" if name == "bpftool" else "-V" if name == "ip" else "--version"
    try:
        done = runner([name, option])
    except PodmgrError as error:
        return Finding(name, Status.MISSING if is_needed else Status.LACKING, error.message, advice)
    lines = (done.stdout + done.stderr).strip().splitlines()
    if not done.succeeded:
        return Finding(
            name, Status.MISSING if is_needed else Status.LACKING, f"{path} fails: {lines[:1]}", advice
        )
    return Finding(name, Status.OK, f"{lines[0] if lines else 'no version'} ({path})")


def _qdisc(kind: str, advice: str) -> Finding:
    try:
        tc.require_qdisc(kind)
    except PermissionDeniedError as error:
        return Finding(f"qdisc {kind}", Status.UNKNOWN, error.message, "run as root (sudo podmgr ...)")
    except PodmgrError as error:
        return Finding(f"qdisc {kind}", Status.LACKING, error.message, advice)
    return Finding(f"qdisc {kind}", Status.OK, "the kernel has it")


def _cluster(named: str | None, context: str | None) -> Finding:
    """The API server that a command would ask, asked for its version; one that was named must answer."""
    from podmgr.cluster.access import find_access  # 15 ms: only where a cluster is asked for
    from podmgr.cluster.api import Api, StatusError

    is_asked_for = bool(named or context)
    try:
        access = find_access(named, context)
        with closing(Api(access)) as api:
            version = api.version()
    except PodmgrError as error:
        advice = error.tip if is_asked_for else "not needed for cgroup/PATH, -f and run"
        is_shy = isinstance(error, StatusError) and error.status == 403  # it is there, and knows us
        status = Status.MISSING if is_asked_for and not is_shy else Status.LACKING
        return Finding("kubeconfig", status, error.message, advice or "")
    whose = access.kubeconfig or "the service account of this pod"
    return Finding("kubeconfig", Status.OK, f"{whose}; {api.server} is an API server {version}")


def require_sockets_with_cgroups(settings: Settings, *, runner: Runner) -> None:
    """Raise PodmgrError where rules would attach and do nothing: see `_trap`.

    Costs nothing since Linux 5.15; before, a packet is sent through a rule to see.
    """
    if _version(platform.release()) < KERNEL_WITHOUT_TRAP:
        _send_through_a_rule(settings, runner)


def _self_test(settings: Settings, runner: Runner) -> Finding:
    started = time.monotonic()
    try:
        _send_through_a_rule(settings, runner)
    except PodmgrError as error:
        return Finding("self-test", Status.MISSING, error.message, error.tip or "")
    elapsed_ms = (time.monotonic() - started) * 1000
    found = f"a rule compiled, attached, counted a packet, and was removed in {elapsed_ms:.0f} ms"
    return Finding("self-test", Status.OK, found)


def _send_through_a_rule(settings: Settings, runner: Runner) -> None:
    """A rule that drops nothing, on a cgroup of its own, the whole way and back.

    Raises PodmgrError if a part fails, or if the rule does not see what its cgroup sends.
    """
    root = cgroups.find_root(settings.cgroup_root)
    cgroup = scratch.create(root, "doctor")
    target = Target(cgroups.display_name(root, cgroup), cgroup)
    wanted = parse_rule_option("loss=uniform egress 0% hook=cgroup")
    rules = tuple(SourcedRule(rule, CLI) for rule in wanted)
    try:
        outcomes = apply([Wish(target, rules)], settings, runner=runner)
        sender = [*PROBE, "send", "127.0.0.1", "9", "1"]  # 9: discard
        proc.run(sender, prepare=lambda: cgroup_life.join(cgroup))
        seen = [item.counters for item in observe(settings)[0] if item.attachment.cgroup_id == cgroup.id]
        outcomes += clean(target.selection, settings, runner=runner)
    finally:
        cgroup_life.remove(cgroup)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    if not any(counters and counters.passed_packets for counters in seen):
        raise PodmgrError(
            "rules attach but see no packet: the sockets of this kernel have lost their cgroups",
            tip="net_cls or net_prio was used; reboot with cgroup_no_v1=net_prio,net_cls",
        )


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
