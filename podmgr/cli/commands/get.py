"""`kubectl podmgr get`: what each pod was told, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podmgr.cli.options import (
    AllNamespaces,
    Kubeconfig,
    KubeContext,
    Labels,
    Namespace,
    Output,
    StandardAnnotations,
)
from podmgr.cli.render import Format, columns, document, error_text, say
from podmgr.cli.workstation import OwnProfiles, RequestTimeout, connect, profiles
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_PARTLY, printable
from podmgr.settings import DEFAULT_PROGRAM_DIR

if TYPE_CHECKING:
    from podmgr.cluster.told import Told

_MESSAGE_COLUMNS = 72  # of a table; -o wide has all of it


def command(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="pod/NAME; or svc, deploy, rs, sts, ds, job, cronjob, ns with a name, which stand for their "
            "pods.  [default: all pods of the namespace]",
            show_default=False,
        ),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    standard_annotations: StandardAnnotations = False,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    request_timeout: RequestTimeout = "0",
    program_dir: OwnProfiles = DEFAULT_PROGRAM_DIR,
    output: Output = Format.TABLE,
) -> int:
    """Show what each pod was told, by annotations, and what became of it, by podmgr's Events.

    STATE is active, over (its time is), bypassed (attached, and packets pass it by), failed, removed, beaten
    (a stronger rule holds), unreadable, pending (no Event yet) or unknown (an Event may have been there: they
    last an hour).
    What is attached at this moment only the pod's node knows: podmgr list.
    """
    from podmgr.cluster.asking import ask
    from podmgr.targets.names import Scope, read

    names, scope = read(targets or [], Scope(namespace, all_namespaces, selector))
    api = connect(kubeconfig, kube_context, request_timeout)
    answer = ask(
        api,
        _in_cluster(names),
        namespace=None if scope.all_namespaces else scope.namespace or api.namespace,
        labels=scope.labels,
        reads_standard=standard_annotations,
        profiles=profiles(context, program_dir),
        report=say,
    )
    if output in (Format.JSON, Format.YAML):
        print(document({"version": 1, "rules": [_row(row) for row in answer.rows]}, output), end="")
    elif answer.rows:
        print(_table(answer.rows, wide=output is Format.WIDE), end="", flush=True)
    elif not answer.failed:
        say("no pod that is meant was told anything")
    for name, error in answer.failed:
        typer.echo(
            error_text(error, where="" if name in error.message else f"{printable(name)}: "),
            err=True,
            nl=False,
        )
    return EXIT_DONE if not answer.failed else EXIT_PARTLY if answer.rows else EXIT_FAILED


def _in_cluster(names: Sequence[str]) -> Sequence[str]:
    from podmgr.errors import UsageError

    for name in names:
        if name.startswith("cgroup/"):
            raise UsageError(f"{printable(name)} is on a node, not in a cluster", tip="podmgr list there")
    return names


def _table(rows: Sequence[Told], *, wide: bool) -> str:
    heading = ["NAMESPACE", "POD", "NODE", "RULE", "SOURCE", "STATE"]
    table = [[*heading, *(["HOOK", "SINCE"] if wide else []), "MESSAGE"]]
    for row in rows:
        cells = [row.pod.ref.namespace, row.pod.ref.name, row.pod.node, row.rule, row.source, row.state]
        message = row.message
        if wide:
            cells += [row.hook, row.since]
        elif len(message) > _MESSAGE_COLUMNS:
            message = message[: _MESSAGE_COLUMNS - 1] + "…"
        table.append([printable(cell) or "-" for cell in (*cells, message)])
    return columns(table)


def _row(row: Told) -> dict[str, Any]:
    return {
        "pod": {"namespace": row.pod.ref.namespace, "name": row.pod.ref.name, "uid": row.pod.ref.uid},
        "node": row.pod.node,
        "rule": row.rule,
        "source": row.source,
        "state": row.state.value,
        "hook": row.hook,
        "since": row.since,
        "message": row.message,
    }
