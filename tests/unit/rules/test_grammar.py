"""The grammar of rules: what is read, how it prints, and what every bad value is told."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import PodmgrError, RuleError, UsageError
from podmgr.rules.grammar import parse_rule_option, parse_value
from podmgr.rules.keys import KEYS
from podmgr.rules.kinds.bandwidth import Algorithm, Bandwidth
from podmgr.rules.kinds.block import Block, Cut, Reply, State
from podmgr.rules.kinds.corrupt import As, Corrupt
from podmgr.rules.kinds.custom import Custom
from podmgr.rules.kinds.duplicate import Duplicate
from podmgr.rules.kinds.loss import ExponentialLoss, UniformLoss
from podmgr.rules.kinds.loss_bursts import BurstLoss, GilbertLoss, MarkovLoss
from podmgr.rules.kinds.reorder import Reorder
from podmgr.rules.rule import Hook, Place, Rule
from tests.unit.samples import (
    EGRESS,
    INGRESS,
    bandwidths,
    by_chance,
    chained_losses,
    exponential_losses,
    rules,
    uniform_losses,
)

BLANKS = st.text(alphabet=" \t\n\r\v\f\u00a0", min_size=1, max_size=4)
OUR_KEYS = st.sampled_from([prefix + key for key in KEYS for prefix in ("", "podmgr.io/")])

# Near misses: text that gets further into the grammar than arbitrary text does.
WORDS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(["10", "mbps", "10mbps", "egress", "ingress", "uniform", "exponential", "2%", "400"]),
        st.sampled_from(
            [
                "-1",
                "1e9",
                "burst=64kb",
                "algorithm=edt",
                "burst=",
                "hook=tc",
                "interface=a,b",
                "=",
                ";",
                "%",
                "-D",
                "-DX=1",
                "as=payload",
                "by=10ms",
                "by=",
            ]
        ),
        st.sampled_from(["burst", "gilbert", "markov", "length=5", "p=1%", "r=20%", "p13=1%", "p32=100%"]),
        st.sampled_from(["dropper", "-DX", "\x1b[31m", "\ud800", "'", '"', "$(id)", "@file", "../x"]),
    ),
    max_size=8,
).map(" ".join)
VALUES = st.one_of(st.text(), WORDS)


def values(rules: tuple[Rule, ...]) -> list[str]:
    return [rule.value for rule in rules]


def shown(error: PodmgrError) -> list[str]:
    """Every line that the user sees of an error."""
    return [error.message, error.tip or "", *(error.detail or "").split("\n")]


# Reading and printing


@given(rules)
def test_parsing_what_a_rule_prints_gives_the_rule(rule: Rule) -> None:
    assert parse_rule_option(str(rule)) == (rule,)


@given(rules)
def test_prefixed_key_is_read_like_the_bare_key(rule: Rule) -> None:
    assert parse_value(f"podmgr.io/{rule.key}", rule.value) == parse_value(rule.key, rule.value) == (rule,)


@given(st.one_of(bandwidths, uniform_losses, exponential_losses, chained_losses, by_chance), st.data())
def test_case_does_not_matter(rule: Rule, data: st.DataObject) -> None:
    """But in the names of interfaces."""
    words, equals, names = rule.value.partition("interface=")
    words = "".join(data.draw(st.sampled_from([letter, letter.upper()])) for letter in words + equals)
    spelled = words + names
    assert parse_value(rule.key, spelled) == (rule,)


@given(rules, BLANKS, BLANKS, BLANKS)
def test_runs_of_blanks_do_not_matter(rule: Rule, before: str, between: str, after: str) -> None:
    spelled = before + between.join(rule.value.split(" ")) + after
    assert parse_value(rule.key, spelled) == (rule,)


@given(bandwidths)
def test_blank_between_number_and_unit_does_not_matter(rule: Bandwidth) -> None:
    assert parse_value("bandwidth", rule.value.replace(" ", "", 1)) == (rule,)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("10 mbps egress", Bandwidth(EGRESS, 10_000_000)),
        ("8 kbps ingress", Bandwidth(INGRESS, 8_000)),
        ("8000 bps ingress", Bandwidth(INGRESS, 8_000)),
        ("400 gbps egress", Bandwidth(EGRESS, 400 * 10**9)),
        ("1.5Gbps egress", Bandwidth(EGRESS, 1_500_000_000)),
        (".5 mbps egress", Bandwidth(EGRESS, 500_000)),
        ("10 mbps egress burst=64kb", Bandwidth(EGRESS, 10_000_000, 64_000)),
        ("10 mbps egress BURST=1.514KB", Bandwidth(EGRESS, 10_000_000, 1_514)),
        ("10 mbps egress burst=1000mb", Bandwidth(EGRESS, 10_000_000, 10**9)),
        ("10 mbps egress algorithm=edt", Bandwidth(EGRESS, 10_000_000, None, Algorithm.EDT)),
        (
            "10 mbps egress algorithm=tbf burst=2000b",
            Bandwidth(EGRESS, 10_000_000, 2_000, Algorithm.TBF),
        ),
    ],
)
def test_bandwidth_is_bits_per_second_in_powers_of_1000(value: str, rule: Bandwidth) -> None:
    assert parse_value("bandwidth", value) == (rule,)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("uniform egress 2%", UniformLoss(EGRESS, Decimal(2))),
        ("uniform ingress 2 %", UniformLoss(INGRESS, Decimal(2))),
        ("2% egress", UniformLoss(EGRESS, Decimal(2))),
        ("2.5 % INGRESS", UniformLoss(INGRESS, Decimal("2.5"))),
        ("uniform egress 0%", UniformLoss(EGRESS, Decimal(0))),
        ("uniform egress 100%", UniformLoss(EGRESS, Decimal(100))),
        ("uniform egress 0.00000001%", UniformLoss(EGRESS, Decimal("0.00000001"))),
        ("exponential egress 400", ExponentialLoss(EGRESS, Decimal(400))),
        ("exponential ingress 0", ExponentialLoss(INGRESS, Decimal(0))),
        ("exponential egress 1000.0", ExponentialLoss(EGRESS, Decimal(1000))),
    ],
)
def test_loss_is_uniform_or_exponential(value: str, rule: UniformLoss | ExponentialLoss) -> None:
    assert parse_value("loss", value) == (rule,)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("duplicate", "1% egress", Duplicate(EGRESS, Decimal(1))),
        ("block", "egress", Block(EGRESS)),
        ("block", "INGRESS Reply=ICMP", Block(INGRESS, Reply.ICMP)),
        ("block", "egress cut=YES reply=rst state=all", Block(EGRESS, Reply.RST, State.ALL, Cut.YES)),
        ("block", "egress state=new cut=no", Block(EGRESS, Reply.NONE, State.NEW)),
        ("block", "egress hook=cgroup reply=none", Block(EGRESS, place=Place(Hook.CGROUP))),
        ("duplicate", "0.5 % INGRESS", Duplicate(INGRESS, Decimal("0.5"))),
        ("corrupt", "2% egress", Corrupt(EGRESS, Decimal(2))),
        ("corrupt", "2% egress as=checksum", Corrupt(EGRESS, Decimal(2))),
        ("corrupt", "2% egress AS=Payload", Corrupt(EGRESS, Decimal(2), As.PAYLOAD)),
        ("reorder", "3% egress", Reorder(EGRESS, Decimal(3), 10_000_000)),
        ("reorder", "3% egress by=10ms", Reorder(EGRESS, Decimal(3))),
        ("reorder", "3% egress BY=1.5MS", Reorder(EGRESS, Decimal(3), 1_500_000)),
        ("reorder", "100% ingress by=1us", Reorder(INGRESS, Decimal(100), 1_000)),
        ("reorder", "0% ingress by=10s", Reorder(INGRESS, Decimal(0), 10**10)),
    ],
)
def test_what_happens_by_chance_is_a_percentage_and_a_direction(key: str, value: str, rule: Rule) -> None:
    assert parse_value(key, value) == (rule,)
    both = " ".join("both" if word.lower() in ("egress", "ingress") else word for word in value.split())
    assert {found.direction for found in parse_value(key, both)} == {EGRESS, INGRESS}


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("burst egress 1% length=5", BurstLoss(EGRESS, Decimal(1), Decimal(5))),
        ("Burst INGRESS 1.5 % LENGTH=2.50", BurstLoss(INGRESS, Decimal("1.5"), Decimal("2.5"))),
        ("burst egress 50% length=1", BurstLoss(EGRESS, Decimal(50), Decimal(1))),
        ("burst egress 0% length=1000000", BurstLoss(EGRESS, Decimal(0), Decimal(10**6))),
        ("gilbert egress p=1% r=20%", GilbertLoss(EGRESS, Decimal(1), Decimal(20))),
        (
            "Gilbert ingress GOOD=.5% bad=50% R=20% P=1.0%",
            GilbertLoss(INGRESS, Decimal(1), Decimal(20), Decimal(50), Decimal("0.5")),
        ),
        ("markov egress p13=1%", MarkovLoss(EGRESS, Decimal(1), Decimal(99))),
        (
            "markov ingress p14=1% p23=50% p32=20% P31=30.5% p13=2%",
            MarkovLoss(INGRESS, Decimal(2), Decimal("30.5"), Decimal(20), Decimal(50), Decimal(1)),
        ),
        ("markov egress p13=60% p14=40%", MarkovLoss(EGRESS, Decimal(60), Decimal(40), p14=Decimal(40))),
    ],
)
def test_loss_in_runs_is_a_chain(value: str, rule: BurstLoss | GilbertLoss | MarkovLoss) -> None:
    assert parse_value("loss", value) == (rule,)


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ("burst egress 1.0% length=5.0", "burst egress 1% length=5"),
        ("gilbert egress r=20% p=1% good=0% bad=100%", "gilbert egress p=1% r=20%"),
        ("markov egress p13=1% p14=0% p32=0% p23=100%", "markov egress p13=1% p31=99%"),
    ],
)
def test_what_is_so_anyway_is_not_written(value: str, canonical: str) -> None:
    assert values(parse_value("loss", value)) == [canonical]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("dropper egress", Custom(EGRESS, "dropper")),
        ("Drop-per_2 INGRESS", Custom(INGRESS, "Drop-per_2")),
        ("dropper egress -DDROP=1", Custom(EGRESS, "dropper", (("DROP", "1"),))),
        (
            "dropper egress -DZ -Da=b_9 -DE=",
            Custom(EGRESS, "dropper", (("E", ""), ("Z", None), ("a", "b_9"))),
        ),
    ],
)
def test_custom_rule_keeps_case_and_sorts_macros(value: str, rule: Custom) -> None:
    assert parse_value("ebpf-limit", value) == (rule,)


PLACES = [
    ("hook=cgroup", Place(Hook.CGROUP)),
    ("hook=TC", Place(Hook.TC)),
    ("Interface=eth0", Place(None, ("eth0",))),
    ("interface=net1,eth0,net1", Place(None, ("eth0", "net1"))),
    ("interface=Eth0 hook=tc", Place(Hook.TC, ("Eth0",))),
    ("hook=tc interface=eth0.100,a@b,c-d_e", Place(Hook.TC, ("a@b", "c-d_e", "eth0.100"))),
    (f"interface={'x' * 15}", Place(None, ("x" * 15,))),
]


@pytest.mark.parametrize(("options", "place"), PLACES)
@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("bandwidth", "10 mbps egress", Bandwidth(EGRESS, 10_000_000)),
        ("bandwidth", "1mbps ingress algorithm=edt", Bandwidth(INGRESS, 10**6, None, Algorithm.EDT)),
        ("loss", "uniform egress 2 %", UniformLoss(EGRESS, Decimal(2))),
        ("loss", "exponential ingress 400", ExponentialLoss(INGRESS, Decimal(400))),
    ],
)
def test_rule_may_say_where_it_acts(
    key: str, value: str, rule: Bandwidth | UniformLoss | ExponentialLoss, options: str, place: Place
) -> None:
    (found,) = parse_value(key, f"{value} {options}")
    assert found == replace(rule, place=place)
    assert parse_rule_option(str(found)) == (found,)


@pytest.mark.parametrize("value", ["dropper egress -DX interface=b,a", "dropper egress INTERFACE=a,b -DX"])
def test_custom_rule_may_name_interfaces(value: str) -> None:
    (found,) = parse_value("ebpf-limit", value)
    assert found == Custom(EGRESS, "dropper", (("X", None),), place=Place(None, ("a", "b")))
    assert str(found) == "ebpf-limit=dropper egress -DX interface=a,b"


def test_16_interfaces_may_be_named() -> None:
    names = [f"eth{number}" for number in range(16)]
    (found,) = parse_value("loss", f"uniform egress 1% interface={','.join(names)}")
    assert found.place.interfaces == tuple(sorted(names))


def test_several_rules_are_separated_by_semicolons() -> None:
    found = parse_value("bandwidth", ";10mbps egress ;; 1 GBPS ingress algorithm=tbf;")
    assert values(found) == ["10 mbps egress", "1 gbps ingress"]


@pytest.mark.parametrize("option", ["Bandwidth = 10 mbps egress", " podmgr.io/BANDWIDTH=10 mbps egress"])
def test_key_of_an_option_is_read_in_any_case(option: str) -> None:
    assert parse_rule_option(option) == (Bandwidth(EGRESS, 10_000_000),)


def test_value_of_an_option_may_hold_equals_signs() -> None:
    assert parse_rule_option("ebpf-limit=dropper egress -DX=1") == (Custom(EGRESS, "dropper", (("X", "1"),)),)


# Keys


@pytest.mark.parametrize("key", ["latency", "", "podmgr.io/", "Bandwidth"])
def test_parsing_the_value_of_a_foreign_key_is_a_programming_error(key: str) -> None:
    with pytest.raises(ValueError, match="not a podmgr key"):
        parse_value(key, "10 mbps egress")


# Bad values: key, value, the column of what is wrong, and a piece of what the tip accepts instead

BAD_BANDWIDTHS = [
    ("", 1, "RATE UNIT DIRECTION"),
    (" ; ", 1, "RATE UNIT DIRECTION"),
    ("10", 3, "RATE UNIT DIRECTION"),
    ("10 mbps", 8, "RATE UNIT DIRECTION"),
    ("10 mbps  ", 8, "RATE UNIT DIRECTION"),
    ("10 mpbs egress", 4, "did you mean 'mbps'? units are bps, kbps, mbps, gbps"),
    ("10zbps egress", 3, "units are bps, kbps, mbps, gbps"),
    ("10 mibps egress", 4, "units are bps"),
    ("10 mbps egres", 9, "did you mean 'egress'? directions are egress, ingress"),
    ("10 mbps sideways", 9, "directions are egress, ingress, both"),
    ("0 mbps egress", 1, "8 kbps to 400 gbps"),
    ("7.999 kbps egress", 1, "8 kbps to 400 gbps"),
    ("  0.001bps egress", 3, "8 kbps to 400 gbps"),
    ("400.000000001 gbps egress", 1, "8 kbps to 400 gbps"),
    ("1000000000000000000 bps egress", 1, "8 kbps to 400 gbps"),
    ("1000000000gbps egress", 1, "8 kbps to 400 gbps"),
    ("-10 mbps egress", 1, "RATE UNIT DIRECTION"),
    ("-10mbps egress", 1, "RATE UNIT DIRECTION"),
    ("+10 mbps egress", 1, "RATE UNIT DIRECTION"),
    ("nan mbps egress", 1, "RATE UNIT DIRECTION"),
    ("inf mbps egress", 1, "RATE UNIT DIRECTION"),
    ("1e3 mbps egress", 1, "RATE UNIT DIRECTION"),
    ("0x10 mbps egress", 1, "RATE UNIT DIRECTION"),
    ("ten mbps egress", 1, "RATE UNIT DIRECTION"),
    ("1.2.3 mbps egress", 1, "RATE UNIT DIRECTION"),
    (f"{'9' * 41} mbps egress", 1, "RATE UNIT DIRECTION"),
    ("10 mbps egress egress", 16, "burst=... and algorithm=... and hook=... and interface=..."),
    ("10 mbps egress latency=1", 16, "burst=... and algorithm=... and hook=... and interface=..."),
    ("10 mbps egress burst", 16, "burst=... and algorithm=... and hook=... and interface=..."),
    ("10 mbps egress burst=", 16, "from 1514b to 1000mb"),
    ("10 mbps egress burst=1513b", 16, "from 1514b to 1000mb"),
    ("10 mbps egress burst=1000.000001mb", 16, "from 1514b to 1000mb"),
    ("10 mbps egress burst=64", 16, "in b, kb or mb"),
    ("10 mbps egress burst=64kib", 16, "in b, kb or mb"),
    ("10 mbps egress burst=-64kb", 16, "in b, kb or mb"),
    ("10 mbps egress burst=64kb burst=65kb", 27, "each option once"),
    ("10 mbps egress algorithm=htb", 16, "tbf (drops, default) or edt (delays)"),
    ("10 mbps egress; 5 xbps ingress", 19, "units are bps"),
    ("10 mbps egress;11 mbps egress", 16, "one bandwidth rule per direction"),
    ("10 mbps egress; 1 mbps ingress ;  11 mbps egress", 35, "one bandwidth rule per direction"),
    (f"10 mbps egress{' ' * 4096}", 4097, "at most 4096 characters"),
]
BAD_LOSSES = [
    ("", 1, '"uniform DIRECTION P%"'),
    ("2%", 3, "in short"),
    ("2 egress", 3, "a percentage"),
    ("101% egress", 1, "0% to 100%"),
    ("normal egress 2%", 1, "distributions are uniform, exponential, burst, gilbert, markov"),
    ("uniform", 8, '"uniform DIRECTION P%"'),
    ("uniform 2% egress", 9, "directions are egress, ingress"),
    ("uniform egress", 15, '"uniform DIRECTION P%"'),
    ("uniform egress 2", 17, 'such as "2%"'),
    ("uniform egress 101%", 16, "from 0% to 100%"),
    ("uniform egress 100.0000000001 %", 16, "from 0% to 100%"),
    ("uniform egress -1%", 16, '"uniform DIRECTION P%"'),
    ("uniform egress nan%", 16, '"uniform DIRECTION P%"'),
    ("uniform egress %", 16, '"uniform DIRECTION P%"'),
    ("uniform egress 2% 3%", 19, "options of this rule are hook=... and interface=..."),
    ("uniform egress 2% burst=64kb", 19, "options of this rule are hook=... and interface=..."),
    ("exponential egress", 19, '"uniform DIRECTION P%"'),
    ("exponential egress 1001", 20, "T from 0 (drops all) to 1000 (drops 2 %)"),
    ("exponential egress 1000.0001", 20, "T from 0 (drops all) to 1000 (drops 2 %)"),
    ("exponential egress -1", 20, '"uniform DIRECTION P%"'),
    ("exponential egress 400%", 23, "options of this rule are hook=... and interface=..."),
    ("uniform egress 1%;exponential egress 400", 19, "one loss rule per direction"),
    ("uniform both 1%;burst ingress 1% length=5", 17, "one loss rule per direction"),
    ("brust egress 1% length=5", 1, "did you mean 'burst'?"),
    ("burst egress", 13, '"burst DIRECTION P% length=N"'),
    ("burst egress 1 length=5", 16, 'such as "1%"'),
    ("burst egress 1%", 16, "length=N, the packets of a run on average"),
    ("burst egress length=5", 14, '"burst DIRECTION P% length=N"'),
    ("burst egress 1% length=0.999", 17, "1 to 1000000"),
    ("burst egress 1% length=1000000.1", 17, "1 to 1000000"),
    ("burst egress 1% length=-5", 17, "1 to 1000000"),
    ("burst egress 1% length=5%", 17, "1 to 1000000"),
    ("burst egress 1% length=", 17, "1 to 1000000"),
    ("burst egress 1% length=5 p=1%", 26, "options of this rule are length=... and hook=..."),
    ("burst egress 1% length=5 length=5", 26, "each option once"),
    ("burst egress 50.1% length=1", 20, "50% at most with length=1, since a packet lies between runs"),
    ("burst egress 90% hook=tc length=5", 26, "83.33% at most with length=5"),
    ("burst egress 90% length=5", 18, "or length=9 and more"),
    ("burst egress 66.67% length=2", 21, "or length=2.01 and more"),
    ("burst egress 100% length=1000000", 19, "99.99% at most with length=1000000"),
    ("gilbert egress", 15, "p=P%: how many packets"),
    ("gilbert egress p=1%", 20, "r=P%: how many packets"),
    ("gilbert egress r=1% hook=tc", 28, "p=P%: how many packets"),
    ("gilbert egress p=1 r=20%", 16, 'such as "1%"'),
    ("gilbert egress p=1% r=101%", 21, "from 0% to 100%"),
    ("gilbert egress p=1% r=20% bad=-1%", 27, "from 0% to 100%"),
    ("gilbert egress p=1% r=20% good=x%", 27, "from 0% to 100%"),
    ("gilbert egress p=1% r=20% good=%", 27, "from 0% to 100%"),
    ("gilbert egress p=1% r=20% p=1%", 27, "each option once"),
    ("gilbert egress p=1% r=20% p13=1%", 27, "options of this rule are p=... and r=... and bad=..."),
    ("gilbert egress 1% 20%", 16, "options of this rule are p=..."),
    ("markov egress", 14, "p13=P%: how many packets"),
    ("markov egress p31=1%", 21, "p13=P%: how many packets"),
    ("markov egress p13=90% p14=10.5%", 23, "p14=10% at most beside p13=90%: both leave state 1"),
    ("markov egress p14=20% p13=90%", 15, "p14=10% at most beside p13=90%"),
    ("markov egress p13=1% p31=50% p32=51%", 30, "p32=50% at most beside p31=50%: both leave state 3"),
    ("markov egress p32=5% p13=1%", 15, "p32=1% at most beside p31=99% (100% - p13 where it is not written)"),
    ("markov egress p13=1% p41=1%", 22, "options of this rule are p13=..."),
]
A_DELAY = "TIME DIRECTION"
BAD_DELAYS = [
    ("", 1, A_DELAY),
    ("100 egress", 5, "a time such as 100ms: units are us, ms, s"),
    ("100", 4, "a time such as 100ms"),
    ("100xs egress", 4, "units are us, ms, s"),
    ("0ms egress", 1, "a time from 1us to 10s"),
    ("-5ms egress", 1, A_DELAY),
    ("10.1s egress", 1, "a time from 1us to 10s"),
    ("egress 100ms", 1, A_DELAY),
    ("100ms", 6, A_DELAY),
    ("100ms up", 7, "directions are egress, ingress, both, rtt"),
    ("1us rtt", 5, "a round trip of 2us or more"),
    ("100ms egress jitter=200ms", 14, "a jitter up to 100ms"),
    ("100ms egress jitter=5", 14, "jitter=TIME, such as jitter=10ms"),
    ("100ms egress jitter=-5ms", 14, "jitter=TIME, such as jitter=10ms"),
    ("9s egress jitter=2s", 11, "10s at most, with all jitter"),
    ("4s egress jitter=1s distribution=pareto", 21, "10s at most"),
    ("100ms egress distribution=normal", 14, "jitter=TIME distribution=..."),
    ("100ms egress order=free", 14, "jitter=TIME order=..."),
    ("100ms egress jitter=5ms distribution=../x", 25, "NAME of a file NAME.dist"),
    ("100ms egress jitter=5ms correlation=100%", 25, "less than 100%"),
    ("100ms egress jitter=5ms correlation=5", 25, 'a percentage, such as "5%"'),
    ("100ms egress jitter=5ms correlation=-5%", 25, "a percentage, from 0% to 100%"),
    ("100ms egress jitter=5ms order=strict", 25, "keep or free"),
    ("100ms egress hook=cgroup", 14, "hook=tc, or without hook="),
    ("100ms egress loss=2%", 14, "options of this rule are jitter=..."),
    ("100ms egress; 50ms egress", 15, "one delay rule per direction"),
    ("100ms rtt; 40ms ingress", 12, "one delay rule per direction"),
]
A_NAME = "letters, digits, - and _, at most 63, no path"
A_MACRO = "-DNAME or -DNAME=VALUE, VALUE of letters, digits and _ or an IP address"
BAD_CUSTOMS = [
    ("", 1, "NAME DIRECTION [-DMACRO[=VALUE]]..."),
    ("dropper", 8, "NAME DIRECTION [-DMACRO[=VALUE]]..."),
    ("dropper -DX=1", 9, "directions are egress, ingress"),
    *(
        (f"{name} egress", 1, A_NAME)
        for name in ("../dropper", "a/b", "/etc/x", "..", ".", "dropper.bpf.c", "-o", "-include", "@file")
    ),
    *((f"{name} egress", 1, A_NAME) for name in ("'x'", '"x"', "$(id)", "`id`", "x&y", "é", "_x", "x" * 64)),
    *(
        (f"dropper egress {word}", 16, A_MACRO)
        for word in ("-include", "-o", "-o/x", "@file", "-I/x", "-UX", "-D", "-D=1", "-D1X", "X=1", "-dX")
    ),
    *(
        (f"dropper egress -DX={value}", 16, A_MACRO)
        for value in (
            "$(id)",
            "'1'",
            '"1"',
            "`id`",
            "a-b",
            "1,2",
            "a.b",
            "@f",
            "é",
            "1=1",
            "\\",
            "|",
            "(",
            "<x>",
        )
    ),
    ("dropper egress -DX(y)=1", 16, A_MACRO),
    ("dropper egress -DX=1 /etc/x", 22, A_MACRO),
    ("dropper egress -DX;-o x", 20, A_NAME),
    ('dropper egress -DINTERFACE="ingress"', 16, A_MACRO),
    ("dropper egress -DINTERFACE=ingress", 16, "the direction is the second word"),
    ("dropper egress -DINTERFACE=", 16, "the direction is the second word"),
    ("dropper egress -DX=1 -DINTERFACE", 22, "the direction is the second word"),
    ("dropper egress -DDIRECTION_EGRESS=0", 16, "the direction is the second word"),
    ("dropper egress -DX=1 -DX=2", 22, "each macro once"),
    ("dropper egress -DX -DX", 20, "each macro once"),
    ("dropper egress -DX;dropper egress -DX", 20, "each rule once"),
]
NAMES = "interface=NAME or interface=NAME,NAME"
BAD_PLACES = [
    ("hook=", "cgroup or tc"),
    ("hook=xdp", "cgroup or tc"),
    ("hook=tc,cgroup", "cgroup or tc"),
    *((f"interface={name}", NAMES) for name in ("", ",", "a,", ",a", "a,,b", ".", "..", "a,..", "x" * 16)),
    *((f"interface={name}", NAMES) for name in ("a/b", "$(id)", "a:1", "é", "'a'", "a=b", "\x1b[31m")),
    (f"interface={','.join(f'e{number}' for number in range(17))}", "16 at most"),
]
TWICE = "each option once"
BOTH = "interface=NAME with hook=tc, or without hook="
BAD_LOSSES += [(f"uniform egress 2% {options}", 19, accepted) for options, accepted in BAD_PLACES] + [
    ("uniform egress 2% hook=tc hook=tc", 27, TWICE),
    ("uniform egress 2% interface=a interface=b", 31, TWICE),
    ("uniform egress 2% hook=cgroup interface=a", 31, BOTH),
    ("uniform egress 2% interface=a hook=cgroup", 31, BOTH),
    ("uniform egress hook=tc", 16, '"uniform DIRECTION P%"'),
]
BAD_BANDWIDTHS += [(f"10 mbps egress {options}", 16, accepted) for options, accepted in BAD_PLACES] + [
    ("10 mbps egress burst=2kb hook=tc hook=cgroup", 34, TWICE),
    ("10 mbps egress hook=cgroup burst=2kb interface=a", 38, BOTH),
]
BAD_CUSTOMS += [
    *((f"dropper egress {options}", 16, NAMES) for options, accepted in BAD_PLACES if accepted is NAMES),
    ("dropper egress interface=a -DX interface=b", 32, TWICE),
    ("dropper egress hook=tc", 16, "leave hook= out; SEC("),
    ("dropper egress -DX HOOK=cgroup", 20, 'SEC("tc") for tc'),
    *(
        (f"dropper egress -D{macro}=1", 16, tip)
        for macro, tip in (
            ("DIRECTION_EGRESS", "the direction is the second word"),
            ("PODMGR_LOOPBACK", "it follows from the target"),
            ("PODMGR_SCOPED", "it follows from the target"),
            ("PODMGR_TC", "the program's section says it"),
        )
    ),
]
KNOWN_KEYS = "keys are bandwidth, delay, loss, duplicate, corrupt, reorder, block, profile, ebpf-limit"
BAD_CHANCES = [
    ("duplicate", "", 1, "P% DIRECTION"),
    ("duplicate", "1 egress", 3, 'such as "1%"'),
    ("duplicate", "egress 1%", 1, "P% DIRECTION"),
    ("duplicate", "101% egress", 1, "0% to 100%"),
    ("duplicate", "1%", 3, "P% DIRECTION"),
    ("duplicate", "1% rtt", 4, "directions are egress, ingress, both"),
    ("duplicate", "1% egress hook=cgroup", 11, "hook=tc, or without hook="),
    ("duplicate", "1% egress as=payload", 11, "hook=... and interface=..."),
    ("duplicate", "1% egress; 2% both", 12, "one duplicate rule per direction"),
    ("block", "", 1, "reply=none|rst|icmp"),
    ("block", "rtt", 1, "directions are egress, ingress, both"),
    ("block", "egress rst", 8, "options of this rule are reply=... and state=... and cut=..."),
    ("block", "egress reply=", 8, "reply=none (silence, default)"),
    ("block", "egress reply=rest", 8, "did you mean 'rst'?"),
    ("block", "egress state=established", 8, "state=all (default) or state=new"),
    ("block", "egress state=new cut=maybe", 18, "cut=yes (open connections end)"),
    ("block", "egress cut=yes state=new", 8, "cut=yes with state=all, or state=new alone"),
    ("block", "egress reply=rst reply=rst", 18, "each option once"),
    ("block", "egress hook=cgroup reply=rst", 20, "silence of all alone, without reply=, can be had there"),
    ("block", "both reply=icmp hook=cgroup", 6, "hook=tc, or without hook="),
    ("block", "ingress cut=yes hook=cgroup", 9, "without cut=, can be had there"),
    ("block", "ingress hook=cgroup state=new", 21, "without state=, can be had there"),
    ("block", "egress; both reply=rst", 9, "one block rule per direction"),
    ("corrupt", "-1% egress", 1, "P% DIRECTION"),
    ("corrupt", "1% RTT", 4, "directions are egress, ingress, both"),
    ("corrupt", "1% egress as=", 11, "as=checksum (the receiver discards it, default)"),
    ("corrupt", "1% egress as=paylod", 11, "did you mean 'payload'?"),
    ("corrupt", "1% egress as=payload as=checksum", 22, "each option once"),
    ("corrupt", "1% egress hook=cgroup", 11, "hook=tc, or without hook="),
    ("reorder", "1 percent egress", 3, 'such as "1%"'),
    ("reorder", "1% rtt", 4, "directions are egress, ingress, both"),
    ("reorder", "1% egress by=10", 11, "units are us, ms, s"),
    ("reorder", "1% egress by=10 ms", 11, "units are us, ms, s"),
    ("reorder", "1% egress by=-1ms", 11, "by=TIME"),
    ("reorder", "1% egress by=0.9us", 11, "from 1us to 10s"),
    ("reorder", "1% egress by=10.1s hook=tc", 11, "from 1us to 10s"),
    ("reorder", "1% egress jitter=1ms", 11, "by=... and hook=..."),
]
BAD = [
    *BAD_CHANCES,
    *(("bandwidth", *row) for row in BAD_BANDWIDTHS),
    *(("podmgr.io/bandwidth", *row) for row in BAD_BANDWIDTHS[:3]),
    *(("loss", *row) for row in BAD_LOSSES),
    *(("delay", *row) for row in BAD_DELAYS),
    *(("ebpf-limit", *row) for row in BAD_CUSTOMS),
]


@pytest.mark.parametrize(("key", "value", "column", "accepted"), BAD)
def test_bad_value_is_told_key_column_and_what_is_accepted(
    key: str, value: str, column: int, accepted: str
) -> None:
    with pytest.raises(RuleError) as caught:
        parse_value(key, value)
    error = caught.value
    assert (error.key, error.value, error.column) == (key, value, column)
    assert error.message.startswith(f"{key}: ")
    assert error.message.endswith(f"(column {column})")
    assert accepted in (error.tip or "")
    assert (error.detail or "").startswith(f"{key}=")


@pytest.mark.parametrize(("key", "value", "column", "accepted"), BAD)
def test_bad_option_is_told_the_same(key: str, value: str, column: int, accepted: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule_option(f"{key}={value}")
    assert caught.value.column == column
    assert accepted in (caught.value.tip or "")


def test_first_bad_rule_of_a_value_is_named() -> None:
    with pytest.raises(RuleError) as caught:
        parse_value("bandwidth", "10 mbps egress; 1 xbps ingress; 1 ybps egress")
    assert caught.value.column == 19


@pytest.mark.parametrize(
    ("option", "message", "tip"),
    [
        (
            "priority=1",
            "unknown rule key 'priority'",
            KNOWN_KEYS,
        ),
        ("bandwith=10 mbps egress", "unknown rule key 'bandwith'", "did you mean 'bandwidth'?"),
        ("podmgr.io/los=x", "unknown rule key 'podmgr.io/los'", "did you mean 'loss'?"),
        (
            "other.io/loss=x",
            "unknown rule key 'other.io/loss'",
            KNOWN_KEYS,
        ),
        (
            "=10 mbps egress",
            "unknown rule key ''",
            KNOWN_KEYS,
        ),
        (
            "10 mbps egress",
            "'10 mbps egress' is not KEY=VALUE",
            KNOWN_KEYS,
        ),
        (
            "",
            "'' is not KEY=VALUE",
            KNOWN_KEYS,
        ),
        ("bandwidth", "bandwidth has no value", "RATE UNIT DIRECTION"),
        ("podmgr.io/loss", "podmgr.io/loss has no value", "write 'loss=...'"),
    ],
)
def test_option_without_a_known_key_is_a_usage_error(option: str, message: str, tip: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rule_option(option)
    assert caught.value.message == message
    assert tip in (caught.value.tip or "")


@pytest.mark.parametrize("options", ["burst=64kb algorithm=edt", "algorithm=edt burst=64kb"])
def test_delaying_rule_has_no_bucket_to_size(options: str) -> None:
    with pytest.raises(RuleError, match="burst belongs to algorithm=tbf; edt has no bucket") as caught:
        parse_value("bandwidth", f"10 mbps egress {options}")
    assert caught.value.tip == "burst or algorithm=edt, not both"
    assert caught.value.column == len("10 mbps egress ") + options.index("burst") + 1


def test_value_of_4096_characters_is_read() -> None:
    assert parse_value("bandwidth", "10 mbps egress".ljust(4096)) == (Bandwidth(EGRESS, 10_000_000),)


# Whatever strangers write


@given(OUR_KEYS, VALUES)
def test_arbitrary_value_gives_rules_or_a_clean_error(key: str, value: str) -> None:
    try:
        found = parse_value(key, value)
    except PodmgrError as error:
        assert all(line.isprintable() for line in shown(error))
    else:
        assert found
        assert all(parse_rule_option(str(rule)) == (rule,) for rule in found)


@given(st.one_of(st.text(), st.builds("{}={}".format, st.one_of(OUR_KEYS, st.text()), VALUES)))
def test_arbitrary_option_gives_rules_or_a_clean_error(option: str) -> None:
    try:
        found = parse_rule_option(option)
    except PodmgrError as error:
        assert all(line.isprintable() for line in shown(error))
    else:
        assert found


@pytest.mark.parametrize("character", ["\x1b", "\0", "\x07", "\x9b", "\u202e", "\ud800", "\x7f"])
@pytest.mark.parametrize(
    "option",
    [
        "bandwidth={}",
        "bandwidth=10 m{}bps egress",
        "bandwidth=10 mbps egress burst={}",
        "bandwidth=10 mbps egress algorithm={}",
        "loss=uniform egress {}%",
        "loss=uniform egress 1% hook={}",
        "loss=burst egress 1% length={}",
        "loss=gilbert egress p={}",
        "loss=gilbert egress p={}%",
        "loss=uniform egress 1% interface={}",
        "duplicate={}% egress",
        "corrupt=1% egress as={}",
        "reorder=1% egress by={}",
        "block={}",
        "block=egress reply={}",
        "ebpf-limit={} egress",
        "ebpf-limit=x egress -DX={}",
        "{}=x",
        "loss{}",
    ],
)
def test_control_characters_never_reach_the_screen_raw(option: str, character: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rule_option(option.format(f"{character}[31m"))
    assert not any(character in line for line in shown(caught.value))
    assert all(line.isprintable() for line in shown(caught.value))


@pytest.mark.parametrize(
    ("value", "column"), [("uniform egress 2 x", 18), ("uniform egress 2x", 17), ("uniform egress 2", 17)]
)
def test_missing_percent_sign_is_shown_where_it_should_be(value: str, column: int) -> None:
    with pytest.raises(RuleError) as caught:
        parse_value("loss", value)
    assert caught.value.column == column


def test_rate_is_rounded_once_however_many_digits_it_has() -> None:
    (rule,) = parse_value("bandwidth", "8000.50000000000000000000000000000000001 bps egress")
    assert isinstance(rule, Bandwidth)
    assert rule.rate_bits_per_second == 8001


@pytest.mark.parametrize(
    ("value", "column", "meant"),
    [
        ("100kbit/s egress", 4, "100 kbps"),
        ("10Mbit/s egress", 3, "10 mbps"),
        ("10 Mbit egress", 4, "10 mbps"),
        ("10M egress", 3, "10 mbps"),
        ("1MB/s egress", 2, "8 mbps, bits instead of bytes"),
        ("2 GiB/s egress", 3, "16 gbps, bits instead of bytes"),
        ("10 megabits egress", 4, "10 mbps"),
        ("10Gbits/sec egress", 3, "10 gbps"),
        ("1500000 bit egress", 9, "1500000 bps"),
        ("5% egress", 2, "loss=uniform egress 5%"),
        ("10 mps egress", 4, "mbps"),
    ],
)
def test_a_unit_of_another_tool_is_told_with_what_was_probably_meant(
    value: str, column: int, meant: str
) -> None:
    with pytest.raises(RuleError) as caught:
        parse_value("bandwidth", value)
    assert caught.value.column == column
    assert meant in (caught.value.tip or "")


@pytest.mark.parametrize(
    ("value", "unit"), [("uniform egress 2%%", "%%"), ("2%% egress", "%%"), ("2 percent egress", "percent")]
)
def test_what_stands_in_the_place_of_the_percent_sign_is_named(value: str, unit: str) -> None:
    with pytest.raises(RuleError, match=f"'{unit}' is not the percent sign") as caught:
        parse_value("loss", value)
    assert (caught.value.column, caught.value.tip) == (value.index(unit) + 1, 'a percentage, such as "2%"')


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        ("bandwidth=10mbps both burst=64kb", ["10 mbps egress burst=64kb", "10 mbps ingress burst=64kb"]),
        ("loss=2% Both hook=tc", ["uniform egress 2% hook=tc", "uniform ingress 2% hook=tc"]),
        ("loss=exponential both 400", ["exponential egress 400", "exponential ingress 400"]),
        ("loss=burst both 1% length=5", ["burst egress 1% length=5", "burst ingress 1% length=5"]),
        ("loss=gilbert both p=1% r=9%", ["gilbert egress p=1% r=9%", "gilbert ingress p=1% r=9%"]),
        ("loss=markov both p13=1%", ["markov egress p13=1% p31=99%", "markov ingress p13=1% p31=99%"]),
        ("ebpf-limit=dropper both -DPORT=53", ["dropper egress -DPORT=53", "dropper ingress -DPORT=53"]),
    ],
)
def test_both_directions_are_two_rules(option: str, texts: list[str]) -> None:
    assert [rule.value for rule in parse_rule_option(option)] == texts


def test_one_direction_collides_with_both() -> None:
    with pytest.raises(RuleError, match="'2 mbps ingress' collides with '1 mbps ingress'") as caught:
        parse_value("bandwidth", "1 mbps both; 2 mbps ingress")
    assert caught.value.column == 14
