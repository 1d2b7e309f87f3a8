"""The policy of one kind's annotation: variables in CEL that say what is wrong with it, '' for nothing.

What podmgr says is said with its words where they are plain text; columns, and what was probably meant, are
left out. Apart from `documents`, which alone uses it: that one knows of objects, this one of a text. Each
variable is small, since an expression may cost no more than the API server allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from podmgr.rules.grammar import MAX_RULES, MAX_VALUE_CHARACTERS
from podmgr.rules.keys import PREFIX
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy import common
from podmgr.rules.policy.cel import (
    COLON,
    NOTHING,
    any_of,
    bind,
    first,
    first_text,
    is_one,
    is_right,
    matches,
    pattern,
    quoted,
    says,
    shown,
    shown_option,
)
from podmgr.rules.policy.patterns import BLANKS
from podmgr.rules.policy.text import Form, Text

_PARTS = ("size", "form", "words")
_ODD = BLANKS.replace(" ", "") + "\u017f"  # the long s: no letter of any rule, but RE2 takes it for an s


def name_of(kind: Kind) -> str:
    """What its variables begin with."""
    return kind.key.replace("-", "_")


def variables(kind: Kind) -> dict[str, str]:
    """By name: the key that counts, the value, its rules, and what is wrong with them."""
    name = name_of(kind)
    key, value, rules = (f"variables.{name}{part}" for part in ("_key", "", "_rules"))
    found = {
        f"{name}_key": _key(kind),
        name: f"{key} == '' ? '' : variables.annotations[{key}]",
        f"{name}_rules": _rules(value),
        f"{name}_size": f"{key} == '' ? '' : {_size(kind, key, value, rules)}",
    }
    if kind.text is None:
        return found
    text = kind.text()
    found[f"{name}_form"] = _error(_unless([f"{name}_size"]), rules, key, _form(text))
    found[f"{name}_words"] = _error(_unless([f"{name}_size", f"{name}_form"]), rules, key, _words(text))
    if text.checks:
        facts = bind("w", "p.split(' ')", f"[{', '.join(['p', *text.facts])}]")
        found[f"{name}_facts"] = (
            f"{_unless(f'{name}_{part}' for part in _PARTS)} ? [] : {rules}.map(p, {facts})"
        )
        why = f"{_checks(text)}.map(e, e == '' ? '' : e + {shown('n[0]')})[0]"
        found[f"{name}_sense"] = first_text(
            f"variables.{name}_facts.map(n, {why}).filter(e, e != '')", f"{key} + {COLON} + "
        )
    return found


def errors(kind: Kind) -> list[str]:
    """Those of the variables that say what is wrong."""
    return [name for name in variables(kind) if name.endswith(("_size", "_form", "_words", "_sense"))]


def is_read(kind: Kind) -> str:
    """Whether nothing is wrong with it."""
    return f"!({_unless(errors(kind))})"


def _unless(names: Iterable[str]) -> str:
    """Whether something was wrong before."""
    return any_of(f"variables.{name} != ''" for name in names)


def _key(kind: Kind) -> str:
    prefixed, bare = quoted(PREFIX + kind.key), quoted(kind.key)
    keys = [(f"{prefixed} in variables.annotations", prefixed)]
    keys += [(f"{bare} in variables.annotations", bare)] if kind.is_bare else []
    return first(keys, NOTHING)


def _rules(value: str) -> str:
    """The rules of a value, with single blanks between their words and none around."""
    odd = pattern("[" + "".join(rf"\x{{{ord(blank):x}}}" for blank in _ODD) + "]")
    plain = f"{value}.split('').map(c, c == '\\u017f' ? '?' : c.matches({odd}) ? ' ' : c).join('')"
    split = "split(';').map(p, p.split(' ').filter(w, w != '').join(' ')).filter(p, p != '')"
    return first(
        [(f"{value}.size() > {MAX_VALUE_CHARACTERS}", "[]")],
        f"({value}.matches({odd}) ? {plain} : {value}).{split}",
    )


def _size(kind: Kind, key: str, value: str, rules: str) -> str:
    long = says("more characters than a value may have", f"at most {MAX_VALUE_CHARACTERS}: {kind.form}")
    many = says(f"more than {MAX_RULES} rules", f"at most {MAX_RULES} in one value")
    return first(
        [
            (f"{value}.size() > {MAX_VALUE_CHARACTERS}", f"{key} + {COLON} + {long}"),
            (f"{rules}.size() == 0", f"{key} + {COLON} + {says('no rule', kind.form)}"),
            (f"{rules}.size() > {MAX_RULES}", f"{key} + {COLON} + {many}"),
        ],
        NOTHING,
    )


def _error(earlier: str, rules: str, key: str, of_one: str) -> str:
    """What is wrong with the first rule `p` with which something is, if nothing was wrong before."""
    found = f"{rules}.map(p, {of_one}).filter(e, e != '')"
    return f"{earlier} ? '' : " + first_text(found, f"{key} + {COLON} + ")


def _form(text: Text) -> str:
    """Whether a rule has one of the forms, and if not, what does not stand where it should."""
    whole = "|".join(_pattern(one, text) for one in text.forms)
    return f"{matches('p', whole)} ? '' : ({_why(text)}) + {shown('p')}"


def _pattern(form: Form, text: Text) -> str:
    """A rule of this form, whatever its options say."""
    more = f"|{form.more}" if form.more else ""
    return f"{form.pattern}(?: (?:(?i:{'|'.join(_allowed(form, text))})=[^ ]*{more}))*"


def _allowed(form: Form, text: Text) -> list[str]:
    return [*form.options, *(name for name in common.NAMES if name not in text.lacks)]


def _why(text: Text) -> str:
    ways = []
    for one in text.forms:
        accepted = " and ".join(f"{name}=..." for name in _allowed(one, text))
        unexpected = says("an unexpected word", one.more_are or f"options of this rule are {accepted}")
        ways.append((f"p.matches({pattern(f'^{one.begins}')})", first(_missing(one), unexpected)))
    if len(ways) == 1:
        return ways[0][1]
    return first([(begins, f"({why})") for begins, why in ways], says(*text.unknown))


def _missing(form: Form) -> Iterator[tuple[str, str]]:
    before = ""
    for part in form.parts:
        for hint in part.hints:
            yield f"!p.matches({pattern(f'^{before}{hint.pattern}')})", says(hint.problem, hint.expected)
        before += part.pattern
        yield f"!p.matches({pattern(f'^{before}(?: |$)')})", says(part.problem, part.expected)


def _words(text: Text) -> str:
    """Whether the options are once each, there where they must be, and right; and numbers short enough."""
    names = [one.name for one in text.options]
    hooks = [one for one in common.options(text) if one.name == "hook" and "cgroup" not in text.hooks]
    wrong = any_of(f"{is_one('o', one.name)} && !{is_right(one)}" for one in [*text.options, *hooks])
    expected = first(
        ((is_one("o", one.name), quoted(f": {one.expected}")) for one in [*text.options, *hooks]), NOTHING
    )
    cases = [(f"p.matches({pattern(_too_long(text))})", says("a number of more than 40 characters", "fewer"))]
    if names:
        cases.append(
            (f"p.matches({pattern(common.twice(names))})", says("an option twice", "each option once"))
        )
    cases += _required(text.forms)
    if text.options or hooks:
        found = f"p.split(' ').filter(o, o.contains('=') && ({wrong}))"
        cases.append((f"{found}.size() > 0", f"{found}.map(o, {shown_option('o')} + ({expected}))[0]"))
    return bind("e", f"({first(cases, NOTHING)})", f"e == '' ? '' : e + {shown('p')}")


def _too_long(text: Text) -> str:
    """Numbers of more than 40 characters, where a number stands."""
    places = []
    for form in text.forms:
        before = ""
        for part in form.parts:
            if part.is_number:
                places.append(f"^{before}{' ' if before else ''}[0-9.]{{41}}")
            before += part.pattern
    names = [one.name for one in text.options if one.is_number]
    places += [f" (?i:{'|'.join(names)})=[0-9.]{{41}}"] if names else []
    return "|".join(places) or "^$"


def _required(forms: Iterable[Form]) -> list[tuple[str, str]]:
    return [
        (
            f"p.matches({pattern(f'^{form.begins}')}) && !p.matches({pattern(f' (?i:{name})=')})",
            says(f"{name} is missing", expected),
        )
        for form in forms
        for name, expected in form.required.items()
    ]


def _checks(text: Text) -> str:
    """A list of what is wrong with a rule of words `w` and facts `n`: the first thing, or ''."""
    checks = ", ".join(f"({check})" for check in text.checks)
    return f"[n[0].split(' ')].map(w, {first_text(f'[{checks}].filter(f, f != NOTHING)')})".replace(
        "NOTHING", NOTHING
    )
