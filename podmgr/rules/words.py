"""The words of a rule as a user writes it.

A kind reads its own words with `Words`: each has its column, and each error says what is right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from podmgr.errors import Fail, PodmgrError, RuleError
from podmgr.rules.match import EVERYTHING
from podmgr.rules.options import Common, CommonReader
from podmgr.rules.rule import Direction, Hook, Rule
from podmgr.rules.units import TIME_UNITS, format_number, format_time, parse_number, scaled

NUMBER_AND_UNIT = re.compile(r"([-+]?[0-9.]+)([A-Za-z%][A-Za-z%/]*)", re.ASCII)
_BEHIND_A_PERCENTAGE = re.compile(r"egress|ingress|both|.*=.*", re.ASCII | re.IGNORECASE)
_ROUND_TRIP = re.compile(r"rtt", re.ASCII | re.IGNORECASE)
_BOTH = "both"
_WAYS = (*Direction, _BOTH, "rtt")

Reader = Callable[[str, Fail], Any]  # of the text behind `name=`
Profiles = Callable[[str], Sequence[Rule]]  # what a profile's name stands for; raises PodmgrError


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant; None if it is like none of them."""
    return next(iter(difflib.get_close_matches(word[:80], list(names), n=1)), None)


def no_profiles(name: str) -> Sequence[Rule]:
    """There are none here."""
    raise PodmgrError(f"no profile {name!r} here", tip="profiles do not include others")


