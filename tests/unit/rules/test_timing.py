"""When a rule is in force: how it is written, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import RuleError
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import only
from podmgr.rules.timing import MAX_TIME_NS, MIN_TIME_NS, Timing

SECOND = 10**9
TIME_NS = st.integers(MIN_TIME_NS // 1_000, MAX_TIME_NS // 1_000).map(lambda time_us: time_us * 1_000)
TIMINGS = st.builds(
    Timing,
    after_ns=st.just(0) | TIME_NS,
    for_ns=st.just(0) | TIME_NS,
    every_ns=st.just(0),
    until_ns=st.just(0) | st.integers(10**9, 10**19 // 2),
) | TIME_NS.flatmap(
    lambda every: st.builds(
        Timing,
        after_ns=st.just(0),
        every_ns=st.just(every),
        until_ns=st.just(0),
        for_ns=st.integers(MIN_TIME_NS // 1_000, every // 1_000).map(lambda time_us: time_us * 1_000),
    )
)


def read(options: str) -> Timing:
    return only(parse_rule_option(f"loss=1% egress {options}")).timing


@given(TIMINGS)
def test_what_is_written_is_read_again(timing: Timing) -> None:
    assert read(" ".join(timing.words)) == timing


@pytest.mark.parametrize(
    ("options", "canonical"),
    [
        ("for=90s", "for=90s"),
        ("for=1m30s", "for=90s"),
        ("FOR=120S", "for=2m"),
        ("after=0.5h", "after=30m"),
        ("every=60s for=500ms", "for=500ms every=1m"),
        ("until=2027-01-31t18:00:00.250+02:00", "until=2027-01-31T16:00:00.25Z"),
    ],
)
def test_there_is_one_way_to_write_a_time(options: str, canonical: str) -> None:
    assert " ".join(read(options).words) == canonical


@pytest.mark.parametrize(
    ("options", "problem", "expected"),
    [
        ("for=-1s", "negative", "for=TIME"),
        ("for=10", "not a time", "units are us, ms, s, m, h"),
        ("for=", "not a time", "for=TIME"),
        ("for=0s", "out of range", "1ms"),
        ("after=10000h", "out of range", "8784h"),
        ("every=10s", "every= needs for=", "for=TIME"),
        ("every=1s for=2s", "longer than its period", "1s at most"),
        ("until=2027-01-31", "no moment", "RFC 3339"),
        ("until=2027-01-31T18:00:00", "no zone", "zone"),
        ("until=2027-13-01T00:00:00-05:00", "no moment", "RFC 3339"),
        ("until=2027-02-30T18:00:00Z", "no moment", "RFC 3339"),
        ("until=1960-01-01T00:00:00Z", "before 1970", "RFC 3339"),
        ("mode=dry", "unknown mode", "mode=shadow"),
    ],
)
def test_what_cannot_be_is_refused_at_its_word(options: str, problem: str, expected: str) -> None:
    with pytest.raises(RuleError) as caught:
        read(options)
    assert problem in caught.value.message
    assert expected in str(caught.value.expected)


@pytest.mark.parametrize("zone", ["-23:00", "-01:00"])
def test_the_last_day_goes_on_in_some_zones(zone: str) -> None:
    """In two pieces, so that the policy is not held to it: CEL has no such moment, and then the API server
    does as `failurePolicy` says: it admits.
    """
    assert read("until=9999-12-31T23:59:59" + zone).words == ["until=9999-12-31T23:59:59Z"]


def test_the_earlier_end_counts() -> None:
    assert Timing(after_ns=SECOND, for_ns=2 * SECOND).ends_ns(10 * SECOND, 0) == 13 * SECOND
    assert Timing(for_ns=5 * SECOND, until_ns=1).ends_ns(10 * SECOND, 12 * SECOND) == 12 * SECOND
    assert Timing(for_ns=SECOND, every_ns=2 * SECOND).ends_ns(10 * SECOND, 0) is None
    assert Timing(after_ns=SECOND).ends_ns(10 * SECOND, 0) is None
