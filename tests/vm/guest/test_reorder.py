"""reorder, and duplicates with a delay, through fq: how many are late, by how much, and that all arrive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from podmgr.demo.intervals import binomial_interval
from tests.lab import WORLD, Lab, lab, tcp
from tests.numbered import exchange

DATAGRAMS = 2_000
PAUSE_US = 1_000  # much less than packets are late by


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.mark.parametrize("direction", ["egress", "ingress"])
@pytest.mark.parametrize("others", [(), ("delay=30ms {}",)], ids=["alone", "behind a delay"])
def test_as_many_are_late_as_the_rule_says(made: Lab, direction: str, others: tuple[str, ...]) -> None:
    rules = [f"reorder=10% {direction} by=20ms", *(rule.format(direction) for rule in others)]
    with made.under(*rules):
        found = exchange(made, DATAGRAMS, ingress=direction == "ingress", pause_us=PAUSE_US)
    print(found)
    low, high = binomial_interval(DATAGRAMS, 0.1)
    assert found.times == {1: DATAGRAMS}
    # Those that nothing overtakes, since all that comes within their lateness is late too, are few.
    assert low - DATAGRAMS / 100 <= found.overtaken <= high


def test_nothing_is_late_without_a_chance(made: Lab) -> None:
    with made.under("reorder=0% egress"):
        found = exchange(made, 500, pause_us=PAUSE_US)
    assert (found.times, found.overtaken) == ({1: 500}, 0)


def test_all_are_late_by_the_time(made: Lab) -> None:
    with made.under("reorder=100% egress by=50ms"):
        output, _ = made.in_pod(["ping", "-q", "-c", "20", "-i", "0.02", WORLD]).communicate()
    print(output)
    least, mean = (float(text) for text in output.split(" = ")[1].split("/")[:2])
    assert 50 <= least <= mean < 60
    assert " 20 received" in output


def test_each_copy_is_delayed_on_its_own(made: Lab) -> None:
    rules = ["duplicate=50% egress", "delay=50ms egress jitter=20ms order=free", "loss=10% egress"]
    with made.under(*rules):
        found = exchange(made, DATAGRAMS, pause_us=PAUSE_US)
    print(found)
    arrived = sum(found.times.values())
    low, high = binomial_interval(DATAGRAMS, 0.9)
    assert low <= arrived <= high
    low, high = binomial_interval(arrived, 0.5)
    assert set(found.times) == {1, 2}
    assert low <= found.times[2] <= high
    assert found.overtaken > 0.3 * found.total


def test_tcp_lives_with_late_packets(made: Lab) -> None:
    with made.under("reorder=1% egress"):
        assert tcp(made, 3).bits_per_second > 1e6


def test_corruption_is_found_behind_a_delay(made: Lab) -> None:
    with made.under("corrupt=100% egress", "delay=5ms egress"):
        assert exchange(made, 100).times == {}
    with made.under("corrupt=100% egress as=payload", "delay=5ms egress"):
        assert exchange(made, 100).wrong_bits == {1: 100}
