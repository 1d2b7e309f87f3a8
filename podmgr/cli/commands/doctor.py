"""`podmgr doctor`: its options; `cli.doctor` examines the machine."""

from __future__ import annotations

import typer

from podmgr.cli.options import Bpffs, CgroupRoot, Kubeconfig, KubeContext, Output, StateDir, settings_of
from podmgr.cli.render import Format
from podmgr.errors import EXIT_DONE, EXIT_FAILED
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR


def command(
    context: typer.Context,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Look at what this machine has of what podmgr needs, and say what to do.

    Exit code 1 if podmgr cannot work here.
    """
    from podmgr import proc
    from podmgr.cli import doctor as practice
    from podmgr.cli.render import FindingList

    settings = settings_of(context, state_dir, bpffs, cgroup_root)
    listing = FindingList(output)
    for finding in practice.examine(settings, runner=proc.run, named=kubeconfig, context=kube_context):
        listing.add(finding)
    listing.end()
    return EXIT_FAILED if listing.cannot_work else EXIT_DONE
