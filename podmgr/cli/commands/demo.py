"""`podmgr demo`: its options; the show itself is the wing `demo`."""

from __future__ import annotations

import typer

from podmgr.cli.options import Bpffs, CgroupRoot, Output, StateDir, settings_of
from podmgr.cli.render import Format, say
from podmgr.errors import EXIT_DONE, EXIT_FAILED
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR


def command(
    context: typer.Context,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Make a throw-away pod, put the examples on it, and show declared against measured.

    Takes about a minute and ends by proving that nothing is left. Exit code 1 if a value is off.
    """
    from podmgr.cli.render import DemoTable
    from podmgr.demo.demonstrate import demonstrate

    settings = settings_of(context, state_dir, bpffs, cgroup_root)
    table = DemoTable(output)
    is_right = demonstrate(settings, show=table.add, report=say)
    table.end()
    return EXIT_DONE if is_right else EXIT_FAILED
