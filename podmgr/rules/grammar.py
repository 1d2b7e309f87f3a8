"""The grammar of rules: what users write, in annotations and with --rule, becomes frozen rules.

Pure. `parse_value` reads one annotation, `parse_rule_option` one `KEY=VALUE`; for every rule,
`parse_rule_option(str(rule)) == (rule,)`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

from podmgr.errors import RuleError, UsageError, printable
from podmgr.rules.rule import (
    ANYWHERE,
    KEYS,
    MAX_BURST_BYTES,
    MAX_EXPONENTIAL,
    MAX_INTERFACES,
    MIN_BURST_BYTES,
    PREFIX,
    RESERVED_MACROS,
    Algorithm,
    Bandwidth,
    CollisionKey,
    Custom,
    Direction,
    ExponentialLoss,
    Hook,
    Place,
    Rule,
    UniformLoss,
    bare_key,
    collision_key,
)
from podmgr.rules.units import (
    MAX_RATE_BITS_PER_SECOND,
    MIN_RATE_BITS_PER_SECOND,
    RATE_UNITS,
    SIZE_UNITS,
    format_number,
    is_address,
    parse_number,
    scaled,
)

_MAX_VALUE_CHARACTERS = 4_096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_MACRO = re.compile(r"-D([A-Za-z_][A-Za-z0-9_]*)(?:=([A-Za-z0-9_.:]*))?", re.ASCII)
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_]*", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}", re.ASCII)  # IFNAMSIZ is 16
_NUMBER_AND_UNIT = re.compile(r"([-+]?[0-9.]+)([A-Za-z%][A-Za-z%/]*)", re.ASCII)
_LIKE_A_NUMBER = re.compile(r"[-+]?\.?[0-9].*", re.ASCII)
_BEHIND_A_PERCENTAGE = re.compile(r"egress|ingress|.*=.*", re.ASCII | re.IGNORECASE)
_LIKE_A_RATE = re.compile(r"([kmg]?)(?:ilo|ega|iga)?i?(?:b|bits?|bytes?)?(?:ps|/s|/sec)?", re.ASCII)

_BANDWIDTH_FORM = 'RATE UNIT DIRECTION, such as "10 mbps egress" or "1.5 gbps ingress burst=64kb"'
_LOSS_FORM = (
    '"uniform DIRECTION P%", in short "P% DIRECTION", or "exponential DIRECTION T"; such as "2% egress"'
)
_CUSTOM_FORM = 'NAME DIRECTION [-DMACRO[=VALUE]]..., such as "dropper egress -DPORT=53"'


@functools.lru_cache(maxsize=1024)  # a node's ledger names few rules many times
def parse_rule_option(text: str) -> tuple[Rule, ...]:
    """The rules in one `--rule KEY=VALUE`. Raises RuleError or UsageError."""
    key, equals, value = text.partition("=")
    key = key.strip().lower()
    bare = bare_key(key)
    if bare is None:
        shown = printable(key)[:60]
        guess = closest(key.removeprefix(PREFIX), KEYS)
        hint = f"did you mean {guess!r}? " if guess else ""
        raise UsageError(
            f"unknown rule key {shown!r}" if equals else f"{printable(text)[:60]!r} is not KEY=VALUE",
            tip=f"{hint}keys are {', '.join(KEYS)}; such as --rule 'bandwidth=10 mbps egress'",
        )
    if not equals:
        raise UsageError(
            f"--rule {_shown(key)} has no value", tip=f"write --rule '{bare}=...': {_FORMS[bare]}"
        )
    return parse_value(key, value)


def is_program_name(text: str) -> bool:
    """Whether a rule can name such a program of one's own."""
    return bool(_NAME.fullmatch(text))


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant; None if it is like none of them."""
    return next(iter(difflib.get_close_matches(word[:80], list(names), n=1)), None)


def _shown(key: str) -> str:
    """A key as an error shows it."""
    return printable(key)[:80]


@functools.lru_cache(maxsize=4096)
def parse_value(key: str, value: str) -> tuple[Rule, ...]:
    """The rules of one annotation. `key` is one of ours, bare or prefixed.

    Raises RuleError with the column of the first thing that is wrong, and for two rules of the
    value that collide.
    """
    bare = bare_key(key)
    if bare is None:
        raise ValueError(f"not a podmgr key: {key}")
    if len(value) > _MAX_VALUE_CHARACTERS:
        raise RuleError(
            f"a value of {len(value)} characters",
            key=key,
            value=value,
            column=_MAX_VALUE_CHARACTERS + 1,
            expected=f"at most {_MAX_VALUE_CHARACTERS} characters: {_FORMS[bare]}",
        )
    rules: list[Rule] = []
    seen: dict[CollisionKey, Rule] = {}
    start = 0
    for piece in value.split(";"):
        words = _Words(key, value, start, start + len(piece), _FORMS[bare])
        start += len(piece) + 1
        if words.done():
            continue
        column = words.column
        rule = _PARSERS[bare](words)
        other = seen.setdefault(collision_key(rule), rule)
        if other is not rule:
            raise RuleError(
                f"'{rule.value}' collides with '{other.value}'",
                key=key,
                value=value,
                column=column,
                expected=f"one {collision_key(rule)[0]} rule per direction",
            )
        rules.append(rule)
    if not rules:
        raise RuleError("no rule", key=key, value=value, column=1, expected=_FORMS[bare])
    return tuple(rules)


_Fail = Callable[[str, str], RuleError]


class _Words:
    """The words of one rule inside a value, read from left to right, each with its column."""

    def __init__(self, key: str, value: str, start: int, end: int, form: str) -> None:
        self._key = key
        self._value = value
        self._end = end
        self._form = form
        self._words = [
            (match.group(), start + match.start()) for match in re.finditer(r"\S+", value[start:end])
        ]
        self._next = 0

    @property
    def form(self) -> str:
        """What a rule of this key looks like."""
        return self._form

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
        if match := _NUMBER_AND_UNIT.fullmatch(word):
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


def _parse_bandwidth(words: _Words) -> Bandwidth:
    words.split_number()
    amount = _number(words, "the rate")
    unit = _rate_unit(words, amount)
    rate = scaled(amount, RATE_UNITS[unit])
    if not MIN_RATE_BITS_PER_SECOND <= rate <= MAX_RATE_BITS_PER_SECOND:
        raise words.error(
            f"{format_number(amount)} {unit} is out of range",
            expected="a rate from 8 kbps to 400 gbps (bits per second, powers of 1000)",
            back=2,
        )
    direction = _direction(words)
    burst: int | None = None
    algorithm = Algorithm.TBF
    place = ANYWHERE
    for name, text, fail in _options(words, ("burst", "algorithm", *_PLACE)):
        if name == "burst":
            burst = _size(text, fail)
        elif name == "algorithm":
            try:
                algorithm = Algorithm(text.lower())
            except ValueError:
                raise fail(f"unknown algorithm {text!r}", "tbf (drops, default) or edt (delays)") from None
        else:
            place = _placed(place, name, text, fail)
    if burst is not None and algorithm is Algorithm.EDT:
        raise words.error(
            "burst belongs to algorithm=tbf; edt has no bucket",
            expected="burst or algorithm=edt, not both",
            back=1,
        )
    return Bandwidth(direction, rate, burst, algorithm, place)


def _rate_unit(words: _Words, amount: Decimal) -> str:
    """The unit of a rate; for one of another tool, the error says what was probably meant."""
    word = words.take("the unit")
    unit = word.lower()
    if unit in RATE_UNITS:
        return unit
    meant = ""
    if unit == "%":
        meant = f"a percentage is a loss: loss=uniform egress {format_number(amount)}%; "
    elif like := _LIKE_A_RATE.fullmatch(unit):
        ours = f"{like[1]}bps"
        meant = f"did you mean {format_number(amount)} {ours}? "
        if "byte" in unit or re.search("B(?!its?|ps)", word):
            meant = f"did you mean {format_number(amount * 8)} {ours}, bits instead of bytes? "
    elif guess := closest(unit, RATE_UNITS):
        meant = f"did you mean {guess!r}? "
    raise words.error(
        f"unknown unit {word!r}",
        expected=f"{meant}units are {', '.join(RATE_UNITS)} (bits per second)",
        back=1,
    )


def _parse_loss(words: _Words) -> UniformLoss | ExponentialLoss:
    if words.next_like(_LIKE_A_NUMBER):  # the short form
        percent = _percent(words)
        return UniformLoss(_direction(words), percent, _place(words))
    distribution = _choice(words, ("uniform", "exponential"), "distribution")
    direction = _direction(words)
    if distribution == "exponential":
        words.split_number()
        threshold = _number(words, "the threshold T")
        if threshold > MAX_EXPONENTIAL:
            raise words.error(
                f"T = {format_number(threshold)} is out of range",
                expected="T from 0 (drops all) to 1000 (drops 2 %)",
                back=1,
            )
        return ExponentialLoss(direction, threshold, _place(words))
    percent = _percent(words)
    return UniformLoss(direction, percent, _place(words))


def _percent(words: _Words) -> Decimal:
    """A probability in percent, 0 to 100."""
    words.split_number()
    percent = _number(words, "the probability")
    unit = "" if words.done() or words.next_like(_BEHIND_A_PERCENTAGE) else words.take("the percent sign")
    if unit != "%":
        raise words.error(
            f"{unit!r} is not the percent sign" if unit else "the percent sign is missing",
            expected=f'a percentage, such as "{format_number(percent if percent <= 100 else Decimal(2))}%"',
            back=1 if unit else 0,
        )
    if percent > 100:
        raise words.error(
            f"{format_number(percent)}% is out of range", expected="a probability from 0% to 100%", back=2
        )
    return percent


def _parse_custom(words: _Words) -> Custom:
    name = words.take("the program's name")
    if not is_program_name(name):
        raise words.error(
            f"{name!r} is not a program name",
            expected="NAME of a file NAME.bpf.c: letters, digits, - and _, at most 63, no path",
            back=1,
        )
    direction = _direction(words)
    macros: dict[str, str | None] = {}
    place = ANYWHERE
    while not words.done():
        word = words.take("a macro")
        if word.lower().startswith("interface="):
            place = _custom_place(words, word, place)
            continue
        if word.lower().startswith("hook="):
            raise words.error(
                "custom programs have no hook=: the program's section says it",
                expected='leave hook= out; SEC("cgroup_skb/" INTERFACE) is for cgroup, SEC("tc") for tc',
                back=1,
            )
        match = _MACRO.fullmatch(word)
        if not match or not (_PLAIN_VALUE.fullmatch(match[2] or "") or is_address(match[2])):
            raise words.error(
                f"{word!r} is not a macro",
                expected="-DNAME or -DNAME=VALUE, VALUE of letters, digits and _ or an IP address; "
                "or interface=NAME",
                back=1,
            )
        macro = match.group(1)
        if macro in RESERVED_MACROS:
            raise words.error(
                f"{macro} is set by podmgr", expected="the direction is the second word of the rule", back=1
            )
        if macro in macros:
            raise words.error(f"-D{macro} twice", expected="each macro once", back=1)
        macros[macro] = match.group(2)
    return Custom(direction, name, tuple(sorted(macros.items())), place)


def _number(words: _Words, what: str) -> Decimal:
    text = words.take(what)
    try:
        return parse_number(text)
    except ValueError as error:
        raise words.error(f"{what} is wrong: {error}", back=1) from error


def _choice(words: _Words, choices: Iterable[str], what: str) -> str:
    """The next word, which must be one of `choices` in any case."""
    word = words.take(f"the {what}")
    if word.lower() in choices:
        return word.lower()
    names = list(choices)
    guess = closest(word.lower(), names)
    hint = f"did you mean {guess!r}? " if guess else ""
    raise words.error(f"unknown {what} {word!r}", expected=f"{hint}{what}s are {', '.join(names)}", back=1)


def _direction(words: _Words) -> Direction:
    return Direction(_choice(words, [direction.value for direction in Direction], "direction"))


def _options(words: _Words, known: tuple[str, ...]) -> Iterator[tuple[str, str, _Fail]]:
    """The `name=value` words that end a rule: name, value, and how to complain about the value."""
    seen: set[str] = set()
    while not words.done():
        word = words.take("an option")
        name, equals, text = word.partition("=")
        name = name.lower()
        if not equals or name not in known:
            accepted = " and ".join(f"{option}=..." for option in known)
            raise words.error(
                f"unexpected {word!r}",
                expected=f"options of this rule are {accepted}" if known else f"nothing behind {words.form}",
                back=1,
            )
        if name in seen:
            raise words.error(f"{name} twice", expected="each option once", back=1)
        seen.add(name)

        def fail(problem: str, expected: str) -> RuleError:
            return words.error(problem, expected=expected, back=1)

        yield name, text, fail


def _place(words: _Words) -> Place:
    """The options that end a rule which has no others: where it acts."""
    place = ANYWHERE
    for name, text, fail in _options(words, _PLACE):
        place = _placed(place, name, text, fail)
    return place


def _placed(place: Place, name: str, text: str, fail: _Fail) -> Place:
    """`place` with one more option of it."""
    if name == "hook":
        try:
            place = place._replace(hook=Hook(text.lower()))
        except ValueError:
            raise fail(f"unknown hook {text!r}", "cgroup or tc") from None
    else:
        place = place._replace(interfaces=_interfaces(text, fail))
    if place.hook is Hook.CGROUP and place.interfaces:
        raise fail("the cgroup hook knows no interfaces", "interface=NAME with hook=tc, or without hook=")
    return place


def _custom_place(words: _Words, word: str, place: Place) -> Place:
    """A custom program's `interface=`; its hook is in its section."""

    def fail(problem: str, expected: str) -> RuleError:
        return words.error(problem, expected=expected, back=1)

    if place.interfaces:
        raise fail("interface twice", "each option once")
    return Place(interfaces=_interfaces(word.partition("=")[2], fail))


