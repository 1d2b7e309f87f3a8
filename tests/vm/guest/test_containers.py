"""A container is known also of packets that were freed from their sockets, by whom and for whom ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic

import pytest

from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life
from tests.answers import UDP, Packet, answering, unanswered
from tests.lab import WORLD, WORLD6, Lab, lab

SOME = [Packet(WORLD, UDP, 53, 6000), Packet(WORLD6, UDP, 80, 6001)]


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made), ExitStack() as stack:
        for name in ("one", "other"):
            path = made.cgroup.path / name
            path.mkdir()
            stack.callback(cgroup_life.remove, Cgroup(path, path.stat().st_ino))
        yield made


def _within(made: Lab, name: str) -> Lab:
    path = made.cgroup.path / name
    return replace(made, cgroup=Cgroup(path, path.stat().st_ino))


def _seconds(made: Lab) -> float:
    began = monotonic()
    assert unanswered(made, SOME, quiet_ms=8_000) == set()
    return monotonic() - began


def test_a_delay_of_a_container_is_no_others(made: Lab) -> None:
    with made.under("delay=3s egress container=one"):
        assert _seconds(_within(made, "one")) > 3
        assert _seconds(_within(made, "other")) < 3


def test_two_delays_of_two_containers_stand_beside_each_other(made: Lab) -> None:
    with made.under("delay=3s egress container=one; 5s egress container=other"):
        assert 3 < _seconds(_within(made, "one")) < 5
        assert _seconds(_within(made, "other")) > 5


@pytest.mark.parametrize("rest", ["delay=10ms egress", "reorder=100% egress by=10ms"])
def test_a_packet_that_another_rule_has_freed_is_still_of_its_container(made: Lab, rest: str) -> None:
    with made.under(rest, "loss=100% egress container=other"):
        assert unanswered(_within(made, "one"), SOME, quiet_ms=2_000) == set()
        assert unanswered(_within(made, "other"), SOME) == set(SOME)
