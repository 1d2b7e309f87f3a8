"""What a benchmark found: tables, charts and claims, as data that JSON carries. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

Value = str | int | float | bool | None

_RESAMPLINGS = 4_000


@dataclass(frozen=True)
class Table:
    """Values below headings; a float is shown as `digits` says, a missing value as a dash."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    digits: int = 2
    note: str = ""

    def texts(self) -> list[list[str]]:
        return [[self._text(value) for value in row] for row in self.rows]

    def are_numbers(self) -> list[bool]:
        """Column by column."""
        return [
            any(isinstance(row[column], int | float) for row in self.rows)
            for column in range(len(self.headings))
        ]

    def _text(self, value: Value) -> str:
        if value is None:
            return "–"
        return f"{value:,.{self.digits}f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Series:
    """Points of one colour; low and high, where they are known, are the ends of each point's interval."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Series over one axis. Where x is text they are bars, else points; `goals` are lines across."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    goals: tuple[float, ...] = ()
    has_lines: bool = True  # from point to point


@dataclass(frozen=True)
class Claim:
    """What the figures are to show: a value against its limit, of which it is on the right side or not."""

    text: str
    value: float
    limit: float
    unit: str = ""
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.is_least else self.value <= self.limit

    def __str__(self) -> str:
        word = "at least" if self.is_least else "at most"
        return f"{self.text}: {self.value:.4g}{self.unit}, {word} {self.limit:g}{self.unit}"


@dataclass(frozen=True)
class Findings:
    """All that one benchmark found."""

    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Findings, and what must be known to read them."""

    benchmark: str
    command: str
    date: str
    machine: tuple[tuple[str, str], ...]
    seconds: float
    findings: Findings

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Report:
        found = document["findings"]
        findings = Findings(
            tuple(
                Table(**item | {"headings": tuple(item["headings"]), "rows": tuple(map(tuple, item["rows"]))})
                for item in found["tables"]
            ),
            tuple(
                Chart(
                    **item
                    | {
                        "goals": tuple(item["goals"]),
                        "series": tuple(
                            Series(**{key: _frozen(value) for key, value in series.items()})
                            for series in item["series"]
                        ),
                    }
                )
                for item in found["charts"]
            ),
            tuple(Claim(**item) for item in found["claims"]),
            tuple(found["notes"]),
        )
        machine = tuple((label, text) for label, text in document["machine"])
        return Report(**document | {"machine": machine, "findings": findings})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians, with its 95 % interval by bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of the medians; the interval from resampling both, with a fixed seed."""
    chance = random.Random(1)
    found = sorted(
        median(chance.choices(ours, k=len(ours))) / max(median(chance.choices(theirs, k=len(theirs))), 1e-9)
        for _ in range(_RESAMPLINGS)
    )
    edge = _RESAMPLINGS // 40
    return Ratio(median(ours) / max(median(theirs), 1e-9), found[edge], found[-edge])


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    found = sorted(values)
    return median(found), found[0], found[-1]


def above(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """What our least is above the least of the base, and the range of that over thirds of the rounds."""
    bounds = [len(ours) * third // 3 for third in range(4)]
    found = [min(ours[start:end]) - min(base[start:end]) for start, end in pairwise(bounds)]
    whole = min(ours) - min(base)
    return whole, min(whole, *found), max(whole, *found)
