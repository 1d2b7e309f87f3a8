"""The numbers behind a rule: drop thresholds to the last of 2^32, bucket depths, and their explanation."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.programs.find import shipped_folder
from podmgr.rules.chance import ByChance
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds import BUILT_IN_PROGRAMS, template_of
from podmgr.rules.kinds.bandwidth import (
    MAX_BURST_BYTES,
    MIN_BURST_BYTES,
    Algorithm,
    Bandwidth,
    burst_bytes,
    horizon_ns,
    initial_bytes,
    regained_bytes,
)
from podmgr.rules.kinds.custom import Custom
from podmgr.rules.kinds.loss import ExponentialLoss, UniformLoss
from podmgr.rules.rule import Direction, Figure, FqNeeds, Hook, Rule, Stage
from tests.unit.samples import EGRESS, INGRESS, by_chance, directions, percents, rates, rules, thresholds


def uniform(percent: str) -> UniformLoss:
    return UniformLoss(EGRESS, Decimal(percent))


def exponential(threshold: str | Decimal) -> ExponentialLoss:
    return ExponentialLoss(EGRESS, Decimal(threshold))


def rule(option: str) -> Rule:
    (found,) = parse_rule_option(option)
    return found


@pytest.mark.parametrize(
    ("percent", "threshold"),
    [
        ("0", 0),
        ("0.00000001", 0),
        ("0.0000000233", 1),
        ("0.1", 4_294_967),
        ("1", 42_949_673),
        ("2", 85_899_346),
        ("25", 2**30),
        ("50", 2**31),
        ("99.99999999", 2**32),
        ("100", 2**32),
    ],
)
def test_uniform_threshold_is_the_nearest_of_2_to_the_32(percent: str, threshold: int) -> None:
    assert uniform(percent).drop_threshold == threshold


@given(percents)
def test_uniform_threshold_is_exact(percent: Decimal) -> None:
    found = UniformLoss(INGRESS, percent).drop_threshold
    assert abs(found - Fraction(percent) / 100 * 2**32) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("threshold", "draws"), [("0", 2**32), ("0.0", 2**32), ("1000", 85_899_346), ("1000.0", 85_899_346)]
)
def test_exponential_drops_all_at_0_and_2_percent_at_1000(threshold: str, draws: int) -> None:
    assert exponential(threshold).drop_threshold == draws


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
def test_exponential_threshold_is_the_nearest_to_50_to_the_minus_t(quarters: int) -> None:
    # |draws - 2^32 * 50^(-quarters/4)| <= 1/2, in whole numbers: both sides to the power of 4.
    draws = exponential(str(250 * quarters)).drop_threshold
    assert (2 * draws - 1) ** 4 * 50**quarters <= (2 * 2**32) ** 4 <= (2 * draws + 1) ** 4 * 50**quarters


@given(thresholds, thresholds)
def test_higher_exponential_threshold_drops_no_more(one: Decimal, other: Decimal) -> None:
    low, high = sorted((one, other))
    assert exponential(low).drop_threshold >= exponential(high).drop_threshold


@given(thresholds)
def test_exponential_never_drops_less_than_2_percent(threshold: Decimal) -> None:
    assert uniform("2").drop_threshold <= exponential(threshold).drop_threshold <= 2**32


@pytest.mark.parametrize(
    ("rate", "burst", "initial"),
    [
        (8_000, 1_514, 1_514),
        (96_896, 1_514, 1_514),
        (121_120, 1_892, 1_514),
        (1_000_000, 15_625, 12_500),
        (10_000_000, 156_250, 16_000),
        (1_000_000_000, 15_625_000, 16_000),
        (400 * 10**9, 6_250_000_000, 16_000),
    ],
)
def test_bucket_holds_125_ms_of_the_rate_and_at_least_a_frame(rate: int, burst: int, initial: int) -> None:
    limit = Bandwidth(EGRESS, rate)
    assert (burst_bytes(limit), initial_bytes(limit)) == (burst, initial)


@pytest.mark.parametrize(
    ("rate", "burst", "regained"),
    [
        (100_000, None, 98_304),  # twice 48 KiB
        (10_000_000, None, 625_000),  # twice 250 ms
        (10_000_000, 64_000, 625_000),
        (10_000_000, 1_000_000, 2_000_000),
    ],
)
def test_what_a_wait_gives_back_is_at_least_tcps_timeout(rate: int, burst: int | None, regained: int) -> None:
    assert regained_bytes(Bandwidth(EGRESS, rate, burst)) == regained


@given(rates)
def test_default_burst_is_an_eighth_of_a_second_of_bytes(rate: int) -> None:
    assert burst_bytes(Bandwidth(EGRESS, rate)) == max(rate // 8 // 8, 1_514)


@given(rates, st.integers(MIN_BURST_BYTES, MAX_BURST_BYTES))
def test_written_burst_is_taken_as_it_is(rate: int, burst: int) -> None:
    assert burst_bytes(Bandwidth(EGRESS, rate, burst)) == burst


@given(rates, st.none() | st.integers(MIN_BURST_BYTES, MAX_BURST_BYTES))
def test_new_bucket_holds_a_frame_and_never_more_than_the_bucket(rate: int, burst: int | None) -> None:
    limit = Bandwidth(EGRESS, rate, burst)
    assert 1_514 <= initial_bytes(limit) <= min(16_000, burst_bytes(limit))


@pytest.mark.parametrize(
    ("option", "program", "macros"),
    [
        ("loss=uniform egress 2%", "loss", {"THRESHOLD": "85899346ULL"}),
        ("loss=exponential ingress 0", "loss", {"THRESHOLD": "4294967296ULL"}),
        ("loss=burst egress 20% length=4", "burst", {"P13": "268435456ULL", "P31": "1073741824ULL"}),
        ("loss=gilbert egress p=6.25% r=25%", "burst", {"P13": "268435456ULL", "P31": "1073741824ULL"}),
        (
            "loss=gilbert egress p=50% r=25% bad=50% good=25%",
            "burst",
            {
                "P12": "1073741824ULL",
                "P13": "1073741824ULL",
                "P14": "536870912ULL",
                "P21": "805306368ULL",
                "P23": "1610612736ULL",
                "P24": "268435456ULL",
                "P31": "805306368ULL",
                "P32": "1610612736ULL",
                "P34": "268435456ULL",
                "P41": "1610612736ULL",
                "P42": "1073741824ULL",
                "P43": "1073741824ULL",
            },
        ),
        ("loss=markov egress p13=25%", "burst", {"P13": "1073741824ULL", "P31": "3221225472ULL"}),
        (
            "loss=markov egress p13=25% p31=50% p32=25% p23=12.5% p14=6.25%",
            "burst",
            {
                "P13": "1073741824ULL",
                "P14": "268435456ULL",
                "P23": "536870912ULL",
                "P31": "2147483648ULL",
                "P32": "1073741824ULL",
                "P41": "4294967296ULL",
            },
        ),
        ("loss=burst egress 0% length=5", "burst", {}),
        (
            "bandwidth=10 mbps egress",
            "bandwidth",
            {"RATE": "10000000ULL", "BURST": "156250ULL", "INITIAL": "16000ULL"},
        ),
        (
            "bandwidth=10 mbps egress burst=2kb",
            "bandwidth",
            {"RATE": "10000000ULL", "BURST": "2000ULL", "INITIAL": "2000ULL"},
        ),
        (
            "bandwidth=10 mbps egress algorithm=edt",
            "edt",
            {"HORIZON": "1677721600ULL", "RATE": "10000000ULL"},
        ),
        ("duplicate=2% egress", "duplicate", {"THRESHOLD": "85899346ULL"}),
        ("corrupt=2% egress", "corrupt", {"REACHES_APPLICATION": "0", "THRESHOLD": "85899346ULL"}),
        ("corrupt=0% ingress as=payload", "corrupt", {"REACHES_APPLICATION": "1", "THRESHOLD": "0ULL"}),
        (
            "reorder=100% egress by=1s",
            "reorder",
            {"MOST_BYTES": "256000000ULL", "THRESHOLD": "4294967296ULL", "TIME": "1000000000ULL"},
        ),
        ("block=egress", "block", {"CUTS": "0", "ONLY_NEW": "0", "REPLY": "0"}),
        ("block=egress reply=rst cut=yes", "block", {"CUTS": "1", "ONLY_NEW": "0", "REPLY": "1"}),
        ("block=ingress state=new reply=icmp", "block", {"CUTS": "0", "ONLY_NEW": "1", "REPLY": "2"}),
        ("ebpf-limit=dropper egress -DB=1 -DA", "dropper", {"A": None, "B": "1"}),
    ],
)
def test_rule_becomes_a_program_with_macros(option: str, program: str, macros: dict[str, str | None]) -> None:
    made = rule(option)
    assert (made.program, dict(made.macros)) == (program, macros)


def test_where_several_see_a_packet_block_comes_first_and_what_delays_last() -> None:
    options = [
        "block=egress",
        "loss=uniform egress 2%",
        "ebpf-limit=dropper egress",
        "bandwidth=10 mbps egress",
    ]
    options[3:3] = ["corrupt=1% egress", "duplicate=1% egress"]
    options += ["bandwidth=10 mbps egress algorithm=edt", "delay=1ms egress", "reorder=1% egress"]
    assert [template_of(rule(option)).stage for option in options] == list(Stage)
    assert template_of(rule("ebpf-limit=edt egress -DRATE=1000000")).stage is Stage.DEPARTURE


@pytest.mark.parametrize(
    ("option", "needs_fq"),
    [
        ("bandwidth=10 mbps egress", False),
        ("bandwidth=10 mbps egress algorithm=edt", True),
        ("ebpf-limit=edt egress -DRATE=1000000", True),
        ("delay=10ms egress", True),
        ("ebpf-limit=dropper egress", False),
        ("loss=uniform egress 2%", False),
        ("duplicate=1% egress", False),
        ("corrupt=1% egress", False),
        ("reorder=1% egress", True),
        ("block=egress", False),
    ],
)
def test_only_programs_that_delay_need_fq(option: str, needs_fq: bool) -> None:
    assert template_of(rule(option)).needs_fq is needs_fq


@pytest.mark.parametrize(
    ("option", "needs"),
    [
        ("loss=2% egress", None),
        ("bandwidth=10 mbps egress", None),
        ("ebpf-limit=edt egress", None),
        ("bandwidth=10 mbps egress algorithm=edt", FqNeeds(0, 1_677_721_600)),
        ("bandwidth=8 kbps ingress algorithm=edt", FqNeeds(0, 8 * 10**9)),
        ("delay=100ms egress", FqNeeds(1_000, 10**8)),
        ("delay=1s ingress jitter=200ms", FqNeeds(10_000, 1_200_000_000)),
        ("delay=10s egress", FqNeeds(83_334, 10**10)),
    ],
)
def test_what_an_fq_must_hold_follows_from_the_rule(option: str, needs: FqNeeds | None) -> None:
    assert rule(option).fq_needs == needs


@given(rules.filter(lambda rule: not isinstance(rule, Custom)))
def test_every_rule_but_custom_ones_has_a_built_in_program(wish: Rule) -> None:
    assert wish.program in BUILT_IN_PROGRAMS


def test_built_in_programs_are_the_shipped_ones() -> None:
    shipped = {path.name.removesuffix(".bpf.c") for path in shipped_folder("bpf").glob("*.bpf.c")}
    assert shipped == BUILT_IN_PROGRAMS


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "loss=uniform egress 2%",
            {
                "drop probability": "0.02000000002 = 85899346 / 2^32, 1 in 50",
                "decides": "per packet as the hook sees it; a GSO packet is one, as with netem",
            },
        ),
        ("loss=uniform egress 0%", {"drop probability": "0 = 0 / 2^32, never"}),
        (
            "loss=burst egress 1% length=5",
            {
                "mean loss": "1%, 1 in 100 packets",
                "mean run": "5 packets in a row",
                "mean gap": "495 packets between runs",
                "run begins": "0.2020202% of packets behind one that was received",
                "run ends": "20% of packets behind one that was lost",
                "first packet": "as if the one before had been received, in a gap",
                "decides": "per packet as the hook sees it; a GSO packet is one, as with netem",
            },
        ),
        ("loss=burst egress 0% length=5", {"mean loss": "0%", "mean run": "none"}),
        (
            "loss=gilbert egress p=1% r=20% bad=50% good=0.1%",
            {
                "mean loss": "2.47619%, 1 in 40.3846 packets",
                "mean run": "1.62612 packets in a row",
                "bad": "50% of packets are lost in the bad state",
            },
        ),
        ("loss=gilbert egress p=1% r=0%", {"mean loss": "100%, 1 in 1 packets", "mean run": "without end"}),
        (
            "loss=markov egress p13=1% p31=30% p32=40% p23=60% p14=0.5%",
            {"mean loss": "3.614458%, 1 in 27.6667 packets", "mean run": "1.35294 packets in a row"},
        ),
        ("loss=exponential egress 0", {"drop probability": "1 = 4294967296 / 2^32, 1 in 1"}),
        (
            "bandwidth=10 mbps egress",
            {
                "rate": "10,000,000 bits/s = 1,250,000 bytes/s",
                "counts": "bytes on the wire: 14 + the IP packet, for every segment of a GSO packet",
                "burst": "156,250 bytes = 125 ms of the rate",
                "starts with": "16,000 bytes",
                "over the rate": "dropped",
                "after a drop": "up to 625,000 bytes that TCP left over meanwhile pass at once",
            },
        ),
        (
            "bandwidth=10 mbps egress burst=64kb",
            {"burst": "64,000 bytes = 51.2 ms of the rate"},
        ),
        (
            "bandwidth=8001 bps egress algorithm=edt",
            {
                "rate": "8,001 bits/s = 1,000.125 bytes/s",
                "over the rate": "delayed until its departure time, by the fq qdisc",
                "horizon": "8 s: what would wait longer is dropped",
                "ECN": "flows that understand it are marked when they wait half as long",
            },
        ),
        ("bandwidth=8 kbps egress burst=1000mb", {"burst": "1,000,000,000 bytes = 277.778 h of the rate"}),
        ("bandwidth=400 gbps egress burst=1514b", {"burst": "1,514 bytes = 30.28 ns of the rate"}),
        (
            "loss=0.00000002% egress",
            {"drop probability": "2.328306437e-10 = 1 / 2^32, 1 in 4,294,967,296"},
        ),
        ("duplicate=2% egress", {"probability": "0.02000000002 = 85899346 / 2^32, 1 in 50"}),
        ("duplicate=0% egress", {"probability": "0 = 0 / 2^32, never"}),
        (
            "corrupt=50% egress",
            {
                "probability": "0.5 = 2147483648 / 2^32, 1 in 2",
                "is found": "by the receiver's checksum, which discards the packet, as on a wire",
            },
        ),
        (
            "reorder=1% egress by=100ms",
            {
                "late by": "100 ms, on top of a rate and a delay; what is sent meanwhile overtakes",
                "may wait": "125 MB on the wire, in memory up to twice that; what is more is not late",
            },
        ),
        (
            "block=egress",
            {
                "blocked": "all that leaves the pod, but for ARP and neighbour discovery",
                "who sends it": "the pod",
                "its connect() sees": "nothing, until it gives up (ETIMEDOUT)",
                "its open TCP sees": "nothing, until it gives up (ETIMEDOUT)",
                "its UDP sees": "nothing",
                "who waits for it": "sees nothing, until it gives up (ETIMEDOUT)",
            },
        ),
        (
            "block=ingress reply=rst",
            {
                "who sends it": "the other end",
                "its connect() sees": "ECONNREFUSED, at once",
                "its open TCP sees": "ECONNRESET, as soon as it sends",
                "its UDP sees": "nothing: a RST is TCP's alone",
            },
        ),
        (
            "block=egress reply=icmp cut=yes",
            {
                "its open TCP sees": "ECONNRESET at both ends, as soon as this one sends",
                "its UDP sees": "EHOSTUNREACH, of IPv6 EACCES, if the socket is connected",
            },
        ),
        ("block=egress state=new", {"its open TCP sees": "nothing: it lives on"}),
        ("ebpf-limit=dropper egress", {"custom program": "dropper", "macros": "none"}),
        ("ebpf-limit=dropper egress -DB=1 -DA", {"custom program": "dropper", "macros": "-DA -DB=1"}),
    ],
)
def test_explanation_gives_the_numbers(option: str, expected: dict[str, str]) -> None:
    rows = dict(rule(option).explain())
    assert {label: rows.get(label) for label in expected} == expected


@pytest.mark.parametrize(
    ("option", "milliseconds"),
    [
        ("8 kbps egress", 8_000),
        ("8 kbps ingress", 8_000),
        ("10 mbps egress", 1_677.7216),
        ("1 mbps ingress", 1_048.576),
        ("335.54432 mbps egress", 50),
        ("400 gbps egress", 50),
        ("400 gbps ingress", 50),
    ],
)
def test_packet_waits_for_a_few_of_the_largest_and_no_longer_than_fq_keeps_it(
    option: str, milliseconds: float
) -> None:
    limit = rule(f"bandwidth={option} algorithm=edt")
    assert isinstance(limit, Bandwidth)
    assert horizon_ns(limit) == round(milliseconds * 1_000_000)


@given(rates, rates, directions)
def test_faster_link_makes_nothing_wait_longer(one: int, other: int, direction: Direction) -> None:
    slow, fast = (Bandwidth(direction, rate, None, Algorithm.EDT) for rate in sorted((one, other)))
    assert 20_000_000 < horizon_ns(fast) <= horizon_ns(slow) < 10_000_000_000


def test_explanation_of_a_delaying_rule_knows_no_bucket() -> None:
    rows = dict(Bandwidth(EGRESS, 10**6, None, Algorithm.EDT).explain())
    assert not {"burst", "starts with"} & rows.keys()


@pytest.mark.parametrize(
    ("option", "hook", "said"),
    [
        ("loss=uniform egress 2%", Hook.CGROUP, "not loss to TCP"),
        ("loss=exponential egress 400", Hook.CGROUP, "not loss to TCP"),
        ("loss=0.00000001% egress", Hook.TC, "drops nothing"),
        ("loss=99.99999999% egress", Hook.TC, "drops all"),
        ("loss=burst egress 1% length=5", Hook.CGROUP, "not loss to TCP"),
        ("loss=burst egress 0.00000001% length=5", Hook.TC, "drops nothing"),
        ("loss=gilbert egress p=1% r=20% bad=0.00000001%", Hook.TC, "drops nothing"),
        ("loss=gilbert egress p=1% r=0%", Hook.TC, "ends no run of losses"),
        ("loss=markov egress p13=1% p31=0%", Hook.TC, "ends no run of losses"),
        ("duplicate=0.00000001% egress", Hook.TC, "copies nothing"),
        ("corrupt=99.99999999% egress", Hook.TC, "corrupts all"),
        ("block=egress", Hook.CGROUP, "TCP sees congestion"),
        ("block=ingress", Hook.CGROUP, "answers pings"),
    ],
)
def test_caveat_says_what_the_effect_is_not(option: str, hook: Hook, said: str) -> None:
    (line,) = rule(option).caveats(hook)
    assert said in line


@pytest.mark.parametrize(
    ("option", "hook"),
    [
        ("loss=uniform ingress 2%", Hook.CGROUP),
        ("loss=uniform egress 2%", Hook.TC),
        ("loss=uniform egress 0%", Hook.TC),
        ("loss=uniform egress 100%", Hook.TC),
        ("loss=burst egress 1% length=5", Hook.TC),
        ("loss=burst egress 0% length=5", Hook.TC),
        ("loss=markov ingress p13=1%", Hook.CGROUP),
        ("loss=gilbert egress p=0% r=0%", Hook.TC),
        ("loss=gilbert egress p=1% r=20% bad=0%", Hook.TC),
        ("bandwidth=10 mbps egress", Hook.CGROUP),
        ("bandwidth=10 mbps egress burst=65550b", Hook.CGROUP),
        ("ebpf-limit=dropper egress", Hook.CGROUP),
        ("duplicate=100% egress", Hook.TC),
        ("reorder=0% egress", Hook.TC),
        ("block=egress reply=rst", Hook.TC),
    ],
)
def test_rule_that_does_what_it_says_has_no_caveat(option: str, hook: Hook) -> None:
    assert rule(option).caveats(hook) == []


@pytest.mark.parametrize(
    ("option", "figures"),
    [
        ("block=egress", []),
        ("block=egress reply=rst", [Figure("RSTs sent", 3)]),
        ("block=egress reply=icmp", [Figure("ICMPs sent", 2)]),
        ("block=egress cut=yes", [Figure("RSTs sent", 3), Figure("connections cut", 1)]),
        (
            "block=egress reply=icmp cut=yes",
            [Figure("RSTs sent", 3), Figure("ICMPs sent", 2), Figure("connections cut", 1)],
        ),
    ],
)
def test_block_tells_what_it_has_sent(option: str, figures: list[Figure]) -> None:
    assert rule(option).figures([3, 2, 1]) == figures


@pytest.mark.parametrize(
    ("option", "name"),
    [("duplicate=1% egress", "copies"), ("corrupt=1% egress", "corrupted"), ("reorder=1% egress", "late")],
)
def test_what_happened_by_chance_is_counted(option: str, name: str) -> None:
    assert rule(option).figures([7]) == [Figure(name, 7)]


@given(by_chance)
def test_chance_is_exact(wish: ByChance) -> None:
    assert abs(wish.threshold - Fraction(wish.percent) / 100 * 2**32) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("late", "waiting"), [("1us", 16 * 2**20), ("100ms", 125 * 10**6), ("10s", 256 * 10**6)]
)
def test_as_much_may_wait_as_10_gbps_bring_meanwhile(late: str, waiting: int) -> None:
    assert dict(rule(f"reorder=1% egress by={late}").macros)["MOST_BYTES"] == f"{waiting}ULL"
