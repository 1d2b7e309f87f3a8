"""Profiles: each has figures, a source and rules; what is malformed is refused in one line."""

from __future__ import annotations

from decimal import Decimal

import pytest

from podmgr.errors import PodmgrError, RuleError
from podmgr.rules.grammar import parse_rule_option, parse_value
from podmgr.rules.kinds.bandwidth import Algorithm, Bandwidth
from podmgr.rules.kinds.delay import Delay
from podmgr.rules.kinds.loss import UniformLoss
from podmgr.rules.kinds.loss_bursts import BurstLoss
from podmgr.rules.profiles import Basis, Profile, built_in, read
from podmgr.rules.rule import Hook, Place, Rule
from tests.unit.samples import EGRESS, INGRESS

NAMED = (
    "slow-3g slow-4g fast-4g 2g edge 3g dsl cable fios lte hspa gsm-poor wifi-good wifi-weak leo geo inflight"
)


def own(text: str) -> Profile:
    return read("office", text.encode(), source="office.toml")


def values(rules: tuple[Rule, ...]) -> list[str]:
    return [str(rule) for rule in rules]


@pytest.mark.parametrize("profile", built_in().values(), ids=built_in())
def test_each_of_podmgrs_own_has_a_source_and_says_what_its_figures_rest_on(profile: Profile) -> None:
    assert len(profile.source) > 10
    assert profile.kind in list(Basis)
    assert profile.rules
    assert profile.round_trip_ns


@pytest.mark.parametrize("profile", built_in().values(), ids=built_in())
def test_its_rules_are_ordinary_ones_one_of_each_kind_and_direction(profile: Profile) -> None:
    assert len({rule.collision_key for rule in profile.rules}) == len(profile.rules)
    assert {rule.kind for rule in profile.rules} <= {"bandwidth", "delay", "loss"}
    for rule in profile.rules:
        assert parse_rule_option(str(rule)) == (rule,)
        assert rule.of_profile == profile.name
        assert not isinstance(rule, Bandwidth) or rule.algorithm is Algorithm.EDT


def test_the_table_begins_with_what_is_asked_for_most() -> None:
    assert set(NAMED.split()) <= built_in().keys()


def test_a_name_stands_for_rate_delay_jitter_and_loss_of_both_directions() -> None:
    assert parse_value("podmgr.io/profile", " LTE ") == (
        Bandwidth(EGRESS, 16_000_000, None, Algorithm.EDT),
        Bandwidth(INGRESS, 16_000_000, None, Algorithm.EDT),
        Delay(EGRESS, 40_000_000),
        Delay(INGRESS, 40_000_000),
        UniformLoss(EGRESS, Decimal("0.1")),
        UniformLoss(INGRESS, Decimal("0.1")),
    )
    assert values(parse_rule_option("profile=wifi-good")) == [
        "delay=15ms egress jitter=2.5ms",
        "delay=15ms ingress jitter=2.5ms",
        "loss=burst egress 0.1% length=3",
        "loss=burst ingress 0.1% length=3",
    ]


def test_where_only_what_leaves_can_be_delayed_the_rest_of_a_profile_still_holds() -> None:
    rules = [rule.on_egress_alone for rule in parse_rule_option("profile=lte")]
    assert [rule and str(rule) for rule in rules] == [
        "bandwidth=16 mbps egress algorithm=edt",
        "bandwidth=16 mbps ingress",
        "delay=80ms egress",
        None,
        "loss=uniform egress 0.1%",
        "loss=uniform ingress 0.1%",
    ]
    (said,) = parse_rule_option("bandwidth=1 mbps ingress algorithm=edt")
    assert said.on_egress_alone is said


def test_all_of_a_profiles_rules_act_where_it_says() -> None:
    rules = parse_value("profile", "lte hook=tc interface=eth1")
    assert {rule.place for rule in rules} == {Place(Hook.TC, ("eth1",))}
    assert {rule.of_profile for rule in rules} == {"lte"}


def test_all_of_a_profiles_rules_hold_as_long_as_it_says_and_in_earnest_or_not() -> None:
    rules = parse_value("profile", "lte for=1m mode=shadow")
    assert all(rule.value.endswith(" for=1m mode=shadow") for rule in rules)
    alone = {rule.on_egress_alone for rule in rules} - {None}
    assert all(str(rule).endswith(" for=1m mode=shadow") for rule in alone)


