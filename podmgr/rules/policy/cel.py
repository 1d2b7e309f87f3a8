"""Expressions of CEL as text: literals, names for what is used twice, numbers out of words.

Only what the API server of Kubernetes 1.30 has: macros, optional fields, and the extension of strings. A part
of a text never ends where the text does, which interpreters of CEL in C++ refuse; and no expression is nested
more than 32 deep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podmgr.rules.policy.patterns import MOST_DIGITS
from podmgr.rules.policy.text import Option

NOTHING = "''"  # of an expression of text

COLON = "': '"  # behind a key
_SHOWN = 100  # characters of a rule that an error shows
_ZEROS = "0" * MOST_DIGITS


def quoted(text: str) -> str:
    """A literal of a text, in signs that can be seen."""
    plain = text.replace("\\", r"\\").replace('"', r"\"")
    return '"' + "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in plain) + '"'


def pattern(text: str) -> str:
    """A literal of a pattern, which has no quotes."""
    assert "'" not in text
    return f"r'{text}'"


def matches(value: str, expression: str) -> str:
    """Whether the pattern is all of a text."""
    return f"{value}.matches({pattern(f'^(?:{expression})$')})"


def one_of(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(quoted, texts))}]"


def bind(name: str, value: str, body: str) -> str:
    """`body`, in which `name` stands for `value`: CEL of Kubernetes has no cel.bind."""
    return f"[{value}].map({name}, {body})[0]"


def is_so(name: str, value: str, body: str) -> str:
    """A condition in which `name` stands for `value`."""
    return f"[{value}].all({name}, {body})"


def first(cases: Iterable[tuple[str, str]], otherwise: str) -> str:
    """The second of the first pair of expressions whose first holds."""
    return "".join(f"{condition} ? {text}\n: " for condition, text in cases) + otherwise


def says(problem: str, expected: str) -> str:
    """What an error says, as a literal."""
    return quoted(f"{problem}: {expected}")


def any_of(conditions: Iterable[str]) -> str:
    return " || ".join(conditions)


def first_text(found: str, before: str = "") -> str:
    """The first of a list of texts, behind something; '' where there is none."""
    return f"[{found}].map(z, z.size() > 0 ? {before}z[0] : '')[0]"


def shown(rule: str) -> str:
    """Where an error stands; nothing where a rule holds what acts on a terminal."""
    return f"({_acts(rule)} ? '' : \" (in '\" + ({_cut(rule)}) + \"')\")"


def shown_option(word: str) -> str:
    """An option; its name alone where it holds such."""
    return f"({_acts(word)} ? {word}.split('=')[0] + '=' : {_cut(word)})"


def _acts(text: str) -> str:
    return text + r".matches(r'[\pC\p{Zl}\p{Zp}]')"


def _cut(text: str) -> str:
    return f"({text}.size() > {_SHOWN} ? {text}.substring(0, {_SHOWN}) + '...' : {text})"


def is_one(word: str, name: str) -> str:
    """Whether a word is the option NAME=…"""
    return f"{word}.matches({pattern(f'^(?i:{name})=')})"


def is_right(one: Option) -> str:
    """Whether the word `o` that is this option is as it should be."""
    text = f"o.substring({len(one.name) + 1})"
    item = matches("x", one.pattern) + (f" && {one.holds}" if one.holds else "")
    if not one.most:
        return f"[{text}].all(x, {item})"
    return f"[{text}.split(',')].all(l, l.size() <= {one.most} && l.all(x, {item}))"


def option(words: str, name: str, otherwise: str = "") -> str:
    """The text behind NAME= among words, as written, where it is one of them."""
    name_is = pattern(f"^(?i:{name})=")
    return (
        f"({words}.filter(o, o.matches({name_is})).map(o, o.substring({len(name) + 1})) + "
        f"[{quoted(otherwise)}])[0]"
    )


def has_option(words: str, name: str) -> str:
    return f"{words}.exists(o, o.matches({pattern(f'^(?i:{name})=')}))"


def whole_of(number: str, places: str) -> str:
    """A number of plain digits times 10^places, to the nearest whole: halves to even, as units.scaled does.

    Exact: it is cut and put together as text. `places` is an expression, 0 to 9.
    """
    parts = f"({number} + '.').split('.')"
    body = bind(
        "f",
        f"[n[0], n[1] + '{_ZEROS}0']",
        bind(
            "d",
            f"['0' + f[0] + f[1].substring(0, {places}), f[1].substring({places})]",
            "int(d[0]) + (d[1] >= '5' && (int(d[0]) % 2 == 1 || !d[1].matches('^50*$')) ? 1 : 0)",
        ),
    )
    return bind("n", parts, body)


def fixed(number: str, before: int) -> str:
    """A number of plain digits as text of always the same length: so many before the point, all behind it."""
    zeros = "0" * before
    return bind(
        "n",
        f"({number} + '.').split('.')",
        f"('{zeros}' + n[0]).substring(n[0].size()) + (n[1] + '{_ZEROS}0').substring(0, {MOST_DIGITS})",
    )


def scaled(amount: str, units: Mapping[str, int]) -> str:
    """An amount like 1.5ms, which is one, as units.scaled reads it: the units are powers of 10."""
    places = "0"
    for unit, factor in sorted(units.items(), key=lambda item: len(item[0])):  # asked last: the shortest
        assert factor == 10 ** (len(str(factor)) - 1)
        places = f"u.endsWith('{unit}') ? {len(str(factor)) - 1} : {places}"
    letters = "".join(f".replace('{letter}', '')" for letter in sorted(set("".join(units))))
    return bind("u", f"{amount}.lowerAscii()", bind("z", places, whole_of(f"u{letters}", "z")))
