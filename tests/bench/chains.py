"""Nanoseconds that a sent packet costs a pod that has many rules: how they add up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from podmgr import proc
from podmgr.demo.throwaway import WORLD_ADDRESS, Pod, checked, inside
from podmgr.kernel import cgroup_life
from podmgr.programs.find import shipped_folder
from podmgr.reconcile.observe import observe
from podmgr.rules.rule import Hook
from podmgr.settings import Settings
from tests.bench.findings import Table, above
from tests.bench.frames import ETHERNET_BYTES, IPV4_BYTES, SMALL, UDP_BYTES
from tests.bench.pods import own_settings, pods, put_under

DATAGRAMS = 20_000  # from a pod in a round, in a row
COUNTS = (1, 2, 4, 8, 16)


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


def chains(rounds: int) -> list[Chain]:
    """CPU time of a sender, from the call until the packet is at the other end of the veth.

    There it is another's by its MAC address, and dropped at once.
    """
    kinds = [(hook, count) for hook in (Hook.CGROUP, Hook.TC) for count in COUNTS]
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
        for number in range(max(COUNTS)):
            text = f"#define PODMGR_TC {int(hook is Hook.TC)}\n{source}"
            (folder / f"{hook}{number}.bpf.c").write_text(text)


def _rule(hook: Hook, number: int) -> str:
    return f"ebpf-limit={hook}{number} egress -DRATE=400000000000 -DBURST=1000000000"


@contextmanager
def _sender(pod: Pod) -> Iterator[Callable[[int], float]]:
    """Nanoseconds of CPU time for each of so many datagrams, as often as it is asked."""
    stranger = f"neigh replace {WORLD_ADDRESS} lladdr 02:00:00:00:00:03 nud permanent dev eth0"
    checked(proc.run(inside(pod.pid, ["ip", *stranger.split()])))
    payload_bytes = len(SMALL.frame) - ETHERNET_BYTES - IPV4_BYTES - UDP_BYTES
    argv = [sys.executable, "-I", "-c", _SENDER, WORLD_ADDRESS, str(payload_bytes)]
    sender = proc.start(
        inside(pod.pid, argv), prepare=lambda: cgroup_life.join(pod.cgroup), streams=subprocess.PIPE
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
    for item in observe(settings)[0]:
        seen = item.counters
        assert seen is not None, item
        assert seen.passed_packets >= DATAGRAMS * rounds and not seen.dropped_packets, item


def table(chains: Iterable[Chain]) -> Table:
    return Table(
        f"Nanoseconds of a sent datagram of {SMALL.name} on a pod with rules, above a pod without",
        ("hook", "rules", "ns", "from", "to", "ns a rule"),
        tuple(
            (str(item.hook), item.rules, item.ns, item.low_ns, item.high_ns, item.ns / item.rules)
            for item in chains
        ),
        digits=0,
        note="CPU time of the sender; each rule is a bucket.",
    )
