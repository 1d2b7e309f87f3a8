"""What a rule is: a wish with a kind, a direction and parameters. Pure data.

Reading what users write is `grammar`'s business, what program fulfils a rule is `programs.catalog`'s.
`str(rule)` is the canonical `KEY=VALUE`, and reading that gives the same rule again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar, NamedTuple

from podmgr.rules.units import format_number, format_rate, format_size

PREFIX = "podmgr.io/"

MIN_BURST_BYTES = 1_514  # one full Ethernet frame
MAX_BURST_BYTES = 1_000_000_000
MAX_EXPONENTIAL = 1_000
MAX_INTERFACES = 16
RESERVED_MACROS = frozenset(
    {"INTERFACE", "DIRECTION_EGRESS", "PODMGR_LOOPBACK", "PODMGR_SCOPED", "PODMGR_TC"}
)


class Direction(StrEnum):
    """egress leaves the pod, ingress reaches it."""

    EGRESS = "egress"
    INGRESS = "ingress"


class Hook(StrEnum):
    """Where a program sits: on the pod's cgroup, or at tc (clsact) on interfaces."""

    CGROUP = "cgroup"
    TC = "tc"


class Algorithm(StrEnum):
    """How a bandwidth rule limits: tbf drops what exceeds the bucket, edt delays it."""

    TBF = "tbf"
    EDT = "edt"


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


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """At most `rate_bits_per_second` (8 000 to 4e11). `burst_bytes` None: chosen from the rate."""

    key: ClassVar[str] = "bandwidth"
    kind: ClassVar[str] = "bandwidth"
    direction: Direction
    rate_bits_per_second: int
    burst_bytes: int | None = None
    algorithm: Algorithm = Algorithm.TBF
    place: Place = ANYWHERE

    @property
    def value(self) -> str:
        words = [format_rate(self.rate_bits_per_second), self.direction.value]
        if self.burst_bytes is not None:
            words.append(f"burst={format_size(self.burst_bytes)}")
        if self.algorithm is not Algorithm.TBF:
            words.append(f"algorithm={self.algorithm}")
        return " ".join(words + self.place.words)

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class UniformLoss:
    """Each packet is dropped with probability `percent` / 100, 0 to 100."""

    key: ClassVar[str] = "loss"
    kind: ClassVar[str] = "loss"
    direction: Direction
    percent: Decimal
    place: Place = ANYWHERE

    @property
    def value(self) -> str:
        return " ".join([f"uniform {self.direction} {format_number(self.percent)}%", *self.place.words])

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class ExponentialLoss:
    """A packet whose exponential variate exceeds `threshold` (0 to 1000) is dropped."""

    key: ClassVar[str] = "loss"
    kind: ClassVar[str] = "loss"
    direction: Direction
    threshold: Decimal
    place: Place = ANYWHERE

    @property
    def value(self) -> str:
        return " ".join([f"exponential {self.direction} {format_number(self.threshold)}", *self.place.words])

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class Custom:
    """The user's own program `name`, with macros sorted by name; a value of None is a bare -DX."""

    key: ClassVar[str] = "ebpf-limit"
    kind: ClassVar[str] = "custom"
    direction: Direction
    name: str
    macros: tuple[tuple[str, str | None], ...] = ()
    place: Place = ANYWHERE

    @property
    def macro_words(self) -> str:
        """The macros as they are written, each behind a blank."""
        return "".join(f" -D{name}" + ("" if value is None else f"={value}") for name, value in self.macros)

    @property
    def value(self) -> str:
        return " ".join([f"{self.name} {self.direction}{self.macro_words}", *self.place.words])

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


Rule = Bandwidth | UniformLoss | ExponentialLoss | Custom
CollisionKey = tuple[str, Direction]

KEYS = (Bandwidth.key, UniformLoss.key, Custom.key)


def collision_key(rule: Rule) -> CollisionKey:
    """Two rules with the same key cannot both hold on one pod: (kind, direction).

    A custom program with other macros is another kind: one that drops port 80, and one 443.
    """
    kind = f"custom {rule.name}{rule.macro_words}" if isinstance(rule, Custom) else rule.kind
    return (kind, rule.direction)


def succession_key(rule: Rule) -> CollisionKey:
    """A rule takes the place of one with the same key that goes: as before, whatever the macros."""
    return (f"custom {rule.name}" if isinstance(rule, Custom) else rule.kind, rule.direction)


def bare_key(key: str) -> str | None:
    """`bandwidth` for `bandwidth` and `podmgr.io/bandwidth`; None for keys that are not ours."""
    bare = key.removeprefix(PREFIX)
    return bare if bare in KEYS else None


def is_own_key(key: str) -> bool:
    """Whether an annotation is podmgr's business: a known key, or anything that is prefixed."""
    return key in KEYS or key.startswith(PREFIX)


def annotation_values(annotations: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (key, value) pairs that hold rules; the prefixed key replaces the bare key whole.

    Keys that are not podmgr's are left out.
    """
    return [
        (key, annotations[key])
        for bare in KEYS
        for key in [PREFIX + bare if PREFIX + bare in annotations else bare]
        if key in annotations
    ]
