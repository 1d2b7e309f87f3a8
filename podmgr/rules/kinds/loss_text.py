"""How a loss is written, for the policy."""

from __future__ import annotations

from decimal import Decimal

from podmgr.rules.kinds.loss_bursts import LENGTHS_ARE, MAX_LENGTH, OPTIONS, REQUIRED
from podmgr.rules.policy.cel import NOTHING, first, fixed, is_so, option, says
from podmgr.rules.policy.patterns import MOST_DIGITS, between, words
from podmgr.rules.policy.text import Form, Option, Part, Text, direction, percent, percent_option

_BLOCK = 13  # digits of a percentage's decimals that are added at once
_EXACT = (7, 3)  # decimals of P and N; further ones of both are taken for a further unit of the last of N


def text(form: str, most_threshold: int, threshold_is: str) -> Text:
    """`form` is what is said of a loss that is written in none; the threshold is that of `exponential`."""
    names = ("uniform", "exponential", *REQUIRED)
    unknown = ("unknown distribution", f"distributions are {', '.join(names)}")
    threshold = Part(
        f" {between(Decimal(0), Decimal(most_threshold))}",
        "the threshold T is missing, wrong or out of range",
        threshold_is,
        is_number=True,
    )
    behind = {"uniform": (percent(form),), "exponential": (threshold,), "burst": (percent(form),)}
    forms = [Form((percent(form, begins=True), direction()), begins=r"[-+]?\.?[0-9]")]
    forms += [
        Form(
            (Part(words((name,)), *unknown), direction(), *behind.get(name, ())),
            OPTIONS.get(name, ()),
            begins=f"{words((name,))}(?: |$)",
            required=REQUIRED.get(name, {}),
        )
        for name in names
    ]
    percents = [name for form_of in ("gilbert", "markov") for name in OPTIONS[form_of]]
    length = Option("length", between(Decimal(1), Decimal(MAX_LENGTH)), LENGTHS_ARE, is_number=True)
    return Text(
        tuple(forms),
        options=(length, *map(percent_option, percents)),
        facts=_facts(),
        checks=(_runs_fit(), *_states_fit()),
        unknown=unknown,
    )


def _facts() -> tuple[str, ...]:
    """P and N of a burst, and the percentages of a markov, as text of a fixed length."""
    of_burst = "w[0].matches('^(?i:burst)$') ? w[2].split('%')[0] : '0'"
    return (
        fixed(f"({of_burst})", 3),
        fixed(option("w", "length"), 7),
        *(fixed(f"{option('w', name, '0%')}.split('%')[0]", 3) for name in ("p13", "p14", "p31", "p32")),
    )


def _runs_fit() -> str:
    """P of 100 and N of N + 1 packets at most: P (N + 1) <= 100 N, in whole numbers."""
    of_percent, of_length = (before + places for before, places in zip((3, 7), _EXACT, strict=True))
    length = f"(int(n[2].substring(0, {of_length})) + (n[2].substring({of_length}).matches('^0*$') ? 0 : 1))"
    one, whole = 10 ** _EXACT[1], 100 * 10 ** _EXACT[0]
    too_short = f"int(n[1].substring(0, {of_percent})) * ({length} + {one}) > {whole} * {length}"
    why = says(
        "runs cannot be so short with such a loss", "P is N/(N+1) at most, since a packet lies between runs"
    )
    return first([(f"n[0].matches('^(?i:burst) ') && {too_short}", why)], NOTHING)


def _states_fit() -> list[str]:
    """p13 and p14 are 100% together at most, and so are p31 (100% - p13 unless said) and p32."""
    more = f"(n[0].matches(' (?i:p31)=') ? {_is_more_than_100('n[5]', 'n[6]')} : n[6] > n[3])"
    cases = [
        (_is_more_than_100("n[3]", "n[4]"), "p13 and p14 are more than 100% together", "both leave state 1"),
        (
            more,
            "p31 and p32 are more than 100% together",
            "both leave state 3; p31 is 100% - p13 unless said",
        ),
    ]
    is_markov = "n[0].matches('^(?i:markov) ')"
    return [first([(f"{is_markov} && {is_more}", says(*why))], NOTHING) for is_more, *why in cases]


def _is_more_than_100(one: str, other: str) -> str:
    """The sum of two percentages, exactly: the decimals are added in blocks, from the last on."""
    count = MOST_DIGITS // _BLOCK
    parts = ["0, 3", *(f"{3 + _BLOCK * block}, {3 + _BLOCK * (block + 1)}" for block in range(count - 1))]
    parts.append(str(3 + MOST_DIGITS - _BLOCK))
    blocks = ", ".join(f"int({one}.substring({part})) + int({other}.substring({part}))" for part in parts)
    limit = 10**_BLOCK
    body = f"s[0] > 100 || (s[0] == 100 && ({' || '.join(f's[{at}] > 0' for at in range(1, count + 1))}))"
    for at in range(1, count + 1):
        carried = [
            f"s[{place}] + s[{at}] / {limit}"
            if place == at - 1
            else f"s[{place}] % {limit}"
            if place == at
            else f"s[{place}]"
            for place in range(count + 1)
        ]
        body = is_so("s", f"[{', '.join(carried)}]", body)
    return is_so("s", f"[{blocks}]", body)
