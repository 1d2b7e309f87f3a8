"""What TCP makes of loss: podmgr's rule against the kernel's netem.

Needs netem, for the round trip and to compare with. The two are measured in alternation; what is
judged is the ratio of the medians. One lab for each percentage and round trip, and all transfer at the
same time: together they carry a tenth of what the machine can, so that none is in another's way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

from tests.bench.effort import Effort, tell
from tests.bench.findings import Chart, Claim, Findings, Ratio, Series, Table, ratio
from tests.bench.loss import Lost, pings_lost
from tests.lab import Lab, Transfer, lab, start_tcp

EFFORT = Effort(seconds=30, rounds=9)

PERCENTS = ("0.1", "1", "2", "10")
JUDGED_RTT_MS = 20
RTTS_MS = (JUDGED_RTT_MS, 100)
ALONE_RTT_MS, ALONE_PERCENTS = 0, ("1", "10")  # at 1 % it carries what the machine can
PINGS = 5_000

_SETTLING_SECONDS = 5.0
_NOTE = (
    "{} runs of each, without a round trip a third of them, of a third of the time. The 5 s before each "
    "do not count: what slow start carries until the first loss would outweigh them."
)


@dataclass
class Comparison:
    """TCP from the pod, under so many percent of loss by podmgr, and by netem."""

    made: Lab
    rtt_ms: int
    percent: str
    ours: list[Transfer] = field(default_factory=list)
    theirs: list[Transfer] = field(default_factory=list)

    @property
    def throughput(self) -> Ratio:
        return ratio(*([run.bits_per_second for run in runs] for runs in (self.ours, self.theirs)))

    @property
    def retransmits(self) -> Ratio:
        return ratio(*([run.retransmits for run in runs] for runs in (self.ours, self.theirs)))


def compare(compared: Sequence[Comparison], *, rounds: int, seconds: float) -> None:
    """Fill them: so many rounds, podmgr and netem in turn, all at once."""
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}, podmgr")
        with _podmgr(compared):
            for item, found in zip(compared, _transfers(compared, seconds), strict=True):
                item.ours.append(found)
        tell(f"round {number + 1} of {rounds}, netem")
        with _netem(compared):
            for item, found in zip(compared, _transfers(compared, seconds), strict=True):
                item.theirs.append(found)


def _transfers(compared: Sequence[Comparison], seconds: float) -> list[Transfer]:
    running = [start_tcp(item.made, seconds, settling_seconds=_SETTLING_SECONDS) for item in compared]
    return [finish() for finish in running]


@contextmanager
def _podmgr(compared: Sequence[Comparison]) -> Iterator[None]:
    """One command for each percentage: in an emulated machine each takes seconds."""
    targets: dict[str, list[str]] = {item.percent: [] for item in compared}
    for item in compared:
        targets[item.percent].append(item.made.target)
    first = compared[0].made
    try:
        for percent, pods in targets.items():
            first.podmgr("apply", *pods, "--rule", f"loss=uniform egress {percent}%")
        yield
    finally:
        first.podmgr("clean", *(item.made.target for item in compared))


@contextmanager
def _netem(compared: Sequence[Comparison]) -> Iterator[None]:
    with ExitStack() as stack:
        for item in compared:
            stack.enter_context(item.made.under_netem("loss", f"{item.percent}%"))
        yield


def measure(effort: Effort) -> Findings:
    rounds, seconds = effort.rounds or 1, effort.seconds or 1
    with ExitStack() as stack:
        together = [
            Comparison(stack.enter_context(lab(rtt_ms=rtt_ms)), rtt_ms, percent)
            for rtt_ms in RTTS_MS
            for percent in PERCENTS
        ]
        compare(together, rounds=rounds, seconds=seconds)
        tell("pings")
        pings = [
            (item.percent, pings_lost(item.made, item.percent, PINGS))
            for item in together
            if item.rtt_ms == JUDGED_RTT_MS
        ]
    with lab() as made:
        alone = [Comparison(made, ALONE_RTT_MS, percent) for percent in ALONE_PERCENTS]
        for item in alone:
            compare([item], rounds=max(rounds // 3, 1), seconds=seconds / 3)
    return _findings([*together, *alone], pings)


def _findings(compared: list[Comparison], pings: list[tuple[str, Lost]]) -> Findings:
    judged = [item for item in compared if item.rtt_ms == JUDGED_RTT_MS]
    return Findings(
        tables=(
            Table(
                "TCP under loss: throughput in Mbit/s, and retransmits; ratios with their 95 % interval",
                ("RTT, ms", "loss, %", "podmgr", "netem", "ratio", "retransmits", "ratio"),
                tuple(
                    (
                        item.rtt_ms,
                        item.percent,
                        median(run.bits_per_second for run in item.ours) / 1e6,
                        median(run.bits_per_second for run in item.theirs) / 1e6,
                        str(item.throughput),
                        "{:.0f} / {:.0f}".format(
                            *(median(run.retransmits for run in runs) for runs in (item.ours, item.theirs))
                        ),
                        str(item.retransmits),
                    )
                    for item in compared
                ),
                note=_NOTE.format(len(judged[0].ours)),
            ),
            Table(
                f"pings of {PINGS:,} lost",
                ("loss, %", "lost", "fair"),
                tuple((percent, lost.lost, "{} to {}".format(*lost.fair)) for percent, lost in pings),
            ),
        ),
        charts=(
            Chart(
                "throughput",
                f"TCP under loss, round trip of {JUDGED_RTT_MS} ms",
                "loss, %",
                "Mbit/s",
                tuple(
                    Series(
                        name,
                        tuple(item.percent for item in judged),
                        tuple(median(_mbps(runs)) for runs in columns),
                        tuple(min(_mbps(runs)) for runs in columns),
                        tuple(max(_mbps(runs)) for runs in columns),
                    )
                    for name, columns in (
                        ("podmgr", [item.ours for item in judged]),
                        ("netem", [item.theirs for item in judged]),
                    )
                ),
                log_y=True,
            ),
        ),
        claims=(
            *(
                claim
                for item in judged
                for claim in (
                    Claim(f"{item.percent} %: distance of throughput from netem's", _off(item), 20, " %"),
                    Claim(f"{item.percent} %: retransmits against netem's", item.retransmits.value, 2, "×"),
                    Claim(
                        f"{item.percent} %: retransmits against netem's",
                        item.retransmits.value,
                        0.5,
                        "×",
                        is_least=True,
                    ),
                )
            ),
            Claim(
                f"losses that ping sees otherwise, of {len(pings)}",
                sum(not lost.is_fair for _, lost in pings),
                0,
            ),
        ),
    )


def _off(item: Comparison) -> float:
    return 100 * abs(item.throughput.value - 1)


def _mbps(runs: list[Transfer]) -> list[float]:
    return [run.bits_per_second / 1e6 for run in runs]
