"""What the benchmark of control does to whom, and what it found, as tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from tests.bench.findings import Chart, Series, Table, ratio, spread
from tests.bench.stopwatch import Cost

SIZES = (1, 10, 110, 500)
FULL_NODE = 110  # pods that a kubelet runs by default
RULES = ("bandwidth=10 mbps egress", "bandwidth=20 mbps ingress", "loss=uniform egress 1%")
CHANGED = ("bandwidth=11 mbps egress", "bandwidth=21 mbps ingress", "loss=uniform egress 2%")
RATES, CHANGED_RATES = ("10mbit", "20mbit"), ("11mbit", "21mbit")  # of the same limits, for tc

Round = Mapping[str, Cost]  # by operation

_GROWING = ("apply, cold", "apply", "unchanged", "change, cold", "change", "list", "list, table", "clean")
ROUND_TRIP = ("apply", "change", "clean")
COLD_ROUND_TRIP = ("apply, cold", "change, cold", "clean")


def seconds_of(rounds: Sequence[Round], operation: str) -> list[float]:
    return [costs[operation].seconds for costs in rounds]


def sums(rounds: Sequence[Round], operations: Sequence[str]) -> list[float]:
    """Of each round, what these operations took together."""
    return [sum(costs[operation].seconds for operation in operations) for costs in rounds]


def _text(values: Sequence[float], digits: int = 2) -> str:
    """The median, with least and most where there are several."""
    middle, least, most = spread(values)
    ends = f" ({least:.{digits}f}–{most:.{digits}f})" if len(values) > 1 else ""
    return f"{middle:.{digits}f}{ends}"


def _milliseconds(seconds: Sequence[float]) -> str:
    return _text([1000 * value for value in seconds], 0)


def growth_table(growth: Mapping[int, Sequence[Round]]) -> Table:
    return Table(
        f"Seconds for so many pods, {len(RULES)} rules each: median (least–most)",
        ("pods", *_GROWING),
        tuple(
            (str(size), *(_text(seconds_of(rounds, operation)) for operation in _GROWING))
            for size, rounds in growth.items()
        ),
        note="cold: the programs must be compiled; else they are known. change: all rules are replaced. "
        "list is -o json. All is read back from the kernel.",
    )


def slope_table(growth: Mapping[int, Sequence[Round]]) -> Table:
    pairs = list(pairwise(SIZES))

    def slope_ms(operation: str, less: int, more: int) -> float:
        seconds = [median(seconds_of(growth[size], operation)) for size in (less, more)]
        return 1000 * (seconds[1] - seconds[0]) / (more - less)

    return Table(
        "Milliseconds for each further pod",
        ("operation", *(f"{less} to {more}" for less, more in pairs)),
        tuple((operation, *(slope_ms(operation, *pair) for pair in pairs)) for operation in _GROWING),
        note="The work is linear where the last two columns are alike.",
    )


def growth_chart(growth: Mapping[int, Sequence[Round]]) -> Chart:
    return Chart(
        "growth",
        f"{len(RULES)} rules on each pod",
        "pods",
        "seconds",
        tuple(_series(operation, growth, operation) for operation in _GROWING if operation != "list, table"),
        log_x=True,
        log_y=True,
    )


def _series(
    name: str, rounds_by_x: Mapping[int, Sequence[Round]] | Mapping[str, Sequence[Round]], operation: str
) -> Series:
    spreads = [spread(seconds_of(rounds, operation)) for rounds in rounds_by_x.values()]
    middle, least, most = zip(*spreads, strict=True)
    return Series(name, tuple(rounds_by_x), middle, least, most)


def ways_table(ways: Mapping[str, Sequence[Round]]) -> Table:
    podmgr = sums(ways["podmgr"], ROUND_TRIP)

    def row(name: str, way: str, operations: Sequence[str], rules: int) -> tuple[str | int, ...]:
        whole = sums(ways[way], operations)
        cpu = [sum(costs[operation].cpu_seconds for operation in operations) for costs in ways[way]]
        each = (_text(seconds_of(ways[way], operation)) for operation in operations)
        return (name, rules, *each, _text(whole), _text(cpu), str(ratio(whole, podmgr)))

    return Table(
        f"{FULL_NODE} pods, seconds: median (least–most)",
        ("way", "rules a pod", *ROUND_TRIP, "all three", "of a CPU", "all three / podmgr's (95 %)"),
        (
            row("podmgr, programs known", "podmgr", ROUND_TRIP, len(RULES)),
            row("podmgr, programs to compile", "podmgr", COLD_ROUND_TRIP, len(RULES)),
            row("shell loop of bpftool", "bpftool loop", ROUND_TRIP, len(RULES)),
            row("  that looks", "bpftool loop that looks", ROUND_TRIP, len(RULES)),
            row("one bpftool batch", "bpftool batch", ROUND_TRIP, len(RULES)),
            row("podmgr, pods with interfaces", "podmgr, with interfaces", ROUND_TRIP, len(RULES)),
            row("  programs to compile", "podmgr, with interfaces", COLD_ROUND_TRIP, len(RULES)),
            row("shell loop of tc qdisc, same pods", "tc loop", ROUND_TRIP, len(RATES)),
        ),
        note="The loops are bash scripts. One asks the kernel for each pod whether it is so, as podmgr "
        "does; the others are content that no command failed. Those of bpftool load podmgr's own objects, "
        "compiled before; the batch sends all of a script's commands to one bpftool, which is the floor. "
        "tc has the two limits alone, as tbf at both ends of the pod's veth: no netem is here for the loss.",
    )


def ways_chart(ways: Mapping[str, Sequence[Round]]) -> Chart:
    return Chart(
        "ways",
        f"{FULL_NODE} pods",
        "",
        "seconds",
        tuple(_series(operation, ways, operation) for operation in ROUND_TRIP),
    )


def compile_table(compilations: Sequence[Mapping[str, Round]]) -> Table:
    operations = ("compile", "apply, cold", "apply")
    return Table(
        "Milliseconds until a rule is compiled, and until it is on one pod: median (least–most)",
        ("rule", "compile", "apply, to compile", "apply, known"),
        tuple(
            (
                name,
                *(
                    _milliseconds(seconds_of([found[name] for found in compilations], each))
                    for each in operations
                ),
            )
            for name in compilations[0]
        ),
        note="compile compiles anew each time; apply compiles a program once, and several at a time.",
    )


def start_table(starts: Sequence[Round]) -> Table:
    return Table(
        "Start-up: median (least–most)",
        ("command", "ms", "peak, MiB"),
        tuple(
            (name, _milliseconds(seconds_of(starts, name)), median(costs[name].peak_mib for costs in starts))
            for name in starts[0]
        ),
        digits=0,
        note="The peak is of podmgr or a tool that it started, whichever is the largest.",
    )


def memory_table(growth: Mapping[int, Sequence[Round]]) -> Table:
    operations = ("apply", "list", "list, table", "clean")
    return Table(
        "Memory at most, MiB",
        ("pods", *operations),
        tuple(
            (str(size), *(median(costs[each].peak_mib for costs in rounds) for each in operations))
            for size, rounds in growth.items()
        ),
        digits=1,
        note="As the kernel counts it: the largest of podmgr and the tools that it started; programs known.",
    )
