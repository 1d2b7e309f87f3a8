"""`loss`: packets are dropped, each for itself (bpf/loss.bpf.c) or in runs (bpf/burst.bpf.c)."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from podmgr.rules.chance import DRAWS, probability_text, rounding_caveats, threshold_of
from podmgr.rules.kinds import loss_bursts, loss_text
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.kinds.loss_base import DECIDES, HOOKS, Loss
from podmgr.rules.rule import Hook, Macros, Rule, Stage, Template
from podmgr.rules.units import format_number
from podmgr.rules.words import Words

MAX_EXPONENTIAL = 1_000
_THRESHOLDS_ARE = "T from 0 (drops all) to 1000 (drops 2 %)"

_LIKE_A_NUMBER = re.compile(r"[-+]?\.?[0-9].*", re.ASCII)

_LOSS = Template("loss", Stage.LOSS, HOOKS, second_choice=Hook.CGROUP)


@dataclass(frozen=True, slots=True)
class _Independent(Loss):
    """What both have in common whose packets are lost each for itself: a draw below a threshold drops it."""

    @property
    @abstractmethod
    def drop_threshold(self) -> int:
        """How many of 2^32 equally likely draws drop the packet."""

    @property
    def program(self) -> str:
        return _LOSS.name

    @property
    def macros(self) -> Macros:
        return (("THRESHOLD", f"{self.drop_threshold}ULL"),)

    def explain(self) -> list[tuple[str, str]]:
        return [("drop probability", probability_text(self.drop_threshold)), DECIDES]


@dataclass(frozen=True, slots=True)
class UniformLoss(_Independent):
    """Each packet is dropped with probability `percent` / 100, 0 to 100."""

    percent: Decimal

    @property
    def words(self) -> list[str]:
        return ["uniform", self.direction, f"{format_number(self.percent)}%"]

    @property
    def drop_threshold(self) -> int:
        return threshold_of(self.percent)

    def caveats(self, hook: Hook) -> list[str]:
        return rounding_caveats(self, self.percent, "drops") + Loss.caveats(self, hook)


@dataclass(frozen=True, slots=True)
class ExponentialLoss(_Independent):
    """A packet whose exponential variate exceeds `threshold` (0 to 1000) is dropped."""

    threshold: Decimal

    @property
    def words(self) -> list[str]:
        return ["exponential", self.direction, format_number(self.threshold)]

    @property
    def drop_threshold(self) -> int:
        """P(drop) = P(variate > T) = 50^(-T/1000), since the variate's 98 % quantile is 1000."""
        return int((Decimal(50) ** (-self.threshold / 1000) * DRAWS).to_integral_value())


def _parse(words: Words) -> tuple[Rule, ...]:
    if words.next_like(_LIKE_A_NUMBER):  # the short form
        percent = words.percent("the probability")
        directions, (_, common) = words.directions(), words.options({})
        return tuple(UniformLoss(direction, percent, **common._asdict()) for direction in directions)
    distribution = words.choice(("uniform", "exponential", *loss_bursts.READERS), "distribution")
    directions = words.directions()
    if reader := loss_bursts.READERS.get(distribution):
        return reader(words, directions)
    if distribution == "exponential":
        threshold = _threshold(words)
        _, common = words.options({})
        return tuple(ExponentialLoss(direction, threshold, **common._asdict()) for direction in directions)
    percent = words.percent("the probability")
    _, common = words.options({})
    return tuple(UniformLoss(direction, percent, **common._asdict()) for direction in directions)


def _threshold(words: Words) -> Decimal:
    words.split_number()
    threshold = words.number("the threshold T")
    if threshold > MAX_EXPONENTIAL:
        raise words.fail(f"T = {format_number(threshold)} is out of range", _THRESHOLDS_ARE)
    return threshold


_FORM = (
    '"uniform DIRECTION P%", in short "P% DIRECTION", "exponential DIRECTION T", '
    '"burst DIRECTION P% length=N", "gilbert DIRECTION p=P% r=P%" or "markov DIRECTION p13=P% p31=P%"; '
    'such as "2% egress"'
)

KIND = Kind(
    key=Loss.key,
    form=_FORM,
    meaning="Each packet is dropped with probability P; exponential: if its exponential variate exceeds "
    "T, which is with probability 50^(-T/1000); burst: P of all, in runs of N packets on average; gilbert: "
    "Gilbert-Elliott (also bad=P%, good=P%); markov: netem's four states (also p32=, p23=, p14=).",
    example="loss=uniform egress 2%",
    parse=_parse,
    templates=(_LOSS, loss_bursts.TEMPLATE),
    text=partial(loss_text.text, _FORM, MAX_EXPONENTIAL, _THRESHOLDS_ARE),
)