class Words:
    """The words of one rule inside a value, read from left to right, each with its column.

    `profiles` says what the name of one stands for.
    """

    def __init__(
        self, key: str, value: str, start: int, end: int, form: str, profiles: Profiles = no_profiles
    ) -> None:
        self.profiles = profiles
        self._key = key
        self._value = value
        self._end = end
        self._form = form
        self._words = [
            (match.group(), start + match.start()) for match in re.finditer(r"\S+", value[start:end])
        ]
        self._next = 0
        self._options: dict[str, int] = {}  # where each stands

    def done(self) -> bool:
        return self._next == len(self._words)

    @property
    def column(self) -> int:
        """Where the next word stands; behind the last one, where it would stand."""
        if self.done():
            return (self._words[-1][1] + len(self._words[-1][0]) if self._words else self._end) + 1
        return self._words[self._next][1] + 1

    def take(self, what: str) -> str:
        """The next word, or an error that says what is missing."""
        if self.done():
            raise self.error(f"{what} is missing")
        word = self._words[self._next][0]
        self._next += 1
        return word

    def next_like(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The next word, without taking it, if the pattern is all of it."""
        return None if self.done() else pattern.fullmatch(self._words[self._next][0])

    def split_number(self) -> None:
        """Make two words of a next word like `10mbps`, so that the blank does not matter."""
        if self.done():
            return
        word, offset = self._words[self._next]
        if match := NUMBER_AND_UNIT.fullmatch(word):
            self._words[self._next : self._next + 1] = [
                (match.group(1), offset),
                (match.group(2), offset + match.start(2)),
            ]

    def error(self, problem: str, *, expected: str | None = None, back: int = 0) -> RuleError:
        """An error at the next word, or `back` words before it."""
        self._next -= back
        return RuleError(
            problem,
            key=self._key,
            value=self._value,
            column=self.column,
            expected=expected or self._form,
        )

    def fail(self, problem: str, expected: str, *, option: str = "") -> RuleError:
        """An error at the word that was taken last, or at an option that was read."""
        if option:
            self._next = self._options[option] + 1
        return self.error(problem, expected=expected, back=1)

    def number(self, what: str) -> Decimal:
        """A number of 0 or more."""
        text = self.take(what)
        try:
            return parse_number(text)
        except ValueError as error:
            raise self.error(f"{what} is wrong: {error}", back=1) from error

    def time_ns(self, least_ns: int, most_ns: int) -> int:
        """A time with its unit, in nanoseconds."""
        self.split_number()
        amount = self.number("the time")
        word = "" if self.done() else self.take("the unit")
        factor = TIME_UNITS.get(word.lower())
        if factor is None:
            shown = format_number(amount)
            guess = closest(word.lower(), TIME_UNITS) if word else None
            hint = f"did you mean {guess!r}? " if guess else ""
            raise self.error(
                f"unknown unit {word!r}"
                if word and not closest(word.lower(), _WAYS)
                else f"{shown} has no unit",
                expected=f"{hint}a time such as {shown}ms: units are {', '.join(TIME_UNITS)}",
                back=1 if word else 0,
            )
        time_ns = scaled(amount, factor)
        if not least_ns <= time_ns <= most_ns:
            raise self.error(
                f"{format_number(amount)}{word.lower()} is out of range",
                expected=f"a time from {format_time(least_ns)} to {format_time(most_ns)}",
                back=2,
            )
        return time_ns

    def percent(self, what: str) -> Decimal:
        """A probability in percent, 0 to 100."""
        self.split_number()
        percent = self.number(what)
        unit = "" if self.done() or self.next_like(_BEHIND_A_PERCENTAGE) else self.take("the percent sign")
        if unit != "%":
            shown = format_number(percent if percent <= 100 else Decimal(2))
            raise self.error(
                f"{unit!r} is not the percent sign" if unit else "the percent sign is missing",
                expected=f'a percentage, such as "{shown}%"',
                back=1 if unit else 0,
            )
        if percent > 100:
            raise self.error(
                f"{format_number(percent)}% is out of range", expected="a probability from 0% to 100%", back=2
            )
        return percent

    def choice(self, choices: Iterable[str], what: str) -> str:
        """The next word, which must be one of `choices` in any case."""
        word = self.take(f"the {what}")
        names = list(map(str, choices))
        if word.lower() in names:
            return word.lower()
        guess = closest(word.lower(), names)
        hint = f"did you mean {guess!r}? " if guess else ""
        raise self.fail(f"unknown {what} {word!r}", f"{hint}{what}s are {', '.join(names)}")

    def directions(self) -> tuple[Direction, ...]:
        """The directions that are meant, for each of which there is a rule: one, or both."""
        if self.next_like(_ROUND_TRIP):
            raise self.error("rtt belongs to delay", expected="directions are egress, ingress, both")
        word = self.choice([*Direction, _BOTH], "direction")
        return tuple(Direction) if word == _BOTH else (Direction(word),)

    def options(
        self,
        own: Mapping[str, Reader],
        *,
        hooks: Sequence[Hook] = tuple(Hook),
        takes_match: bool = True,
    ) -> tuple[dict[str, Any], Common]:
        """The `name=value` words that end a rule: the kind's own, by their readers, and the common ones.

        `hooks` are those at which such a rule can act; one that takes no match is about all packets.
        """
        values: dict[str, Any] = {}
        common = CommonReader(self.fail)
        while not self.done():
            word = self.take("an option")
            if common.read(word):
                hook = common.found.place.hook
                if hook is not None and hook not in hooks:
                    raise self.fail(
                        f"such a rule cannot act at the {hook} hook", f"hook={hooks[0]}, or without hook="
                    )
                if not takes_match and common.found.match != EVERYTHING:
                    option = word.partition("=")[0].lower()
                    raise self.fail(f"such a rule is about all packets: no {option}=", self._form)
                continue
            name, equals, text = word.partition("=")
            name = name.lower()
            if not equals or name not in own:
                accepted = " and ".join(f"{option}=..." for option in (*own, *CommonReader.names))
                raise self.fail(f"unexpected {word!r}", f"options of this rule are {accepted}")
            if name in values:
                raise self.fail(f"{name} twice", "each option once")
            self._options[name] = self._next - 1
            values[name] = own[name](text, self.fail)
        return values, common.done()


def time_option(name: str) -> Reader:
    """Reads the nanoseconds of `name=TIME`."""

    def read(text: str, fail: Fail) -> int:
        expected = f"{name}=TIME, such as {name}=10ms; units are {', '.join(TIME_UNITS)}"
        match = NUMBER_AND_UNIT.fullmatch(text)
        if not match or match[2].lower() not in TIME_UNITS:
            raise fail(f"{text[:40]!r} is not a time", expected)
        try:
            return scaled(parse_number(match[1]), TIME_UNITS[match[2].lower()])
        except ValueError as error:
            raise fail(f"{name} is wrong: {error}", expected) from error

    return read


def percent_option(text: str, fail: Fail) -> Decimal:
    """A probability in percent, 0 to 100, as the text of an option."""
    try:
        percent = parse_number(text.removesuffix("%"))
    except ValueError as error:
        raise fail(f"the probability is wrong: {error}", "a percentage, from 0% to 100%") from error
    if not text.endswith("%"):
        raise fail("the percent sign is missing", f'a percentage, such as "{text}%"')
    if percent > 100:
        raise fail(f"{format_number(percent)}% is out of range", "a probability from 0% to 100%")
    return percent
