"""`podmgr clean`: of which targets everything is taken away, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    StateDir,
    selected,
    settings_of,
)
from podmgr.cli.render import Format, print_outcomes, say
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from podmgr.attachment import Selection
    from podmgr.reconcile.outcome import Outcome


def command(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="As with apply, or as list names it.", show_default=False),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Take everything away again: of these targets, or all; also what a crash left.

    Programs of others stay.
    """
    from podmgr import proc
    from podmgr.kernel import cgroups, leftovers
    from podmgr.reconcile import transaction
    from podmgr.reconcile.actual import recorded
    from podmgr.reconcile.outcome import exit_code
    from podmgr.targets.names import Scope

    settings = settings_of(context, state_dir, bpffs, cgroup_root)
    scope = Scope(namespace, all_namespaces, selector)
    selection: Selection | None = None
    failed: list[Outcome] = []
    if targets or scope != Scope():
        rows = recorded(settings)
        selection, failed = selected(targets, scope, rows, settings, kubeconfig, kube_context)
    outcomes = list(failed)
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        say(line)

    if selection is None or selection.cgroup_ids:
        outcomes += transaction.clean(selection, settings, runner=proc.run, report=report)
    if selection is None:
        for what in leftovers.remove(cgroups.find_root(settings.cgroup_root), runner=proc.run):
            report(f"removed {what}, left by a crash")
    if not outcomes and not said:
        say("nothing of podmgr's is attached" + (" there" if selection else ""))
    print_outcomes(outcomes, output)
    return exit_code(outcomes)
