"""Desired attachments minus actual attachments = actions. Pure data, pure functions.

Apart from `transaction`, which alone uses it: it is pure, and tested by itself with any rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from podmgr.attachment import Attachment, Slot


class Plan(NamedTuple):
    """What to do. `unchanged` are the wanted rows with the program ids that they already have.

    `replaced` are the slots that change hands: what is attached there takes the place of what
    is detached there.
    """

    attach: tuple[Attachment, ...]
    detach: tuple[Attachment, ...]
    unchanged: tuple[Attachment, ...]
    replaced: frozenset[Slot] = frozenset()

    @property
    def is_empty(self) -> bool:
        return not self.attach and not self.detach


def make_plan(wanted: Iterable[Attachment], actual: Iterable[Attachment]) -> Plan:
    """`actual` are the healthy attachments of the targets that `wanted` speaks for."""
    want = list({row.identity: row for row in wanted}.values())
    actual = list({row.identity: row for row in actual}.values())
    have, meant = {row.program: row for row in actual}, {row.program for row in want}
    attach = tuple(row for row in want if row.program not in have)
    detach = tuple(row for row in actual if row.program not in meant)
    return Plan(
        attach=attach,
        detach=detach,
        unchanged=tuple(
            row._replace(
                owner=have[row.program].owner,  # where its pin is, whatever the target is called now
                program_id=have[row.program].program_id,
                links_packets=have[row.program].links_packets,
                links_bytes=have[row.program].links_bytes,
            )
            for row in want
            if row.program in have
        ),
        replaced=frozenset({row.slot for row in attach} & {row.slot for row in detach}),
    )
