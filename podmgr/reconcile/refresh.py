"""Names in matches stand for other addresses now: what programs look up is changed, and nothing else.

A whole transaction looks at the kernel for a hundred pods, and compiles; a peer that moves must be met within
a tenth of a second.

It writes into maps, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from podmgr.attachment import Attachment, Wish
from podmgr.reconcile import ledger
from podmgr.reconcile.lookups import Lookup, lookups, tell
from podmgr.reconcile.merged import forms, merged
from podmgr.reconcile.outcome import Failures
from podmgr.rules.tables import Moves, Peers
from podmgr.settings import Settings


class Moved(NamedTuple):
    """What a target's rules name, as its programs were told last, and now."""

    before: Peers
    now: Peers


def refresh(wishes: Iterable[tuple[Wish, Peers]], settings: Settings) -> Failures:
    """Tell the programs of these targets who their peers are now; those for which it cannot be done.

    Beside each wish stands what it was told before. What is not attached yet is none of its business, and is
    told when it is. Raises PodmgrError where nothing can be done at all.
    """
    wanted: dict[Attachment, Lookup] = {}
    with ledger.locked(settings.state_dir) as state:
        rows, _ = ledger.read_or_set_aside(state)
        by_cgroup: dict[int, list[Attachment]] = {}
        for row in rows:
            by_cgroup.setdefault(row.cgroup_id, []).append(row)
        for wish, before in wishes:
            there = by_cgroup.get(wish.target.cgroup.id, [])
            moves = Moves(before, wish.peers)
            beside = lookups(merged(wish, there), wish)
            for sourced, lookup in beside.items():
                if not moves.may_concern(lookup.rule):
                    continue
                for form in forms(sourced.rule):
                    wanted |= {
                        row: lookup._replace(rule=form)
                        for row in there
                        if (row.rule, row.source) == (form, sourced.source)
                    }
        return tell(settings, wanted)
