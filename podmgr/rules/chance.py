"""What happens to a packet with a probability: rules of the form `P% DIRECTION`. Pure.

A uniform 32-bit draw below a threshold decides, so that P is exact to 2^-32.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar

from podmgr.rules.rule import Hook, Macros, Rule
from podmgr.rules.units import format_count, format_number

DRAWS = 2**32  # values of a uniform 32-bit draw


def threshold_of(percent: Decimal) -> int:
    """How many of 2^32 equally likely draws make it happen: P / 100 of them, to the nearest."""
    return round(Fraction(percent) / 100 * DRAWS)


def probability_text(threshold: int) -> str:
    """The probability that so many of 2^32 draws are."""
    one_in = f"1 in {format_count(Fraction(DRAWS, threshold))}" if threshold else "never"
    return f"{threshold / DRAWS:.10g} = {threshold} / 2^32, {one_in}"


def rounding_caveats(rule: Rule, percent: Decimal, happens: str) -> list[str]:
    """Where a draw of 32 bits is too coarse for a rule of so many percent, which `happens` to packets."""
    threshold = threshold_of(percent)
    if threshold == 0 < percent:
        return [f"'{rule}' {happens} nothing: the least that is not 0 is one packet in 2^32"]
    if threshold == DRAWS and percent < 100:
        return [f"'{rule}' {happens} all: the most that is not all leaves one packet in 2^32"]
    return []


@dataclass(frozen=True, slots=True)
class ByChance(Rule):
    """Something happens to each packet with probability `percent` / 100, 0 to 100."""

    at_cgroup: ClassVar[str] = ""
    happens: ClassVar[str]  # to packets: "copies" nothing, or all
    percent: Decimal

    @property
    def words(self) -> list[str]:
        return [f"{format_number(self.percent)}%", self.direction.value, *self.own_options]

    @property
    def own_options(self) -> list[str]:
        """Those that are not the default, as they are written."""
        return []

    @property
    def program(self) -> str:
        return self.kind

    @property
    def threshold(self) -> int:
        """How many of 2^32 equally likely draws make it happen."""
        return threshold_of(self.percent)

    @property
    def macros(self) -> Macros:
        return (("THRESHOLD", f"{self.threshold}ULL"),)

    def explain(self) -> list[tuple[str, str]]:
        return [("probability", probability_text(self.threshold))]

    def caveats(self, hook: Hook) -> list[str]:  # noqa: ARG002
        return rounding_caveats(self, self.percent, self.happens)
