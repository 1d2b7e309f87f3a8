"""Annotations to hold the policy against the grammar: all that its tests name, and generated ones."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from podmgr.rules.keys import KEYS, PREFIX
from tests.unit.rules.test_grammar import BAD

_FOLDER = Path(__file__).parents[1]

Annotation = tuple[str, str]  # the key and the value
Draw = random.Random


def corpus() -> list[Annotation]:
    """Every text in the grammar's tests, as a value of each key, and as an option."""
    found = {(key if key.startswith(PREFIX) else PREFIX + key, value) for key, value, *_ in BAD}
    for path in sorted(_FOLDER.rglob("test_*.py")):
        if path.parent == Path(__file__).parent:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(_of_text(node.value))
    return sorted((key, value) for key, value in found if _can_be_written(value))


def _of_text(text: str) -> Iterator[Annotation]:
    key, equals, value = text.partition("=")
    if equals and key.strip().lower().removeprefix(PREFIX) in KEYS:
        yield PREFIX + key.strip().lower().removeprefix(PREFIX), value
    if "\n" in text or len(text) > 4_200:
        return
    if equals or " " in text:
        yield PREFIX + "loss", f"1% egress {text}"
    for key in KEYS:
        yield PREFIX + key, text


def _can_be_written(value: str) -> bool:
    """JSON has no half surrogates; and what binds the interpreter to Python ends a text at a zero."""
    return "\0" not in value and not any("\ud800" <= one <= "\udfff" for one in value)


