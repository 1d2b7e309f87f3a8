"""Nanoseconds that a packet costs in a program; `chains` adds what it costs a pod that has many.

The kernel runs each program on one packet of ours, many times in a row (BPF_PROG_TEST_RUN).
Programs are compiled as `apply` compiles them, but for a target whose loopback counts, since that
is the packet's interface. They work as under load: the bucket has just been drawn from, the link is
still taken by the packet before, and time on it is taken by an atomic addition.

What is judged is the least that a program took in any round, less the least that the empty program
took: whatever disturbs a run adds time to it, so that on a busy machine medians move, paired by
round or not, and the least of many short rounds hardly does.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import checked
from podmgr.kernel import bpf_syscall, bpftool, cgroups, pins, program_tables
from podmgr.kernel.pins import Pin
from podmgr.kernel.starts import now_ns
from podmgr.programs import clang, csource
from podmgr.programs.build import SpecMaker, compile_spec
from podmgr.programs.find import shipped_folder
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.peers import Entry, Pair, prefix_of
from podmgr.rules.rule import Direction, Hook
from podmgr.rules.tables import table_of
from podmgr.rules.timing import ALWAYS
from podmgr.settings import Settings
from tests.bench import chains
from tests.bench.effort import Effort
from tests.bench.findings import Chart, Claim, Findings, Series, Table, above
from tests.bench.frames import GSO, LARGE, PEER, SMALL, Packet
from tests.bench.pods import own_settings

EFFORT = Effort(rounds=30)
RUNS = 100_000  # of a program in a round, in a row
MOST_NS = {
    "loss": 25.0,
    "burst": 40.0,
    "bandwidth, passes": 80.0,
    "bandwidth, drops": 80.0,
    "edt": 80.0,
    "delay": 80.0,
    "delay, jitter": 120.0,
    "duplicate": 40.0,
    "corrupt": 40.0,
    "reorder": 40.0,
}
# Above the same rule without them: of a match with so many prefixes, and of a time.
MOST_NS_OF_OPTIONS = {1: 40.0, 10_000: 80.0, 0: 40.0}

EMPTY = "empty"
_OWNER = "packet"  # of the pins
_BUSY_NS = 200  # of a packet on the link: longer than a run takes, and RUNS of them are within the horizon
_BURST = "250mb"  # more than a bucket loses in a round
_FILL_SECONDS = 1.0  # until it is in the slowest bucket
_LEAST_SHARE = 0.999  # of the runs must end as the case says


@dataclass(frozen=True)
class Place:
    """Where a program sits. `is_scoped`: on interfaces that others use too."""

    name: str
    hook: Hook
    is_scoped: bool = False


@dataclass(frozen=True)
class Case:
    """A program on a packet at a place. `rule` makes it, or else `body`; None: it does nothing."""

    program: str
    place: Place
    packet: Packet
    rule: str = ""
    body: str = ""
    maps: str = ""
    drops: bool = False
    prefixes: int = 0  # that the rule's peers stand for; the packet's is one of them


@dataclass(frozen=True)
class Cost:
    """Nanoseconds above the empty program, and their range over thirds of the rounds."""

    case: Case
    ns: float
    low_ns: float
    high_ns: float


def measure(effort: Effort) -> Findings:
    """All cases and all pods. Leaves nothing behind."""
    rounds = max(3, effort.rounds or 0)
    programs, parts = _costs(_cases(), rounds), _costs(_parts(), rounds)
    options = _costs(_options(), rounds)
    return Findings(
        tables=(
            _table_of_programs(programs),
            _table_of_options(options),
            _table_of_parts(parts),
            chains.table(chains.chains(rounds)),
        ),
        charts=(_chart(programs),),
        claims=(*_claims(programs), *_claims_of_options(options)),
    )


# Programs

CGROUP, TC = Place("cgroup", Hook.CGROUP), Place("tc", Hook.TC)
PLACES = (CGROUP, TC, Place("tc, shared interfaces", Hook.TC, is_scoped=True))


# So short a delay that what may wait is not reached; what happens by chance hardly ever does.
_AT_TC_ALONE = {
    "delay": "delay=10us egress",
    "delay, jitter": "delay=10us egress jitter=5us",
    "duplicate": "duplicate=0.001% egress",
    "corrupt": "corrupt=0.001% egress",
    "reorder": "reorder=0.001% egress",
}


def _cases() -> list[Case]:
    found = []
    for place in PLACES:
        for packet in (SMALL, LARGE, GSO):
            rate = round(packet.wire_bytes * 8e9 / _BUSY_NS)
            rules = {
                EMPTY: "",
                "loss": "loss=uniform egress 0.001%",
                "burst": "loss=burst egress 0.001% length=5",
                "bandwidth, passes": f"bandwidth={rate} bps egress burst={_BURST}",
                "bandwidth, drops": "bandwidth=8 kbps egress burst=1514b",
                "edt": f"bandwidth={rate} bps egress algorithm=edt",
            }
            if place.hook is Hook.TC:
                rules |= _AT_TC_ALONE
            found += [
                Case(name, place, packet, rule, drops=name.endswith("drops")) for name, rule in rules.items()
            ]
    return found


_PLAIN = "loss=uniform egress 0.001%"


def _options() -> list[Case]:
    """A rule as it is, and with a match or a time. What it is compared with is the rule as it is."""
    found = []
    for place in (CGROUP, TC):
        found += [
            Case(EMPTY, place, SMALL, _PLAIN),
            Case("in force for a time", place, SMALL, f"{_PLAIN} for=1h"),
        ]
        found += [
            Case(
                f"{count:,} prefixes and a port", place, SMALL, f"{_PLAIN} peer=svc/db port=9", prefixes=count
            )
            for count in MOST_NS_OF_OPTIONS
            if count
        ]
    return found


def _prefixes(count: int) -> tuple[Entry, ...]:
    """Addresses all over, of which the first is the packet's."""
    draws = random.Random(15)
    addresses = [PEER, *(str(IPv4Address(draws.getrandbits(32))) for _ in range(count - 1))]
    return tuple(Entry(prefix_of(address), frozenset({Pair(17, 9, 9)})) for address in addresses)


