"""Which packets are a rule's and not another's, as its program looks it up: bpf/match.h. Pure.

Of the rules of one kind and direction in one layer the most specific that is in force acts. Each program has
a table of its own, with the terms of its rule, and of all that may come before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

from podmgr.errors import UsageError
from podmgr.rules.match import MAX_TERMS, Peer, Ports
from podmgr.rules.peers import ANYWHERE, Entry, Near, Prefix, own_entries
from podmgr.rules.rule import Rule
from podmgr.rules.timing import ALWAYS

MAX_PREFIXES = 32_768  # of one table: half of what its map holds, so that a change finds room beside it
MAX_TERMS_OF_A_TABLE = 256  # also half
MAX_RULES = 32  # that may hide each other

NONE: Mapping[str, int] = MappingProxyType({})
_ALL_PORTS = Ports(0, 65_535)

Peers = Mapping[Peer, tuple[Entry, ...]]
Containers = Mapping[str, int]


class Term(NamedTuple):
    """What a packet must have. `protocol` None: any. `rule` is a place in `Table.rules`."""

    protocol: int | None
    ports: Ports
    local_ports: Ports
    rule: int
    takes_away: bool = False
    is_timed: bool = False
    container: int | None = None  # the number of its cgroup


class Table(NamedTuple):
    """For each prefix of the peer's address the terms, of which the first that fits decides.

    `rules` are the program's own, and those that may hide it.
    """

    rules: tuple[Rule, ...]
    lists: Mapping[Prefix, tuple[Term, ...]]


class _Candidate(NamedTuple):
    """A term where it is sorted: what is less comes first.

    `peer` is which of the rule's peers it is of. Without a term that peer is taken away here, or the whole
    rule where there is no peer either.
    """

    rank: tuple[int, ...]
    rule: int
    peer: int | None
    term: Term | None


def rivals_of(rule: Rule, group: Iterable[Rule]) -> list[Rule]:
    """Those of a group that may hide the rule for some packets: what only counts hides nothing."""
    return [other for other in group if other is not rule and not other.is_shadow]


def needs_table(rule: Rule, group: Sequence[Rule]) -> bool:
    """Whether the rule is not simply about all packets."""
    return any(rule.match) or bool(rivals_of(rule, group))


def table_of(rule: Rule, group: Sequence[Rule], peers: Peers, containers: Containers = NONE) -> Table:
    """The table of a rule among those of its kind, direction and layer, in the order as written.

    `peers` says what names stand for, `containers` the numbers of cgroups: of one that is not in it there
    are no packets. Raises UsageError for more than a program can look up.
    """
    rules = [rule, *rivals_of(rule, group)]
    if len(rules) > MAX_RULES:
        raise UsageError(f"'{rule}': {len(rules)} rules that may hide each other", tip=f"{MAX_RULES} at most")
    written = {id(other): place for place, other in enumerate(group)}
    own = _near(rule, peers)
    entries: dict[Prefix, list[_Candidate]] = {}
    for place, other in enumerate(rules):
        order = written.get(id(other), 0)
        for prefix, candidate in _candidates(other, place, order, peers, containers, own):
            entries.setdefault(prefix, []).append(candidate)
    if len(entries) > MAX_PREFIXES:
        raise UsageError(
            f"'{rule}': its peers are {len(entries):,} prefixes, with those of rules beside it",
            tip=f"{MAX_PREFIXES:,} at most: name networks instead of what is in them",
        )
    lists = _lists(rule, entries)
    count = sum(map(len, set(lists.values())))
    if count > MAX_TERMS_OF_A_TABLE:
        raise UsageError(
            f"'{rule}': {count} different combinations of addresses, ports and protocols",
            tip=f"{MAX_TERMS_OF_A_TABLE} at most, with those of rules beside it: say it with fewer rules",
        )
    return Table(tuple(rules), lists)


class Moves:
    """Which names stand for other addresses now, and where."""

    def __init__(self, before: Peers, after: Peers) -> None:
        changed = {peer for peer in before.keys() | after.keys() if before.get(peer) != after.get(peer)}
        entries = {peer: set(before.get(peer, ())) ^ set(after.get(peer, ())) for peer in changed}
        self._names = changed
        self._near = Near(entry.prefix for there in entries.values() for entry in there)
        self._peers = after

    def may_concern(self, rule: Rule) -> bool:
        """Whether the rule's table may be another one."""
        match = rule.match
        if not self._names.isdisjoint(match.names):
            return True
        return any(
            entry.prefix in self._near
            for peer in match.peers or (None,)
            for entry in _entries(peer, self._peers)
        )


def _near(rule: Rule, peers: Peers) -> Near:
    """Where the rule itself may act: what others say of addresses elsewhere is not in its table."""
    return Near(entry.prefix for peer in rule.match.peers or (None,) for entry in _entries(peer, peers))


