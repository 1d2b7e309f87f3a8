"""Nanoseconds that a packet costs in a program, and in the programs of a pod that has many.

The kernel runs each program on one packet of ours, many times in a row (BPF_PROG_TEST_RUN).
Programs are compiled as `apply` compiles them, but for a target whose loopback counts, since that
is the packet's interface. They work as under load: the bucket has just been drawn from, the link is
still taken by the packet before, and time on it is taken by an atomic addition.

What is judged is the least that a program took in any round, less the least that the empty program
took: whatever disturbs a run adds time to it, so that on a busy machine medians move, paired by
round or not, and the least of many short rounds hardly does.
"""

from __future__ import annotations

import itertools
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from podmgr import bpf_syscall, bpftool, cgroups, clang, pins, proc
from podmgr.build import SpecMaker, compile_spec
from podmgr.grammar import parse_rule_option
from podmgr.pins import Pin
from podmgr.programs import shipped_folder
from podmgr.reconcile import observe
from podmgr.rules import Hook
from podmgr.settings import Settings
from podmgr.throwaway import WORLD_ADDRESS, Pod, checked, inside
from tests.bench.effort import Effort
from tests.bench.findings import Chart, Claim, Findings, Series, Table
from tests.bench.pods import own_settings, pods, put_under

EFFORT = Effort(rounds=30)
RUNS = 100_000  # of a program in a round, in a row
DATAGRAMS = 20_000  # from a pod in a round, in a row
RULE_COUNTS = (1, 2, 4, 8, 16)
MOST_NS = {"loss": 25.0, "bandwidth, passes": 80.0, "bandwidth, drops": 80.0, "edt": 80.0}

EMPTY = "empty"
_OWNER = "packet"  # of the pins
_BUSY_NS = 200  # of a packet on the link: longer than a run takes, and RUNS of them are within the horizon
_BURST = "250mb"  # more than a bucket loses in a round
_FILL_SECONDS = 1.0  # until it is in the slowest bucket
_LEAST_SHARE = 0.999  # of the runs must end as the case says


@dataclass(frozen=True)
class Packet:
    """A frame; `segments` is what the kernel takes it for, and `wire_bytes` what that is on the wire."""

    name: str
    frame: bytes
    wire_bytes: int
    segments: int = 0

    @property
    def context(self) -> bytes:
        """A `struct __sk_buff` up to gso_segs, which alone is set."""
        return bytes(_GSO_SEGS_OFFSET) + struct.pack("=I", self.segments)


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
    return Findings(
        tables=(_table_of_programs(programs), _table_of_parts(parts), _table_of_rules(_rule_costs(rounds))),
        charts=(_chart(programs),),
        claims=_claims(programs),
    )


# Packets


_GSO_SEGS_OFFSET = 164  # of struct __sk_buff, in linux/bpf.h
_ETHERNET, _IPV4, _UDP, _TCP = 14, 20, 8, 20


def udp(frame_bytes: int) -> Packet:
    """Ethernet, IPv4 and UDP, and a payload of zeros."""
    ip_bytes = frame_bytes - _ETHERNET
    header = struct.pack("!HHHH", 40_000, 9, ip_bytes - _IPV4, 0)
    return Packet(f"{frame_bytes} B", _ip(ip_bytes, 17, header), frame_bytes)


