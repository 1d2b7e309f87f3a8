"""Every pair of kinds on one pod, both directions: whether what each does adds up.

Of the datagrams that arrive it is judged how many there are, how many of them twice, how late they are, and
how far apart where a rate is among the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from tests.bench.effort import Effort, tell
from tests.bench.findings import Claim, Findings, Table
from tests.lab import Lab, lab
from tests.oneway import Journeys, journeys

EFFORT = Effort(rounds=2)

DATAGRAMS_PER_ROUND = 1_000
APART_SECONDS = 0.002
PAYLOAD_BYTES = 1_000

LOSS, CORRUPT, DUPLICATE, LATE = 0.2, 0.25, 0.3, 0.1
DELAY_SECONDS, LATE_SECONDS, RATE_MBPS = 0.02, 0.01, 8
RULES = {
    "rate": f"bandwidth={RATE_MBPS} mbps both algorithm=edt",
    "bucket": "bandwidth=50 mbps both hook=tc",
    "delay": f"delay={DELAY_SECONDS * 1e3:g}ms both",
    "loss": f"loss={LOSS:.0%} both",
    "corrupt": f"corrupt={CORRUPT:.0%} both",
    "duplicate": f"duplicate={DUPLICATE:.0%} both",
    "reorder": f"reorder={LATE:.0%} both by={LATE_SECONDS * 1e3:g}ms",
}
SAME_KEY = {("rate", "bucket")}
DEVIATIONS = 4.5  # of a fair count
_SLACK_SECONDS = 0.0005  # of the way, and of the clock
_WIRE_SECONDS = (PAYLOAD_BYTES + 42) * 8 / (RATE_MBPS * 1e6)


@dataclass(frozen=True)
class Seen:
    """What arrived under two rules in one direction."""

    names: tuple[str, str]
    is_ingress: bool
    journeys: Journeys

    @property
    def wrong(self) -> list[str]:
        """What does not add up."""
        return [text for text in (self._count(), self._delay(), self._late(), self._spacing()) if text]

    def _share(self, name: str, share: float) -> float:
        return share if name in self.names else 0.0

    def _count(self) -> str:
        stays = (1 - self._share("loss", LOSS)) * (1 - self._share("corrupt", CORRUPT))
        twice = self._share("duplicate", DUPLICATE)
        # On ingress copies are made before the others judge, each by itself; on egress behind them.
        both = twice * (stays**2 if self.is_ingress else stays)
        mean = stays * (1 + twice)
        variance = mean + 2 * both - mean**2
        count, sent = len(self.journeys.arrived), self.journeys.sent
        off = abs(count - sent * mean)
        return (
            f"{count} arrived, not {sent * mean:.0f}"
            if off > DEVIATIONS * (sent * variance) ** 0.5 + 1e-6
            else ""
        )

    def _delay(self) -> str:
        least = self._share("delay", DELAY_SECONDS)
        delays = sorted(self.journeys.delays)
        middle = delays[len(delays) // 2]
        most = least + _SLACK_SECONDS + (3 * _WIRE_SECONDS if "rate" in self.names else 0)
        if delays[0] < least or not least <= middle <= most:
            return f"delays from {delays[0] * 1e3:.3f} ms, median {middle * 1e3:.3f}"
        return ""

    def _late(self) -> str:
        base = self._share("delay", DELAY_SECONDS) + LATE_SECONDS
        share = self._share("reorder", LATE)
        count = sum(delay >= base for delay in self.journeys.delays)
        total = len(self.journeys.delays)
        off = abs(count - total * share)
        return (
            f"{count} late of {total}"
            if off > DEVIATIONS * (total * share * (1 - share)) ** 0.5 + 1e-6
            else ""
        )

    def _spacing(self) -> str:
        """Between two that arrive there is the time that the link takes for one."""
        if "rate" not in self.names or "reorder" in self.names:
            return ""
        moments = sorted(number * APART_SECONDS + delay for number, delay in self.journeys.arrived)
        gaps = sorted(later - earlier for earlier, later in pairwise(moments))
        least = gaps[len(gaps) // 50]
        return f"{least * 1e3:.3f} ms apart" if least < _WIRE_SECONDS - _SLACK_SECONDS else ""


def measure(effort: Effort) -> Findings:
    count = DATAGRAMS_PER_ROUND * (effort.rounds or 1)
    seen: list[Seen] = []
    with lab() as made:
        for names in combinations(RULES, 2):
            if names not in SAME_KEY:
                seen += _seen(made, names, count)
    return _findings(seen)


def _seen(made: Lab, names: tuple[str, str], count: int) -> list[Seen]:
    tell(" and ".join(names))
    with made.under(*(RULES[name] for name in names)):
        return [
            Seen(
                names,
                is_ingress,
                journeys(
                    made,
                    count,
                    apart_seconds=APART_SECONDS,
                    ingress=is_ingress,
                    payload_bytes=PAYLOAD_BYTES,
                    quiet_seconds=1,
                ),
            )
            for is_ingress in (False, True)
        ]


def _findings(seen: Sequence[Seen]) -> Findings:
    rows = tuple(
        (
            " + ".join(item.names),
            "ingress" if item.is_ingress else "egress",
            len(item.journeys.arrived),
            item.journeys.copies,
            item.journeys.overtaken,
            min(item.journeys.delays) * 1e3,
            item.journeys.mean * 1e3,
            "; ".join(item.wrong) or "adds up",
        )
        for item in seen
    )
    note = "; ".join(f"{name}: `{rule}`" for name, rule in RULES.items())
    title = f"{seen[0].journeys.sent:,} datagrams, {APART_SECONDS * 1e3:g} ms apart, under two rules"
    headings = ("rules", "direction", "arrived", "copies", "overtaken", "least, ms", "mean, ms", "")
    return Findings(
        tables=(Table(title, headings, rows, digits=3, note=note + "."),),
        claims=(Claim("pairs and directions that do not add up", sum(bool(item.wrong) for item in seen), 0),),
    )
