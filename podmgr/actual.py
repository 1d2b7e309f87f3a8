"""What the kernel has now: which of our programs hang where, by ledger row or by pin alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from podmgr import bpf_syscall, cgroups, pins
from podmgr.cgroups import Cgroup
from podmgr.pins import Pin
from podmgr.plan import Attachment
from podmgr.rules import Direction
from podmgr.settings import Settings


def pin_of(settings: Settings, row: Attachment) -> Pin:
    """Where the row's program is pinned."""
    return Pin(settings.bpffs, row.owner, row.digest)


def cgroup_of(row: Attachment) -> Cgroup:
    """The row's cgroup, which may have vanished."""
    return Cgroup(Path(row.cgroup_path), row.cgroup_id)


def pinned_id(settings: Settings, row: Attachment) -> int | None:
    """The id of the program at the row's pin."""
    return bpf_syscall.pinned_program_id(pin_of(settings, row).program)


def is_attached(row: Attachment) -> bool:
    """Whether the kernel has the row's program on the row's cgroup."""
    return row.program_id is not None and row.program_id in _attached_to(cgroup_of(row), row.direction)


def is_healthy(settings: Settings, row: Attachment) -> bool:
    """Whether the row's program is attached and pinned: nothing is left to do for it."""
    return is_attached(row) and pinned_id(settings, row) == row.program_id


def unknown_pins(
    settings: Settings, rows: Sequence[Attachment], owners: Collection[str] | None = None
) -> list[Pin]:
    """Pins that no row speaks for: what a crash, or a lost ledger, left; of these owners, or of all."""
    known = {(row.owner, row.digest) for row in rows}
    return [pin for pin in pins.pinned(settings.bpffs, owners) if (pin.owner, pin.digest) not in known]


def has_unknown_near(settings: Settings, rows: Sequence[Attachment], near: Mapping[str, Cgroup]) -> bool:
    """Whether a look at some cgroups alone, by owner, shows what their rows do not explain.

    Programs of others on these cgroups count too: whose they are is seen by a look at all pins.
    """
    ids = {cgroup.id for cgroup in near.values()}
    close = [row for row in rows if row.cgroup_id in ids or row.owner in near]
    healthy = [row for row in close if is_healthy(settings, row)]
    explained = {row.program_id for row in healthy}
    if unknown_pins(settings, healthy, near):
        return True
    return any(
        not explained.issuperset(_attached_to(cgroup, direction))
        for cgroup in near.values()
        for direction in Direction
    )


def unknown_attachments(settings: Settings, rows: Sequence[Attachment]) -> list[Attachment]:
    """Attachments that only their pins tell of.

    The kernel is the truth: a row speaks for its pin only if the pinned program is attached
    where the row says. If not, the program is looked for everywhere.
    """
    orphans: dict[int, Pin] = {}
    for pin in unknown_pins(settings, [row for row in rows if is_healthy(settings, row)]):
        program_id = bpf_syscall.pinned_program_id(pin.program)
        if program_id is not None:
            orphans[program_id] = pin
    if not orphans:
        return []
    root = cgroups.find_root(settings.cgroup_root)
    return [
        _unknown_row(root, cgroup, direction, program_id, orphans[program_id])
        for cgroup in cgroups.walk_everywhere(root)
        for direction in Direction
        for program_id in _attached_to(cgroup, direction)
        if program_id in orphans
    ]


def _attached_to(cgroup: Cgroup, direction: Direction) -> Collection[int]:
    """What hangs on the cgroup now; nothing if it has vanished."""
    with cgroups.opened(cgroup) as fd:
        return () if fd is None else bpf_syscall.attached_programs(fd, direction).program_ids


def _unknown_row(root: Path, cgroup: Cgroup, direction: Direction, program_id: int, pin: Pin) -> Attachment:
    return Attachment(
        target=cgroups.display_name(root, cgroup),
        owner=pin.owner,
        cgroup_path=str(cgroup.path),
        cgroup_id=cgroup.id,
        rule="",
        kind="unknown",
        direction=direction,
        hook="cgroup",
        source="unknown",
        digest=pin.digest,
        object_digest="",
        program_id=program_id,
    )
