"""Which packets a rule is about: how it is written, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import RuleError
from podmgr.rules.grammar import parse_rule_option, parse_value
from podmgr.rules.match import EVERYTHING, PROTOCOLS, Match, Peer, PeerKind, Ports
from podmgr.rules.rule import only

PEERS = st.sampled_from(
    [
        *(Peer(PeerKind.CIDR, text) for text in ("10.0.0.0/8", "10.1.2.3", "fd00::/8", "::/0", "fe80::1")),
        Peer(PeerKind.SERVICE, "db"),
        Peer(PeerKind.SERVICE, "db", "shop"),
        Peer(PeerKind.POD, "web-0"),
        Peer(PeerKind.POD, "app.kubernetes.io/name=Web"),
        Peer(PeerKind.NAMESPACE, "shop"),
        *map(Peer, (PeerKind.NODE, PeerKind.WORLD, PeerKind.DNS)),
    ]
)
PORT = st.integers(1, 65_535)
PORTS = st.builds(lambda one, other: Ports(min(one, other), max(one, other)), PORT, PORT)


def some(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=3, unique=True).map(sorted).map(tuple)  # type: ignore[arg-type]


MATCHES = st.builds(
    Match,
    peers=some(PEERS),
    excepts=st.just(()),
    ports=some(PORTS),
    local_ports=some(PORTS),
    protocols=some(st.sampled_from([6, 17, 132])),
    containers=some(st.sampled_from(["app", "side-car"])),
).filter(lambda match: match.peers != (Peer(PeerKind.DNS),))


def read(options: str) -> Match:
    return only(parse_rule_option(f"loss=1% egress {options}")).match


@given(MATCHES)
def test_what_is_written_is_read_again(match: Match) -> None:
    assert read(" ".join(match.words)) == match


@pytest.mark.parametrize(
    ("options", "canonical"),
    [
        ("peer=10.0.0.1/32", "peer=10.0.0.1"),
        ("peer=FD00::0001/128,10.0.0.0/8,10.0.0.0/8", "peer=10.0.0.0/8,fd00::1"),
        ("PEER=SVC/db,WORLD", "peer=svc/db,world"),
        ("peer=pod/Tier=Front", "peer=pod/Tier=Front"),
        ("port=443,80-80", "port=80,443"),
        ("proto=TCP,17", "proto=tcp,udp"),
        ("proto=58", "proto=icmp"),
        ("proto=47", "proto=47"),
    ],
)
def test_there_is_one_way_to_write_a_match(options: str, canonical: str) -> None:
    assert " ".join(read(options).words) == canonical


def test_no_option_is_everything() -> None:
    assert read("") == EVERYTHING
    assert set(PROTOCOLS.values()) == {1, 6, 17, 132}


@pytest.mark.parametrize(
    ("options", "problem", "expected"),
    [
        ("peer=", "nothing behind", "svc/NAME"),
        ("peer=10.0.0.1,", "missing between the commas", "CIDR"),
        ("peer=10.1.0.0/8", "bits behind its prefix", "10.0.0.0/8 for the whole network"),
        ("peer=10.0.0.256", "neither an address", "CIDR"),
        ("peer=fe80::1%eth0", "zone", "CIDR"),
        ("peer=db", "no peer", "svc/NAME"),
        ("peer=svc/DB", "names no service", "svc/NAMESPACE/NAME"),
        ("peer=svc/a/b/c", "names no service", "svc/NAMESPACE/NAME"),
        ("peer=pod/=x", "names no pods", "LABEL=VALUE"),
        ("peer=ns/", "names no namespace", "ns/NAME"),
        ("peer=node/x", "no peer", "node"),
        ("port=0", "out of range", "1 to 65535"),
        ("port=70000-1", "out of range", "1 to 65535"),
        ("port=90-80", "backwards", "80-90"),
        ("port=-80", "no port", "1 to 65535"),
        ("port=http", "no port", "1 to 65535"),
        ("local-port=1,,2", "missing between", "1 to 65535"),
        ("proto=icmpv6", "unknown protocol", "both families"),
        ("proto=quic", "unknown protocol", "tcp"),
        ("proto=256", "unknown protocol", "0 to 255"),
        ("container=App", "names no container", "container=NAME"),
        ("port=80 proto=icmp", "icmp has no ports", "udp"),
        ("peer=dns port=80", "nothing can match", "without port"),
        ("peer=dns proto=icmp", "nothing can match", "peer=dns"),
        ("peer=10.0.0.1 except=10.0.0.0/8", "nothing can match", "another except"),
        ("peer=svc/db except=svc/db", "nothing can match", "another except"),
        ("peer=10.0.0.1 peer=10.0.0.2", "peer twice", "once"),
        (f"port={','.join(map(str, range(1, 66)))}", "65 at once", "64 at most"),
        (f"proto=tcp,udp port={','.join(map(str, range(1, 60)))}", "118 combinations", "64 at most"),
    ],
)
def test_what_cannot_be_is_refused_at_its_word(options: str, problem: str, expected: str) -> None:
    with pytest.raises(RuleError) as caught:
        read(options)
    assert problem in caught.value.message
    assert expected in str(caught.value.expected)
    assert caught.value.column > len("1% egress")


def test_rules_with_other_matches_stand_beside_each_other() -> None:
    rules = parse_value("loss", "1% egress; 2% egress peer=10.0.0.1; 3% egress peer=10.0.0.1 port=80")
    assert len(rules) == 3


def test_time_and_mode_are_no_part_of_what_collides() -> None:
    with pytest.raises(RuleError, match="collides"):
        parse_value("loss", "1% egress peer=10.0.0.1; 2% egress peer=10.0.0.1/32 for=3s mode=shadow")


def test_a_round_trip_keeps_its_options_where_it_becomes_one_rule() -> None:
    egress, _ = parse_rule_option("delay=10ms rtt peer=10.0.0.1 for=3s mode=shadow")
    whole = egress.on_egress_alone
    assert whole is not None
    assert str(whole) == "delay=10ms egress peer=10.0.0.1 for=3s mode=shadow"
