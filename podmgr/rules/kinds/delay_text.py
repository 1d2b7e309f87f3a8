"""How a delay is written, for the policy; and what its reader says of it with the same words."""

from __future__ import annotations

from collections.abc import Iterable

from podmgr.rules import distributions
from podmgr.rules.policy.cel import NOTHING, first, option, quoted, says, scaled
from podmgr.rules.policy.patterns import amounts
from podmgr.rules.policy.text import Form, Option, Text, amount, choice_option, direction
from podmgr.rules.programs import NAME
from podmgr.rules.rule import Direction, Hook
from podmgr.rules.units import TIME_UNITS, format_time
from podmgr.rules.waiting import MAX_WAIT_NS, MIN_WAIT_NS

UNIFORM, RTT = "uniform", "rtt"
WAYS = (*Direction, "both", RTT)
FORM = 'TIME DIRECTION, such as "100ms egress jitter=10ms" or "80ms rtt"'
ORDERS_ARE = "keep or free"
SHORT_TRIP = ("less than 2us for both ways", "a round trip of 2us or more")

_OF_JITTER = ("distribution", "correlation", "order")
_JITTER = ("distribution, correlation and order belong to a jitter", "jitter=TIME beside them")
_HALVES = "a jitter up to half of it and some: each half has a distribution of its own"
_TIME = "(w[0].matches('[A-Za-z]$') ? w[0] : w[0] + w[1])"


def text(orders: Iterable[str]) -> Text:
    """`orders` are those that order= may name."""
    units_are = f"a time such as 100ms: units are {', '.join(TIME_UNITS)}"
    range_is = f"a time from {format_time(MIN_WAIT_NS)} to {format_time(MAX_WAIT_NS)}"
    time = amount("the time", TIME_UNITS, (MIN_WAIT_NS, MAX_WAIT_NS), FORM, units_are, range_is)
    jitter_is = f"jitter=TIME, such as jitter=10ms; units are {', '.join(TIME_UNITS)}"
    names_are = f"{', '.join((UNIFORM, *distributions.BUILT_IN))}, or NAME of a file NAME.dist"
    return Text(
        (Form((time, direction(WAYS)), options=("jitter", *_OF_JITTER)),),
        options=(
            Option("jitter", amounts(TIME_UNITS, 0, MAX_WAIT_NS), jitter_is, is_number=True),
            Option("distribution", NAME.pattern, names_are),
            Option(
                "correlation",
                r"(?:0*[0-9]{1,2}(?:\.[0-9]*)?|\.[0-9]+)%",
                "correlation=P%, less than 100%",
                is_number=True,
            ),
            choice_option("order", orders, ORDERS_ARE),
        ),
        facts=(
            f"string({scaled(_TIME, TIME_UNITS)})",
            f"string({scaled(option('w', 'jitter', '0s'), TIME_UNITS)})",
            f"{option('w', 'distribution', UNIFORM)}.lowerAscii()",
        ),
        checks=_checks(),
        hooks=(Hook.TC,),
    )


def _checks() -> tuple[str, ...]:
    """As `delay` decides it, of the time and the jitter in nanoseconds, and the distribution."""
    ends = {UNIFORM: distributions.SCALE}
    ends |= {name: distributions.quantiles(name)[-1] for name in distributions.BUILT_IN}
    known = ", ".join(f"{quoted(name)}: {end}" for name, end in ends.items())
    of_own = round(distributions.FILE_ENDS[1] * distributions.SCALE)
    end = f"(n[3] in {{{known}}} ? {{{known}}}[n[3]] : {of_own})"
    longest = f"int(n[1]) + (int(n[2]) * {end} + {distributions.SCALE - 1}) / {distributions.SCALE}"
    # As round() does it, whose halves are even; a quotient by the root of 2 is never a half.
    of_uniform = "int(n[2]) / 2 + (int(n[2]) % 4 == 3 ? 1 : 0)"
    half = f"(n[3] == '{UNIFORM}' ? {of_uniform} : int(double(n[2]) / 1.4142135623730951 + 0.5))"
    of_jitter = "|".join(_OF_JITTER)
    is_trip = f"n[0].matches(' (?i:{RTT})(?: |$)')"
    cases = [
        (f"n[2] == '0' && n[0].matches(' (?i:{of_jitter})=')", says(*_JITTER)),
        ("int(n[2]) > int(n[1])", says("the jitter is larger than the delay", "a jitter up to the delay")),
        (
            f"{longest} > {MAX_WAIT_NS}",
            says("too long a delay", f"{format_time(MAX_WAIT_NS)} at most, with all jitter"),
        ),
        (f"{is_trip} && int(n[1]) / 2 < {MIN_WAIT_NS}", says(*SHORT_TRIP)),
        (
            f"{is_trip} && {half} > int(n[1]) / 2",
            says("the jitter is too large for two halves of the time", _HALVES),
        ),
    ]
    return tuple(first([case], NOTHING) for case in cases)
