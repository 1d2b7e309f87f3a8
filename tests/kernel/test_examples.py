"""Every manifest of examples/ on a real cgroup: what is attached is what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from podmgr.attachment import Cgroup
from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import WIRE_PER_PAYLOAD
from podmgr.rules.chance import ByChance
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.hooks import at_cgroup
from podmgr.rules.kinds import template_of
from podmgr.rules.kinds.bandwidth import Bandwidth, regained_bytes
from podmgr.rules.kinds.block import Block
from podmgr.rules.kinds.custom import Custom
from podmgr.rules.kinds.loss import ExponentialLoss, UniformLoss
from podmgr.rules.kinds.loss_bursts import BurstLoss
from podmgr.rules.rule import Direction, Rule
from tests import documents
from tests.bench.loss import datagrams_lost
from tests.kernel.conftest import EXAMPLES, Cli, attached
from tests.kernel.network import kernel_has_fq
from tests.lab import Lab, lab, start_tcp
from tests.numbered import exchange

BANDWIDTH = "bandwidth=10 mbps egress"
UNIFORM = "loss=uniform egress 2%"
BURST = "loss=burst egress 1% length=5"
EXPONENTIAL = "loss=exponential egress 400"
DROPPER = "ebpf-limit=dropper egress -DPORT=5353"

# Target, and rule to source, of each file.
RULES = {
    "bandwidth": ("pod/bandwidth", {BANDWIDTH: "pod"}),
    "loss-uniform": ("pod/loss-uniform", {UNIFORM: "pod"}),
    "loss-exponential": ("pod/loss-exponential", {EXPONENTIAL: "pod"}),
    "burst-loss": ("pod/burst-loss", {BURST: "pod"}),
    "delay": ("pod/delay", {"delay=50ms egress": "pod"}),
    "jitter": ("pod/jitter", {"delay=50ms egress jitter=5ms": "pod"}),
    "dropper": ("pod/dropper", {DROPPER: "pod"}),
    "service": (
        "pod/web-0",
        {
            "bandwidth=50 mbps egress burst=64kb": "pod",
            "bandwidth=200 mbps ingress": "service/web",
            "loss=uniform ingress 1%": "service/web",
        },
    ),
    "service-bandwidth": ("pod/service-bandwidth-0", {BANDWIDTH: "service/service-bandwidth"}),
    "service-loss-uniform": ("pod/service-loss-uniform-0", {UNIFORM: "service/service-loss-uniform"}),
    "service-loss-exponential": (
        "pod/service-loss-exponential-0",
        {EXPONENTIAL: "service/service-loss-exponential"},
    ),
    "service-dropper": ("pod/service-dropper-0", {DROPPER: "service/service-dropper"}),
    "deployment-bandwidth": ("deployment/deployment-bandwidth", {BANDWIDTH: "pod"}),
    "deployment-loss-uniform": ("deployment/deployment-loss-uniform", {UNIFORM: "pod"}),
    "deployment-loss-exponential": ("deployment/deployment-loss-exponential", {EXPONENTIAL: "pod"}),
    "deployment-dropper": ("deployment/deployment-dropper", {DROPPER: "pod"}),
    "duplicate": ("pod/duplicate", {"duplicate=1% egress": "pod"}),
    "corrupt": ("pod/corrupt", {"corrupt=0.1% egress": "pod"}),
    "block": ("pod/block", {"block=egress reply=rst cut=yes": "pod"}),
    "reorder": ("pod/reorder", {"reorder=1% egress by=20ms": "pod"}),
    "profile": (
        "pod/profile",
        {
            "bandwidth=2 mbps egress algorithm=edt": "pod",
            "bandwidth=16 mbps ingress algorithm=edt": "pod",
            "delay=40ms egress": "pod",
            "delay=40ms ingress": "pod",
            "loss=uniform egress 0.1%": "pod",
            "loss=uniform ingress 0.1%": "pod",
        },
    ),
    "namespace": (
        "pod/greedy",
        {"bandwidth=100 mbps egress": "pod", "bandwidth=10 mbps egress": "namespace/slow"},
    ),
}
# Those of what acts on interfaces alone: a process must live there.
ON_INTERFACES = {
    name
    for name, (_, rules) in RULES.items()
    if any(not at_cgroup(rule) for text in rules for rule in parse_rule_option(text))
}


def test_no_example_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(RULES)


@pytest.mark.parametrize("name", sorted(RULES.keys() - ON_INTERFACES))
def test_an_example_attaches_what_it_says_and_once(
    podmgr: Cli, make_cgroup: Callable[..., Cgroup], name: str
) -> None:
    target, rules = RULES[name]
    cgroup = make_cgroup()
    command = ["apply", "-f", str(EXAMPLES / f"{name}.yaml"), "--cgroup", str(cgroup.path)]
    command += ["--program-dir", str(EXAMPLES)]
    podmgr(*command)

    rows = podmgr.listed()
    assert {row["rule"]: row["source"] for row in rows} == rules
    assert {row["target"] for row in rows} == {target}
    assert {row["state"] for row in rows} == {"active"}
    assert all(row["counters"] is not None for row in rows)
    in_kernel = {id_ for direction in Direction for id_ in attached(cgroup, direction)}
    assert {row["program_id"] for row in rows} <= in_kernel

    again = podmgr(*command).stdout.splitlines()
    assert len(again) == len(in_kernel)
    assert all(line.endswith(" unchanged") for line in again)


# With traffic


DATAGRAMS = 2_000  # fewer bytes than the smallest burst
TRIES = 3  # of TCP, on a machine that may be busy elsewhere


EXAMPLE_OF = {tuple(rules): name for name, (_, rules) in reversed(RULES.items())}  # one of those alike
SHOWN = set(documents.rules())


def _needs_fq(texts: Sequence[str]) -> bool:
    return any(template_of(rule).needs_fq for text in texts for rule in parse_rule_option(text))


# What delays needs a kernel with fq: tests/vm/guest has the like of it.
TOGETHER = sorted(texts for texts in EXAMPLE_OF.keys() | SHOWN if not _needs_fq(texts))


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


def test_the_rules_of_the_documents_are_found() -> None:
    assert len(SHOWN) >= 5


@pytest.mark.parametrize("name", sorted(ON_INTERFACES))
def test_an_example_on_interfaces_attaches_what_it_says_and_once(made: Lab, name: str) -> None:
    target, rules = RULES[name]
    command = ["apply", "-f", str(EXAMPLES / f"{name}.yaml"), "--cgroup", str(made.cgroup.path)]
    if _needs_fq(tuple(rules)) and not kernel_has_fq():
        with pytest.raises(AssertionError, match="modprobe sch_fq"):
            made.podmgr(*command)
        return
    made.podmgr(*command)
    try:
        rows = json.loads(made.podmgr("list", "-o", "json"))["attachments"]
        assert {row["rule"]: row["source"] for row in rows} == rules
        assert {(row["target"], row["hook"], row["state"]) for row in rows} == {(target, "tc", "active")}
        again = made.podmgr(*command).splitlines()
        assert len(again) == len(rows)
        assert all(line.endswith(" unchanged") for line in again)
    finally:
        made.podmgr("clean")


@pytest.mark.parametrize("texts", TOGETHER, ids="; ".join)
def test_what_examples_and_documents_show_acts_on_traffic(made: Lab, texts: Sequence[str]) -> None:
    rules = [rule for text in texts for rule in parse_rule_option(text)]
    rules = [rule for rule in rules if not any(rule.match)]  # which packets the others hit: test_match.py
    with _applied(made, texts):
        for rule in rules:
            if isinstance(rule, UniformLoss | ExponentialLoss):
                is_ingress = rule.direction is Direction.INGRESS
                lost = datagrams_lost(made, _probability(rule), DATAGRAMS, ingress=is_ingress)
                assert lost.is_fair, lost
            elif isinstance(rule, BurstLoss):  # how many and how long: test_bursts.py
                lost = datagrams_lost(made, float(rule.percent) / 100, 10 * DATAGRAMS)
                assert 0 < lost.lost < 3 * lost.sent * lost.probability
                assert lost.errors == 0
            elif isinstance(rule, ByChance):
                found = exchange(made, DATAGRAMS, ingress=rule.direction is Direction.INGRESS)
                seen = {"duplicate": found.times.get(2, 0), "corrupt": DATAGRAMS - found.total}
                low, high = binomial_interval(DATAGRAMS, float(rule.percent) / 100)
                assert low <= seen.get(rule.kind, found.overtaken) <= high
            elif isinstance(rule, Block):  # what it answers: test_block.py
                assert datagrams_lost(made, 1, 100).lost == 100
            elif isinstance(rule, Custom):  # the dropper, of another port
                assert rule.macros == (("PORT", "5353"),)
                assert datagrams_lost(made, 0, 100).lost == 0
                assert datagrams_lost(made, 1, 100, port=5353).lost == 100
        for direction in Direction:
            _assert_limit(made, rules, direction)


@contextmanager
def _applied(made: Lab, texts: Sequence[str]) -> Iterator[None]:
    """By the example that has them, or else as in the documents on the command line."""
    if example := EXAMPLE_OF.get(tuple(texts)):
        words = ["-f", str(EXAMPLES / f"{example}.yaml"), "--cgroup", str(made.cgroup.path)]
    else:
        words = [made.target, *(word for text in texts for word in ("--rule", text))]
    made.podmgr("apply", *words, "--program-dir", str(EXAMPLES))
    try:
        yield
    finally:
        made.podmgr("clean")


def _probability(rule: UniformLoss | ExponentialLoss) -> float:
    if isinstance(rule, UniformLoss):
        return float(rule.percent) / 100
    return float(50 ** (-rule.threshold / 1000))


def _assert_limit(made: Lab, rules: Sequence[Rule], direction: Direction) -> None:
    """TCP carries nine tenths of the lowest limit, or half if it also loses; never more than it and what it
    was given back.
    """
    there = [rule for rule in rules if rule.direction is direction]
    limits = [rule for rule in there if isinstance(rule, Bandwidth)]
    if not limits:
        return
    limit = min(limits, key=lambda rule: rule.rate_bits_per_second)
    seconds, rate = 3, limit.rate_bits_per_second
    least = 0.9 if len(there) == len(limits) else 0.5
    most = 1.02 + regained_bytes(limit) * 8 / (rate * seconds)  # the law itself: test_law.py
    shares = []
    for _ in range(TRIES):
        done = start_tcp(made, seconds, ingress=direction is Direction.INGRESS, settling_seconds=1)()
        shares.append(done.bits_per_second * WIRE_PER_PAYLOAD / rate)
        assert shares[-1] <= most
        if shares[-1] >= least:
            return
    pytest.fail(f"carried {shares} of the limit")
