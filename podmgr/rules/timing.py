"""When a rule is in force: the options after, for, every and until. Pure.

All but `until` is counted from when the rule was attached to its pod; what acts is the program itself
(bpf/timing.h), whoever is dead meanwhile.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from podmgr.errors import Fail, printable
from podmgr.rules.units import LONG_TIME_UNITS, format_long_time, scaled

MAX_TIME_NS = 366 * 24 * 3_600 * 10**9  # a year
MIN_TIME_NS = 1_000_000  # what is shorter is over before a packet sees it
UNTIL = "until=2027-01-31T18:00:00Z: a date, a time and its zone (RFC 3339)"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of the last year that there is; in some zones that goes on a little.
_LAST_NS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1) * 10**9
# How many digits a unit's number may have, before the point: one more than that of the longest time.
DIGITS = {unit: 1 + len(str(MAX_TIME_NS // LONG_TIME_UNITS[unit])) for unit in ("h", "m", "s", "ms", "us")}
TIME = re.compile(
    "".join(rf"(?:([0-9]{{1,{most}}}(?:\.[0-9]{{1,9}})?){unit})?" for unit, most in DIGITS.items()), re.ASCII
)
CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_RFC3339 = re.compile(
    rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt]({CLOCK}:[0-5][0-9])(\.[0-9]{{1,9}})?([Zz]|[-+]{CLOCK})",
    re.ASCII,
)


class Timing(NamedTuple):
    """In nanoseconds; 0 is not said. `until_ns` is since 1970.

    In force from `after_ns` on, for `for_ns`; with `every_ns` so again in each such period. Not from
    `until_ns` on.
    """

    after_ns: int = 0
    for_ns: int = 0
    every_ns: int = 0
    until_ns: int = 0

    @property
    def words(self) -> list[str]:
        """As options of a rule."""
        times = zip(OPTIONS, self[:3], strict=False)
        words = [f"{name}={format_long_time(time_ns)}" for name, time_ns in times if time_ns]
        return words + ([f"until={_format_until(self.until_ns)}"] if self.until_ns else [])

    def ends_ns(self, start_ns: int, until_ns: int) -> int | None:
        """When it is over for good, on the clock of `start_ns`; None: never. `until_ns` on that clock too."""
        ends = [start_ns + self.after_ns + self.for_ns] if self.for_ns and not self.every_ns else []
        ends += [until_ns] if self.until_ns else []
        return min(ends, default=None)


def explained(timing: Timing) -> list[tuple[str, str]]:
    """The times as a (label, text) row; none if it is always in force."""
    parts = []
    if timing.after_ns:
        parts.append(f"from {format_long_time(timing.after_ns)} after it is attached")
    if timing.for_ns:
        parts.append(f"for {format_long_time(timing.for_ns)}")
    if timing.every_ns:
        parts.append(f"again every {format_long_time(timing.every_ns)}")
    if timing.until_ns:
        parts.append(f"not from {_format_until(timing.until_ns)} on")
    return [("in force", ", ".join(parts))] if parts else []


OPTIONS = ("after", "for", "every", "until")
ALWAYS = Timing()


def with_option(timing: Timing, name: str, text: str, fail: Fail) -> Timing:
    """The timing with one more option, which is not in it yet. Raises RuleError by way of `fail`."""
    if name == "until":
        return timing._replace(until_ns=_until(text, fail))
    return timing._replace(**{f"{name}_ns": _time(name, text, fail)})


def require_possible(timing: Timing, fail: Fail) -> None:
    """Raise RuleError for times that contradict each other."""
    if timing.every_ns and not timing.for_ns:
        raise fail("every= needs for=", "every=TIME for=TIME: in force for so long in each such period")
    if timing.every_ns and timing.for_ns > timing.every_ns:
        shown = format_long_time(timing.every_ns)
        raise fail(f"the pulse is longer than its period of {shown}", f"for= of {shown} at most")


def expected_of(name: str) -> str:
    """What an option of a time should be."""
    return f"{name}=TIME, such as {name}=30s or {name}=1m30s; units are {', '.join(LONG_TIME_UNITS)}"


def _time(name: str, text: str, fail: Fail) -> int:
    expected = expected_of(name)
    plain = text.lower()
    parts = TIME.fullmatch(plain)
    if not plain or parts is None:
        negative = "negative: " if plain.startswith("-") else ""
        raise fail(f"{negative}{printable(text)[:40]!r} is not a time", expected)
    numbers = zip(DIGITS, parts.groups(), strict=True)
    time_ns = sum(scaled(Decimal(number), LONG_TIME_UNITS[unit]) for unit, number in numbers if number)
    if not MIN_TIME_NS <= time_ns <= MAX_TIME_NS:
        raise fail(f"{name}={printable(text)[:40]} is out of range", f"{name}= from 1ms to 8784h (a year)")
    return time_ns


def _until(text: str, fail: Fail) -> int:
    match = _RFC3339.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        zone = "+00:00" if match[4] in "Zz" else match[4]
        moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}")
    except ValueError:
        has_none = re.fullmatch(r"[-0-9]+[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?", text)
        problem = "has no zone" if has_none else "is no moment"
        raise fail(f"{printable(text)[:40]!r} {problem}", UNTIL) from None
    until_ns = min((moment - _EPOCH) // timedelta(seconds=1) * 10**9, _LAST_NS)
    if until_ns <= 0:
        raise fail(f"{printable(text)[:40]} lies before 1970", UNTIL)
    return until_ns + int(((match[3] or ".")[1:] + "0" * 9)[:9])


def _format_until(until_ns: int) -> str:
    seconds, ns = divmod(until_ns, 10**9)
    fraction = f".{ns:09d}".rstrip("0").rstrip(".")
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S") + f"{fraction}Z"
