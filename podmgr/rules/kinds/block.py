"""`block`: a partition, of one direction or both, with an answer or without. Its program: bpf/block.bpf.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import ClassVar

from podmgr.errors import Fail
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy.cel import NOTHING, first, option, says
from podmgr.rules.policy.text import Form, Text, choice_option, direction
from podmgr.rules.rule import DefaultHook, Direction, Figure, Hook, Macros, Rule, Stage, Template
from podmgr.rules.words import Reader, Words, closest

MAX_FLOWS = 4_096  # that are known: MOST_FLOWS of the program

_BLOCK = Template(
    "block",
    Stage.BLOCK,
    {
        Direction.EGRESS: DefaultHook(
            Hook.TC, Hook.TC, "at the interface nothing passes by, and what is blocked can be answered"
        ),
        Direction.INGRESS: DefaultHook(
            Hook.TC,
            Hook.CGROUP,
            "on its own interfaces a pod is also cut off from what its kernel would answer, such as pings; "
            "what arrives on shared ones belongs to no cgroup yet",
        ),
    },
    second_choice=Hook.CGROUP,
)


class Reply(StrEnum):
    """What the sender of a blocked packet is told."""

    NONE = "none"
    RST = "rst"
    ICMP = "icmp"


class State(StrEnum):
    """What is blocked: all, or only what begins."""

    ALL = "all"
    NEW = "new"


class Cut(StrEnum):
    """Whether open connections are ended."""

    NO = "no"
    YES = "yes"


_GIVES_UP = "nothing, until it gives up (ETIMEDOUT)"
# What who sends it sees: connect(), an open connection of TCP, a sender of UDP.
_SEEN = {
    Reply.NONE: (_GIVES_UP, _GIVES_UP, "nothing"),
    Reply.RST: ("ECONNREFUSED, at once", "ECONNRESET, as soon as it sends", "nothing: a RST is TCP's alone"),
    Reply.ICMP: (
        "EHOSTUNREACH, of IPv6 EACCES: at once, on one machine with the next SYN (1 s)",
        "nothing, until it gives up (EHOSTUNREACH, EACCES)",
        "EHOSTUNREACH, of IPv6 EACCES, if the socket is connected",
    ),
}


@dataclass(frozen=True, slots=True)
class Block(Rule):
    """Nothing passes in its direction, or nothing that begins."""

    key: ClassVar[str] = "block"
    kind: ClassVar[str] = "block"
    reply: Reply = Reply.NONE
    state: State = State.ALL
    cut: Cut = Cut.NO

    @property
    def words(self) -> list[str]:
        reply = [f"reply={self.reply}"] if self.reply is not Reply.NONE else []
        state = [f"state={self.state}"] if self.state is not State.ALL else []
        cut = [f"cut={self.cut}"] if self.cut is not Cut.NO else []
        return [self.direction.value, *reply, *state, *cut]

    @property
    def program(self) -> str:
        return _BLOCK.name

    @property
    def macros(self) -> Macros:
        return (
            ("CUTS", str(int(self.cut is Cut.YES))),
            ("ONLY_NEW", str(int(self.state is State.NEW))),
            ("REPLY", str(list(Reply).index(self.reply))),
        )

    @property
    def needs_tc(self) -> str:
        if self.reply is not Reply.NONE:
            return f"reply={self.reply} is sent at interfaces alone"
        if self.cut is Cut.YES:
            return "the RSTs of cut=yes are sent at interfaces alone"
        if self.state is State.NEW:
            return "what state=new blocks is known where both directions pass, at interfaces alone"
        return ""

    @property
    def watches_back(self) -> bool:
        return self.state is State.NEW or self.cut is Cut.YES

    def explain(self) -> list[tuple[str, str]]:
        passes = "leaves" if self.direction is Direction.EGRESS else "reaches"
        connect, connection, datagram = _SEEN[self.reply]
        what = f"all that {passes} the pod, but for ARP and neighbour discovery"
        if self.state is State.NEW:
            what = (
                f"what begins and {passes} the pod: SYNs of TCP without ACK; datagrams and pings of flows "
                "of which nothing was seen going the other way since the rule was attached "
                f"({MAX_FLOWS:,} are known)"
            )
            connection = "nothing: it lives on"
        if self.cut is Cut.YES:
            connection = "ECONNRESET at both ends, as soon as this one sends"
        rows = [
            ("blocked", what),
            ("who sends it", "the pod" if self.direction is Direction.EGRESS else "the other end"),
            ("its connect() sees", connect),
            ("its open TCP sees", connection),
            ("its UDP sees", datagram),
            ("who waits for it", f"sees {_GIVES_UP}"),
        ]
        if self.reply is not Reply.NONE or self.cut is Cut.YES:
            never = "RSTs, errors of ICMP, what goes to a group, fragments other than the first"
            rows.append(("never answered", never))
        return rows

    def caveats(self, hook: Hook) -> list[str]:
        if hook is not Hook.CGROUP:
            return []
        if self.direction is Direction.EGRESS:
            return [
                "block egress at the cgroup hook stops what sockets of the cgroup send: what the kernel "
                "answers (pings, RSTs) and forwards passes, and TCP sees congestion"
            ]
        return [
            "block ingress at the cgroup hook stops what reaches sockets of the cgroup: before it the kernel "
            "answers pings, and refuses connections to closed ports"
        ]

    def figures(self, counted: Sequence[int]) -> list[Figure]:
        resets, unreachables, cut = counted
        figures = [Figure("RSTs sent", resets)] if self.reply is Reply.RST or self.cut is Cut.YES else []
        figures += [Figure("ICMPs sent", unreachables)] if self.reply is Reply.ICMP else []
        return figures + ([Figure("connections cut", cut)] if self.cut is Cut.YES else [])


def _choice(name: str, choices: type[StrEnum], meaning: str) -> Reader:
    """Reads one of the choices; the first is the default."""

    def read(text: str, fail: Fail) -> Enum:
        try:
            return choices(text.lower())
        except ValueError:
            guess = closest(text.lower(), choices)
            hint = f"did you mean {str(guess)!r}? " if guess else ""
            raise fail(f"unknown {name}={text[:40]!r}", f"{hint}{meaning}") from None

    return read


_CUT_AND_NEW = ("cut=yes ends what state=new lets live", "cut=yes with state=all, or state=new alone")
_OPTIONS = {
    "reply": _choice(
        "reply", Reply, "reply=none (silence, default), reply=rst (refuses TCP) or reply=icmp (unreachable)"
    ),
    "state": _choice("state", State, "state=all (default) or state=new (what begins)"),
    "cut": _choice("cut", Cut, "cut=yes (open connections end) or cut=no (default)"),
}


def _parse(words: Words) -> tuple[Rule, ...]:
    directions = words.directions()
    own, common = words.options(_OPTIONS)
    if own.get("cut") is Cut.YES and own.get("state") is State.NEW:
        raise words.fail(*_CUT_AND_NEW, option="cut")
    rules = tuple(Block(direction, **own, **common._asdict()) for direction in directions)
    if common.place.hook is Hook.CGROUP and rules[0].needs_tc:
        option = next(name for name in ("reply", "cut", "state") if f"{name}=" in rules[0].needs_tc)
        raise words.fail(
            f"it cannot act at the cgroup hook: {rules[0].needs_tc}",
            f"hook=tc, or without hook=; silence of all alone, without {option}=, can be had there",
            option=option,
        )
    return rules


_FORM = 'DIRECTION [reply=none|rst|icmp] [state=all|new] [cut=yes], such as "egress" or "both reply=rst"'


def _text() -> Text:
    options = (
        choice_option(
            "reply",
            Reply,
            "reply=none (silence, default), reply=rst (refuses TCP) or reply=icmp (unreachable)",
        ),
        choice_option("state", State, "state=all (default) or state=new (what begins)"),
        choice_option("cut", Cut, "cut=yes (open connections end) or cut=no (default)"),
    )
    cut, state, reply = (option("w", name) + ".lowerAscii()" for name in ("cut", "state", "reply"))
    needs_tc = (
        f"({reply} in ['{Reply.RST}', '{Reply.ICMP}'] || {cut} == '{Cut.YES}' || {state} == '{State.NEW}')"
    )
    cases = [
        (f"{cut} == '{Cut.YES}' && {state} == '{State.NEW}'", says(*_CUT_AND_NEW)),
        (
            f"{option('w', 'hook')}.lowerAscii() == '{Hook.CGROUP}' && {needs_tc}",
            says("it cannot act at the cgroup hook", "hook=tc, or without hook="),
        ),
    ]
    return Text(
        (Form((direction(begins=True),), options=("reply", "state", "cut")),),
        options=options,
        checks=(first(cases, NOTHING),),
    )


KIND = Kind(
    key=Block.key,
    form=_FORM,
    meaning="Nothing passes: in silence, or with reply=rst TCP is refused, with reply=icmp the sender is "
    "told that it is forbidden. state=new: only what begins; cut=yes: open connections end.",
    example="block=egress reply=rst",
    parse=_parse,
    templates=(_BLOCK,),
    is_bare=False,
    text=_text,
)
