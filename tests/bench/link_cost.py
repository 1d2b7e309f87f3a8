"""What a datagram's way from pod to world costs, in instructions: bare, through fq, delayed, and netem's.

For a machine whose clock counts instructions, a nanosecond each. The sender never sleeps, so the processor
is never idle, and the time of all datagrams is what they cost together, the sender's own loop included.
The delay is a millisecond: what then is still on its way is too little to show.

What waits is woken by a timer, whose interrupt costs as much as a clone; but none is needed where the next
datagram is sent just as the one that waits is due, which a sender in step with the delay does for ever. So
it pauses at random, for about as long as the way takes, and each way has the same pauses. They are measured
alone and taken off. The way whose receiver reads has none: it is what the others' parts are a part of.

What a clone costs is told apart: by the least program that stamps, with and without one (stamp.bpf.c), and by
podmgr's rule, with and without the filter that frees packets from their sockets.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median

from podmgr import proc
from podmgr.programs import clang
from podmgr.reconcile.chain import PRIORITIES
from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Series, Table, spread
from tests.lab import WORLD, Lab, lab

EFFORT = Effort(rounds=5)

FRAME_BYTES = 200
DELAY_MS = 1
BARE, READ, AGAIN = "nothing", "nothing, no pauses, read", "nothing, again"
FQ, STAMP, CLONE = "fq alone", "fq, least stamp", "fq, least stamp and clone"
NOT_FREED, PODMGR, BOTH = "delay, not freed", "delay", "delay, jitter in order"
NETEM = "netem delay"
FREEING = "podmgr's clone, and what frees"
MOST_OF_WAY = 0.10  # that a clone may cost

_DATAGRAMS = 5_000
_HEADER_BYTES = 14 + 20 + 8
_PORT = 9
_FQ = "fq limit 250000 flow_limit 250000 timer_slack 1us"  # as podmgr's own

_SENDER = """
import random, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 32, 1 << 26)  # SO_SNDBUFFORCE: what waits must not stop it
sock.connect((sys.argv[1], int(sys.argv[2])))
payload, count, is_read = bytes(int(sys.argv[3])), int(sys.argv[4]), sys.argv[6] == "read"
random.seed(1)
pauses = [range(0 if is_read else random.randrange(60)) for _ in range(count)]  # up to 16 us

def interrupts():
    return next(int(line.split()[1]) for line in open("/proc/interrupts") if "LOC:" in line)

for _ in range(100):
    sock.send(payload)
for _ in range(int(sys.argv[5])):
    before, begun = interrupts(), time.monotonic_ns()
    for pause in pauses:
        sock.send(payload)
        for _ in pause:
            pass
    if is_read:
        sock.send(b"")
        sock.recv(1)
    sent, after = time.monotonic_ns(), interrupts()
    time.sleep(0.1)
    resumed = time.monotonic_ns()
    for pause in pauses:
        for _ in pause:
            pass
    paused = time.monotonic_ns() - resumed
    print((sent - begun - paused) / count, (after - before) / count)
"""

_RECEIVER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
is_read = sys.argv[3] == "read"
if is_read:
    sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE: nothing is dropped
else:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # full at once: what comes is dropped there
sock.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while is_read:
    payload, sender = sock.recvfrom(2048)
    if not payload:  # the sender waits until all before it is read
        sock.sendto(b"", sender)
import time; time.sleep(10**6)
"""


def measure(effort: Effort) -> Findings:
    rounds = effort.rounds or 1
    delay = f"delay={DELAY_MS}ms egress"
    with lab() as made:
        ways: dict[str, AbstractContextManager[None]] = {
            BARE: nullcontext(),
            READ: nullcontext(),
            FQ: made.root(_FQ),
            STAMP: _least(made, clones=False),
            CLONE: _least(made, clones=True),
            NOT_FREED: _not_freed(made, delay),
            PODMGR: made.under(delay),
            BOTH: made.under(f"{delay} jitter=500us"),
            NETEM: made.under_netem("delay", f"{DELAY_MS}ms"),
            AGAIN: nullcontext(),
        }
        costs = {}
        for name, under in ways.items():
            tell(name)
            with under:
                costs[name] = _costs(made, rounds, is_read=name == READ)
    return _findings(costs)


