"""What a rule is: a wish of a kind, with a direction and parameters. Pure data.

What is the same for every kind stands here; what a kind says of itself is its file in `kinds`.
`str(rule)` is the canonical `KEY=VALUE`, and reading that gives the same rule again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import ClassVar, NamedTuple, Self

from podmgr.rules import match, timing
from podmgr.rules.match import EVERYTHING, Match
from podmgr.rules.timing import ALWAYS, Timing

MAX_INTERFACES = 16


class Direction(StrEnum):
    """egress leaves the pod, ingress reaches it."""

    EGRESS = "egress"
    INGRESS = "ingress"


class Hook(StrEnum):
    """Where a program sits: on the pod's cgroup, or at tc (clsact) on interfaces."""

    CGROUP = "cgroup"
    TC = "tc"


class Stage(IntEnum):
    """Where several programs of one hook see a packet. Departure times come behind all that drops: that of a
    rate first, to which a delay adds, and then what is late beyond it.
    """

    BLOCK = 0
    LOSS = 1
    CUSTOM = 2
    CORRUPT = 3
    DUPLICATE = 4
    RATE = 5
    DEPARTURE = 6
    DELAY = 7
    REORDER = 8


class Place(NamedTuple):
    """Where a rule is to act, as far as the user says. `interfaces` () is all that lead out."""

    hook: Hook | None = None
    interfaces: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """As options of a rule."""
        words = [f"hook={self.hook}"] if self.hook is not None else []
        return words + ([f"interface={','.join(self.interfaces)}"] if self.interfaces else [])


ANYWHERE = Place()

Macros = tuple[tuple[str, str | None], ...]


class DefaultHook(NamedTuple):
    """The hook of a rule that names none: on interfaces of the pod's own, and on shared ones.

    Shared are the interfaces of host-network pods, cgroup/PATH and run.
    """

    own: Hook
    shared: Hook
    reason: str


class Template(NamedTuple):
    """A program of podmgr's own: `name`.bpf.c in bpf/.

    `second_choice` is the hook that will do where the default one cannot be had. One that `sends`, as what
    `needs_fq` does, acts where packets are sent: on what arrives, at the node's side of the pod's veth. One
    that `frees` packets from their socket, as what waits long must, also stands before all others:
    bpf/freeing.h.
    """

    name: str
    stage: Stage
    hooks: Mapping[Direction, DefaultHook] = {}
    needs_fq: bool = False
    second_choice: Hook | None = None
    frees: bool = False
    sends: bool = False

    @property
    def is_on_sending_side(self) -> bool:
        """Whether its program must stand where packets are sent."""
        return self.needs_fq or self.sends


class Figure(NamedTuple):
    """A number that a program keeps of what it has done: what `list -o wide` and the metrics tell."""

    name: str
    value: float
    unit: str = ""


class FqNeeds(NamedTuple):
    """What a rule needs of an fq: room for so many packets, of one flow alone too, for so long.

    0 packets where the senders hold themselves back.
    """

    flow_packets: int
    horizon_ns: int


class CollisionKey(NamedTuple):
    """What two rules have in common that cannot both hold on one pod."""

    kind: str
    direction: Direction
    match: Match = EVERYTHING


@dataclass(frozen=True, slots=True)
class Rule(ABC):
    """What every kind has. `key` is that of its annotation, `kind` what it is called."""

    key: ClassVar[str]
    kind: ClassVar[str]
    brings_program: ClassVar[bool] = False  # of the user's own, which may look at some packets only
    shares_program: ClassVar[bool] = False  # with rules of its kind, direction and layer: see `macros_of`
    without_fq: ClassVar[str] = ""  # what to write for a rule that does the like and needs no fq
    at_cgroup: ClassVar[str] = "hook=cgroup"  # what to write for the same there; "": cannot be had

    direction: Direction
    place: Place = field(default=ANYWHERE, kw_only=True)
    match: Match = field(default=EVERYTHING, kw_only=True)
    timing: Timing = field(default=ALWAYS, kw_only=True)
    is_shadow: bool = field(default=False, kw_only=True)  # it counts, and touches nothing
    of_profile: str = field(default="", compare=False, kw_only=True)  # of which it is a part

    @property
    @abstractmethod
    def words(self) -> list[str]:
        """The value of the annotation, without the options that every kind has."""

    @property
    @abstractmethod
    def program(self) -> str:
        """The name of the program that fulfils the rule, in bpf/ or in the program folder."""

    @property
    @abstractmethod
    def macros(self) -> Macros:
        """What makes the program this rule's."""

    @property
    def table(self) -> str:
        """The name of a table of the program folder, NAME.dist, that the program draws from; "" for none."""
        return ""

    @property
    def fq_needs(self) -> FqNeeds | None:
        """What the fq that holds its packets must be able to; None if none does."""
        return None

    @property
    def needs_tc(self) -> str:
        """Why it cannot act at the cgroup hook, where others of its kind can; "" if it can."""
        return ""

    @property
    def watches_back(self) -> bool:
        """Whether its program, at tc, also looks at what goes the other way: see CLASS_WATCHES in bpf/."""
        return False

    @property
    def on_egress_alone(self) -> Rule | None:
        """What stands for the rule where only what leaves can be delayed; None: another rule does already."""
        return self

    @property
    def note_on_egress_alone(self) -> str:
        """Why another rule stands for it there."""
        return ""

    @classmethod
    def macros_of(cls, rules: Sequence[Self]) -> Macros:
        """What makes a program that of all these, where rules share one. It counts for each by its place
        among them: `count_for` of bpf/podmgr.h.
        """
        (rule,) = rules
        return rule.macros

    @abstractmethod
    def explain(self) -> list[tuple[str, str]]:
        """What the rule means in numbers, as (label, text) rows."""

    def caveats(self, hook: Hook) -> list[str]:  # noqa: ARG002
        """What the rule's effect at that hook is not, one line each: what a user would otherwise believe."""
        return []

    def figures(self, counted: Sequence[int]) -> list[Figure]:  # noqa: ARG002
        """What the numbers mean that the rule's program keeps: `podmgr_figures` of bpf/podmgr.h."""
        return []

    @property
    def collision_key(self) -> CollisionKey:
        """Two rules with the same key cannot both hold on one pod."""
        return CollisionKey(self.kind, self.direction, self.match)

    @property
    def succession_key(self) -> CollisionKey:
        """A rule takes the place of one with the same key that goes."""
        return CollisionKey(self.kind, self.direction, self.match)

    @property
    def options(self) -> list[str]:
        """Those that every kind has, as they are written."""
        shadow = ["mode=shadow"] if self.is_shadow else []
        return [*self.match.words, *self.timing.words, *shadow, *self.place.words]

    def explain_options(self) -> list[tuple[str, str]]:
        """What the options of every kind mean, as (label, text) rows."""
        shadow = [("mode", "shadow: it counts what it would do, and touches nothing")]
        return [*match.explained(self.match), *timing.explained(self.timing), *(shadow * self.is_shadow)]

    @property
    def value(self) -> str:
        """The value of the annotation."""
        return " ".join([*self.words, *self.options])

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def only(rules: Sequence[Rule]) -> Rule:
    """The rule of a text that a rule itself has written, which is one."""
    (rule,) = rules
    return rule
