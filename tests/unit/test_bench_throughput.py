"""What the benchmark makes of its transfers."""

from __future__ import annotations

import pytest

from tests.bench.throughput import Transfer, share


def _transfers(arm: str, flows: int, *gbit_per_second: float) -> list[Transfer]:
    return [Transfer(arm, flows, turn, rate, 10 / rate) for turn, rate in enumerate(gbit_per_second)]


def test_a_share_is_of_the_same_turn() -> None:
    """The machine is half as fast in every second turn, and the arm always as fast as no rule."""
    transfers = _transfers("no rule", 1, 10, 5, 10, 5) + _transfers("ours", 1, 10, 5, 10, 5)
    found = share(transfers, "ours", 1)
    assert (found.throughput.value, found.throughput.low, found.throughput.high) == (1, 1, 1)


def test_one_odd_turn_moves_no_share() -> None:
    transfers = _transfers("no rule", 1, 10, 10, 1, 10, 10) + _transfers("ours", 1, 9, 9, 9, 9, 9)
    found = share(transfers, "ours", 1)
    assert found.throughput.value == pytest.approx(0.9)
    assert found.cpu.value == pytest.approx(10 / 9)
    assert found.gbit_per_second == 9


def test_flows_are_kept_apart() -> None:
    transfers = [
        *_transfers("no rule", 1, 10),
        *_transfers("ours", 1, 10),
        *_transfers("no rule", 4, 20),
        *_transfers("ours", 4, 10),
    ]
    assert share(transfers, "ours", 1).throughput.value == 1
    assert share(transfers, "ours", 4).throughput.value == 0.5


def test_an_arm_can_be_put_beside_another_than_no_rule() -> None:
    transfers = _transfers("kernel tbf", 1, 5) + _transfers("ours", 1, 10)
    assert share(transfers, "ours", 1, of="kernel tbf").throughput.value == 2
