"""`ebpf-limit`: a program that the user brings, NAME.bpf.c or NAME.bpf.o of the program folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from podmgr.rules.kinds.kind import Kind
from podmgr.rules.options import CommonReader
from podmgr.rules.policy.cel import NOTHING, first, matches, pattern, says
from podmgr.rules.policy.peers import ADDRESS
from podmgr.rules.policy.text import Form, Part, Text, direction
from podmgr.rules.programs import NAME, RESERVED_MACROS, is_program_name
from podmgr.rules.rule import CollisionKey, Macros, Rule
from podmgr.rules.units import address_in_c, is_address
from podmgr.rules.words import Words

_MACRO = re.compile(r"-D([A-Za-z_][A-Za-z0-9_]*)(?:=([A-Za-z0-9_.:]*))?", re.ASCII)
MAX_MACROS = 64
_MANY_MACROS, _ONCE = (
    (f"more than {MAX_MACROS} macros", f"at most {MAX_MACROS} in one rule"),
    "each macro once",
)
_NAMES_ARE = "NAME of a file NAME.bpf.c: letters, digits, - and _, at most 63, no path"
_MACROS_ARE = "-DNAME or -DNAME=VALUE, VALUE of letters, digits and _ or an IP address; or interface=NAME"
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Custom(Rule):
    """The user's own program `name`, with macros as `written`, by name; a value of None is a bare -DX."""

    key: ClassVar[str] = "ebpf-limit"
    kind: ClassVar[str] = "custom"
    brings_program: ClassVar[bool] = True
    without_fq: ClassVar[str] = "bandwidth=RATE DIRECTION"
    at_cgroup: ClassVar[str] = 'SEC("cgroup_skb/" INTERFACE)'
    name: str
    written: Macros = ()

    @property
    def macro_words(self) -> list[str]:
        """The macros as they are written."""
        return [f"-D{name}" + ("" if value is None else f"={value}") for name, value in self.written]

    @property
    def words(self) -> list[str]:
        return [self.name, self.direction, *self.macro_words]

    @property
    def program(self) -> str:
        return self.name

    @property
    def macros(self) -> Macros:
        return tuple((name, _in_c(value)) for name, value in self.written)

    @property
    def collision_key(self) -> CollisionKey:
        """With other macros it is another kind: one that drops port 80, and one 443."""
        return CollisionKey(" ".join(["custom", self.name, *self.macro_words]), self.direction, self.match)

    @property
    def succession_key(self) -> CollisionKey:
        """Whatever the macros."""
        return CollisionKey(f"custom {self.name}", self.direction, self.match)

    def explain(self) -> list[tuple[str, str]]:
        rows = [("custom program", self.name), ("macros", " ".join(self.macro_words) or "none")]
        return rows + [
            (f"-D{name} is", _in_c(value) or "") for name, value in self.written if _in_c(value) != value
        ]


def _in_c(value: str | None) -> str | None:
    """The value of a macro: an address becomes what it is in a packet."""
    return address_in_c(value) if value is not None and is_address(value) else value


def _parse(words: Words) -> tuple[Rule, ...]:
    name = words.take("the program's name")
    if not is_program_name(name):
        raise words.fail(
            f"{name!r} is not a program name",
            _NAMES_ARE,
        )
    directions = words.directions()
    macros: dict[str, str | None] = {}
    common = CommonReader(words.fail)
    while not words.done():
        word = words.take("a macro")
        if word.lower().startswith("hook="):
            raise words.fail(
                "custom programs have no hook=: the program's section says it",
                'leave hook= out; SEC("cgroup_skb/" INTERFACE) is for cgroup, SEC("tc") for tc',
            )
        if word.lower().startswith("mode="):
            raise words.fail(
                "custom programs have no mode=: what theirs would do, only they know", "leave mode= out"
            )
        if not common.read(word):
            macro, value = _macro(word, words)
            if macro in macros:
                raise words.fail(f"-D{macro} twice", _ONCE)
            if len(macros) == MAX_MACROS:
                raise words.fail(*_MANY_MACROS)
            macros[macro] = value
    found = common.done()
    ordered = tuple(sorted(macros.items()))
    return tuple(Custom(direction, name, ordered, **found._asdict()) for direction in directions)


def _macro(word: str, words: Words) -> tuple[str, str | None]:
    """The name and the value of a word like -DNAME=VALUE."""
    match = _MACRO.fullmatch(word)
    if not match or not (_PLAIN_VALUE.fullmatch(match[2] or "") or is_address(match[2])):
        raise words.fail(
            f"{word!r} is not a macro",
            _MACROS_ARE,
        )
    if match[1] in RESERVED_MACROS:
        raise words.fail(f"{match[1]} is set by podmgr", RESERVED_MACROS[match[1]])
    return match[1], match[2]


_FORM = 'NAME DIRECTION [-DMACRO[=VALUE]]..., such as "dropper egress -DPORT=53"'


def _text() -> Text:
    names = "w.filter(o, o.startsWith('-D')).map(o, o.split('=')[0])"
    cases = [
        (f"n[0].matches({pattern(f' -D{macro}(?:[= ]|$)')})", says(f"{macro} is set by podmgr", why))
        for macro, why in RESERVED_MACROS.items()
    ]
    cases += [
        (f"{names}.size() > {MAX_MACROS}", says(*_MANY_MACROS)),
        (f"[{names}].exists(m, m.exists(a, m.filter(b, a == b).size() > 1))", says("a macro twice", _ONCE)),
    ]
    plain, address = "-D[A-Za-z_][A-Za-z0-9_]*(?:=[A-Za-z0-9_]*)?", f"-D[A-Za-z_][A-Za-z0-9_]*={ADDRESS}"
    is_wrong = f"o.startsWith('-D') && !({matches('o', plain)} || {matches('o', address)})"
    cases.append((f"w.exists(o, {is_wrong})", says("no macro", _MACROS_ARE)))
    name = Part(NAME.pattern, "no program name", _NAMES_ARE)
    return Text(
        (Form((name, direction()), more="-D[^ ]*", more_are=_MACROS_ARE),),
        checks=(first(cases, NOTHING),),
        lacks=("hook", "mode"),
        identity="[w[0]] + w.filter(o, o.startsWith('-D'))",
        way="[^ ]+ ",
    )


KIND = Kind(
    key=Custom.key,
    form=_FORM,
    meaning="A program of your own: NAME.bpf.c or NAME.bpf.o of the program folder.",
    example="ebpf-limit=dropper egress -DPORT=53",
    parse=_parse,
    text=_text,
)
