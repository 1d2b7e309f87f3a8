"""Whether kernel and ledger agree: what is written down is in force, and nothing else of podmgr's is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from podmgr.kernel import cgroups, pins
from podmgr.kernel.netns import Namespaces
from podmgr.reconcile import ledger
from podmgr.reconcile.actual import Sight, pinned_id, unknown_pins
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import attached


def disagreements(settings: Settings, on_interfaces: Iterable[int] = ()) -> list[str]:
    """A line for each; `on_interfaces` are the programs that hang on interfaces where podmgr acts."""
    rows = ledger.read(settings.state_dir)
    with Namespaces() as namespaces:
        there = set(Sight(settings, namespaces).attached(rows))
    found = [f"written down and not attached: {row.rule} on {row.target}" for row in rows if row not in there]
    for row in rows:
        if (pinned := pinned_id(settings, row)) != row.program_id:
            found.append(f"written down as {row.program_id}, pinned as {pinned}: {row.rule}")
    found += [f"pinned and not written down: {pin.program}" for pin in unknown_pins(settings, rows)]
    known = {row.program_id for row in rows}
    assert settings.cgroup_root is not None
    for cgroup in cgroups.walk(settings.cgroup_root):
        there_now = {id for side in Direction for id in attached(cgroup, side)}
        found += _unknown(there_now, known, str(cgroup.path))
    found += _unknown(on_interfaces, known, "an interface")
    if not any(row.links for row in rows):
        found += [f"the qdisc {mark} is ours for nothing" for mark in pins.marks(settings.bpffs)]
    return found


def left_of_runs(settings: Settings) -> list[Path]:
    """Cgroups of runs, and what they have written down."""
    assert settings.cgroup_root is not None
    return [*settings.cgroup_root.glob("**/podmgr-run-*"), *settings.state_dir.glob("runs/*")]


def _unknown(programs: Iterable[int], known: Collection[int | None], place: str) -> list[str]:
    return [f"attached to {place} and not written down: {id}" for id in programs if id not in known]
