"""How a kind's rules are written, as data: what its file declares so that the policy can judge them.

A rule is the parts of one of its forms, one behind the other, and options in any order. What patterns and
options cannot say, checks do. Blanks are single ones here, and there are none around a rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from podmgr.rules.policy.patterns import NUMBER, amounts, between, unit_behind, words


class Hint(NamedTuple):
    """What is said of a rule that has nothing like `pattern` there."""

    pattern: str
    problem: str
    expected: str


class Part(NamedTuple):
    """What may stand next: `pattern` begins with the blank before it, unless it is what a rule begins with.

    `problem` and `expected` are said where it does not stand; `hints`, of looser patterns, come first.
    """

    pattern: str
    problem: str
    expected: str
    hints: tuple[Hint, ...] = ()
    is_number: bool = False


class Form(NamedTuple):
    """A way to write a rule. `begins` is the pattern of what is meant to be one, where a kind has several.

    `more` is the pattern of words that may stand among the options, and `more_are` says what they are;
    `required` are the options that it cannot be without.
    """

    parts: tuple[Part, ...]
    options: tuple[str, ...] = ()
    begins: str = ""
    more: str = ""
    more_are: str = ""
    required: Mapping[str, str] = {}

    @property
    def pattern(self) -> str:
        return "".join(part.pattern for part in self.parts)


class Option(NamedTuple):
    """NAME=…: the pattern of what stands behind; of each item, where commas are between up to `most` of them.

    `holds` is a further condition of an item `x`, in CEL.
    """

    name: str
    pattern: str
    expected: str
    most: int = 0
    holds: str = ""
    is_number: bool = False


class Text(NamedTuple):
    """All of it.

    `facts` are texts in CEL, taken out of the words `w` of a rule that is written right; `checks` say in CEL
    what is wrong with it, or '', of these and of `n`, the rule and its facts. `hooks` are those that hook=
    may name, `lacks` options of every kind that this one has not.
    `identity` is a list in CEL: what of a rule, besides direction and match, tells it from another; `way` is
    the pattern of what stands before the direction, where that must be told from a name; None: a rule is in
    both directions. `unknown` is said of
    a rule that begins like none of several forms.
    """

    forms: tuple[Form, ...]
    options: tuple[Option, ...] = ()
    facts: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ("cgroup", "tc")
    lacks: tuple[str, ...] = ()
    identity: str = "[]"
    way: str | None = "(?:.* )?"
    unknown: tuple[str, str] = ("no rule", "")


def direction(choices: Iterable[str] = ("egress", "ingress", "both"), *, begins: bool = False) -> Part:
    """The direction of a rule, behind something or alone."""
    names = list(choices)
    pattern = ("" if begins else " ") + words(names)
    return Part(pattern, "the direction is missing or unknown", f"directions are {', '.join(names)}")


def amount(
    what: str, units: Mapping[str, int], ends: tuple[int, int], form: str, units_are: str, range_is: str
) -> Part:
    """A number and a unit that a rule begins with."""
    known = "|".join(unit_behind(unit, " ") for unit in units)
    hints = (
        Hint(NUMBER, f"{what} is missing or wrong", form),
        Hint(f"{NUMBER}(?:{known})(?: .*)?$", "the unit is missing or unknown", units_are),
    )
    return Part(amounts(units, *ends, blank=" "), f"{what} is out of range", range_is, hints, is_number=True)


def percent(form: str, *, begins: bool = False) -> Part:
    """A probability from 0 to 100 percent."""
    blank = "" if begins else " "
    hints = (
        Hint(blank + NUMBER, "the probability is missing or wrong", form),
        Hint(f"{blank}{NUMBER} ?%", "the percent sign is missing", 'a percentage, such as "2%"'),
    )
    pattern = f"{blank}{between(Decimal(0), Decimal(100))} ?%"
    return Part(
        pattern, "the probability is out of range", "a probability from 0% to 100%", hints, is_number=True
    )


def percent_option(name: str, *, expected: str = "a probability from 0% to 100%") -> Option:
    return Option(name, f"{between(Decimal(0), Decimal(100))}%", expected, is_number=True)


def choice_option(name: str, choices: Iterable[str], expected: str) -> Option:
    return Option(name, words(map(str, choices)), expected)
