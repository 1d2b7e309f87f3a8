"""Numbers with units: what is read, what is refused, and that printing and reading agree."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.rules.units import (
    RATE_UNITS,
    SIZE_UNITS,
    format_duration,
    format_number,
    format_rate,
    format_size,
    parse_duration_seconds,
    parse_number,
    scaled,
)
from tests.unit.samples import decimals


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("10", "10"),
        ("1.5", "1.5"),
        ("2.", "2"),
        (".5", "0.5"),
        ("007", "7"),
        ("1.50", "1.5"),
        ("0" * 39 + "1", "1"),
    ],
)
def test_decimal_numbers_are_read(text: str, number: str) -> None:
    assert parse_number(text) == Decimal(number)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-1", "is negative"),
        ("-0.5", "is negative"),
        *((text, "is not a number") for text in ("", ".", "+1", "--1", "1e3", "nan", "inf", "0x10", "1_000")),
        *((text, "is not a number") for text in ("1,5", "1 0", "10\n", "١", "²", "½", "1.2.3")),
        ("9" * 41, "a number of 41 characters"),
    ],
)
def test_anything_else_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_number(text)


@given(st.text())
def test_reading_raises_nothing_but_value_errors(text: str) -> None:
    try:
        number = parse_number(text)
    except ValueError:
        return
    assert number.is_finite()
    assert number >= 0


@given(decimals(10**15))
def test_number_survives_printing_and_reading(number: Decimal) -> None:
    text = format_number(number)
    assert parse_number(text) == number
    assert "E" not in text


@pytest.mark.parametrize(
    ("number", "text"), [("2.50", "2.5"), ("2.00", "2"), ("100", "100"), ("1E+2", "100"), ("0.0", "0")]
)
def test_number_is_printed_in_its_shortest_form(number: str, text: str) -> None:
    assert format_number(Decimal(number)) == text


@pytest.mark.parametrize(
    ("number", "factor", "whole"),
    [("1.5", 1000, 1500), ("0.0015", 1000, 2), ("0.0005", 1000, 0), ("0.0014", 1000, 1), ("0", 10**9, 0)],
)
def test_scaling_rounds_to_the_nearest_whole_and_halves_to_even(number: str, factor: int, whole: int) -> None:
    assert scaled(Decimal(number), factor) == whole


@given(st.integers(1, 10**15))
def test_rate_survives_printing_and_reading(rate: int) -> None:
    number, unit = format_rate(rate).split(" ")
    assert scaled(parse_number(number), RATE_UNITS[unit]) == rate
    assert Fraction(number) >= 1


@given(st.integers(1, 10**12))
def test_size_survives_printing_and_reading(size: int) -> None:
    text = format_size(size)
    number = text.rstrip("bkm")
    assert scaled(parse_number(number), SIZE_UNITS[text.removeprefix(number)]) == size


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (8_000, "8 kbps"),
        (999, "999 bps"),
        (1_000_000, "1 mbps"),
        (1_500_000, "1.5 mbps"),
        (999_999, "999.999 kbps"),
        (400 * 10**9, "400 gbps"),
    ],
)
def test_rate_is_printed_in_the_largest_unit_that_fits(rate: int, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("size", "text"), [(1_514, "1.514kb"), (64_000, "64kb"), (10**9, "1000mb"), (0, "0b")]
)
def test_size_is_printed_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("1m", 60),
        ("1m30s", 90),
        ("1m30", 90),
        ("1.5h", 5400),
        ("2h3m4s5ms", 7384.005),
        (" 30S\n", 30),
        ("1H", 3600),
        ("24h", 86_400),
        ("86400", 86_400),
        ("1ms", 0.001),
    ],
)
def test_durations_are_read_as_kubectl_reads_them(text: str, seconds: float) -> None:
    assert parse_duration_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "s",
            "ms",
            "0",
            "0s",
            "0ms",
            "-1",
            "-1s",
            "+1s",
            "1 m",
            "1m 30s",
            "1d",
            "1us",
            "1.s",
            ".5s",
        ),
        *("1e3", "1e3s", "nan", "inf", "1,5s", "x1s", "1sx", "1s;", "²", "١s", "½h", "1..5s", "1_0s", "0x1s"),
        *("24h1ms", "86401", "25h", "9" * 9 + "h", "9" * 400, "\0", "1s\0"),
    ],
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 30s, 1m30s or 500ms, up to 24h"):
        parse_duration_seconds(text)


@given(st.text(max_size=20) | st.text("0123456789.hms ", max_size=12))
def test_duration_is_more_than_nothing_and_at_most_a_day(text: str) -> None:
    try:
        seconds = parse_duration_seconds(text)
    except ValueError as error:
        assert len(str(error)) < 250
        return
    assert 0 < seconds <= 86_400


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(1, 999))
def test_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int, millis: int) -> None:
    read = parse_duration_seconds(f"{hours}h{minutes}m{seconds}s{millis}ms")
    assert read == pytest.approx(hours * 3600 + minutes * 60 + seconds + millis / 1000)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (Fraction(1, 8), "125 ms"),
        (Fraction(3028, 10**11), "30.28 ns"),
        (Fraction(1, 10**5), "10 us"),
        (Fraction(8), "8 s"),
        (Fraction(10**6), "277.778 h"),
        (Fraction(10**10), "2,777,778 h"),
        (Fraction(0), "0 ns"),
    ],
)
def test_duration_is_shown_in_a_unit_that_can_be_read(seconds: Fraction, text: str) -> None:
    assert format_duration(seconds) == text
