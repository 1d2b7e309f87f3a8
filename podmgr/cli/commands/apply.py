"""`podmgr apply`: its options, whose rules they mean, and what is said of the outcome.

Leaves the wishes to `targets`, and their fulfilment to `reconcile`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from podmgr.cli.options import (
    AllNamespaces,
    Bpffs,
    CgroupRoot,
    Kubeconfig,
    KubeContext,
    Labels,
    MaxMapBytes,
    Namespace,
    NodeName,
    Output,
    PeerNamespaces,
    ProgramDir,
    Rules,
    Settle,
    StandardAnnotations,
    StateDir,
    namespaces,
    parse_rules,
    seconds,
    settings_of,
)
from podmgr.cli.render import Format, print_outcomes, say
from podmgr.errors import PodmgrError, UsageError
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_MAX_MAP_BYTES, DEFAULT_PROGRAM_DIR, DEFAULT_STATE_DIR

if TYPE_CHECKING:  # a command imports what it needs: --help shall start at once
    from podmgr.attachment import Wish
    from podmgr.reconcile.outcome import Outcome


def command(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="pod/NAME, svc/NAME, deploy/NAME, ns/NAME and their like, or cgroup/PATH, "
            "PATH absolute or relative to the cgroup2 mount.",
            show_default=False,
        ),
    ] = None,
    filename: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--filename",
            metavar="FILE",
            help="A manifest, or - for standard input. May be repeated; TARGET says which of its pods.",
        ),
    ] = None,
    cgroup: Annotated[
        str | None,
        typer.Option(
            "--cgroup",
            metavar="PATH",
            help="The cgroup that stands for the pod of -f.  [default: found by the pod's UID]",
        ),
    ] = None,
    rule: Rules = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing.")] = False,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    standard_annotations: StandardAnnotations = False,
    peer_namespaces: PeerNamespaces = "",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="How long to wait for pods to start.")
    ] = "30s",
    settle: Settle = "0s",
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    node_name: NodeName = None,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Give each target exactly its rules, and prove that they are attached.

    A pod's rules are those of its annotations, its services' and its namespace's, but for what
    --rule overrides. Rules that a target had before and that are not named again are removed.
    Applying the same twice changes nothing. A target is done whole, or put back as it was.
    """
    from podmgr import proc
    from podmgr.cli.doctor import require_sockets_with_cgroups
    from podmgr.reconcile import transaction
    from podmgr.reconcile.observe import bypassed
    from podmgr.reconcile.outcome import exit_code, remarks
    from podmgr.targets import wishes
    from podmgr.targets.names import Scope, read

    settings = settings_of(context, state_dir, bpffs, cgroup_root, program_dir, max_map_bytes)
    settle_seconds, timeout_seconds = seconds(settle), seconds(timeout)
    cli_rules, others = parse_rules(rule, settings), namespaces(peer_namespaces)
    names, scope = read(targets or [], Scope(namespace, all_namespaces, selector))
    if filename:
        if scope.names_pods:
            raise UsageError("-f names the pod; -A and -l would select others", tip="leave them out")
        _refuse_cluster("-f reads no cluster", kubeconfig, kube_context, node_name)
        made = wishes.from_manifests(
            filename,
            cgroup,
            names,
            cli_rules,
            settings,
            namespace=namespace or None,
            reads_standard=standard_annotations,
            report=say,
        )
    elif cgroup is not None:
        raise UsageError("--cgroup needs -f FILE", tip="podmgr apply cgroup/PATH --rule 'KEY=VALUE'")
    elif scope.names_pods or any(not name.startswith("cgroup/") for name in names):
        from podmgr.cluster.access import find_access
        from podmgr.cluster.api import Api
        from podmgr.targets.in_cluster import ClusterWishes

        if any(name.startswith("cgroup/") for name in names):
            raise UsageError("cgroups and pods at once", tip="podmgr apply them one after the other")
        api = Api(find_access(kubeconfig, kube_context))
        asked = ClusterWishes(
            api,
            scope,
            settings,
            timeout_seconds,
            say,
            node_name,
            reads_standard=standard_annotations,
            peer_namespaces=others,
        )
        made = asked.make(names, cli_rules)
    else:
        made = wishes.from_targets(names, cli_rules, settings)
        _refuse_cluster("a cgroup is in no cluster", kubeconfig, kube_context, node_name)
    wished, failed = made
    if wished and not dry_run:
        require_sockets_with_cgroups(settings, runner=proc.run)
    if dry_run:
        outcomes = failed + transaction.preview(wished, settings)
    else:
        done = transaction.apply(wished, settings, runner=proc.run, report=say) if wished else []
        outcomes = failed + (done if filename else _without_ended(done, wished, names))
    for line in remarks(outcomes):
        say(f"note: {line}")
    if settle_seconds and not dry_run:
        for line in bypassed(outcomes, settings, settle_seconds):
            say(f"warning: {line}")
    print_outcomes(outcomes, output, dry_run=dry_run)
    return exit_code(outcomes)


def _without_ended(outcomes: list[Outcome], wishes: Sequence[Wish], names: Collection[str]) -> list[Outcome]:
    """A pod that has ended meanwhile is not one of those selected any more; one that is named is missing.

    Of the pods of a manifest nobody knows whether they had begun.
    """
    from podmgr.reconcile.ended import without_ended
    from podmgr.reconcile.outcome import Action, Outcome

    kept, ended = without_ended(outcomes, wishes)
    for pod in ended:
        name = f"pod/{pod.name}"
        if name in names:
            error = PodmgrError("has ended meanwhile", tip="kubectl get pods -o wide")
            kept.append(Outcome(name, None, Action.FAILED, None, error, pod))
        else:
            say(f"{name} has ended meanwhile")
    return kept


def _refuse_cluster(
    why: str, kubeconfig: str | None, kube_context: str | None, node_name: str | None
) -> None:
    """Raise UsageError for an option that says how to ask a cluster, where none is asked."""
    given = {"--kubeconfig": kubeconfig, "--context": kube_context, "--node-name": node_name}
    for option, value in given.items():
        if value is not None:
            tip = "leave it out; the cluster is asked by podmgr apply pod/NAME, without -f"
            raise UsageError(f"{why}: {option} has no meaning there", tip=tip)