def tcp_of_two_segments() -> Packet:
    """What a GSO packet costs: the headers of its segments are looked for, however many there are.

    Only its headers can be loaded at once, as where TCP made it: its frame has nothing else.
    """
    options = b"\x01\x01\x08\x0a" + bytes(8)  # timestamps
    tcp_bytes = _TCP + len(options)
    header = struct.pack("!HHIIBBHHH", 40_000, 9, 0, 0, (tcp_bytes // 4) << 4, 0x10, 1_000, 0, 0) + options
    frame_bytes = _ETHERNET + _IPV4 + tcp_bytes
    return Packet("TCP, GSO", _ip(_IPV4 + tcp_bytes, 6, header), 2 * frame_bytes, segments=2)


def _ip(ip_bytes: int, protocol: int, transport: bytes) -> bytes:
    addresses = bytes([198, 18, 0, 1]), bytes([198, 18, 0, 2])
    fields = struct.pack("!BBHHHBBH4s4s", 0x45, 0, ip_bytes, 0, 0, 64, protocol, 0, *addresses)
    head = bytes(12) + b"\x08\x00" + fields + transport
    return head.ljust(_ETHERNET + ip_bytes, b"\0")


SMALL, LARGE, GSO = udp(64), udp(1_500), tcp_of_two_segments()

# Programs

CGROUP, TC = Place("cgroup", Hook.CGROUP), Place("tc", Hook.TC)
PLACES = (CGROUP, TC, Place("tc, shared interfaces", Hook.TC, is_scoped=True))


def _cases() -> list[Case]:
    found = []
    for place in PLACES:
        for packet in (SMALL, LARGE, GSO):
            rate = round(packet.wire_bytes * 8e9 / _BUSY_NS)
            rules = {
                EMPTY: "",
                "loss": "loss=uniform egress 0.001%",
                "bandwidth, passes": f"bandwidth={rate} bps egress burst={_BURST}",
                "bandwidth, drops": "bandwidth=8 kbps egress burst=1514b",
                "edt": f"bandwidth={rate} bps egress algorithm=edt",
            }
            found += [
                Case(name, place, packet, rule, drops=name.endswith("drops")) for name, rule in rules.items()
            ]
    return found


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
        spec = maker.spec(rule, counts_loopback=True, hook=hook, is_scoped=is_scoped)
        return compile_spec(spec, runner=proc.run).content
    source = (shipped_folder("bpf") / "podmgr.h").read_text() + case.maps
    source += f"SEC(PODMGR_SECTION) int part(struct __sk_buff *skb) {{ {case.body} return VERDICT_PASS; }}\n"
    source += 'char LICENSE[] SEC("license") = "GPL";\n'
    macros = (("PODMGR_TC", str(int(case.place.hook is Hook.TC))),)
    return clang.compile_c(source.encode(), name="part", macros=macros, runner=proc.run)


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


def above(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """What our least is above the least of the base, and the range of that over thirds of the rounds."""
    bounds = [len(ours) * third // 3 for third in range(4)]
    found = [min(ours[start:end]) - min(base[start:end]) for start, end in itertools.pairwise(bounds)]
    whole = min(ours) - min(base)
    return whole, min(whole, *found), max(whole, *found)


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
        yield loaded
    finally:
        for item in loaded:
            pins.remove(item.pin)
        pins.remove_empty_folders(settings.bpffs)


def _load(path: Path, pin: Pin, hook: Hook) -> None:
    command = bpftool.load(str(path), pin.program, pin.maps, hook)
    checked(proc.run(["bpftool", *command]))
    if Path(pin.scope).exists():  # the packet's socket is bpftool's, which is in some cgroup below the root
        root = cgroups.find_root(None)
        cgroup = cgroups.Cgroup(root, root.stat().st_ino)
        scope = bpftool.set_scope(pin.scope, cgroup.id, cgroups.level(cgroup))
        checked(proc.run(["bpftool", *scope]))


# Many rules on a pod


@dataclass(frozen=True)
class Chain:
    """What a datagram costs a pod above the pod without rules."""

    hook: Hook
    rules: int
    ns: float
    low_ns: float
    high_ns: float


_SENDER = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 9))
payload = bytes(int(sys.argv[2]))
for line in sys.stdin:
    count = int(line)
    started = time.process_time_ns()
    for _ in range(count):
        sock.send(payload)
    print((time.process_time_ns() - started) / count, flush=True)
"""


def _rule_costs(rounds: int) -> list[Chain]:
    """CPU time of a sender, from the call until the packet is at the other end of the veth.

    There it is another's by its MAC address, and dropped at once.
    """
    kinds = [(hook, count) for hook in (Hook.CGROUP, Hook.TC) for count in RULE_COUNTS]
    names = ["none", *(f"{hook}-{count}" for hook, count in kinds)]
    with pods(names) as made, own_settings() as settings, ExitStack() as stack:
        _write_programs(settings.program_dir)
        for pod, (hook, count) in zip(made[1:], kinds, strict=True):
            put_under(pod, [_rule(hook, number) for number in range(count)], settings)
        senders = [stack.enter_context(_sender(pod)) for pod in made]
        samples = [[ask(DATAGRAMS) for ask in senders] for _ in range(rounds)]
        _check_chains(settings, rounds)
    base, *others = zip(*samples, strict=True)
    return [Chain(*kind, *above(found, base)) for kind, found in zip(kinds, others, strict=True)]


def _write_programs(folder: Path) -> None:
    """The bandwidth program under many names: a pod has one rule of each kind."""
    source = (shipped_folder("bpf") / "bandwidth.bpf.c").read_text()
    for hook in (Hook.CGROUP, Hook.TC):
        for number in range(max(RULE_COUNTS)):
            text = f"#define PODMGR_TC {int(hook is Hook.TC)}\n{source}"
            (folder / f"{hook}{number}.bpf.c").write_text(text)


def _rule(hook: Hook, number: int) -> str:
    return f"ebpf-limit={hook}{number} egress -DRATE=400000000000 -DBURST=1000000000"


@contextmanager
def _sender(pod: Pod) -> Iterator[Callable[[int], float]]:
    """Nanoseconds of CPU time for each of so many datagrams, as often as it is asked."""
    stranger = f"neigh replace {WORLD_ADDRESS} lladdr 02:00:00:00:00:03 nud permanent dev eth0"
    checked(proc.run(inside(pod.pid, ["ip", *stranger.split()])))
    payload_bytes = len(SMALL.frame) - _ETHERNET - _IPV4 - _UDP
    argv = [sys.executable, "-I", "-c", _SENDER, WORLD_ADDRESS, str(payload_bytes)]
    sender = proc.start(
        inside(pod.pid, argv), prepare=lambda: cgroups.join(pod.cgroup), streams=subprocess.PIPE
    )
    assert sender.stdin is not None and sender.stdout is not None
    stdin, stdout = sender.stdin, sender.stdout

    def ask(count: int) -> float:
        stdin.write(b"%d\n" % count)
        stdin.flush()
        return float(stdout.readline())

    try:
        yield ask
    finally:
        sender.kill()
        sender.communicate()


def _check_chains(settings: Settings, rounds: int) -> None:
    """That every rule saw every datagram, and dropped none."""
    for item in observe(settings, runner=proc.run)[0]:
        seen = item.counters
        assert seen is not None, item
        assert seen.passed_packets >= DATAGRAMS * rounds and not seen.dropped_packets, item


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


def _table_of_parts(costs: Iterable[Cost]) -> Table:
    return Table(
        f"Where the time goes: parts alone, cgroup, {SMALL.name}",
        ("part", "ns", "from", "to"),
        tuple((cost.case.program, *_figures(cost)) for cost in costs),
        digits=0,
    )


def _table_of_rules(chains: Iterable[Chain]) -> Table:
    return Table(
        f"Nanoseconds of a sent datagram of {SMALL.name} on a pod with rules, above a pod without",
        ("hook", "rules", "ns", "from", "to", "ns a rule"),
        tuple((str(item.hook), item.rules, *_figures(item), item.ns / item.rules) for item in chains),
        digits=0,
        note="CPU time of the sender; each rule is a bucket.",
    )


def _figures(item: Cost | Chain) -> tuple[float, float, float]:
    return item.ns, item.low_ns, item.high_ns


def _chart(costs: Sequence[Cost]) -> Chart:
    series = []
    for place in PLACES:
        found = [cost for cost in costs if (cost.case.place, cost.case.packet) == (place, LARGE)]
        series.append(
            Series(
                place.name,
                tuple(cost.case.program for cost in found),
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
