"""Addresses in CEL: what a CIDR of either family is, whether bits stand behind its prefix, what it covers.

The API server has a type for this, but no interpreter that tests can have. An address becomes text: its 8 or
32 hexadecimal digits.
"""

from __future__ import annotations

from podmgr.rules.policy.cel import bind, is_so

_GROUP = "[0-9A-Fa-f]{1,4}"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_BITS_4, _BITS_6 = "0*(?:3[0-2]|[12]?[0-9])", "0*(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_HEX = "'0123456789abcdef '"


def _ipv6() -> str:
    """RFC 4291: eight groups, of which the last two may be an IPv4 address, and one run of zeros left out."""
    last = f"(?:{_GROUP}:{_GROUP}|{IPV4})"
    ways = [f"(?:{_GROUP}:){{6}}{last}", f"::(?:{_GROUP}:){{0,5}}{last}", f"(?:{_GROUP}:){{1,7}}:", "::"]
    ways += [f"::{_GROUP}", f"(?:{_GROUP}:){{1,6}}:{_GROUP}"]
    ways += [f"(?:{_GROUP}:){{1,{before}}}(?::{_GROUP}){{0,{5 - before}}}:{last}" for before in range(1, 6)]
    return f"(?:{'|'.join(ways)})"


IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
IPV6 = _ipv6()
ADDRESS = f"(?:{IPV4}|{IPV6})"
CIDR = f"(?:{IPV4}(?:/{_BITS_4})?|{IPV6}(?:/{_BITS_6})?)"


def _byte_in_hex(number: str) -> str:
    return bind(
        "d", f"int({number})", f"{_HEX}.substring(d / 16, d / 16 + 1) + {_HEX}.substring(d % 16, d % 16 + 1)"
    )


_IPV4_DIGITS = f"a.split('.').map(b, {_byte_in_hex('b')}).join('')"
_LEFT_OR_RIGHT = "(h == '' ? '' : h.split(':').map(g, ('000' + g).substring(g.size() - 1)).join(''))"


def _ipv6_digits() -> str:
    tail = bind(
        "t",
        "a.substring(a.lastIndexOf(':') + 1).split('.').map(b, " + _byte_in_hex("b") + ")",
        "a.substring(0, a.lastIndexOf(':') + 1) + t[0] + t[1] + ':' + t[2] + t[3]",
    )
    halves = f"(s + '::').split('::').map(h, {_LEFT_OR_RIGHT})"
    zeros = f"'{'0' * 32}'.substring(e[0].size() + e[1].size())"
    return bind(
        "s",
        f"a.contains('.') ? {tail} : a",
        bind("e", halves, f"e[0] + {zeros} + e[1]"),
    )


def canonical(item: str) -> str:
    """[the digits, the bits of the prefix] of a CIDR or an address; of IPv6 there are more digits."""
    digits = bind("a", "c[0]", f"a.contains(':') ? {_ipv6_digits()} : {_IPV4_DIGITS}")
    bits = "string(c.size() > 1 ? int(c[1]) : c[0].contains(':') ? 128 : 32)"
    return bind("c", f"{item}.lowerAscii().split('/')", f"[{digits}, {bits}]")


def has_bits_behind(network: str) -> str:
    """Whether a canonical one, DIGITS/BITS, is no network's but another address of it."""
    partial = (
        "(q % 4 != 0 && !(k[0] + ' ').substring(q / 4, q / 4 + 1).matches("
        "q % 4 == 1 ? '^[08]$' : q % 4 == 2 ? '^[048c]$' : '^[02468ace]$'))"
    )
    behind = f"!k[0].substring((q + 3) / 4).matches('^0*$') || {partial}"
    return is_so("k", f"{network}.split('/')", is_so("q", "int(k[1])", behind))


def covers(outer: str, inner: str) -> str:
    """Whether one of two canonical ones, DIGITS/BITS each, has all addresses of the other."""

    def top(name: str) -> str:
        digit = f"({name}[0] + ' ').substring(n / 4, n / 4 + 1)"
        return f"{_HEX}.indexOf({digit}) / (n % 4 == 1 ? 8 : n % 4 == 2 ? 4 : 2)"

    same = (
        "o[0].size() == i[0].size() && int(i[1]) >= n && "
        "(o[0] + ' ').substring(0, n / 4) == (i[0] + ' ').substring(0, n / 4) && "
        f"(n % 4 == 0 || {top('o')} == {top('i')})"
    )
    return is_so("o", f"{outer}.split('/')", is_so("i", f"{inner}.split('/')", is_so("n", "int(o[1])", same)))
