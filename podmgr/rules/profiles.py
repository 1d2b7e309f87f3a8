"""Profiles: networks by name, their figures with a source, and the ordinary rules that each stands for.

podmgr's own are the table profiles.toml beside this file, which is read as a module is: once, when one is
named. Those of a program folder are found by `programs.profiles`, and read here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from podmgr.errors import PodmgrError, RuleError, printable
from podmgr.rules.kinds import BY_KEY
from podmgr.rules.kinds.bandwidth import Bandwidth
from podmgr.rules.kinds.delay import Delay
from podmgr.rules.kinds.loss import UniformLoss
from podmgr.rules.kinds.loss_bursts import BurstLoss
from podmgr.rules.rule import Direction, Rule
from podmgr.rules.words import Words, closest

_FIGURES = ("down", "up", "round-trip", "delay-down", "delay-up", "jitter", "loss", "run")
_FIELDS = (*_FIGURES, "source", "kind", "note")
_TIP = f"a profile has {', '.join(_FIGURES[:-1])} and run, and source, kind and note"


class Basis(StrEnum):
    """What a profile's figures rest on: a measuring campaign, or a tool author's judgement."""

    MEASURED = "measured"
    JUDGED = "judged"


class Profile(NamedTuple):
    """`rules` are the parts, a rule each of a kind and direction; `note` is where podmgr differs, or ""."""

    name: str
    rules: tuple[Rule, ...]
    source: str
    kind: Basis
    note: str = ""

    def rate_bits_per_second(self, direction: Direction) -> int | None:
        """None where it has no rate."""
        rates = [rule for rule in self.rules if isinstance(rule, Bandwidth) and rule.direction is direction]
        return rates[0].rate_bits_per_second if rates else None

    @property
    def round_trip_ns(self) -> int:
        """What it adds to a round trip; 0 for nothing."""
        return sum(rule.time_ns for rule in self.rules if isinstance(rule, Delay))

    @property
    def jitter_ns(self) -> int:
        """How far a round trip strays from that."""
        return sum(rule.jitter_ns for rule in self.rules if isinstance(rule, Delay))

    @property
    def loss_percent(self) -> Decimal:
        """Of each direction."""
        losses = [rule.percent for rule in self.rules if isinstance(rule, UniformLoss | BurstLoss)]
        return losses[0] if losses else Decimal(0)

    @property
    def run_packets(self) -> Decimal | None:
        """How many packets are lost in a row on average; None where each is lost for itself."""
        return next((rule.length for rule in self.rules if isinstance(rule, BurstLoss)), None)


@functools.cache
def built_in() -> Mapping[str, Profile]:
    """podmgr's own profiles, by name, in the order of the table."""
    import pkgutil  # both 5 ms: only where a profile is named
    import tomllib

    content = pkgutil.get_data("podmgr.rules", "profiles.toml") or b""
    table = tomllib.loads(content.decode())
    return {name: profile_of(name, figures) for name, figures in table.items()}


def rules_of_built_in(name: str) -> tuple[Rule, ...]:
    """What one of podmgr's own profiles stands for. Raises PodmgrError if there is none of that name."""
    if name not in built_in():
        raise unknown(name, built_in())
    return built_in()[name].rules


def unknown(name: str, known: Iterable[str], *, where: str = "") -> PodmgrError:
    """The error for a name that no profile has; `where` says how to make one."""
    guess = closest(name, known)
    tip = (f"did you mean {guess!r}? " if guess else "") + "podmgr profiles lists them"
    return PodmgrError(f"there is no profile {name!r}", tip=tip + where)


def read(name: str, content: bytes, *, source: str) -> Profile:
    """The profile in a file of TOML; `source` is that of one that names none. Raises PodmgrError."""
    import tomllib

    try:
        figures = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PodmgrError(
            f"not TOML: {error}", tip='NAME = "VALUE" lines, such as down = "16 mbps"'
        ) from error
    return profile_of(name, {"source": source, "kind": Basis.JUDGED} | figures)


def profile_of(name: str, figures: Mapping[str, Any]) -> Profile:
    """The profile with these figures. Raises PodmgrError for what is none, and for figures out of range."""
    texts = {field: _text(field, value) for field, value in figures.items()}
    if texts["kind"] not in list(Basis):
        raise PodmgrError(f"kind is {texts['kind']!r}", tip=f"kind is {' or '.join(Basis)}")
    if not texts["source"]:
        raise PodmgrError("source is empty", tip="say where the figures are from")
    parts = tuple(replace(rule, of_profile=name) for rule in _parts(texts))
    if not parts:
        raise PodmgrError("no figure", tip=_TIP)
    return Profile(name, parts, texts["source"], Basis(texts["kind"]), texts.get("note", ""))


