"""Desired attachments minus actual attachments = actions. Pure data, pure functions."""

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
    have = {attachment.identity: attachment for attachment in actual}
    want = {attachment.identity: attachment for attachment in wanted}
    attach = tuple(row for identity, row in want.items() if identity not in have)
    detach = tuple(row for identity, row in have.items() if identity not in want)
    return Plan(
        attach=attach,
        detach=detach,
        unchanged=tuple(
            row._replace(
                owner=have[identity].owner,  # where its pin is, whatever the target is called now
                program_id=have[identity].program_id,
                links_packets=have[identity].links_packets,
                links_bytes=have[identity].links_bytes,
            )
            for identity, row in want.items()
            if identity in have
        ),
        replaced=frozenset({row.slot for row in attach} & {row.slot for row in detach}),
    )
