"""Which of several rules a packet is about: what a program looks up says the same as the words do."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import PodmgrError
from podmgr.rules.grammar import parse_rule_option, parse_value
from podmgr.rules.match import Match, Peer, PeerKind
from podmgr.rules.peers import ANYWHERE, Entry, Pair, Prefix, prefix_of
from podmgr.rules.rule import Rule
from podmgr.rules.tables import MAX_PREFIXES, Moves, Table, needs_table, table_of

TCP, UDP = 6, 17
DB = Peer(PeerKind.SERVICE, "db")
WORLD = Peer(PeerKind.WORLD)
CONTAINERS = {"app": 4711, "side": 2**32 + 1}
PEERS = {
    DB: (
        Entry(prefix_of("10.1.1.1"), frozenset({Pair(TCP, 80, 80), Pair(UDP, 53, 53)})),
        Entry(prefix_of("10.2.2.2"), frozenset({Pair(TCP, 8080, 80), Pair(UDP, 5353, 53)})),
    ),
    WORLD: (
        Entry(ANYWHERE),
        Entry(prefix_of("10.0.0.0/8"), is_taken_away=True),
        Entry(prefix_of("fd00::/8"), is_taken_away=True),
    ),
}


class Packet(NamedTuple):
    address: str
    protocol: int
    port: int = 0
    local: int = 0
    container: int = 0


def acts(table: Table, packet: Packet) -> bool:
    """As bpf/match.h decides, of rules that are all in force."""
    address = prefix_of(packet.address).address
    found = max((prefix for prefix in table.lists if _has(prefix, address)), key=_bits, default=None)
    away: set[int] = set()
    for term in table.lists[found] if found is not None else ():
        fits = (
            term.protocol in (None, packet.protocol)
            and term.ports.first <= packet.port <= term.ports.last
            and term.local_ports.first <= packet.local <= term.local_ports.last
            and term.container in (None, packet.container)
        )
        if not fits or term.rule in away:
            continue
        if not term.takes_away:
            return term.rule == 0
        away.add(term.rule)
    return False


def _bits(prefix: Prefix) -> int:
    return prefix.bits


def _has(prefix: Prefix, address: bytes) -> bool:
    shift = 136 - prefix.bits
    one, other = (int.from_bytes(raw) >> shift for raw in (prefix.address, address))
    return one == other


def _entries(peer: Peer) -> Sequence[Entry]:
    if peer.kind is PeerKind.DNS:
        return [Entry(ANYWHERE, frozenset({Pair(TCP, 53, 53), Pair(UDP, 53, 53)}))]
    return PEERS.get(peer, ()) if peer.is_name else [Entry(prefix_of(peer.name))]


def _is_asked_for(match: Match, packet: Packet) -> bool:
    """By its protocol and its container."""
    containers = [CONTAINERS.get(name) for name in match.containers]
    return packet.protocol in (match.protocols or (packet.protocol,)) and (
        not match.containers or packet.container in containers
    )


def specificity(rule: Rule, packet: Packet) -> tuple[object, ...] | None:
    """How specifically a rule matches a packet, by the words of the design: less is more. None: not."""
    match, address = rule.match, prefix_of(packet.address).address
    for away in match.excepts:
        for entry in _entries(away):
            is_meant = entry.pairs is None or (packet.protocol, packet.port) in {
                pair[:2] for pair in entry.pairs
            }
            if _has(entry.prefix, address) and is_meant and not entry.is_taken_away:
                return None
    if not _is_asked_for(match, packet):
        return None
    local = [one for one in match.local_ports if one.first <= packet.local <= one.last]
    if match.local_ports and not local:
        return None
    best = None
    peers: tuple[Peer | None, ...] = match.peers or (None,)
    for peer in peers:
        entries = (
            [Entry(ANYWHERE)] if peer is None else [e for e in _entries(peer) if _has(e.prefix, address)]
        )
        if any(entry.is_taken_away for entry in entries):
            continue
        for entry in entries:
            ports = [one for one in match.ports if one.first <= packet.port <= one.last]
            if entry.pairs is not None:
                pairs = [p for p in entry.pairs if p[:2] == (packet.protocol, packet.port)]
                pairs = [
                    p
                    for p in pairs
                    if not match.ports or any(one.first <= p[2] <= one.last for one in match.ports)
                ]
                if not pairs:
                    continue
                port_rank, protocol_rank = 0, 0
            else:
                if match.ports and not ports:
                    continue
                port_rank = min((int(one.is_range) for one in ports), default=2)
                protocol_rank = int(not match.protocols)
            local_rank = min((int(one.is_range) for one in local), default=2)
            rank = (
                -entry.prefix.bits,
                bool(peer and peer.is_name),
                port_rank,
                local_rank,
                protocol_rank,
                not match.containers,
            )
            best = rank if best is None else min(best, rank)
    return best


WORDS = st.fixed_dictionaries(
    {},
    optional={
        "peer": st.lists(
            st.sampled_from(
                [
                    "10.0.0.0/8",
                    "10.1.0.0/16",
                    "10.1.1.1",
                    "::/0",
                    "fd00::1",
                    "svc/db",
                    "world",
                    "dns",
                    "0.0.0.0/0",
                ]
            ),
            min_size=1,
            max_size=2,
        ),
        "except": st.lists(
            st.sampled_from(["10.1.1.0/24", "10.2.2.2", "dns", "svc/db"]), min_size=1, max_size=2
        ),
        "port": st.lists(st.sampled_from(["80", "53", "50-60", "8000-9000"]), min_size=1, max_size=2),
        "local-port": st.sampled_from([["7"], ["1-9"]]),
        "container": st.lists(st.sampled_from([*CONTAINERS, "gone"]), min_size=1, max_size=2),
        "proto": st.lists(st.sampled_from(["tcp", "udp"]), min_size=1, max_size=2),
    },
)
ADDRESSES = (
    "10.1.1.1",
    "10.1.1.2",
    "10.1.9.9",
    "10.2.2.2",
    "10.9.9.9",
    "192.0.2.1",
    "fd00::1",
    "2001:db8::1",
)
PACKETS = st.builds(
    Packet,
    st.sampled_from(ADDRESSES),
    st.sampled_from([TCP, UDP]),
    st.sampled_from([80, 53, 55, 8080, 5353, 1]),
    st.sampled_from([7, 8, 99]),
    st.sampled_from([0, *CONTAINERS.values()]),
)


def _rules(words: list[dict[str, list[str]]]) -> list[Rule]:
    found: dict[object, Rule] = {}
    for number, options in enumerate(words):
        text = " ".join(f"{name}={','.join(values)}" for name, values in options.items())
        try:
            (rule,) = parse_rule_option(f"loss={number}% egress {text}")
        except PodmgrError:
            continue
        found.setdefault(rule.collision_key, rule)
    return list(found.values())


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(PACKETS, min_size=1, max_size=5))
def test_a_table_says_what_the_words_say(words: list[dict[str, list[str]]], packets: list[Packet]) -> None:
    rules = _rules(words)
    tables = [table_of(rule, rules, PEERS, CONTAINERS) for rule in rules]
    for packet in packets:
        ranks = [specificity(rule, packet) for rule in rules]
        found = [number for number, rank in enumerate(ranks) if rank is not None]
        winner = min(found, key=lambda number: (*(ranks[number] or ()), number), default=None)
        assert [number for number, table in enumerate(tables) if acts(table, packet)] == (
            [] if winner is None else [winner]
        ), (packet, list(map(str, rules)), ranks)


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(st.sampled_from(ADDRESSES), max_size=3))
def test_what_moves_concerns_all_rules_whose_table_it_changes(
    words: list[dict[str, list[str]]], addresses: list[str]
) -> None:
    rules = _rules(words)
    pairs = frozenset({Pair(TCP, 8080, 80)})
    after = {**PEERS, DB: tuple(Entry(prefix_of(address), pairs) for address in dict.fromkeys(addresses))}
    for before, now in ((PEERS, after), (after, PEERS), ({WORLD: PEERS[WORLD]}, after)):
        moves = Moves(before, now)
        for rule in rules:
            if table_of(rule, rules, before) != table_of(rule, rules, now):
                assert moves.may_concern(rule)


def test_a_name_that_moves_does_not_concern_rules_about_other_addresses() -> None:
    rules = _rules([{"peer": ["svc/db"]}, {"peer": ["10.9.9.9"]}, {"peer": ["10.2.0.0/16"]}, {}])
    moves = Moves(PEERS, {**PEERS, DB: PEERS[DB][:1]})
    assert [moves.may_concern(rule) for rule in rules] == [True, False, True, True]


def test_a_rule_alone_that_is_about_everything_needs_no_table() -> None:
    (rest,) = parse_value("loss", "1% egress")
    assert not needs_table(rest, [rest])
    (shadow,) = parse_value("loss", "1% egress peer=10.0.0.1 mode=shadow")
    assert not needs_table(rest, [rest, shadow])
    assert needs_table(shadow, [rest, shadow])


def test_a_service_that_is_not_there_is_nobody() -> None:
    (rule,) = parse_value("loss", "1% egress peer=svc/nowhere")
    assert table_of(rule, [rule], PEERS).lists == {}


def test_a_port_beside_a_service_is_the_services() -> None:
    (rule,) = parse_value("loss", "1% egress peer=svc/db port=80")
    table = table_of(rule, [rule], PEERS)
    assert acts(table, Packet("10.1.1.1", TCP, 80))
    assert acts(table, Packet("10.2.2.2", TCP, 8080))
    assert not acts(table, Packet("10.2.2.2", TCP, 80))
    assert not acts(table, Packet("10.1.1.1", UDP, 53))


def test_more_than_a_program_can_look_up_is_refused_with_the_limit() -> None:
    (rule,) = parse_value("loss", "1% egress peer=svc/db")
    many = [
        Entry(Prefix(ip_address(number).packed.rjust(17, b"\1"), 136)) for number in range(MAX_PREFIXES + 1)
    ]
    with pytest.raises(PodmgrError, match="32,769 prefixes") as caught:
        table_of(rule, [rule], {DB: tuple(many)})
    assert "32,768 at most" in str(caught.value.tip)


def test_ten_thousand_prefixes_have_one_list() -> None:
    (rule,) = parse_value("loss", "1% egress peer=svc/db port=80")
    pairs = frozenset({Pair(TCP, 8080, 80)})
    many = [Entry(Prefix(ip_address(number).packed.rjust(17, b"\1"), 136), pairs) for number in range(10_000)]
    table = table_of(rule, [rule], {DB: tuple(many)})
    assert len(table.lists) == 10_000
    assert len(set(table.lists.values())) == 1


def test_too_many_terms_for_one_address_are_refused() -> None:
    ports = ",".join(map(str, range(1, 61)))
    rules = parse_value(
        "loss", f"1% egress; 2% egress port={ports}; 3% egress port=1-9,20-29,30-39,40-49,50-59"
    )
    with pytest.raises(PodmgrError, match="combinations of ports, protocols and containers"):
        for rule in rules:
            table_of(rule, rules, {})
