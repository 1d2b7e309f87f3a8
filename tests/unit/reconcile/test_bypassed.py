"""When a rule is said to be bypassed: not for an idle pod, nor for what is none of its packets."""

from __future__ import annotations

import pytest

from podmgr.attachment import Link
from podmgr.kernel.bpf_syscall import Counters
from podmgr.kernel.tc import Traffic
from podmgr.reconcile.observe import Observed, since
from tests.unit.samples import EGRESS, attachment

ROW = attachment("loss=uniform egress 1%", program_id=5, links=(Link(1, 2, EGRESS, "eth0"),))


def look(
    packets: int,
    size: int,
    *,
    passed: int = 0,
    dropped: int = 0,
    program_id: int = 5,
    has_counters: bool = True,
) -> Observed:
    counters = Counters(passed, 0, dropped, 0) if has_counters else None
    return Observed(ROW._replace(program_id=program_id), True, counters, Traffic(packets, size))


@pytest.mark.parametrize(
    ("later", "state"),
    [
        (look(1_000, 100_000), "bypassed"),
        (look(20, 2_000), "bypassed"),
        (look(0, 0), "active"),  # idle
        (look(19, 1_900), "active"),  # next to idle
        (look(1_000, 42_000), "active"),  # ARP alone
        (look(1_000, 60_000), "active"),  # frames of a bridge, padded
        (look(1_000, 100_000, passed=1_000), "active"),
        (look(1_000, 100_000, dropped=1_000), "active"),
        (look(1_000, 1_500_000, passed=100), "active"),  # a part of it
        (look(1_000, 100_000, passed=3), "bypassed"),  # before others came in between
        (look(1_000, 100_000, has_counters=False), "active"),  # who counts nothing is not judged
        (look(1_000, 100_000, program_id=6), "active"),  # another program since
    ],
)
def test_bypassed_is_who_sees_hardly_a_packet_of_many(later: Observed, state: str) -> None:
    (found,) = since([look(0, 0)], [later])
    assert found.state == state


def test_who_was_not_seen_before_or_is_missing_is_not_judged() -> None:
    later = look(1_000, 100_000)
    assert [item.state for item in since([], [later])] == ["active"]
    assert later._replace(is_active=False).state == "missing"
