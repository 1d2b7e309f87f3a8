"""What a podmgr has left that was killed: every command first ends and removes it, or puts it in order.

Apart from `cli.main`, which alone uses it, as a library's user must be able to do the same. Until then
what lives on of such a run stays under its rules: they are the kernel's, and need no podmgr.
"""

from __future__ import annotations

import os
from pathlib import Path

from podmgr.attachment import Cgroup, Selection
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life, masquerade, private_network
from podmgr.proc import Runner
from podmgr.reconcile import lease, unfinished
from podmgr.reconcile.outcome import Action, Report
from podmgr.reconcile.transaction import clean, repair
from podmgr.settings import Settings


def finish(settings: Settings, *, runner: Runner, report: Report) -> None:
    """Remove what runs have left whose podmgr is gone, and finish the transaction that one was killed in.

    Runs that are alive are not touched. Of a run from which podmgr itself was started nothing is removed:
    who asks would end with it. Raises PodmgrError if something cannot be removed; the next command tries
    again.
    """
    problem: PodmgrError | None = None
    for found in lease.abandoned(settings.state_dir):
        try:
            is_done = _finish(found.notes(), settings, runner, report)
        except PodmgrError as error:
            found.let_go()
            problem = problem or error
        else:
            (found.end if is_done else found.let_go)()
    if unfinished.is_left(settings.state_dir):
        repair(settings, runner=runner, report=report)
    if problem is not None:
        raise problem


def _finish(notes: dict[str, str], settings: Settings, runner: Runner, report: Report) -> bool:
    """From the command to its cgroup; whether nothing is left."""
    cgroup = Cgroup(Path(notes.get("cgroup", "/nowhere")), int(notes.get("id", 0)))
    if os.getpid() in cgroup_life.processes(cgroup):
        return False
    if killed := cgroup_life.kill(cgroup):
        report(f"killed {killed} processes of a run whose podmgr was killed")
    if cgroup.id:  # else nothing is attached to it yet
        selection = Selection(frozenset({cgroup.id}), frozenset({str(cgroup.id)}))
        for outcome in clean(selection, settings, runner=runner, report=report):
            if outcome.action is Action.FAILED and outcome.error is not None:
                raise outcome.error
    if "table" in notes:
        masquerade.remove(notes["table"], runner=runner)
    if "network" in notes:  # else it goes with the last process in it, which may have left the cgroup
        private_network.delete(notes["network"])
    if cgroup.path.exists():
        cgroup_life.remove(cgroup)
        report(f"removed {cgroup.path}, left by a crash")
    return True
