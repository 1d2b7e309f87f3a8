"""What others have on cgroups that ours would take the place of.

A program that was attached with `override` acts on the cgroups below only as long as those have
none of their own. So ours, on a pod's cgroup, would lift it for the pod.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from podmgr.attachment import Attachment, Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel import bpf_syscall, cgroups
from podmgr.kernel.bpf_syscall import BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE
from podmgr.rules.rule import Direction, Hook


class Holder(NamedTuple):
    """A program that acts on a cgroup, and the cgroup that it is attached to, if that is in sight."""

    program_id: int
    cgroup: Cgroup | None

    def __str__(self) -> str:
        name = bpf_syscall.program_name(self.program_id)
        place = f"cgroup {self.cgroup.path}" if self.cgroup else "a cgroup above"
        return f"program {self.program_id}{f' ({name})' if name else ''} of {place}"


def effective(cgroup: Cgroup, direction: Direction) -> frozenset[int]:
    """The programs that see the cgroup's packets now, wherever they are attached."""
    with cgroups.opened(cgroup) as fd:
        return frozenset() if fd is None else frozenset(bpf_syscall.effective_programs(fd, direction))


def would_be_lifted(cgroup: Cgroup, direction: Direction) -> Holder | None:
    """Whose program, attached with `override`, would no longer act here beside one of ours."""
    acting = effective(cgroup, direction)
    if not acting:
        return None
    for holder, flags in _attached(cgroup, direction):
        if holder.program_id in acting and not flags & BPF_F_ALLOW_MULTI:
            is_of_above = holder.cgroup != cgroup and flags & BPF_F_ALLOW_OVERRIDE
            return holder if is_of_above else None  # the kernel itself refuses the others
    return None


def lifted(before: Collection[int], cgroup: Cgroup, direction: Direction) -> Holder | None:
    """Which of the programs that acted before does not act any more, though it is attached still."""
    lost = set(before) - effective(cgroup, direction)
    if not lost:
        return None
    there = [holder for holder, _ in _attached(cgroup, direction) if holder.program_id in lost]
    if there or cgroups.has_true_root():  # else it may hang where we cannot look
        return there[0] if there else None
    return Holder(min(lost), None)


def refusals(rows: Iterable[Attachment]) -> list[tuple[Attachment, PodmgrError]]:
    """Of rows that are wished, those that would switch off a program of others, with what there is to say."""
    found: dict[tuple[int, Direction], Holder | None] = {}
    refused = []
    for row in rows:
        place = (row.cgroup_id, row.direction)
        if row.hook is not Hook.CGROUP:
            continue
        if place not in found:
            found[place] = would_be_lifted(row.cgroup, row.direction)
        if holder := found[place]:
            refused.append((row, refusal(str(row.rule), row.cgroup, holder)))
    return refused


def refusal(rule: str, cgroup: Cgroup, holder: Holder) -> PodmgrError:
    """Why a rule is not attached."""
    return PodmgrError(
        f"'{rule}' would lift {holder} for {cgroup.path}: it lets others take its place ('override')",
        tip="its owner must attach it with 'multi', which lets it act beside others",
    )


def _attached(cgroup: Cgroup, direction: Direction) -> Iterator[tuple[Holder, int]]:
    """What is attached to a cgroup and to those above it, nearest first, with the flags."""
    for place in [cgroup, *cgroups.above(cgroup)]:
        with cgroups.opened(place) as fd:
            if fd is None:
                continue
            found = bpf_syscall.attached_programs(fd, direction)
        for program_id in found.program_ids:
            yield Holder(program_id, place), found.flags