def _interfaces(text: str, fail: _Fail) -> tuple[str, ...]:
    """The names of `interface=NAME[,NAME]...`, sorted, each once."""
    names = sorted(set(text.split(",")))
    if (
        not all(_INTERFACE.fullmatch(name) and name.strip(".") for name in names)
        or len(names) > MAX_INTERFACES
    ):
        raise fail(f"{printable(text)[:60]!r} names no interface", "interface=NAME or interface=NAME,NAME")
    return tuple(names)


def _size(text: str, fail: _Fail) -> int:
    """The bytes of `burst=SIZE`."""
    expected = "burst=SIZE from 1514b to 1000mb, in b, kb or mb (bytes, powers of 1000)"
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if not match or match.group(2).lower() not in SIZE_UNITS:
        raise fail(f"{text!r} is not a size", expected)
    try:
        number = parse_number(match.group(1))
    except ValueError as error:
        raise fail(f"burst is wrong: {error}", expected) from error
    size = scaled(number, SIZE_UNITS[match.group(2).lower()])
    if not MIN_BURST_BYTES <= size <= MAX_BURST_BYTES:
        raise fail(f"burst {text} is out of range", expected)
    return size


_PLACE = ("hook", "interface")
_PARSERS = {Bandwidth.key: _parse_bandwidth, UniformLoss.key: _parse_loss, Custom.key: _parse_custom}
_FORMS = {Bandwidth.key: _BANDWIDTH_FORM, UniformLoss.key: _LOSS_FORM, Custom.key: _CUSTOM_FORM}
