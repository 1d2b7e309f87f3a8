"""Loss as TCP, UDP and ping experience it: podmgr's rule against the kernel's netem.

    python -m tests.vm -- python3 -m tests.bench.loss [--rounds 9] [--seconds 30] [PERCENT…]

Needs netem, for the round trip and to compare with. The two are run in alternation, so that the
machine's moods fall on both; what is judged is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from podmgr.intervals import binomial_interval
from podmgr.throwaway import PROBE, inside
from tests.lab import WORLD, Lab, Transfer, lab, tcp

RTT_MS = 20
PERCENTS = ("0.1", "1", "2", "10")
PINGS = 5_000
DATAGRAMS = 20_000

_RESAMPLINGS = 10_000


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians, with its 95 % interval by bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of the medians; the interval from resampling both, with a fixed seed."""
    chance = random.Random(1)
    found = sorted(
        median(chance.choices(ours, k=len(ours))) / max(median(chance.choices(theirs, k=len(theirs))), 1e-9)
        for _ in range(_RESAMPLINGS)
    )
    edge = _RESAMPLINGS // 40
    return Ratio(median(ours) / max(median(theirs), 1e-9), found[edge], found[-edge])


@dataclass(frozen=True)
class Comparison:
    """What TCP made of a loss of so many percent, by podmgr and by netem."""

    percent: str
    ours: tuple[Transfer, ...]
    theirs: tuple[Transfer, ...]

    @property
    def throughput(self) -> Ratio:
        return ratio([run.bits_per_second for run in self.ours], [run.bits_per_second for run in self.theirs])

    @property
    def retransmits(self) -> Ratio:
        return ratio([run.retransmits for run in self.ours], [run.retransmits for run in self.theirs])


def compare(made: Lab, percent: str, *, rounds: int, seconds: float) -> Comparison:
    """TCP from the pod, under podmgr's loss and netem's in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        with made.under(f"loss=uniform egress {percent}%"):
            ours.append(tcp(made, seconds))
        with made.under_netem("loss", f"{percent}%"):
            theirs.append(tcp(made, seconds))
    return Comparison(percent, tuple(ours), tuple(theirs))


@dataclass(frozen=True)
class Lost:
    """How many of how many packets were lost, and how many a fair loss takes, 99.99 % of the time."""

    lost: int
    sent: int
    fair: tuple[int, int]
    errors: int = 0

    @property
    def is_fair(self) -> bool:
        return self.fair[0] <= self.lost <= self.fair[1]


def pings_lost(made: Lab, percent: str, count: int = PINGS) -> Lost:
    """Of pings from the pod, under the rule."""
    argv = ["ping", "-q", "-c", str(count), "-i", "0.002", "-W", "1", WORLD]
    with made.under(f"loss=uniform egress {percent}%"):
        output, _ = made.in_pod(argv).communicate()
    sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", output)[0])
    return Lost(sent - received, sent, binomial_interval(sent, float(percent) / 100))


def datagrams_lost(made: Lab, percent: str, count: int = DATAGRAMS) -> Lost:
    """Of UDP datagrams from the pod, under the rule, and how many sendto(2) calls failed."""
    argv = inside(made.world, [*PROBE, "receive", "4000"])
    receiver = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    with made.under(f"loss=uniform egress {percent}%"):
        sent = json.loads(made.in_pod([*PROBE, "send", WORLD, "4000", str(count)]).communicate()[0])
    received = json.loads(receiver.communicate("")[0])["received"]
    lost = sent["sent"] - received
    return Lost(lost, sent["sent"], binomial_interval(count, float(percent) / 100), sent["errors"])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("percents", nargs="*", default=PERCENTS, metavar="PERCENT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args(words)
    print(f"TCP at {RTT_MS} ms, {options.rounds} runs of {options.seconds:g} s each, in alternation")
    print(
        f"{'LOSS':>6} {'PODMGR':>9} {'NETEM':>9} {'RATIO':>24} {'RETRANSMITS':>13} {'RATIO':>24}  PINGS LOST"
    )
    document = []
    with lab(rtt_ms=RTT_MS) as made:
        for percent in options.percents:
            found = compare(made, percent, rounds=options.rounds, seconds=options.seconds)
            pings = pings_lost(made, percent)
            rates = [median(run.bits_per_second for run in runs) / 1e6 for runs in (found.ours, found.theirs)]
            again = [median(run.retransmits for run in runs) for runs in (found.ours, found.theirs)]
            shown = f"{pings.lost} of {pings.sent} (fair: {pings.fair[0]} to {pings.fair[1]})"
            print(
                f"{percent:>5}% {rates[0]:>9.2f} {rates[1]:>9.2f} {found.throughput!s:>24} "
                f"{again[0]:>6.0f}/{again[1]:<6.0f} {found.retransmits!s:>24}  {shown}",
                flush=True,
            )
            runs = {name: [vars(run) for run in getattr(found, name)] for name in ("ours", "theirs")}
            document.append({"percent": percent, **runs, "pings": vars(pings)})
    if (folder := Path("/results")).is_dir():
        (folder / "loss.json").write_text(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
