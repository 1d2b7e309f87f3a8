"""What the names in a pod's rules come to: which rules can hold, and what their peers stand for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from podmgr.cluster.peers import Resolved
from podmgr.errors import PodmgrError
from podmgr.rules.match import Peer
from podmgr.rules.peers import Entry, in_namespace
from podmgr.rules.rule import Rule
from podmgr.rules.source import Source, SourcedRule

Find = Callable[[Peer], Resolved]


class Refused(NamedTuple):
    """A rule that cannot hold now, since what it names is nothing that packets have, or may not be seen."""

    sourced: SourcedRule
    error: PodmgrError


class Named(NamedTuple):
    """The rules that can hold, and all that is to be known of their names.

    `unreadable` says, as of an annotation that cannot be read, in whose place a rule is missing.
    """

    rules: tuple[SourcedRule, ...]
    peers: Mapping[Peer, tuple[Entry, ...]]
    refused: tuple[Refused, ...] = ()
    remarks: tuple[str, ...] = ()
    unreadable: frozenset[tuple[Source, str]] = frozenset()


def names_of(rules: Iterable[Rule]) -> frozenset[Peer]:
    """The peers that must be looked up, as the rules write them."""
    return frozenset(peer for rule in rules for peer in rule.match.names)


def name_all(rules: tuple[SourcedRule, ...], others: Iterable[Rule], namespace: str, find: Find) -> Named:
    """What the names of a pod's rules come to, and those of `others` that may take their place.

    `find` says what a peer, with its namespace, stands for.
    """
    names = names_of([*(sourced.rule for sourced in rules), *others])
    if not names:
        return Named(rules, {})
    found = {peer: find(in_namespace(peer, namespace)) for peer in sorted(names)}
    kept, refused, unreadable = [], [], set()
    for sourced in rules:
        wrong = [peer for peer in sourced.rule.match.names if found[peer].is_refused]
        if not wrong:
            kept.append(sourced)
            continue
        unreadable.add((sourced.source, sourced.rule.key))
        for peer in wrong:
            if (error := found[peer].error) is not None:
                said = PodmgrError(f"{peer} {error.message}", tip=error.tip)
                refused.append(Refused(sourced, said))
                break
    named = names_of(sourced.rule for sourced in kept)
    return Named(
        tuple(kept),
        {peer: one.entries for peer, one in found.items() if not one.is_refused},
        tuple(refused),
        tuple(f"{peer}: {one.remark}" for peer, one in found.items() if one.remark and peer in named),
        frozenset(unreadable),
    )
