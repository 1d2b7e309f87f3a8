"""What a datagram's way from pod to world costs, in instructions: bare, through fq, delayed, and netem's.

For a machine whose clock counts instructions, a nanosecond each. The sender never sleeps, so the processor
is never idle, and the time of all datagrams is what they cost together, the sender's own loop included.
The delay is a millisecond: what then is still on its way is too little to show.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from statistics import median

from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Findings, Series, Table, spread
from tests.lab import WORLD, Lab, lab

EFFORT = Effort(rounds=5)

FRAME_BYTES = 200
DELAY_MS = 1
BARE, AGAIN, FQ, NETEM = "nothing", "nothing, again", "fq alone", "netem delay"
PODMGR, BOTH = "delay", "delay, jitter in order"

_DATAGRAMS = 5_000
_HEADER_BYTES = 14 + 20 + 8
_PORT = 9

_SENDER = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 32, 1 << 26)  # SO_SNDBUFFORCE: what waits must not stop it
sock.connect((sys.argv[1], int(sys.argv[2])))
payload, count = bytes(int(sys.argv[3])), int(sys.argv[4])
for _ in range(100):
    sock.send(payload)
for _ in range(int(sys.argv[5])):
    begun = time.monotonic_ns()
    for _ in range(count):
        sock.send(payload)
    print((time.monotonic_ns() - begun) / count)
    time.sleep(0.1)
"""

_DRAIN = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # full at once: what comes is dropped there
sock.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
import time; time.sleep(10**6)
"""


def measure(effort: Effort) -> Findings:
    rounds = effort.rounds or 1
    with lab() as made:
        ways: dict[str, AbstractContextManager[None]] = {
            BARE: nullcontext(),
            FQ: made.root("fq"),
            PODMGR: made.under(f"delay={DELAY_MS}ms egress"),
            BOTH: made.under(f"delay={DELAY_MS}ms egress jitter=500us"),
            NETEM: made.under_netem("delay", f"{DELAY_MS}ms"),
            AGAIN: nullcontext(),
        }
        costs = {}
        for name, under in ways.items():
            tell(name)
            with under:
                costs[name] = _ns(made, rounds)
    return _findings(costs)


def _ns(made: Lab, rounds: int) -> list[float]:
    drain = made.in_world([sys.executable, "-c", _DRAIN, WORLD, str(_PORT)])
    try:
        assert drain.stdout is not None
        drain.stdout.readline()
        numbers = (str(_PORT), str(FRAME_BYTES - _HEADER_BYTES), str(_DATAGRAMS), str(rounds))
        output, _ = made.in_pod([sys.executable, "-c", _SENDER, WORLD, *numbers]).communicate()
    finally:
        drain.kill()
        drain.wait()
    return [float(line) for line in output.split()]


def _findings(costs: dict[str, list[float]]) -> Findings:
    bare = median(costs[BARE])
    rows = [(name, *spread(found)) for name, found in costs.items()]
    return Findings(
        tables=(
            Table(
                f"Instructions of a datagram of {FRAME_BYTES} B from pod to world",
                ("on the pod", "instructions", "from", "to", "above nothing"),
                tuple((*row, row[1] - bare) for row in rows),
                digits=0,
                note=f"Median, least and most of {len(costs[BARE])} rounds of {_DATAGRAMS:,} datagrams.",
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
                        *(tuple(column) for column in zip(*rows, strict=True)),
                    ),
                ),
            ),
        ),
    )
