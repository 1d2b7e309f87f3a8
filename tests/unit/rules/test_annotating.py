"""What `kubectl podmgr annotate` makes of words, beside what stands there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from podmgr.errors import PodmgrError
from podmgr.rules.annotating import Change, applied, lasting, left_unread, read
from podmgr.rules.grammar import parse_value
from podmgr.rules.keys import PREFIX
from podmgr.rules.rule import Rule
from podmgr.rules.timing import Timing
from tests.unit.samples import rules

MINUTE = Timing(for_ns=60 * 10**9)


@given(rules)
def test_every_rule_may_be_made_to_end(rule: Rule) -> None:
    if rule.timing.for_ns or rule.timing.every_ns:
        return
    (ending,) = parse_value(rule.key, lasting(rule.value, "1m"))
    assert ending == replace(rule, timing=rule.timing._replace(for_ns=MINUTE.for_ns))


@given(rules)
def test_a_rule_that_is_written_is_read_again_as_it_was(rule: Rule) -> None:
    (change,) = read([str(rule)])
    assert change.key == f"{PREFIX}{rule.key}"
    assert change.value is not None
    assert parse_value(change.key, change.value) == (rule,)
    assert applied([change], {change.key: change.value}, overwrites=False) == {}


def test_what_is_there_decides_what_changes() -> None:
    key, there = f"{PREFIX}loss", {"loss": "1% egress"}
    assert applied([Change(key, None, is_bare=True)], there, overwrites=False) == {"loss": None}
    assert applied([Change(key, None)], there, overwrites=False) == {}
    assert applied([Change(key, "2% egress")], there, overwrites=True) == {key: "2% egress"}
    with pytest.raises(PodmgrError, match="would replace whole"):
        applied([Change(key, "2% egress")], there, overwrites=False)
    assert applied([Change(key, "2% egress")], {key: "2% egress", **there}, overwrites=False) == {}


def test_what_is_anybodys_is_not_looked_at() -> None:
    assert left_unread({"profile": "x", "note": "y", "loss": "1% egress"}, is_pods=True) == []
    assert [error.key for error in left_unread({"loss": "x", f"{PREFIX}y": ""}, is_pods=True)] == [
        f"{PREFIX}y",
        "loss",
    ]
