"""`podmgr list`: what is attached, once; with --watch `live` shows it again and again."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from podmgr.cli.options import (
    AllNamespaces,
    Bpffs,
    CgroupRoot,
    Kubeconfig,
    KubeContext,
    Labels,
    Namespace,
    Output,
    Settle,
    StateDir,
    seconds,
    selected,
    settings_of,
)
from podmgr.cli.render import (
    Format,
    attachments_document,
    attachments_table,
    document,
    error_text,
    print_errors,
    say,
)
from podmgr.cli.this_process import goes_on
from podmgr.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    PermissionDeniedError,
    UsageError,
)
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR


def command(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="As with apply.  [default: all]", show_default=False),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    output: Output = Format.TABLE,
    settle: Settle = "0s",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on, with rates, until Ctrl-C.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Show what podmgr has attached, read back from the kernel at this moment.

    An ordinary user who may read the ledger sees what is written there, with the state unknown, and
    exit code 3.
    """
    from podmgr.reconcile.observe import settled, with_figures, written
    from podmgr.targets.names import Scope

    settings = settings_of(context, state_dir, bpffs, cgroup_root)
    scope = Scope(namespace, all_namespaces, selector)
    if watch:
        from podmgr.cli import live

        goes_on()
        if targets or scope != Scope():
            raise UsageError("--watch shows all attachments", tip="podmgr list --watch")
        try:
            live.watch(settings, output)
        except KeyboardInterrupt:  # how it ends: there is nothing to be said
            return EXIT_INTERRUPTED
        return EXIT_DONE
    denied: PermissionDeniedError | None = None
    try:
        observed, unknown = settled(settings, seconds(settle))
    except PermissionDeniedError as error:
        denied, observed, unknown = error, written(settings), 0
        if not observed or os.geteuid() == 0:  # none may be taken for empty, and root can mend it
            raise
    rows = [item.attachment for item in observed]
    selection, failed = selected(targets, scope, rows, settings, kubeconfig, kube_context)
    if selection is not None:
        observed = [item for item in observed if selection.covers(item.attachment)]
    if output in (Format.JSON, Format.YAML):
        print(document(attachments_document(observed), output), end="")
    elif observed:
        if output is Format.WIDE and not denied:
            observed = with_figures(settings, observed)
        print(attachments_table(observed, wide=output is Format.WIDE), end="")
    elif not failed:
        say("nothing is attached")
    if unknown:
        say(f"{unknown} pins are not in the ledger, left by a crash; podmgr clean removes them")
    print_errors(failed)
    if denied is not None:
        sys.stdout.flush()
        sys.stderr.write(error_text(denied))
    return EXIT_DONE if not failed and not denied else EXIT_PARTLY if observed else EXIT_FAILED