def _candidates(
    rule: Rule, place: int, order: int, peers: Peers, containers: Containers, near: Near
) -> Iterator[tuple[Prefix, _Candidate]]:
    """The terms of a rule, each at the prefix where it begins to hold."""
    match = rule.match
    for number, peer in enumerate(match.peers or (None,)):
        for entry in _entries(peer, peers):
            if entry.prefix not in near:
                continue
            if entry.is_taken_away:
                yield entry.prefix, _Candidate((), place, number, None)
                continue
            for term in _terms(rule, entry, place, containers):
                yield entry.prefix, _Candidate(_rank(term, entry.prefix, peer, order), place, number, term)
    for peer in match.excepts:
        for entry in _entries(peer, peers):
            if entry.is_taken_away or entry.prefix not in near:
                continue
            if entry.pairs is None:
                yield entry.prefix, _Candidate((), place, None, None)
            for term in _away(entry, place):
                yield entry.prefix, _Candidate(_rank(term, entry.prefix, peer, order), place, None, term)


def _entries(peer: Peer | None, peers: Peers) -> Iterable[Entry]:
    if peer is None:
        return (Entry(ANYWHERE),)
    return peers.get(peer, ()) if peer.is_name else own_entries(peer)


def _terms(rule: Rule, entry: Entry, place: int, containers: Containers) -> Iterator[Term]:
    match = rule.match
    is_timed = bool(place) and rule.timing != ALWAYS
    local_ports = match.local_ports or (_ALL_PORTS,)
    there = [containers[name] for name in match.containers if name in containers]
    owners = there if match.containers else (None,)
    if entry.pairs is None:
        for protocol, ports, local, owner in product(
            match.protocols or (None,), match.ports or (_ALL_PORTS,), local_ports, owners
        ):
            yield Term(protocol, ports, local, place, is_timed=is_timed, container=owner)
        return
    for pair, local, owner in product(sorted(entry.pairs), local_ports, owners):
        is_meant = not match.ports or any(one.first <= pair.service_port <= one.last for one in match.ports)
        if is_meant and pair.protocol in (match.protocols or (pair.protocol,)):
            yield Term(
                pair.protocol, Ports(pair.port, pair.port), local, place, is_timed=is_timed, container=owner
            )


def _away(entry: Entry, place: int) -> Iterator[Term]:
    for pair in sorted(entry.pairs or ()):
        yield Term(pair.protocol, Ports(pair.port, pair.port), _ALL_PORTS, place, takes_away=True)


def _rank(term: Term, prefix: Prefix, peer: Peer | None, order: int) -> tuple[int, ...]:
    """Less is more specific: the longer prefix, then addresses before names, then ports and protocol."""
    return (
        not term.takes_away,
        -prefix.bits,
        bool(peer and peer.is_name),
        _width(term.ports),
        _width(term.local_ports),
        term.protocol is None,
        term.container is None,
        order,
    )


def _width(ports: Ports) -> int:
    return 2 if ports == _ALL_PORTS else int(ports.is_range)


def _lists(rule: Rule, entries: Mapping[Prefix, list[_Candidate]]) -> dict[Prefix, tuple[Term, ...]]:
    """For each prefix the terms of all that it lies in; what says the same as the one around is left out."""
    lists: dict[Prefix, tuple[Term, ...]] = {}
    around: list[tuple[Prefix, list[_Candidate], tuple[Term, ...]]] = []
    made: dict[tuple[_Candidate, ...], tuple[Term, ...]] = {}
    for prefix in sorted(entries):
        while around and not around[-1][0].contains(prefix):
            around.pop()
        candidates = [*(around[-1][1] if around else ()), *entries[prefix]]
        key = tuple(candidates)
        terms = made.get(key)
        if terms is None:
            terms = made[key] = _deciding(rule, candidates)
        if terms != (around[-1][2] if around else ()):
            lists[prefix] = terms
        around.append((prefix, candidates, terms))
    return lists


def _deciding(rule: Rule, candidates: Sequence[_Candidate]) -> tuple[Term, ...]:
    """The terms in their order, as far as they decide about the program's own rule."""
    gone = {(candidate.rule, candidate.peer) for candidate in candidates if candidate.term is None}
    kept = [
        candidate
        for candidate in candidates
        if not {(candidate.rule, candidate.peer), (candidate.rule, None)} & gone
    ]
    terms = list(dict.fromkeys(candidate.term for candidate in sorted(kept) if candidate.term))
    last = max((at for at, term in enumerate(terms) if not term.rule and not term.takes_away), default=-1)
    terms = terms[: last + 1]
    if len(terms) > MAX_TERMS:
        raise UsageError(
            f"'{rule}': {len(terms)} combinations of ports, protocols and containers, with those beside it",
            tip=f"{MAX_TERMS} at most for one address: use ranges of ports",
        )
    return tuple(terms)
