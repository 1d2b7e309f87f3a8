"""The law of a limit, whatever its burst: no more than rate and burst, and nine tenths of the rate.

A few pairs of rate and burst, low enough for a machine that is busy elsewhere; `tests.bench.bursts`
measures many, beside kernel tbf.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from podmgr.demo.throwaway import PROBE
from tests.lab import WORLD, Lab, lab, start_tcp, tcp

WIRE = 1514 / 1448  # of a full segment
TRIES = 3  # the first may meet a machine that has no time for it


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.mark.parametrize(
    ("rate", "options", "burst", "ingress", "flows"),
    [
        (50_000_000, "egress burst=64kb", 64_000, False, 1),
        (20_000_000, "egress burst=1514b", 1_514, False, 8),
        (20_000_000, "egress burst=20kb hook=tc", 20_000, False, 1),
        (10_000_000, "ingress burst=64kb", 64_000, True, 4),
        (5_000_000, "egress", 78_125, False, 1),
    ],
)
def test_a_limit_carries_its_rate_and_no_more(
    made: Lab, rate: int, options: str, burst: int, ingress: bool, flows: int
) -> None:
    carried = []
    for _ in range(TRIES):
        with made.under(f"bandwidth={rate} bps {options}"):
            started, before = time.monotonic(), made.counters().passed_bytes
            finish = start_tcp(made, 4, flows=flows, ingress=ingress, settling_seconds=1)
            carried.append(finish().bits_per_second * WIRE / rate)
            passed, seconds = made.counters().passed_bytes - before, time.monotonic() - started
            assert passed <= 1.02 * rate / 8 * seconds + burst
        if carried[-1] >= 0.9:
            return
    pytest.fail(f"carried {carried} of its rate")


def test_a_pause_saves_up_no_more_than_the_burst(made: Lab) -> None:
    """100 kB after it take at least 80 % of their time: what has passed by then is bounded."""
    rate = 200_000
    with made.under(f"bandwidth={rate} bps egress"):
        tcp(made, 1)
        time.sleep(6)
        before, started = made.counters().passed_bytes, time.monotonic()
        finish = start_tcp(made, 2)
        while made.counters().passed_bytes - before < 60_000 and time.monotonic() - started < 10:
            time.sleep(0.01)
        seconds, passed = time.monotonic() - started, made.counters().passed_bytes - before
        finish()
        assert passed <= rate / 8 * seconds + 0.2 * 100_000


def test_datagrams_that_were_refused_are_given_no_time_back(made: Lab) -> None:
    """Who does not wait has lost none: from any pause on, no more than the burst passes at once."""
    flood = [*PROBE, "send", WORLD, "4000", "500", "1400"]
    with made.under("bandwidth=10 mbps egress burst=1514b"):
        for pause_seconds in (0.3, 0.6, 0.9):
            made.in_pod(flood).communicate()
            time.sleep(pause_seconds)
            before, started = made.counters().passed_bytes, time.monotonic()
            made.in_pod(flood).communicate()
            passed, seconds = made.counters().passed_bytes - before, time.monotonic() - started
            assert passed <= 1.02 * 10e6 / 8 * seconds + 2 * 1_514
