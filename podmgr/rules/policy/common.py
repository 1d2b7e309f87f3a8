"""The options that every kind takes, for the policy: what `options`, `match` and `timing` read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from podmgr.rules import match, timing
from podmgr.rules.options import INTERFACE_CHARACTERS, MODE, PLACES, SHADOW
from podmgr.rules.policy import peers
from podmgr.rules.policy.cel import (
    COLON,
    any_of,
    bind,
    first_text,
    has_option,
    is_one,
    is_right,
    is_so,
    one_of,
    option,
    pattern,
    quoted,
    says,
    shown,
    shown_option,
    whole_of,
)
from podmgr.rules.policy.patterns import words
from podmgr.rules.policy.text import Option, Text
from podmgr.rules.rule import MAX_INTERFACES
from podmgr.rules.units import LONG_TIME_UNITS

NAMES = (*PLACES, *match.OPTIONS, *timing.OPTIONS, MODE)

_PORT = "0*(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_BYTE = "0*(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_SHORT = "x.split('-').all(e, e.size() <= 10)"
_FORWARDS = is_so("e", "x.split('-')", "int(e[0]) <= int(e[e.size() - 1])")
# Patterns that count to 253 are slow: how long the parts of a name are is asked for besides.
_COUNTED = re.compile(r"\{[01],(?:61|251|253)\}")
_IS_SHORT = (
    "(x.contains('=') ? x.split('=')[1].size() <= 63 && [x.split('=')[0].split('/')].all(e, "
    "e.all(f, f.size() <= 253) && e[e.size() - 1].size() <= 63) : "
    "x.matches('^(?i:svc|ns)/') ? x.split('/').all(e, e.size() <= 63) : x.size() <= 257)"
)
_INDEXES = f"[{', '.join(map(str, range(match.MAX_ITEMS)))}]"
_DIVISIBLE_BY_4 = "(?:[2468][048]|[3579][26])"
_YEAR, _LEAP_YEAR = (
    r"(?:19(?:69|[789][0-9])|[2-9][0-9]{3})",
    rf"(?:19(?:7[26]|8[048]|9[26])|[2-9][0-9](?:0[48]|[2468][048]|[13579][26])|{_DIVISIBLE_BY_4}00)",
)


def options(text: Text) -> list[Option]:
    """Those of every kind that rules of this text may have."""
    most, is_forwards = match.MAX_ITEMS, f"{_SHORT} && {_FORWARDS}"
    name_is = "interface=NAME or interface=NAME,NAME; a name has 15 characters at most"
    found = [
        Option("hook", words(text.hooks), " or ".join(text.hooks)),
        Option("interface", _interface(), name_is, MAX_INTERFACES, "x.size() <= 15"),
        *(Option(name, _peer(), match.PEER_FORMS, most, _IS_SHORT) for name in ("peer", "except")),
        *(
            Option(name, rf"{_PORT}(?:-{_PORT})?", match.PORTS, most, is_forwards)
            for name in ("port", "local-port")
        ),
        Option("proto", f"(?:{words(match.PROTOCOLS)}|{_BYTE})", match.PROTOCOLS_ARE, most, "x.size() <= 10"),
        Option("container", match.LABEL_NAME.pattern, match.CONTAINERS_ARE, most),
        *(_time(name) for name in timing.OPTIONS[:3]),
        Option("until", _moment(), timing.UNTIL, holds=_since_1970()),
        Option("mode", words((SHADOW,)), "mode=shadow, which counts and touches nothing"),
    ]
    assert {one.name for one in found} == set(NAMES)
    return [one for one in found if one.name not in text.lacks]


def twice(names: Sequence[str]) -> str:
    """A pattern of rules that have one of these options twice."""
    return f" (?i:{'|'.join(f'{name}=.* {name}=' for name in names)})"


def variables() -> dict[str, str]:
    """By name, of all `variables.rules`, each the key and the rule: what is wrong with them, '' for nothing.

    Of `matched` rules the items of each option of a match follow, in one way to write them.
    """
    every = options(Text(()))
    twice_is = f"r[1].matches({pattern(twice(NAMES))})"
    found = {"option_twice": _of_rules("true", twice_is, says("an option twice", "each option once"))}
    found |= {_name(one): _of_option(one) for one in every}
    are_right = any_of(f"variables.{name} != ''" for name in found)
    found |= {
        "options_right": f"!({are_right})",
        "place": _of_rules(
            "variables.options_right",
            f"[r[1].split(' ')].exists(w, {option('w', 'hook')}.lowerAscii() == 'cgroup' && "
            f"{has_option('w', 'interface')})",
            says("the cgroup hook knows no interfaces", "interface=NAME with hook=tc, or without hook="),
        ),
        **{f"range_{name}": _in_range(name) for name in timing.OPTIONS[:3]},
        "every": _of_rules(
            "variables.options_right",
            "r[1].matches(' (?i:every)=') && !r[1].matches(' (?i:for)=')",
            says("every= needs for=", "every=TIME for=TIME: in force for so long in each such period"),
        ),
        "pulse": _of_rules(
            "variables.options_right && variables.every == ''",
            f"r[1].matches(' (?i:every)=') && [r[1].split(' ')].exists(w, {_is_long_pulse()})",
            says("the pulse is longer than its period", "for= of the period at most"),
        ),
        "matched": "!variables.options_right ? [] : "
        f"variables.rules.filter(r, r[1].matches({_HAS_MATCH})).map(r, [r] + {_match_of('r[1]')})",
    }
    return found | {
        f"match_{name}": _of_matched(condition, why) for name, condition, why in _contradictions()
    }


def errors() -> list[str]:
    """Those of the variables that say what is wrong."""
    return [name for name in variables() if name not in ("options_right", "matched")]


def marks() -> str:
    """Of each matched rule, itself and what tells its match from another, in any order."""
    items = " + ".join(f"m[{at}].map(x, '{name} ' + x)" for at, name in enumerate(match.OPTIONS, start=1))
    return f"variables.matched.map(m, [m[0], {items}])"


_HAS_MATCH = f"r' (?i:{'|'.join(match.OPTIONS)})='"


def _name(one: Option) -> str:
    return f"option_{one.name.replace('-', '_')}"


def _of_option(one: Option) -> str:
    """What is wrong with it, where it is written once in each rule."""
    words_of = f"r[1].split(' ').filter(o, {is_one('o', one.name)} && !{is_right(one)})"
    wrong = f"{words_of}.map(o, r[0] + {COLON} + {shown_option('o')})"
    found = f"variables.rules.filter(r, r[1].matches(' (?i:{one.name})=')).map(r, {wrong})"
    texts = first_text(f"{found}.filter(l, l.size() > 0).map(l, l[0] + {quoted(': ' + one.expected)})")
    return f"variables.option_twice != '' ? '' : {texts}"


def _of_rules(where: str, condition: str, why: str) -> str:
    found = f"variables.rules.filter(r, {condition}).map(r, r[0] + {COLON} + {why} + {shown('r[1]')})"
    return f"!({where}) ? '' : {first_text(found)}"


def _of_matched(condition: str, why: str) -> str:
    where = shown("m[0][1]")
    return first_text(f"variables.matched.filter(m, {condition}).map(m, m[0][0] + {COLON} + {why} + {where})")


def _in_range(name: str) -> str:
    is_wrong = f"d < {timing.MIN_TIME_NS} || d > {timing.MAX_TIME_NS}"
    times = f"[r[1].split(' ')].map(w, {nanoseconds(option('w', name))})"
    return _of_rules(
        "variables.options_right",
        f"r[1].matches(' (?i:{name})=') && {times}.exists(d, {is_wrong})",
        says(f"{name} is out of range", f"{name}= from 1ms to 8784h (a year)"),
    )


def _is_long_pulse() -> str:
    return f"{nanoseconds(option('w', 'for'))} > {nanoseconds(option('w', 'every'))}"


def _match_of(rule: str) -> str:
    """The items of each option, as a list of lists."""
    items = ", ".join(f"{_items(name)}" for name in match.OPTIONS)
    return bind("w", f"{rule}.split(' ')", f"[{items}]")


def _interface() -> str:
    """One that is not of points alone."""
    others = INTERFACE_CHARACTERS.replace(".", "")
    return rf"\.*[{others}][{INTERFACE_CHARACTERS}]*"


def _peer() -> str:
    label, key, text, name = (
        _COUNTED.sub("*", one.pattern)
        for one in (match.LABEL_NAME, match.LABEL_KEY, match.LABEL_VALUE, match.SUBDOMAIN)
    )
    pods = f"(?:{key}={text}|{name})"
    ways = [words(("node", "world", "dns")), f"(?i:svc)/(?:{label}/)?{label}", f"(?i:pod)/{pods}"]
    return f"(?:{'|'.join([*ways, f'(?i:ns)/{label}', peers.CIDR])})"


def _canonical(name: str) -> str:
    """What an item `x` of an option is, whatever way it is written."""
    if name in ("peer", "except"):
        head = bind("h", "x.split('/')[0]", "h.lowerAscii() + x.substring(h.size())")
        is_name = "x.matches('^(?i:node$|world$|dns$|svc/|pod/|ns/)')"
        network = bind("k", peers.canonical("x"), "k[0] + '/' + k[1]")
        return f"{is_name} ? {head} : {network}"
    if name in ("port", "local-port"):
        return bind("e", "x.split('-')", "string(int(e[0])) + '-' + string(int(e[e.size() - 1]))")
    if name == "proto":
        numbers = ", ".join(f"'{one}': '{number}'" for one, number in match.PROTOCOLS.items())
        by_number = bind("n", "string(int(x))", f"n == '58' ? '{match.PROTOCOLS['icmp']}' : n")
        return f"x.matches('^[0-9]') ? {by_number} : {{{numbers}}}[x.lowerAscii()]"
    return "x"


def _items(name: str) -> str:
    return f"{option('w', name)}.split(',').map(x, x == '' ? '' : {_canonical(name)})"


def _contradictions() -> list[tuple[str, str, str]]:
    """As match.require_satisfiable says it, of a matched rule `m`."""
    with_ports = one_of(str(number) for number in sorted(match.WITH_PORTS))
    dns_alone = "m[1].all(x, x == 'dns')"
    network = "'^[0-9a-f]+/[0-9]+$'"
    covered = f"x.matches({network}) && y.matches({network}) && {peers.covers('y', 'x')}"
    not_dns = f"int(x.split('-')[0]) > {match.DNS_PORT} || int(x.split('-')[1]) < {match.DNS_PORT}"
    many = f"at most {match.MAX_TERMS}: use ranges, or more rules"
    terms = " * ".join(f"m[{at}].size()" for at in (3, 4, 5))
    different = " * ".join(_count(f"m[{at}]") for at in (3, 4, 5))
    networks = f"(m[1] + m[2]).filter(x, x.matches({network}))"
    return [
        (
            "prefix",
            f"{networks}.exists(x, {peers.has_bits_behind('x')})",
            says("bits stand behind the prefix of a CIDR", "the network's own address, or none of its bits"),
        ),
        (
            "ports",
            f"(m[3][0] != '' || m[4][0] != '') && m[5].exists(x, x != '' && !(x in {with_ports}))",
            says("the protocol has no ports", "proto=tcp, udp or sctp with ports"),
        ),
        (
            "dns",
            f"{dns_alone} && m[5][0] != '' && !('6' in m[5] || '17' in m[5])",
            says("nothing can match: dns is UDP and TCP", "peer=dns with proto=udp, tcp or none"),
        ),
        (
            "dns_port",
            f"{dns_alone} && m[3][0] != '' && m[3].all(x, {not_dns})",
            says(f"nothing can match: dns is port {match.DNS_PORT}", "peer=dns without port="),
        ),
        (
            "except",
            f"m[1][0] != '' && m[2][0] != '' && m[1].all(x, m[2].exists(y, x == y || ({covered})))",
            says("nothing can match: except takes away all of peer", "another except="),
        ),
        (
            "terms",
            f"{terms} > {match.MAX_TERMS} && {different} > {match.MAX_TERMS}",
            says("too many combinations of ports and protocols", many),
        ),
    ]


def _count(items: str) -> str:
    """How many different ones there are."""
    again = f"{_INDEXES}.exists(j, j < i && {items}[j] == {items}[i])"
    return f"{_INDEXES}.filter(i, i < {items}.size() && !{again}).size()"


def _time(name: str) -> Option:
    parts = "".join(
        rf"(?:[0-9]{{1,{most}}}(?:\.[0-9]{{1,9}})?{words((unit,))})?" for unit, most in timing.DIGITS.items()
    )
    return Option(name, parts, timing.expected_of(name), holds="x != ''")


def nanoseconds(time: str) -> str:
    """Of a time like 1h30m, which is one."""
    # Units of two letters first: 'ms' has both 'm' and 's'.
    letters = {unit: unit if len(unit) == 1 else unit.replace("s", "").upper() for unit in timing.DIGITS}
    text = f"{time}.lowerAscii()" + "".join(
        f".replace('{unit}', '{letter}')" for unit, letter in letters.items() if len(unit) > 1
    )
    parts = (
        text + "".join(f".replace('{letter}', '{letter} ')" for letter in letters.values()) + ".split(' ')"
    )
    terms = []
    for unit, letter in letters.items():
        places = min(9, len(str(LONG_TIME_UNITS[unit])) - len(str(LONG_TIME_UNITS[unit]).rstrip("0")))
        number = f"(t.filter(e, e.endsWith('{letter}')).map(e, e.substring(0, e.size() - 1)) + ['0'])[0]"
        terms.append(f"{whole_of(number, str(places))} * {LONG_TIME_UNITS[unit] // 10**places}")
    return bind("t", parts, " + ".join(terms))


def _moment() -> str:
    """RFC 3339, of days that there are, from 1969 on."""
    long, short = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])", "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    days = f"(?:{_YEAR}-(?:{long}|{short}|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
    return rf"{days}[Tt]{timing.CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:[Zz]|[-+]{timing.CLOCK})"


def _since_1970() -> str:
    zone = "(x.endsWith('Z') || x.endsWith('z') ? 'Z' : x.substring(x.size() - 6))"
    return f"timestamp(x.substring(0, 19).upperAscii() + {zone}) > timestamp('1970-01-01T00:00:00Z')"
