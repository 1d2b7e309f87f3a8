"""How a delay is distributed about its mean: quantiles, as bpf/delay.bpf.c draws from them. Pure.

A table has STEPS + 1 quantiles, those of 0, 1/STEPS … 1, in SCALEths of a standard deviation above or below
the mean. Between two of them a draw is interpolated.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist

STEPS = 1024
SCALE = 4096
END = 8  # standard deviations: no table goes further

_WHOLE = re.compile(r"[-+]?[0-9]{1,9}", re.ASCII)
_MOST = END * SCALE - 1
_MOST_VALUES = 65_536
_MOST_CHARACTERS = 1 << 20
_FILE_SCALE = 8192  # netem's, whose tables end at 4 standard deviations
_FILE_RANGE = range(-(2**15), 2**15)
_NORMAL_END = 1e-5  # as probability
_NORMAL_SHARE = 0.25  # of paretonormal; the rest is pareto. netem's table is made so
_PARETO_SHAPE = 3.0  # netem's, too
_PARETO_END = 7  # standard deviations


def _normal() -> list[float]:
    inner = [step / STEPS for step in range(1, STEPS)]
    return [NormalDist().inv_cdf(step) for step in (_NORMAL_END, *inner, 1 - _NORMAL_END)]


def _pareto() -> list[float]:
    """Cut so that its end is _PARETO_END off its mean: the more is kept, the further."""
    low, high = 0.5, 1.0
    for _ in range(40):
        cut = (low + high) / 2
        table = [(1 - cut * step / STEPS) ** (-1 / _PARETO_SHAPE) for step in range(STEPS + 1)]
        mean, deviation = _moments(table)
        is_far = (table[-1] - mean) / deviation > _PARETO_END
        low, high = (low, cut) if is_far else (cut, high)
    return [(value - mean) / deviation for value in table]


@functools.cache
def quantiles(name: str) -> tuple[int, ...]:
    """The table of a distribution in BUILT_IN."""
    return _standardized(BUILT_IN[name]())


def read_table(text: str) -> tuple[int, ...]:
    """The table that a file of netem's format makes: numbers in 8192ths of the deviation, in any order.

    `#` begins a comment. Raises ValueError, with the reason as its text.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, {_MOST_CHARACTERS:,} are the most")
    values: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        for word in line.partition("#")[0].split():
            if not _WHOLE.fullmatch(word):
                raise ValueError(f"line {number}: {word[:40]!r} is not a whole number")
            value = int(word)
            if value not in _FILE_RANGE:
                raise ValueError(
                    f"line {number}: {value} is not between {_FILE_RANGE[0]} and {_FILE_RANGE[-1]}"
                )
            values.append(value)
    if not 2 <= len(values) <= _MOST_VALUES:
        raise ValueError(f"it has {len(values):,} numbers, and not 2 to {_MOST_VALUES:,}")
    values.sort()
    return tuple(round(value * SCALE / _FILE_SCALE) for value in _resampled(values))


def quantiles_macro(table: Sequence[int]) -> tuple[str, str]:
    """What tells a program of it."""
    return ("QUANTILES", ",".join(map(str, table)))


def quantile(table: Sequence[int], probability: float) -> float:
    """In standard deviations from the mean."""
    place = probability * (len(table) - 1)
    step = min(int(place), len(table) - 2)
    return (table[step] + (table[step + 1] - table[step]) * (place - step)) / SCALE


def _paretonormal() -> list[float]:
    """The sum of independent draws of both, by the sums of their quantiles."""
    normal = [NormalDist().inv_cdf((step + 0.5) / 128) for step in range(128)]
    pareto = _pareto()[2::4]
    return _resampled(
        sorted(_NORMAL_SHARE * one + (1 - _NORMAL_SHARE) * other for one in normal for other in pareto)
    )


BUILT_IN: Mapping[str, Callable[[], list[float]]] = {
    "normal": _normal,
    "pareto": _pareto,
    "paretonormal": _paretonormal,
}


def _resampled(values: Sequence[float]) -> list[float]:
    """STEPS + 1 quantiles of sorted values."""
    found = []
    for step in range(STEPS + 1):
        place = step * (len(values) - 1) / STEPS
        index = min(int(place), len(values) - 2)
        found.append(values[index] + (values[index + 1] - values[index]) * (place - index))
    return found


def _moments(table: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of what is drawn from it."""
    pairs = list(pairwise(table))
    mean = sum((low + high) / 2 for low, high in pairs) / len(pairs)
    squares = sum((low * low + low * high + high * high) / 3 for low, high in pairs) / len(pairs)
    return mean, (squares - mean**2) ** 0.5


def _standardized(table: Sequence[float]) -> tuple[int, ...]:
    mean, deviation = _moments(table)
    return tuple(max(-_MOST, min(_MOST, round((value - mean) / deviation * SCALE))) for value in table)


def ends(table: Sequence[int]) -> tuple[float, float]:
    """The least and the most that is drawn, in standard deviations from the mean."""
    return table[0] / SCALE, table[-1] / SCALE


FILE_ENDS = (-(2**15) / _FILE_SCALE, 2**15 / _FILE_SCALE)  # of a table of one's own, whatever is in it