def _text(field: str, value: object) -> str:
    if field not in _FIELDS:
        guess = closest(field, _FIELDS)
        raise PodmgrError(
            f"unknown {printable(field)[:40]!r}", tip=(f"did you mean {guess!r}? " if guess else "") + _TIP
        )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PodmgrError(f"{field} is not text", tip=f'put it into quotes: {field} = "..."')
    return str(value)


def _parts(texts: Mapping[str, str]) -> list[Rule]:
    rules: list[Rule] = []
    for field, direction in (("up", Direction.EGRESS), ("down", Direction.INGRESS)):
        if field in texts:
            rules += _read("bandwidth", field, texts[field], direction, "algorithm=edt")
    return [*rules, *_delays(texts), *_losses(texts)]


def _delays(texts: Mapping[str, str]) -> tuple[Rule, ...]:
    jitter = f"jitter={texts['jitter']}" if "jitter" in texts else ""
    one_way = [field for field in ("delay-up", "delay-down") if field in texts]
    if "round-trip" in texts:
        if one_way:
            raise PodmgrError(f"round-trip and {one_way[0]}", tip="one of them")
        return _read("delay", "round-trip", texts["round-trip"], "rtt", jitter)
    if jitter and not one_way:
        raise PodmgrError("jitter without a delay", tip="round-trip, or delay-up and delay-down")
    ways = {"delay-up": Direction.EGRESS, "delay-down": Direction.INGRESS}
    found = [
        rule
        for field in one_way
        for rule in _read("delay", field, texts[field], ways[field], jitter)
        if isinstance(rule, Delay)
    ]
    # Where only what leaves can be delayed, that is delayed by the time of both, as it is with a round trip.
    whole_ns = sum(rule.time_ns for rule in found)
    widest_ns = sum(rule.jitter_ns for rule in found)
    return tuple(
        replace(rule, round_trip_ns=whole_ns, round_trip_jitter_ns=widest_ns) if len(found) > 1 else rule
        for rule in found
    )


def _losses(texts: Mapping[str, str]) -> tuple[Rule, ...]:
    if "loss" not in texts:
        if "run" in texts:
            raise PodmgrError("run without a loss", tip='loss = "P%"')
        return ()
    if "run" in texts:
        return _read("loss", "run", "burst both", texts["loss"], f"length={texts['run']}")
    return _read("loss", "loss", "uniform both", texts["loss"])


def _read(key: str, field: str, *texts: str) -> tuple[Rule, ...]:
    """The rules of a value, by the grammar of its kind; an error names the field of the profile."""
    kind, value = BY_KEY[key], " ".join(filter(None, texts))
    if ";" in value:
        raise PodmgrError(f"{field} is more than one rule", tip=kind.form)
    try:
        return kind.parse(Words(key, value, 0, len(value), kind.form))
    except RuleError as error:
        raise PodmgrError(f"{field}: {error.problem}", tip=error.expected) from error


def is_replaced(part: Rule, written: Iterable[Rule]) -> bool:
    """Whether a rule that somebody has written beside the profile stands in the place of this part."""
    return any(rule.collision_key == part.collision_key for rule in written)


def rival_of(rule: Rule, others: Iterable[Rule]) -> Rule | None:
    """Of rules that are written in one place, the one that cannot stand beside this: there is one profile."""
    return next(
        (
            other
            for other in others
            if rule.collision_key == other.collision_key or (rule.of_profile and other.of_profile)
        ),
        None,
    )


def rivalry(rule: Rule, other: Rule, shown: Callable[[Rule], str]) -> tuple[str, str]:
    """What is wrong with two such rules, which are `shown` so, and what would be right."""
    if rule.of_profile and other.of_profile:
        return (
            f"two profiles: {other.of_profile} and {rule.of_profile}"
            if rule.of_profile != other.of_profile
            else f"the profile {rule.of_profile} twice",
            "one profile; a rule beside it beats what it has of that kind and direction",
        )
    expected = "each rule once" if rule == other else f"one {rule.kind} rule per direction and match"
    return f"'{shown(rule)}' collides with '{shown(other)}'", expected
