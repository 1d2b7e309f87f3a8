"""`get` reads what `watch` writes: the words of its Events, whatever rule they are of."""

from __future__ import annotations

import pytest
from hypothesis import given

from podmgr.attachment import Link, PodRef
from podmgr.cluster import reasons
from podmgr.cluster.told import Notice, State, _told_by, written
from podmgr.errors import PodmgrError, RuleError
from podmgr.reconcile.observe import Observed, bypassed_text
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.rules.rule import Direction, Hook, Rule
from podmgr.rules.source import POD, Layer, Source
from podmgr.watch import events
from tests.unit.samples import attachment, parsed, rules

REF = PodRef("shop", "web-0", "uid")
OTHER = "bandwidth=10 mbps egress"


def notice(reason: str, message: str) -> Notice:
    return Notice(reason, message, "2026-01-01T00:00:00Z", ("", 0))


def told(rule: Rule, action: Action, *, source: Source = POD, note: str = "") -> Notice:
    """The Event of a rule beside another one."""
    outcomes = (
        Outcome("pod/web-0", parsed(OTHER), action, pod=REF, source=POD, hook=Hook.CGROUP),
        Outcome("pod/web-0", rule, action, pod=REF, source=source, hook=Hook.TC, note=note),
    )
    return notice(events.REASONS[action], "; ".join(map(events.told, outcomes)))


@given(rules)
def test_a_rule_that_was_attached_or_taken_away_is_found_in_its_event(rule: Rule) -> None:
    if str(rule) == OTHER:
        return
    service = Source(Layer.SERVICE, "web")
    for source, note in ((POD, ""), (service, ""), (service, "needs fq; there is none (yet)")):
        attached = told(rule, Action.ATTACHED, source=source, note=note)
        assert _told_by(attached, str(rule)) == (State.ACTIVE, "", "tc")
        assert _told_by(told(rule, Action.DETACHED, source=source), str(rule)) is not None
        ended = told(rule, Action.OVER, source=source)
        assert _told_by(ended, str(rule)) == (State.OVER, "its time is over", "")
        assert _told_by(attached, OTHER) == (State.ACTIVE, "", "cgroup")


@pytest.mark.parametrize(
    "error", [PodmgrError("no interface; none at all", tip="podmgr doctor"), PodmgrError("it failed")]
)
def test_a_failure_is_found_with_its_message(error: PodmgrError) -> None:
    rule, other = parsed("loss=2% egress"), parsed("loss=2% egress port=80")
    lines = [f"{other}: something else", f"{rule}: {events.line(error)}"]
    event = notice(reasons.FAILED, " | ".join(events.some(lines)))
    assert _told_by(event, str(rule)) == (State.FAILED, events.line(error), "")
    assert _told_by(event, OTHER) is None
    assert not event.is_cut


def test_what_had_no_room_is_known_to_be_missing() -> None:
    lines = [f"loss={number}% egress: it failed" for number in range(20)]
    assert notice(reasons.FAILED, " | ".join(events.some(lines))).is_cut


def test_an_annotation_that_cannot_be_read_is_of_no_rule() -> None:
    error = RuleError("wrong", key="loss", value="x", column=1, expected="right", where="pod/web-0")
    assert _told_by(notice(reasons.FAILED, events.line(error)), "loss=uniform egress 2%") is None


def test_a_rule_that_is_passed_by_is_named_first() -> None:
    links = (Link(1, 2, Direction.EGRESS, "eth0"),)
    row = attachment("loss=uniform egress 2%", links=links)
    text = bypassed_text(Observed(row, True, None))
    found = _told_by(notice(reasons.BYPASSED, text), str(row.rule))
    assert found == (State.BYPASSED, text, "")
    assert _told_by(notice(reasons.BYPASSED, text), "loss=uniform egress 2% port=80") is None


@pytest.mark.parametrize(
    ("fields", "time"),
    [
        ({}, "2026-01-01T00:00:00Z"),
        ({"f:metadata": {"f:annotations": {}}}, "2026-02-02T00:00:00Z"),
        ({"f:metadata": {"f:labels": {}}}, "2026-01-01T00:00:00Z"),
    ],
)
def test_when_annotations_were_written(fields: dict[str, object], time: str) -> None:
    entry = {"time": "2026-02-02T00:00:00Z", "fieldsV1": fields}
    assert written({"creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [entry, None]}) == time
    assert written({}) == ""