@contextmanager
def _least(made: Lab, *, clones: bool) -> Iterator[None]:
    """stamp.bpf.c on the pod's interface, under an fq."""
    source = Path(__file__).with_name("stamp.bpf.c")
    macros = [("CLONES", str(int(clones))), ("TIME", f"{DELAY_MS * 1_000_000}ULL")]
    compiled = clang.compile_c(source.read_bytes(), name=source.name, macros=macros, runner=proc.run)
    with made.root(_FQ), tempfile.NamedTemporaryFile(suffix=".o") as file:
        Path(file.name).write_bytes(compiled)
        made.sh(made.pod, "tc qdisc add dev eth0 clsact")
        try:
            made.sh(made.pod, f"tc filter add dev eth0 egress bpf da obj {file.name} sec tc")
            yield
        finally:
            made.sh(made.pod, "tc qdisc del dev eth0 clsact")


@contextmanager
def _not_freed(made: Lab, delay: str) -> Iterator[None]:
    """The rule without its first filter: what waits is on the account of its socket."""
    with made.under(delay):
        made.sh(made.pod, f"tc filter del dev eth0 egress prio {PRIORITIES.start}")
        yield


def _costs(made: Lab, rounds: int, *, is_read: bool) -> list[tuple[float, float]]:
    """Of each round: instructions and timer interrupts of a datagram."""
    word = "read" if is_read else "dropped"
    receiver = made.in_world([sys.executable, "-c", _RECEIVER, WORLD, str(_PORT), word])
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        numbers = (str(_PORT), str(FRAME_BYTES - _HEADER_BYTES), str(_DATAGRAMS), str(rounds))
        output, _ = made.in_pod([sys.executable, "-c", _SENDER, WORLD, *numbers, word]).communicate()
    finally:
        receiver.kill()
        receiver.wait()
    return [(float(cost), float(interrupts)) for cost, interrupts in map(str.split, output.splitlines())]


def _findings(costs: dict[str, list[tuple[float, float]]]) -> Findings:
    spreads = {name: spread([cost for cost, _ in found]) for name, found in costs.items()}
    cost = {name: found[0] for name, found in spreads.items()}
    parts = {
        "fq": cost[FQ] - cost[BARE],
        "a stamp, and to be woken": cost[STAMP] - cost[FQ],
        "the least clone": cost[CLONE] - cost[STAMP],
        FREEING: cost[PODMGR] - cost[NOT_FREED],
        "podmgr's program above the least stamp": cost[NOT_FREED] - cost[STAMP],
        "podmgr's delay, all of it": cost[PODMGR] - cost[BARE],
        "netem": cost[NETEM] - cost[BARE],
    }
    return Findings(
        tables=(
            Table(
                f"Instructions of a datagram of {FRAME_BYTES} B from pod to world",
                ("on the pod", "instructions", "from", "to", "above nothing", "interrupts, %"),
                tuple(
                    (name, *spreads[name], cost[name] - cost[BARE], 100 * median(count for _, count in found))
                    for name, found in costs.items()
                ),
                digits=0,
                note=f"Median, least and most of {len(costs[BARE])} rounds of {_DATAGRAMS:,} datagrams.",
            ),
            Table(
                "What each part costs",
                ("part", "instructions", "% of the way"),
                tuple((name, round(part), 100 * part / cost[READ]) for name, part in parts.items()),
                digits=1,
                note="The way is that without a rule, which the receiver's reading ends.",
            ),
        ),
        charts=(
            Chart(
                "instructions",
                f"A datagram of {FRAME_BYTES} B from pod to world",
                "",
                "instructions",
                (
                    Series(
                        "instructions",
                        tuple(spreads),
                        *(tuple(column) for column in zip(*spreads.values(), strict=True)),
                    ),
                ),
            ),
        ),
        claims=(
            Claim(
                "A clone and what frees, of a datagram's way",
                100 * parts[FREEING] / cost[READ],
                100 * MOST_OF_WAY,
                " %",
            ),
        ),
    )