@pytest.mark.parametrize(
    ("value", "column", "problem", "expected"),
    [
        ("ltee", 1, "there is no profile 'ltee'", "did you mean 'lte'? podmgr profiles lists them"),
        ("xyzzy", 1, "there is no profile 'xyzzy'", "podmgr profiles lists them"),
        ("../lte", 1, "'../lte' names no profile", "podmgr profiles"),
        ("lte; 3g", 6, "two profiles: lte and 3g", "one profile"),
        ("lte; lte", 6, "the profile lte twice", "one profile"),
        ("lte egress", 5, "unexpected 'egress'", "hook=..."),
        ("lte hook=cgroup", 5, "such a rule cannot act at the cgroup hook", "hook=tc"),
        ("lte for=1m port=53", 12, "such a rule is about all packets: no port=", "NAME"),
        ("lte peer=10.0.0.0/8 for=1m", 5, "such a rule is about all packets: no peer=", "NAME"),
        ("", 1, "no rule", "NAME"),
    ],
)
def test_what_names_no_profile_is_one_line_with_what_would_be_right(
    value: str, column: int, problem: str, expected: str
) -> None:
    with pytest.raises(RuleError) as caught:
        parse_value("podmgr.io/profile", value)
    assert caught.value.problem == problem
    assert caught.value.column == column
    assert expected in caught.value.expected


def test_one_of_your_own_has_what_it_says_and_no_more() -> None:
    profile = own('up = "3 mbps"\nnote = "by hand"')
    assert profile == Profile(
        "office", (Bandwidth(EGRESS, 3_000_000, None, Algorithm.EDT),), "office.toml", Basis.JUDGED, "by hand"
    )
    assert profile.rate_bits_per_second(INGRESS) is None
    assert (profile.round_trip_ns, profile.jitter_ns) == (0, 0)
    assert not profile.loss_percent


def test_delays_may_differ_between_the_directions() -> None:
    profile = own('delay-up = "30ms"\ndelay-down = "10ms"\njitter = "2ms"\nloss = "1%"\nrun = 2.5')
    assert values(profile.rules) == [
        "delay=30ms egress jitter=2ms",
        "delay=10ms ingress jitter=2ms",
        "loss=burst egress 1% length=2.5",
        "loss=burst ingress 1% length=2.5",
    ]
    assert (profile.round_trip_ns, profile.jitter_ns) == (40_000_000, 4_000_000)
    assert isinstance(profile.rules[-1], BurstLoss)
    assert profile.run_packets == Decimal("2.5")
    assert str(profile.rules[0].on_egress_alone) == "delay=40ms egress jitter=4ms"


@pytest.mark.parametrize(
    ("text", "problem", "tip"),
    [
        ("", "no figure", "a profile has down"),
        ("up", "not TOML", "NAME"),
        ('rate = "1 mbps"', "unknown 'rate'", "a profile has down"),
        ('lost = "1%"', "unknown 'lost'", "did you mean 'loss'?"),
        ("up = true", "up is not text", 'up = "..."'),
        ('up = "1 mbit"', "up: unknown unit 'mbit'", "did you mean 1 mbps?"),
        ('up = "1 bps"', "up: 1 bps is out of range", "8 kbps"),
        ('up = "1 mbps; 2 mbps"', "up is more than one rule", "RATE UNIT"),
        ('round-trip = "1 h"', "round-trip: ", "ms"),
        ('round-trip = "1ms"\ndelay-up = "1ms"', "round-trip and delay-up", "one of them"),
        ('jitter = "1ms"', "jitter without a delay", "round-trip"),
        ('round-trip = "10ms"\njitter = "20ms"', "round-trip: a jitter of", "10ms"),
        ("run = 3", "run without a loss", "loss"),
        ('loss = "101%"', "loss: 101% is out of range", "100%"),
        ('loss = "90%"\nrun = 2', "run: runs cannot be so short", "length"),
        ('up = "1 mbps"\nkind = "guessed"', "kind is 'guessed'", "measured or judged"),
        ('up = "1 mbps"\nsource = ""', "source is empty", "where the figures are from"),
        ('up = "1 mbps"\nprofile = "lte"', "unknown 'profile'", "a profile has"),
    ],
)
def test_what_is_wrong_with_one_of_your_own_is_said(text: str, problem: str, tip: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        own(text)
    assert problem in caught.value.message
    assert tip in (caught.value.tip or "")
