"""`podmgr watch`: its options, and how it fails; the service itself is the wing `watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podmgr.cli.boundary import WITHOUT_VALUE
from podmgr.cli.options import (
    Bpffs,
    CgroupRoot,
    Kubeconfig,
    KubeContext,
    MaxMapBytes,
    NodeName,
    PeerNamespaces,
    ProgramDir,
    StandardAnnotations,
    StateDir,
    namespaces,
    seconds,
    settings_of,
)
from podmgr.cli.this_process import goes_on
from podmgr.errors import PodmgrError, UsageError, printable, unexpected
from podmgr.settings import (
    DEFAULT_BPFFS,
    DEFAULT_MAX_MAP_BYTES,
    DEFAULT_NRI_SOCKET,
    DEFAULT_PROGRAM_DIR,
    DEFAULT_STATE_DIR,
    LogFormat,
)

_LAST_LINES_SECONDS = 2.0


def command(
    context: typer.Context,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    node_name: NodeName = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the rules in force when it stops.")] = False,
    resync: Annotated[
        str,
        typer.Option("--resync", metavar="DURATION", help="How often the kernel is read back and repaired."),
    ] = "3m",
    standard_annotations: StandardAnnotations = False,
    peer_namespaces: PeerNamespaces = "",
    no_events: Annotated[bool, typer.Option("--no-events", help="Post no Kubernetes Events.")] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="How to log, to stderr.")
    ] = LogFormat.TEXT,
    metrics_address: Annotated[
        str | None,
        typer.Option(
            "--metrics-address",
            "--metrics",
            metavar="HOST:PORT",
            help="Serve /metrics, /healthz and /readyz there, or on a Unix socket: unix:/PATH, mode 0660.  "
            "[default: nowhere]",
        ),
    ] = None,
    metrics_token_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-token-file",
            metavar="FILE",
            readable=False,
            help="Serve /metrics only to those who say 'Authorization: Bearer' and what is in that file.",
        ),
    ] = None,
    nri: Annotated[
        str,
        typer.Option(
            "--nri",
            metavar="[=required]",
            help="Let the container runtime ask by NRI, so that a pod starts with its rules in force. With "
            "=required one whose rules cannot be had does not start.",
        ),
    ] = "",
    nri_socket: Annotated[
        Path, typer.Option("--nri-socket", metavar="PATH", help="Where the runtime offers NRI.")
    ] = DEFAULT_NRI_SOCKET,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Keep the rules of this node's pods as their annotations say, until Ctrl-C.

    Annotations of pods, of services that select them and of namespaces are followed as they
    change. When it stops, all limits are removed (but see --keep). A second Ctrl-C stops at once.
    """
    from podmgr import proc
    from podmgr.cli.doctor import require_sockets_with_cgroups
    from podmgr.cluster.access import find_access
    from podmgr.kernel import confinement
    from podmgr.watch.journal import Journal
    from podmgr.watch.loop import watch as watch_pods
    from podmgr.watch.options import Options
    from podmgr.watch.sandboxes import Nri
    from podmgr.watch.server import parse_address

    goes_on()
    settings = settings_of(context, state_dir, bpffs, cgroup_root, program_dir, max_map_bytes)
    if nri not in ("", WITHOUT_VALUE, "required"):
        raise UsageError(f"--nri={printable(nri)[:80]} means nothing", tip="--nri or --nri=required")
    if seconds(resync) < 1:
        raise UsageError("--resync is at least 1s", tip="a change is seen at once; this is for repairs")
    if metrics_token_file and not metrics_address:
        raise UsageError("--metrics-token-file without --metrics-address", tip="see podmgr watch --help")
    options = Options(
        node=node_name,
        keeps_rules=keep,
        resync_seconds=seconds(resync),
        posts_events=not no_events,
        reads_standard=standard_annotations,
        peer_namespaces=namespaces(peer_namespaces),
        metrics_address=parse_address(metrics_address) if metrics_address else None,
        nri=Nri(nri_socket, is_required=nri == "required") if nri else None,
        metrics_token_file=metrics_token_file,
    )
    journal = Journal(log_format)
    try:
        access = find_access(kubeconfig, kube_context)
        require_sockets_with_cgroups(settings, runner=proc.run)
        if profile := confinement.apparmor_profile():
            journal.warning(confinement.says(profile), tip=confinement.ADVICE)
        return watch_pods(access, options, settings, journal, runner=proc.run)
    except Exception as problem:
        if log_format is not LogFormat.JSON:
            raise
        error = problem if isinstance(problem, PodmgrError) else unexpected(problem)
        journal.failure(error)
        journal.flush(_LAST_LINES_SECONDS)
        return error.exit_code
