"""Patterns of RE2, as CEL has them, for what the grammar decides by numbers: exact, to the last digit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"  # as units.parse_number reads it
MOST_DIGITS = 39  # of a number's decimals, whatever stands before them

_ANY_FRACTION = r"(?:\.[0-9]*)?"


# As str.split() and \s of re know them: CEL's trim() and \s of RE2 know others.
BLANKS = "".join(map(chr, (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)))) + (
    "\u2028\u2029\u202f\u205f\u3000"
)


def words(choices: Iterable[str]) -> str:
    """One of these, in any case."""
    return f"(?i:{'|'.join(choices)})"


def between(least: Decimal, most: Decimal) -> str:
    """A number from `least` to `most`, both included, in any way to write it.

    `least` is 0, or has fewer digits before the point than `most`.
    """
    low, high = _digits(least), _digits(most)
    if not least:
        ways = [_below_one()] if most >= 1 else []
        ways += [rf"0*[1-9][0-9]{{{count - 1}}}{_ANY_FRACTION}" for count in range(1, len(high[0]))]
        return _one_of([*ways, "0*" + _at_most(*high)])
    assert len(low[0]) < len(high[0]), "numbers of as many digits are told apart by none of them"
    more = [rf"0*[1-9][0-9]{{{count - 1}}}{_ANY_FRACTION}" for count in range(len(low[0]) + 1, len(high[0]))]
    return _one_of(["0*" + _at_least(*low), *more, "0*" + _at_most(*high)])


def amounts(units: Mapping[str, int], least: int, most: int, *, blank: str = "") -> str:
    """A number and its unit, from `least` to `most` when both are multiplied and rounded to a whole.

    `blank` may stand between. Halves are rounded to even, as `units.scaled` does.
    """
    ways = []
    for unit, factor in units.items():
        ends = (Decimal(least) - Decimal("0.5"), Decimal(most) + Decimal("0.5"))
        assert least % 2 == 0 == most % 2, "a half next to an even number is rounded to it"
        low, high = (max(Decimal(0), end) / factor for end in ends)
        ways.append(between(low if least else Decimal(0), high) + unit_behind(unit, blank))
    return _one_of(ways)


def unit_behind(unit: str, blank: str = "") -> str:
    """The unit of a number, in any case.

    The Kelvin sign, whose small letter is k, is one behind a blank alone, as the grammar has it.
    """
    plain = "".join(f"[{letter}{letter.upper()}]" for letter in unit)
    if not blank:
        return plain
    return f"(?:{blank}?{plain}| (?i:{unit}))" if "k" in unit else f"{blank}?{plain}"


def _digits(number: Decimal) -> tuple[str, str]:
    """Before the point, without leading zeros, and behind it, without trailing ones."""
    whole, _, fraction = f"{number:f}".partition(".")
    return whole.lstrip("0"), fraction.rstrip("0")


def _below_one() -> str:
    return r"(?:0+(?:\.[0-9]*)?|\.[0-9]+)"


def _one_of(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"


def _above(digit: str) -> str:
    """The digits above one; "" if there is none."""
    return "" if digit == "9" else "9" if digit == "8" else f"[{int(digit) + 1}-9]"


def _below(digit: str) -> str:
    return "" if digit == "0" else "0" if digit == "1" else f"[0-{int(digit) - 1}]"


def _at_least(whole: str, fraction: str) -> str:
    """As many digits before the point as `whole` has, and no less than this."""
    if not whole:
        return _fraction_at_least(fraction)
    digit, rest = whole[0], whole[1:]
    same = digit + _at_least(rest, fraction)
    more = rf"{_above(digit)}[0-9]{{{len(rest)}}}{_ANY_FRACTION}" if _above(digit) else ""
    return _one_of([way for way in (more, same) if way])


def _fraction_at_least(fraction: str) -> str:
    if not fraction:
        return _ANY_FRACTION

    def behind(digits: str) -> str:
        if not digits:
            return "[0-9]*"
        same = digits[0] + behind(digits[1:])
        more = f"{_above(digits[0])}[0-9]*" if _above(digits[0]) else ""
        return _one_of([way for way in (more, same) if way])

    return rf"\.{behind(fraction)}"


def _at_most(whole: str, fraction: str, *, is_first: bool = True) -> str:
    """As many digits before the point as `whole` has, the first no 0, and no more than this."""
    if not whole:
        return _fraction_at_most(fraction)
    digit, rest = whole[0], whole[1:]
    less = _below(digit)
    if is_first:
        less = {"0": "", "[0-1]": "1"}.get(less, less.replace("[0-", "[1-"))
    ways = [rf"{less}[0-9]{{{len(rest)}}}{_ANY_FRACTION}"] if less else []
    return _one_of([*ways, digit + _at_most(rest, fraction, is_first=False)])


def _fraction_at_most(fraction: str) -> str:
    if not fraction:
        return r"(?:\.0*)?"

    def behind(digits: str) -> str:
        if not digits:
            return "0*"
        ways = [f"{_below(digits[0])}[0-9]*"] if _below(digits[0]) else []
        return f"(?:{'|'.join([*ways, digits[0] + behind(digits[1:])])})?"

    return rf"(?:\.{behind(fraction)})?"
