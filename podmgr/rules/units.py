"""Numbers with units: bit rates, byte sizes, durations, quantities; and addresses. Pure.

Rates are bits per second and sizes are bytes, both in powers of 1000. Reading never rounds
silently below the resolution of the thing itself: a rate is a whole number of bits per second,
a size a whole number of bytes.
"""

from __future__ import annotations

import math
import re
import struct
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

RATE_UNITS = {"bps": 1, "kbps": 10**3, "mbps": 10**6, "gbps": 10**9}
SIZE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6}
TIME_UNITS = {"us": 10**3, "ms": 10**6, "s": 10**9}  # in nanoseconds
LONG_TIME_UNITS = {**TIME_UNITS, "m": 60 * 10**9, "h": 3_600 * 10**9}

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)
_MAX_NUMBER_CHARACTERS = 40
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(
    r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE]([-+]?[0-9]{1,2}))?",
    re.ASCII,
)
_QUANTITY_SUFFIXES = {
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate("num kMGTPE", -3)},
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}
_DURATION_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)", re.ASCII)
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SHOWN_SECONDS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "h": Fraction(3600),
}
_MAX_DURATION_SECONDS = 86_400.0


def parse_number(text: str) -> Decimal:
    """A non-negative decimal number, exactly.

    Raises ValueError, with the reason as its text, for anything else: signs, exponents, NaN,
    and numbers of more than 40 characters.
    """
    if len(text) > _MAX_NUMBER_CHARACTERS:
        raise ValueError(f"a number of {len(text)} characters")
    if text.startswith("-") and _NUMBER.fullmatch(text[1:]):
        raise ValueError(f"{text!r} is negative")
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return Decimal(text)


def format_number(number: Decimal) -> str:
    """The shortest plain form: no exponent, no trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def scaled(number: Decimal, factor: int) -> int:
    """`number` times `factor`, to the nearest whole (halves to even)."""
    return round(Fraction(number) * factor)


def is_address(text: str) -> bool:
    """Whether it is an IP address, of version 4 or 6 and without a zone."""
    return _address(text) is not None


def address_in_c(text: str) -> str:
    """An IP address as a C program compares it with what stands in a packet, in network byte order.

    IPv4: one number, as in `ip->daddr`. IPv6: four, with commas between, as in `skb->remote_ip6`.
    """
    address = _address(text)
    if address is None:
        raise ValueError(f"{text[:60]!r} is not an IP address")
    return ", ".join(f"0x{word:08x}U" for (word,) in struct.iter_unpack("=I", address.packed))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    if not ("." in text or ":" in text):
        return None
    from ipaddress import ip_address  # 3 ms: few rules name one

    try:
        return ip_address(text)
    except ValueError:
        return None


def parse_duration_seconds(text: str) -> float:
    """`30s`, `1m30s`, `500ms` or `30` as kubectl reads them; more than 0, at most a day.

    Raises ValueError, with the reason as its text, for anything else.
    """
    plain = text.strip().lower()
    plain += "s" if plain[-1:].isdigit() else ""
    parts = _DURATION_PART.findall(plain)
    if "".join(number + unit for number, unit in parts) == plain:
        seconds = sum(float(number) * _DURATION_SECONDS[unit] for number, unit in parts)
        if 0 < seconds <= _MAX_DURATION_SECONDS:
            return seconds
    raise ValueError(f"{text[:40]!r} is not a duration such as 30s, 1m30s or 500ms, up to 24h")


def format_duration(seconds: Fraction) -> str:
    """`125 ms`: six digits, in the largest unit from ns to h that leaves a number of at least 1."""
    unit, factor = next(
        (item for item in reversed(_SHOWN_SECONDS.items()) if seconds >= item[1]),
        next(iter(_SHOWN_SECONDS.items())),
    )
    return f"{format_count(seconds / factor)} {unit}"


def format_count(number: Fraction) -> str:
    """Six digits and at least all before the point, with commas and without an exponent."""
    return f"{float(number):,.0f}" if number >= 10**6 else f"{float(number):,.6g}"


def parse_quantity(text: str) -> int:
    """A Kubernetes quantity (`10M`, `1.5G`, `512Ki`, `1e6`) as a whole number, rounded up as there.

    Raises ValueError, with the reason as its text, for anything else.
    """
    match = _QUANTITY.fullmatch(text.strip()) if len(text) <= _MAX_NUMBER_CHARACTERS else None
    if not match:
        raise ValueError(f"{text[:40]!r} is not a Kubernetes quantity")
    number = Fraction(Decimal(match[1]))
    return math.ceil(
        number * (_QUANTITY_SUFFIXES[match[2]] if match[2] else Fraction(10) ** int(match[3] or 0))
    )


def format_rate(rate_bits_per_second: int) -> str:
    """`10 mbps`: the largest unit that leaves a number of at least 1. Reading it back is exact."""
    return _format(rate_bits_per_second, RATE_UNITS, separator=" ")


def format_size(size_bytes: int) -> str:
    """`64kb`: the largest unit that leaves a number of at least 1. Reading it back is exact."""
    return _format(size_bytes, SIZE_UNITS, separator="")


def format_time(time_ns: int) -> str:
    """`100ms`: the largest unit that leaves a number of at least 1. Reading it back is exact."""
    return _format(time_ns, TIME_UNITS, separator="")


def format_long_time(time_ns: int) -> str:
    """`5m`, `90s`: the largest unit that leaves a whole number. Reading it back is exact."""
    fitting = (item for item in reversed(LONG_TIME_UNITS.items()) if time_ns % item[1] == 0)
    unit, factor = next(fitting, ("us", LONG_TIME_UNITS["us"]))
    return f"{format_number(Decimal(time_ns) / factor)}{unit}"


def _format(amount: int, units: dict[str, int], *, separator: str) -> str:
    unit, factor = next(
        (item for item in reversed(units.items()) if amount >= item[1]), next(iter(units.items()))
    )
    return f"{format_number(Decimal(amount) / factor)}{separator}{unit}"
