"""`reorder`: some packets are late, and so are overtaken. The program is bpf/reorder.bpf.c, with `fq`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from podmgr.rules.chance import ByChance
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy.patterns import amounts
from podmgr.rules.policy.text import Form, Option, Text, direction, percent
from podmgr.rules.rule import Figure, FqNeeds, Hook, Macros, Rule, Stage, Template
from podmgr.rules.units import TIME_UNITS, format_duration, format_time
from podmgr.rules.waiting import (
    HOOKS,
    MAX_WAIT_NS,
    MIN_WAIT_NS,
    NS_PER_SECOND,
    explained,
    fq_needs,
    waiting_bytes,
)
from podmgr.rules.words import Words, time_option

DEFAULT_LATE_NS = 10_000_000

_TIMES_ARE = f"by=TIME from {format_time(MIN_WAIT_NS)} to {format_time(MAX_WAIT_NS)}"

_REORDER = Template("reorder", Stage.REORDER, HOOKS, needs_fq=True, frees=True)


@dataclass(frozen=True, slots=True)
class Reorder(ByChance):
    """Each packet leaves `late_ns` later (1000 to 1e10) with probability `percent` / 100, 0 to 100."""

    key: ClassVar[str] = "reorder"
    kind: ClassVar[str] = "reorder"
    happens: ClassVar[str] = "delays"
    late_ns: int = DEFAULT_LATE_NS

    @property
    def own_options(self) -> list[str]:
        return [] if self.late_ns == DEFAULT_LATE_NS else [f"by={format_time(self.late_ns)}"]

    @property
    def macros(self) -> Macros:
        return (
            ("MOST_BYTES", f"{waiting_bytes(self.late_ns)}ULL"),
            ("THRESHOLD", f"{self.threshold}ULL"),
            ("TIME", f"{self.late_ns}ULL"),
        )

    @property
    def fq_needs(self) -> FqNeeds | None:
        return fq_needs(self.late_ns)

    def explain(self) -> list[tuple[str, str]]:
        late = format_duration(Fraction(self.late_ns, NS_PER_SECOND))
        return [
            *ByChance.explain(self),
            ("late by", f"{late}, on top of a rate and a delay; what is sent meanwhile overtakes"),
            ("decides", "per packet as the hook sees it; a GSO packet is one, and late whole"),
            explained(self.late_ns, "not late"),
        ]

    def figures(self, counted: Sequence[int]) -> list[Figure]:
        return [Figure("late", counted[0])]


def _parse(words: Words) -> tuple[Rule, ...]:
    percent, directions = words.percent("the probability"), words.directions()
    own, common = words.options({"by": time_option("by")}, hooks=(Hook.TC,))
    late_ns = own.get("by", DEFAULT_LATE_NS)
    if not MIN_WAIT_NS <= late_ns <= MAX_WAIT_NS:
        raise words.fail(
            "the time is out of range",
            _TIMES_ARE,
            option="by",
        )
    return tuple(Reorder(direction, percent, late_ns, **common._asdict()) for direction in directions)


_FORM = 'P% DIRECTION, such as "1% egress" or "1% egress by=20ms"'


def _text() -> Text:
    times = amounts(TIME_UNITS, MIN_WAIT_NS, MAX_WAIT_NS)
    return Text(
        (Form((percent(_FORM, begins=True), direction()), options=("by",)),),
        options=(Option("by", times, _TIMES_ARE, is_number=True),),
        hooks=(Hook.TC,),
    )


KIND = Kind(
    key=Reorder.key,
    form=_FORM,
    meaning="Each packet is late by TIME (10 ms) with probability P, and so is overtaken.",
    example="reorder=1% egress",
    parse=_parse,
    templates=(_REORDER,),
    is_bare=False,
    text=_text,
)
