"""`duplicate`: a packet is sent twice with a probability. The program is bpf/duplicate.bpf.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from podmgr.rules.chance import ByChance
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy.text import Form, Text, direction, percent
from podmgr.rules.rule import DefaultHook, Direction, Figure, Hook, Rule, Stage, Template
from podmgr.rules.words import Words

_DUPLICATE = Template(
    "duplicate",
    Stage.DUPLICATE,
    {
        Direction.EGRESS: DefaultHook(
            Hook.TC, Hook.TC, "a copy is sent on the interface, behind all that judges the packet"
        ),
        Direction.INGRESS: DefaultHook(
            Hook.TC,
            Hook.TC,
            "what arrives can be sent twice before the pod alone: on the host's side of its veth",
        ),
    },
    sends=True,
)


@dataclass(frozen=True, slots=True)
class Duplicate(ByChance):
    """Each packet is sent twice with probability `percent` / 100, 0 to 100."""

    key: ClassVar[str] = "duplicate"
    kind: ClassVar[str] = "duplicate"
    happens: ClassVar[str] = "copies"

    def explain(self) -> list[tuple[str, str]]:
        return [
            *ByChance.explain(self),
            ("decides", "per packet as the hook sees it; a GSO packet is one, and copied whole"),
            (
                "the copy",
                "leaves just before the packet, and is limited and delayed on its own; never copied",
            ),
        ]

    def figures(self, counted: Sequence[int]) -> list[Figure]:
        return [Figure("copies", counted[0])]


def _parse(words: Words) -> tuple[Rule, ...]:
    percent, directions = words.percent("the probability"), words.directions()
    _, common = words.options({}, hooks=(Hook.TC,))
    return tuple(Duplicate(direction, percent, **common._asdict()) for direction in directions)


_FORM = 'P% DIRECTION, such as "1% egress"'


def _text() -> Text:
    return Text((Form((percent(_FORM, begins=True), direction())),), hooks=(Hook.TC,))


KIND = Kind(
    key=Duplicate.key,
    form=_FORM,
    meaning="Of each packet there is a second copy with probability P.",
    example="duplicate=1% egress",
    parse=_parse,
    templates=(_DUPLICATE,),
    is_bare=False,
    text=_text,
)
