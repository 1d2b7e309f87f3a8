"""The order of programs on an interface: at which priorities the filters of a rule stand. Pure."""

from __future__ import annotations

from podmgr.attachment import Attachment, Link
from podmgr.rules.kinds import template_of
from podmgr.rules.rule import Rule, Stage

# Behind filters that were given a small number to be first, before those that the kernel numbers.
# What frees packets from their socket comes before all else, since all before it sees them twice; then
# what is enforced. What delays is last of all, so that nobody behind it takes its departure times back.
_FREEING = 50
_ENFORCED, _OTHERS = 51, 99
_MOST_CUSTOM = 40  # further ones share the last place
_DEPARTURE = 144  # for each stage two: what is enforced, and before it the others

PRIORITIES = range(_FREEING, 150)
DEPARTURES = range(_DEPARTURE, 150)  # of what needs fq
# The numbers of filters by which a program knows in which of its places it is (bpf/freeing.h, block.bpf.c).
_ACTS, FREES, WATCHES = range(3)


def priority(rule: Rule, *, is_enforced: bool = False, position: int = 0) -> int:
    """Where in the chain a rule's program stands; `position` is that among its target's custom programs."""
    stage = template_of(rule).stage
    if stage >= Stage.DEPARTURE:
        return _DEPARTURE + 2 * (stage - Stage.DEPARTURE) + is_enforced
    base = _ENFORCED if is_enforced else _OTHERS
    if stage < Stage.CUSTOM:
        return base + stage
    custom = min(position, _MOST_CUSTOM - 1) if stage is Stage.CUSTOM else _MOST_CUSTOM - 1
    return base + stage + custom


def is_enforced(row: Attachment) -> bool:
    """Whether a row's place is that of an enforced rule; at the cgroup hook, where there is none, it may be.

    There it acts beside all others, as all do.
    """
    if row.priority in DEPARTURES:
        return (row.priority - _DEPARTURE) % 2 == 1
    return row.priority < _OTHERS


def places(row: Attachment, link: Link) -> list[tuple[int, int]]:
    """Where the row's program hangs on one of its interfaces: priorities, and the numbers by which the
    program knows which of its places it is in.
    """
    if row.rule is None:
        return [(row.priority or _OTHERS, _ACTS)]
    own = (row.priority or priority(row.rule), _ACTS)
    if is_watched(row, link):  # behind what blocks there, which nothing that is seen shall have passed
        return [(own[0] + Stage.LOSS - Stage.BLOCK, WATCHES)]
    return [(_FREEING, FREES), own] if template_of(row.rule).frees else [own]


def is_watched(row: Attachment, link: Link) -> bool:
    """Whether its program only looks at what passes this side of the interface."""
    return row.rule is not None and row.rule.watches_back and link.side is not row.direction
