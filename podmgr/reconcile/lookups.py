"""What each program looks up: which packets are its rule's and not a sibling's, and when it is in force.

Apart from the programs themselves, so that a sibling that comes or goes, or a peer that moves, changes what
is in their maps, and no program's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from podmgr.attachment import NOBODY, Attachment, Wish
from podmgr.errors import PodmgrError
from podmgr.kernel import program_tables
from podmgr.kernel.pod_cgroups import container_cgroups
from podmgr.kernel.starts import Starts
from podmgr.reconcile.actual import pin_of
from podmgr.reconcile.outcome import Failures
from podmgr.rules.match import Peer
from podmgr.rules.peers import Entry
from podmgr.rules.rule import Rule
from podmgr.rules.source import SourcedRule
from podmgr.rules.tables import NONE, Containers, needs_table, table_of
from podmgr.rules.timing import ALWAYS
from podmgr.settings import Settings


class Lookup(NamedTuple):
    """What a rule's program needs to know of the rules beside it: `group`, of which it is one."""

    rule: Rule
    group: tuple[Rule, ...]
    peers: Mapping[Peer, tuple[Entry, ...]] = NOBODY
    containers: Containers = NONE
    begins_anew: bool = False  # it was over, and somebody asks for it again

    @property
    def is_matched(self) -> bool:
        """Whether the program must look at each packet's peer and ports."""
        return needs_table(self.rule, self.group)

    @property
    def is_known(self) -> bool:
        """Whether all names in its match were looked up."""
        return all(peer in self.peers for peer in self.rule.match.names)

    @property
    def absent(self) -> list[str]:
        """The containers of its match that the target does not have now."""
        return [name for name in self.rule.match.containers if name not in self.containers]

    @property
    def is_none(self) -> bool:
        return not self.is_matched and self.rule.timing == ALWAYS


def lookups(rules: Sequence[SourcedRule], wish: Wish) -> dict[SourcedRule, Lookup]:
    """For each rule of a target those beside it: of its kind, direction and layer, in the order written."""
    names = {name for sourced in rules for name in sourced.rule.match.containers}
    containers = container_cgroups(wish.target.cgroup, names, wish.containers) if names else NONE
    groups: dict[object, list[Rule]] = {}
    for sourced in rules:
        groups.setdefault(_group_of(sourced), []).append(sourced.rule)
    return {
        sourced: Lookup(sourced.rule, tuple(groups[_group_of(sourced)]), wish.peers, containers)
        for sourced in rules
    }


def _group_of(sourced: SourcedRule) -> object:
    key = sourced.rule.collision_key
    return (key.kind, key.direction, sourced.source.layer, sourced.is_enforced)


def tell(settings: Settings, wanted: Mapping[Attachment, Lookup]) -> Failures:
    """Write what each row's program looks up, where it differs; those for which it cannot be done.

    A row whose names could not be looked up keeps what its program knows: all of it, as it belongs together.
    """
    failures: Failures = []
    starts: dict[str, Starts] = {}
    for row, lookup in wanted.items():
        if lookup.is_none or not lookup.is_known:
            continue
        try:
            _tell(settings, row, lookup, starts)
        except PodmgrError as error:
            failures.append((row, error))
    return failures


def _tell(settings: Settings, row: Attachment, lookup: Lookup, starts: dict[str, Starts]) -> None:
    pin = pin_of(settings, row)
    rules: tuple[Rule, ...] = (lookup.rule,)
    if lookup.is_matched:
        table = table_of(lookup.rule, lookup.group, lookup.peers, lookup.containers)
        rules = table.rules
    if any(rule.timing != ALWAYS for rule in rules):
        if row.owner not in starts:
            starts[row.owner] = Starts(settings.bpffs, row.owner)
        began = starts[row.owner]
        if lookup.begins_anew:
            began.forget(lookup.rule)
        times = [(rule.timing, began.begin(rule) if rule.timing != ALWAYS else 0) for rule in rules]
        program_tables.write_windows(pin, times)
    if lookup.is_matched:
        program_tables.write_lists(pin, table.lists)