_NUMBER_MAP = """
struct number { struct bpf_spin_lock lock; __u64 value; };
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct number);
} numbers SEC(".maps");
"""
_NUMBER = (
    "__u32 key = 0; struct number *it = bpf_map_lookup_elem(&numbers, &key); if (!it) return VERDICT_PASS;"
)


def _parts() -> list[Case]:
    """What programs are made of, each alone. Those with a map look it up first."""
    count = "struct wire wire = { 1, skb->len }; return count(wire, VERDICT_PASS);"
    bodies = {
        EMPTY: "",
        "bpf_ktime_get_ns()": "return bpf_ktime_get_ns() ? VERDICT_PASS : VERDICT_DROP;",
        "bpf_get_prandom_u32()": "return bpf_get_prandom_u32() == 1 ? VERDICT_DROP : VERDICT_PASS;",
        "the counters": count,
        "a map, looked up and read": f"{_NUMBER} return it->value ? VERDICT_DROP : VERDICT_PASS;",
        "a map, and a plain addition": f"{_NUMBER} it->value += skb->len;",
        "a map, and an atomic addition": f"{_NUMBER} __sync_fetch_and_add(&it->value, skb->len);",
        "a map, and an addition under a spin lock": f"{_NUMBER} bpf_spin_lock(&it->lock);"
        "it->value += skb->len; bpf_spin_unlock(&it->lock);",
    }
    return [
        Case(name, CGROUP, SMALL, body=body, maps=_NUMBER_MAP if _NUMBER in body else "")
        for name, body in bodies.items()
    ]


def _object(case: Case, maker: SpecMaker) -> bytes:
    if case.rule:
        (rule,) = parse_rule_option(case.rule)
        hook, is_scoped = case.place.hook, case.place.is_scoped
        spec = maker.spec(
            rule, counts_loopback=True, hook=hook, is_scoped=is_scoped, is_matched=any(rule.match)
        )
        return compile_spec(spec, runner=proc.run).content
    source = f'#include "podmgr.h"\n{case.maps}'
    source += f"SEC(PODMGR_SECTION) int part(struct __sk_buff *skb) {{ {case.body} return VERDICT_PASS; }}\n"
    source += 'char LICENSE[] SEC("license") = "GPL";\n'
    macros = (("PODMGR_TC", str(int(case.place.hook is Hook.TC))),)
    text = csource.expand(
        "part.bpf.c", source.encode(), lambda name: (shipped_folder("bpf") / name).read_bytes()
    )
    return clang.compile_c(text, name="part", macros=macros, runner=proc.run)


# Running them


@dataclass(frozen=True)
class Loaded:
    """A case in the kernel, with the files that bpftool reads its packet from."""

    case: Case
    pin: Pin
    frame: Path
    context: Path

    def ns(self, runs: int = RUNS) -> int:
        """Of one run, on average."""
        argv = ["bpftool", "-j", "prog", "run", "pinned", self.pin.program, "repeat", str(runs)]
        argv += ["data_in", str(self.frame), "ctx_in", str(self.context)]
        return int(json.loads(checked(proc.run(argv)))["duration"])

    def check(self) -> None:
        """That the runs of a rule ended as the case says."""
        if self.case.rule:
            seen = bpf_syscall.pinned_counters(self.pin.counters)
            assert seen is not None
            verdicts = seen.passed_packets, seen.dropped_packets
            assert verdicts[self.case.drops] >= _LEAST_SHARE * sum(verdicts) > 0, (self.case, seen)


