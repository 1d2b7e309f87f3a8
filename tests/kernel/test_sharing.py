"""Rules of one kind that share a program: each has its row and its counters. The kind is the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import pytest

from podmgr import proc
from podmgr.attachment import Target, Wish
from podmgr.demo.throwaway import Pod, send_datagrams
from podmgr.reconcile.observe import Observed, observe
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules import kinds
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.rule import CollisionKey, Macros, Rule
from podmgr.rules.source import CLI, POD, SourcedRule
from podmgr.rules.words import Words
from podmgr.settings import Settings

SOURCE = """
#define PODMGR_TC 1
#ifndef PODMGR_RULES
#define PODMGR_RULES 1
#endif
#include "podmgr.h"
#ifndef PORTS
#define PORTS 0
#endif
SEC("tc") int ports(struct __sk_buff *skb)
{
	const __u16 ports[PODMGR_RULES] = { PORTS };
	struct transport transport = transport_of(skb);
	__u16 port = 0;

	if (is_exempt(skb))
		return VERDICT_PASS;
	bpf_skb_load_bytes_relative(skb, transport.offset + 2, &port, 2, BPF_HDR_START_NET);
#pragma unroll
	for (int rule = 0; rule < PODMGR_RULES; rule++)
		if (ports[rule] == bpf_ntohs(port))
			return count_for(rule, wire_of(skb), VERDICT_DROP);
	return VERDICT_PASS;
}
char LICENSE[] SEC("license") = "GPL";
"""


@dataclass(frozen=True, slots=True)
class Closed(Rule):
    """What is sent to a port is dropped."""

    key: ClassVar[str] = "closed"
    kind: ClassVar[str] = "closed"
    shares_program: ClassVar[bool] = True
    port: int

    @property
    def words(self) -> list[str]:
        return [str(self.port), self.direction]

    @property
    def program(self) -> str:
        return "ports"

    @property
    def macros(self) -> Macros:
        return self.macros_of([self])

    @classmethod
    def macros_of(cls, rules: Sequence[Self]) -> Macros:
        return (("PORTS", ",".join(str(rule.port) for rule in rules)), ("PODMGR_RULES", str(len(rules))))

    @property
    def collision_key(self) -> CollisionKey:
        return CollisionKey(f"closed {self.port}", self.direction)

    def explain(self) -> list[tuple[str, str]]:
        return [("port", str(self.port))]


def _parse(words: Words) -> tuple[Rule, ...]:
    port = int(words.number("the port"))
    directions, (_, common) = words.directions(), words.options({})
    return tuple(Closed(direction, port, **common._asdict()) for direction in directions)


@pytest.fixture
def folder(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the program, while the kind is known."""
    form = "PORT DIRECTION"
    kind = Kind("closed", form, "What is sent there is dropped.", "closed=9 egress", _parse, is_bare=False)
    monkeypatch.setitem(kinds.BY_KEY, "closed", kind)
    programs = tmp_path / "programs"
    programs.mkdir(mode=0o755)
    (programs / "ports.bpf.c").write_text(SOURCE)
    (programs / "ports.bpf.c").chmod(0o644)
    return settings._replace(program_dir=programs)


def _applied(pod: Pod, settings: Settings, *sourced: SourcedRule) -> list[Outcome]:
    wish = Wish(Target("pod/x", pod.cgroup, counts_loopback=False), sourced)
    outcomes = apply([wish], settings, runner=proc.run)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return outcomes


def _listed(settings: Settings) -> dict[str, Observed]:
    return {str(item.attachment.rule): item for item in observe(settings)[0]}


def _rules(text: str) -> list[SourcedRule]:
    return [SourcedRule(rule, POD) for rule in parse_rule_option(text)]


def test_rules_that_share_a_program_are_counted_each_by_itself(pod: Pod, folder: Settings) -> None:
    _applied(pod, folder, *_rules("closed=5353 egress; 5454 egress"))
    try:
        received = [send_datagrams(pod, port, count)[2] for port, count in ((5353, 30), (5454, 7), (5555, 5))]
        assert received == [0, 0, 5]
        found = _listed(folder)
        counts = {rule: item.counters and item.counters.dropped_packets for rule, item in found.items()}
        assert counts == {"closed=5353 egress": 30, "closed=5454 egress": 7}
        assert len({item.attachment.program_id for item in found.values()}) == 1
        assert {item.state for item in found.values()} == {"active"}
        again = _applied(pod, folder, *_rules("closed=5353 egress; 5454 egress"))
        assert {outcome.action for outcome in again} == {Action.UNCHANGED}
    finally:
        outcomes = clean(None, folder, runner=proc.run)
    assert [outcome.action for outcome in outcomes] == [Action.DETACHED] * 2


def test_one_of_them_goes_and_the_other_stays_in_force(pod: Pod, folder: Settings) -> None:
    _applied(pod, folder, *_rules("closed=5353 egress; 5454 egress"))
    try:
        outcomes = _applied(pod, folder, *_rules("closed=5454 egress"))
        assert [(str(item.rule), item.action) for item in outcomes] == [
            ("closed=5454 egress", Action.REPLACED)
        ]
        assert list(_listed(folder)) == ["closed=5454 egress"]
        assert [send_datagrams(pod, port, 5)[2] for port in (5353, 5454)] == [5, 0]
    finally:
        clean(None, folder, runner=proc.run)


def test_rules_of_two_layers_do_not_share(pod: Pod, folder: Settings) -> None:
    """What one of them takes away shall leave the other's in force."""
    (first,), (second,) = _rules("closed=5353 egress"), _rules("closed=5454 egress")
    _applied(pod, folder, first, second._replace(source=CLI))
    try:
        assert len({item.attachment.program_id for item in _listed(folder).values()}) == 2
    finally:
        clean(None, folder, runner=proc.run)