def generated(count: int, seed: int) -> Iterator[Annotation]:
    """Valid ones, nearly valid ones and odd ones."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        key = draw.choice(KEYS)
        value = ";".join(_rule(draw, key) for _ in range(draw.choice((1, 1, 1, 1, 1, 1, 2, 3))))
        for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 2))):
            value = draw.choice(_MUTATIONS)(draw, value)
        if _can_be_written(value):
            yield PREFIX + key, value
            made += 1


def _number(draw: Draw, *ends: str) -> str:
    """Near an end of a range, or anything."""
    near: tuple[str, ...] = (
        "",
        ".",
        "0",
        ".0",
        "1",
        ".5",
        ".4999",
        ".50001",
        "000000000000000000000000000000000000001",
    )
    if draw.random() < 0.85:
        return draw.choice(("1", "2", "2.5", "5", "10", ".5", "20", "50", "64", "07", "99.9", "100"))
    return draw.choice(("", "", "0", "00")) + draw.choice(ends) + draw.choice(near)


def _direction(draw: Draw) -> str:
    return draw.choice(
        ("egress", "ingress", "both", "Egress", "INGRESS", "BOTH", *["egress", "ingress"] * 4, "rtt")
    )


def _percent(draw: Draw) -> str:
    return _number(draw, "0", "100", "99", "50") + draw.choice(("%", "%", "%", "%", "%", " %", " %", ""))


def _time(draw: Draw) -> str:
    return _number(draw, "1", "10", "0.000001", "10000", "1000", "0.9995", "0.99949") + draw.choice(
        ("ms", "ms", "ms", "us", "s", "MS", " ms", "m")
    )


def _bandwidth(draw: Draw) -> str:
    rate = _number(draw, "8000", "7.9995", "400", "400000", "8", "0.0000079995", "400.0000000005")
    unit = draw.choice(
        ("bps", "kbps", "mbps", "mbps", "mbps", "Mbps", " mbps", " KBPS", " gbps", "mbit", " \u212abps")
    )
    words = [f"{rate}{unit}", _direction(draw)]
    if draw.random() < 0.3:
        size = _number(draw, "1514", "1.514", "1.5135", "1000", "1000.0000005") + draw.choice(
            ("b", "kb", "mb", "KB")
        )
        words.append(f"burst={size}")
    if draw.random() < 0.2:
        words.append(f"algorithm={draw.choice(('tbf', 'edt', 'EDT', 'htb'))}")
    return " ".join(words)


def _delay(draw: Draw) -> str:
    time = draw.choice((_time(draw), "5us", "3us", "100ms", "9s", "4s", "10s"))
    words = [time, draw.choice((_direction(draw), "rtt", "RTT"))]
    if draw.random() < 0.6:
        words.append(
            f"jitter={draw.choice((_time(draw), '10ms', '3us', '5us', '1s', '0ms', '2us', '4s', '90ms'))}"
        )
    if draw.random() < 0.4:
        words.append(
            f"distribution={draw.choice(('normal', 'pareto', 'Uniform', 'paretonormal', 'own-1', '../x'))}"
        )
    if draw.random() < 0.2:
        words.append(f"correlation={_percent(draw)}")
    if draw.random() < 0.2:
        words.append(f"order={draw.choice(('keep', 'free', 'Free', 'strict'))}")
    return " ".join(words)


def _loss(draw: Draw) -> str:
    way = _direction(draw)
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"{_percent(draw)} {way}",
        lambda: f"uniform {way} {_percent(draw)}",
        lambda: f"exponential {way} {_number(draw, '0', '1000', '999.9', '400')}",
        lambda: f"burst {way} {_percent(draw)} length={_number(draw, '1', '1000000', '0.9', '2', '5')}",
        lambda: f"gilbert {way} p={_percent(draw)} r={_percent(draw)}" + _maybe(draw, "bad", "good"),
        lambda: f"markov {way} p13={_percent(draw)}" + _maybe(draw, "p31", "p32", "p23", "p14"),
    )
    return draw.choice(forms)()


def _maybe(draw: Draw, *names: str) -> str:
    return "".join(f" {name}={_percent(draw)}" for name in names if draw.random() < 0.4)


def _chance(draw: Draw) -> str:
    more: tuple[str, ...] = ("", "", " as=payload", " as=checksum", " by=10ms", f" by={_time(draw)}", " as=x")
    return f"{_percent(draw)} {_direction(draw)}{draw.choice(more)}"


def _custom(draw: Draw) -> str:
    macros: tuple[str, ...] = (
        "-DX",
        "-DX=1",
        "-DY=a_b",
        "-DPORT=53",
        "-DA=10.0.0.1",
        "-DA=::1",
        "-DA=1.2",
        "-DINTERFACE",
        "-D1",
    )
    words = [draw.choice(("dropper", "edt", "Own_1", "a/b", "x" * 63)), _direction(draw)]
    return " ".join([*words, *(draw.choice(macros) for _ in range(draw.choice((0, 1, 1, 2, 3))))])


def _block(draw: Draw) -> str:
    more = ("reply=rst", "reply=ICMP", "reply=none", "state=new", "state=all", "cut=yes", "cut=no", "cut=x")
    return " ".join([_direction(draw), *(draw.choice(more) for _ in range(draw.choice((0, 1, 1, 2))))])


def _profile(draw: Draw) -> str:
    return draw.choice(("lte", "LTE", "own-1", "slow-3g", "../x", "a b"))


_PEERS: tuple[str, ...] = (
    "10.0.0.0/8",
    "10.0.0.1",
    "10.1.0.0/8",
    "fd00::/8",
    "::/0",
    "fe80::1",
    "::ffff:1.2.3.4",
    "FD00::/8",
)
_PEERS += (
    "2001:db8::/33",
    "2001:db8:8000::/33",
    "svc/db",
    "svc/shop/db",
    "SVC/db",
    "pod/web-0",
    "world",
    "DNS",
)
_PEERS += (
    "pod/app.kubernetes.io/name=Web",
    "ns/shop",
    "node",
    "svc/DB",
    "pod/=x",
    "1.2.3.256",
    "10.0.0.0/33",
)
_PEERS += (
    "10.0.0.0/255.0.0.0",
    "::1/128",
    "0::1",
    "1.2.3.4/32",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "1:2:3:4:5:6:7::",
)
_PORTS: tuple[str, ...] = (
    "80",
    "443",
    "0",
    "65535",
    "65536",
    "8000-8099",
    "90-80",
    "080",
    "80-80",
    "http",
    "53",
)
_TIMES: tuple[str, ...] = (
    "3s",
    "1m30s",
    "500ms",
    "1h",
    "0.5h",
    "8784h",
    "8785h",
    "1ms",
    "0.9ms",
    "999.9us",
    "30s1m",
    "1.5m",
    "10",
    "-1s",
)
_UNTIL: tuple[str, ...] = (
    "2027-01-31T18:00:00Z",
    "2028-02-29t18:00:00.5+02:00",
    "2027-02-29T18:00:00Z",
    "1970-01-01T00:00:00Z",
)
_UNTIL += (
    "1970-01-01T00:00:01Z",
    "2027-01-31T24:00:00Z",
    "2027-01-31T18:00:00",
    "2027-04-31T18:00:00Z",
    "2000-02-29T00:00:00-23:59",
)


def _list(draw: Draw, items: tuple[str, ...]) -> str:
    return ",".join(draw.choice(items) for _ in range(draw.choice((1, 1, 1, 1, 2, 3))))


def _option(draw: Draw) -> str:
    made: dict[str, Callable[[], str]] = {
        "hook": lambda: draw.choice(("tc", "cgroup", "TC", "xdp")),
        "interface": lambda: _list(draw, ("eth0", "net1", "a@b", "..", "x" * 15, "x" * 16)),
        "peer": lambda: _list(draw, _PEERS),
        "except": lambda: _list(draw, _PEERS),
        "port": lambda: _list(draw, _PORTS),
        "local-port": lambda: _list(draw, _PORTS),
        "proto": lambda: _list(
            draw, ("tcp", "UDP", "6", "17", "icmp", "58", "1", "sctp", "256", "icmpv6", "007")
        ),
        "container": lambda: _list(draw, ("app", "side-car", "App")),
        "after": lambda: draw.choice(_TIMES),
        "for": lambda: draw.choice(_TIMES),
        "every": lambda: draw.choice(_TIMES),
        "until": lambda: draw.choice(_UNTIL),
        "mode": lambda: draw.choice(("shadow", "SHADOW", "dry")),
    }
    name = draw.choice(list(made))
    return f"{draw.choice((name, name, name.upper()))}={made[name]()}"


_KINDS: dict[str, Callable[[Draw], str]] = {
    "bandwidth": _bandwidth,
    "delay": _delay,
    "loss": _loss,
    "ebpf-limit": _custom,
    "block": _block,
    "profile": _profile,
}


def _rule(draw: Draw, key: str) -> str:
    options = [_option(draw) for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 2)))]
    return " ".join([_KINDS.get(key, _chance)(draw), *options])


_ODD = "\t\n\u00a0\u2003\u200b\u212a\u017f\u0130\u0661\u202eéß🙂ABCxyz0123456789.%=;,/:-+_@ "


def _changed(draw: Draw, value: str) -> str:
    at = draw.randrange(len(value) + 1)
    return value[:at] + draw.choice(_ODD) + value[at + draw.choice((0, 1)) :]


def _shorter(draw: Draw, value: str) -> str:
    at = draw.randrange(len(value) + 1)
    return value[:at] + value[at + draw.choice((1, 1, 2, 5)) :]


def _in_another_order(draw: Draw, value: str) -> str:
    words = value.split(" ")
    draw.shuffle(words)
    return " ".join(words)


def _with_a_word_more(draw: Draw, value: str) -> str:
    words = value.split(" ")
    words.insert(draw.randrange(len(words) + 1), draw.choice(words))
    return " ".join(words)


def _in_another_case(draw: Draw, value: str) -> str:
    return "".join(draw.choice((one, one.upper(), one.lower())) for one in value)


def _with_other_blanks(draw: Draw, value: str) -> str:
    return value.replace(" ", draw.choice(("  ", "\t", "\u2003", " ;", "")))


def _twice(_draw: Draw, value: str) -> str:
    return f"{value};{value}"


_MUTATIONS: tuple[Callable[[Draw, str], str], ...] = (
    _changed,
    _changed,
    _shorter,
    _in_another_order,
    _with_a_word_more,
    _in_another_case,
    _with_other_blanks,
    _twice,
)