def _costs(cases: Sequence[Case], rounds: int) -> list[Cost]:
    """Of all but the empty ones. Each round runs every case, one after the other."""
    with own_settings() as settings, _loaded(cases, settings) as loaded:
        for item in loaded:
            item.ns(runs=1)
        time.sleep(_FILL_SECONDS)
        samples = {item.case: [float(item.ns())] for item in loaded}
        for _ in range(rounds - 1):
            for item in loaded:
                samples[item.case].append(float(item.ns()))
        for item in loaded:
            item.check()
    empty = {(case.place, case.packet): found for case, found in samples.items() if case.program == EMPTY}
    return [
        Cost(case, *above(found, empty[case.place, case.packet]))
        for case, found in samples.items()
        if case.program != EMPTY
    ]


@contextmanager
def _loaded(cases: Sequence[Case], settings: Settings) -> Iterator[list[Loaded]]:
    """All cases in the kernel, hanging nowhere, until the block ends."""
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    pins.make_owner(settings.bpffs, _OWNER)
    maker = SpecMaker(settings)
    objects = proc.each(lambda case: _object(case, maker), cases)
    loaded: list[Loaded] = []
    try:
        for number, (case, content) in enumerate(zip(cases, objects, strict=True)):
            files = [settings.program_dir / f"{number}.{kind}" for kind in ("o", "frame", "context")]
            for path, data in zip(files, (content, case.packet.frame, case.packet.context), strict=True):
                path.write_bytes(data)
            pin = Pin(settings.bpffs, _OWNER, str(number))
            loaded.append(Loaded(case, pin, *files[1:]))
            _load(files[0], pin, case.place.hook)
            _tell(pin, case)
        yield loaded
    finally:
        for item in loaded:
            pins.remove(item.pin)
        pins.remove_empty_folders(settings.bpffs)


def _tell(pin: Pin, case: Case) -> None:
    """What the program of a rule looks up."""
    if case.rule:
        (rule,) = parse_rule_option(case.rule)
        if rule.timing != ALWAYS:
            program_tables.write_windows(pin, [(rule.timing, now_ns())])
        if case.prefixes:
            table = table_of(rule, [rule], {rule.match.peers[0]: _prefixes(case.prefixes)})
            program_tables.write_lists(pin, table.lists)


def _load(path: Path, pin: Pin, hook: Hook) -> None:
    command = bpftool.load(str(path), pin.program, pin.maps, hook, Direction.EGRESS)
    checked(proc.run(["bpftool", *command]))
    if Path(pin.scope).exists():  # the packet's socket is bpftool's, which is in some cgroup below the root
        root = cgroups.find_root(None)
        cgroup = Cgroup(root, root.stat().st_ino)
        scope = bpftool.set_scope(pin.scope, cgroup.id, cgroups.level(cgroup))
        checked(proc.run(["bpftool", *scope]))


# Findings


def _table_of_programs(costs: Iterable[Cost]) -> Table:
    return Table(
        "Nanoseconds of a packet in a program, above an empty one",
        ("hook", "packet", "program", "ns", "from", "to"),
        tuple(
            (cost.case.place.name, cost.case.packet.name, cost.case.program, *_figures(cost))
            for cost in costs
        ),
        digits=0,
        note="Least less least over all rounds; from and to: the same in each third of the rounds.",
    )


def _table_of_options(costs: Iterable[Cost]) -> Table:
    return Table(
        f"Nanoseconds of a match or a time, above the rule without, {SMALL.name}",
        ("hook", "option", "ns", "from", "to"),
        tuple((cost.case.place.name, cost.case.program, *_figures(cost)) for cost in costs),
        digits=0,
    )


def _table_of_parts(costs: Iterable[Cost]) -> Table:
    return Table(
        f"Where the time goes: parts alone, cgroup, {SMALL.name}",
        ("part", "ns", "from", "to"),
        tuple((cost.case.program, *_figures(cost)) for cost in costs),
        digits=0,
    )


def _figures(item: Cost) -> tuple[float, float, float]:
    return item.ns, item.low_ns, item.high_ns


def _chart(costs: Sequence[Cost]) -> Chart:
    series = []
    for place in PLACES:
        found = [cost for cost in costs if (cost.case.place, cost.case.packet) == (place, LARGE)]
        series.append(
            Series(
                place.name,
                tuple(cost.case.program.replace(", ", ",\n") for cost in found),
                tuple(cost.ns for cost in found),
                tuple(cost.low_ns for cost in found),
                tuple(cost.high_ns for cost in found),
            )
        )
    return Chart("programs", f"A packet of {LARGE.name} in a program", "", "ns above empty", tuple(series))


def _claims(costs: Iterable[Cost]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f"{cost.case.program}, {cost.case.place.name}, {LARGE.name}, above an empty program",
            cost.ns,
            MOST_NS[cost.case.program],
            " ns",
        )
        for cost in costs
        if cost.case.packet == LARGE and not cost.case.place.is_scoped
    )


def _claims_of_options(costs: Iterable[Cost]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f"{cost.case.program}, {cost.case.place.name}, above the rule without",
            cost.ns,
            MOST_NS_OF_OPTIONS[cost.case.prefixes],
            " ns",
        )
        for cost in costs
    )
