"""`corrupt`: one random bit of a packet is wrong with a probability. The program is bpf/corrupt.bpf.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from podmgr.errors import Fail
from podmgr.rules.chance import ByChance
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy.text import Form, Text, choice_option, direction, percent
from podmgr.rules.rule import DefaultHook, Direction, Figure, Hook, Macros, Rule, Stage, Template
from podmgr.rules.words import Words, closest

_CORRUPT = Template(
    "corrupt",
    Stage.CORRUPT,
    {
        Direction.EGRESS: DefaultHook(
            Hook.TC, Hook.TC, "packets can be changed at interfaces alone, behind the sender's own checksum"
        ),
        Direction.INGRESS: DefaultHook(
            Hook.TC, Hook.TC, "packets can be changed at interfaces alone, before the receiver's checksum"
        ),
    },
)


class As(StrEnum):
    """Who finds the wrong bit: the receiver's checksum, which discards the packet, or the application."""

    CHECKSUM = "checksum"
    PAYLOAD = "payload"


@dataclass(frozen=True, slots=True)
class Corrupt(ByChance):
    """One bit of each packet is wrong with probability `percent` / 100, 0 to 100."""

    key: ClassVar[str] = "corrupt"
    kind: ClassVar[str] = "corrupt"
    happens: ClassVar[str] = "corrupts"
    found_as: As = As.CHECKSUM

    @property
    def own_options(self) -> list[str]:
        return [] if self.found_as is As.CHECKSUM else [f"as={self.found_as}"]

    @property
    def macros(self) -> Macros:
        reaches = int(self.found_as is As.PAYLOAD)
        return (("REACHES_APPLICATION", str(reaches)), ("THRESHOLD", f"{self.threshold}ULL"))

    def explain(self) -> list[tuple[str, str]]:
        is_payload = self.found_as is As.PAYLOAD
        found, gso, alone = (
            (
                "by nothing: the checksum is mended, and the bit reaches the application",
                "a GSO packet is one, with one wrong bit",
                "packets without payload, fragments but the first, ",
            )
            if is_payload
            else (
                "by the receiver's checksum, which discards the packet, as on a wire",
                "a GSO packet is one, and corrupted whole: none of its segments is taken",
                "",
            )
        )
        return [
            *ByChance.explain(self),
            ("the bit", "a random one of the payload of TCP, UDP, ICMP or ICMPv6"),
            ("is found", found),
            ("decides", f"per packet as the hook sees it; {gso}"),
            ("left alone", f"{alone}other protocols, IPv6 extension headers, neighbour discovery"),
        ]

    def figures(self, counted: Sequence[int]) -> list[Figure]:
        return [Figure("corrupted", counted[0])]


_AS_IS = "as=checksum (the receiver discards it, default) or as=payload (it arrives)"


def _parse(words: Words) -> tuple[Rule, ...]:
    percent, directions = words.percent("the probability"), words.directions()
    own, common = words.options({"as": _as}, hooks=(Hook.TC,))
    found_as = own.get("as", As.CHECKSUM)
    return tuple(Corrupt(direction, percent, found_as, **common._asdict()) for direction in directions)


def _as(text: str, fail: Fail) -> As:
    try:
        return As(text.lower())
    except ValueError:
        guess = closest(text.lower(), As)
        hint = f"did you mean {str(guess)!r}? " if guess else ""
        raise fail(f"unknown as={text[:40]!r}", hint + _AS_IS) from None


_FORM = 'P% DIRECTION, such as "0.1% egress" or "0.1% egress as=payload"'


def _text() -> Text:
    return Text(
        (Form((percent(_FORM, begins=True), direction()), options=("as",)),),
        options=(choice_option("as", As, _AS_IS),),
        hooks=(Hook.TC,),
    )


KIND = Kind(
    key=Corrupt.key,
    form=_FORM,
    meaning="One random bit of a packet is wrong with probability P: the receiver's checksum finds it and "
    "the packet is discarded, or with as=payload it reaches the application.",
    example="corrupt=0.1% egress",
    parse=_parse,
    templates=(_CORRUPT,),
    is_bare=False,
    text=_text,
)
