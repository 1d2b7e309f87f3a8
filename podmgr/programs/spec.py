"""A rule made concrete: a program's source, its macros and the compiler, with a content digest.

Pure and frozen. Two specs with the same `digest` compile to the same object.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from podmgr.errors import PodmgrError
from podmgr.rules.kinds import BUILT_IN_PROGRAMS
from podmgr.rules.programs import RESERVED_MACROS
from podmgr.rules.rule import Direction, Hook, Macros, Rule
from podmgr.rules.timing import ALWAYS

_TREATMENT = b"verdicts 1"  # of the objects of others, once they are compiled
_LEADING_ZERO = re.compile(r"0[0-9][A-Za-z0-9_]*", re.ASCII)
_DIGEST_CHARACTERS = 16  # 64 bits: names stay short on bpffs, collisions need 2^32 rules


class ProgramSource(NamedTuple):
    """A program as found: a C source of which its headers are part, or a ready object.

    `macros` are those that the source, without its headers, offers to be set. An `is_own` source
    is one of podmgr's.
    """

    name: str
    content: bytes
    macros: frozenset[str] = frozenset()
    is_object: bool = False

    @property
    def is_own(self) -> bool:
        return self.name in BUILT_IN_PROGRAMS


@dataclass(frozen=True)
class ProgramSpec:
    """What to compile for a rule, or for several that share a program.

    `compiler` names the compiler, its version and its flags.

    `hook` None: the program's own section says it. `text` is a custom source as it came out of the
    preprocessor, with all that it includes. `counts_loopback` is true where the target has
    no network namespace of its own, `is_scoped` where it shares its interfaces with others. `table` is
    the distribution of the user's own that the program draws from, as a macro. `is_matched`: it looks up
    which packets are its rule's. `gate` is the source of what does so before a custom program, see
    `programs.gate`; empty where all packets are the program's, always. `container_level` is how deep
    the cgroups of the pod's containers lie, 0 if no rule names one.
    """

    rules: tuple[Rule, ...]
    source: ProgramSource
    compiler: str
    counts_loopback: bool = False
    hook: Hook | None = None
    is_scoped: bool = False
    text: bytes = b""
    table: Macros = ()
    is_matched: bool = False
    gate: bytes = b""
    container_level: int = 0

    @property
    def direction(self) -> Direction:
        return self.rules[0].direction

    @property
    def needs_gate(self) -> bool:
        """Whether a custom program is not about all packets, always: its own source may not ask for that."""
        rule = self.rules[0]
        return rule.brings_program and (self.is_matched or rule.timing != ALWAYS)

    @cached_property
    def macros(self) -> Macros:
        """All that is defined on the compiler's command line: podmgr's own, then the rule's."""
        own = self._told
        if self.source.is_own:  # before others stands the gate, and of the hook their source tells
            own += (*self._asked, ("PODMGR_TC", str(int(self.hook is Hook.TC))))
        return own + type(self.rules[0]).macros_of(self.rules) + self.table

    @property
    def gate_macros(self) -> Macros:
        """What is defined for the gate, besides the program's function and section."""
        return self._told + self._asked

    @property
    def _told(self) -> Macros:
        return (
            ("INTERFACE", f'"{self.direction}"'),
            ("DIRECTION_EGRESS", str(int(self.direction is Direction.EGRESS))),
            ("PODMGR_LOOPBACK", str(int(self.counts_loopback))),
            ("PODMGR_SCOPED", str(int(self.is_scoped))),
        )

    @property
    def _asked(self) -> Macros:
        rule = self.rules[0]
        asked = {
            "PODMGR_MATCH": self.is_matched,
            "PODMGR_TIMED": rule.timing != ALWAYS,
            "PODMGR_SHADOW": rule.is_shadow,
        }
        level: Macros = (("PODMGR_CONTAINER", str(self.container_level)),) if self.container_level else ()
        return tuple((name, "1") for name, is_there in asked.items() if is_there) + level

    @cached_property
    def digest(self) -> str:
        """Names the object: everything that decides its bytes."""
        if self.source.is_object:
            return _digest(b"object", _TREATMENT, self.direction.encode(), self.source.content)
        parts = [b"source", self.compiler.encode(), self.text or self.source.content]
        parts += [] if self.source.is_own else [_TREATMENT]
        parts += [repr(macro).encode() for macro in self.macros]  # -DX is not -DX=None
        parts += [self.gate, repr(self.gate_macros).encode()] if self.gate else []
        return _digest(*parts)

    @cached_property
    def rule_digest(self) -> str:
        """Names the pin: the rules and the object that fulfils them."""
        return _digest(*(str(rule).encode() for rule in self.rules), self.digest.encode())


def make_spec(
    rules: Sequence[Rule],
    source: ProgramSource,
    compiler: str,
    *,
    counts_loopback: bool,
    hook: Hook | None = None,
    is_scoped: bool = False,
    is_matched: bool = False,
    container_level: int = 0,
) -> ProgramSpec:
    """The spec of rules, after checking that a custom one sets only what its source offers.

    Raises PodmgrError for a macro that the source does not test with #ifndef, and for a number that
    C reads otherwise than it is written, and for a match or a time before a ready object.
    """
    for rule in rules:
        if not rule.brings_program:
            continue
        _check_numbers(rule)
        offered = sorted(source.macros - RESERVED_MACROS.keys())
        for name, _ in rule.macros:
            if name not in offered:
                raise PodmgrError(
                    f"program {source.name} has no macro {name} to set",
                    tip="a ready object takes no macros"
                    if source.is_object
                    else f"its source tests with #ifndef: {', '.join(offered) or 'none'}",
                )
    spec = ProgramSpec(
        tuple(rules),
        source,
        compiler,
        counts_loopback,
        hook,
        is_scoped,
        is_matched=is_matched,
        container_level=container_level,
    )
    if source.is_object and spec.needs_gate:
        raise PodmgrError(
            f"'{rules[0]}': {source.name} is a ready object, and a match or a time is compiled into a source",
            tip=f"put {source.name}.bpf.c into the program folder, or leave such options out, also beside it",
        )
    return spec


def _check_numbers(rule: Rule) -> None:
    """Refuse 010, which is 8 to C, and 080, which is nothing.

    Not the grammar's business: a rule that the ledger has must stay readable.
    """
    for name, value in rule.macros:
        if value is not None and _LEADING_ZERO.fullmatch(value):
            meant = value.lstrip("0") or "0"
            raise PodmgrError(
                f"'{rule}': the leading 0 of {name} makes it an octal number in C",
                tip=f"write -D{name}={meant}, or a hexadecimal number such as 0x1f",
            )


def _digest(*parts: bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.hexdigest()[:_DIGEST_CHARACTERS]
