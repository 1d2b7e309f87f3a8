"""When a rule is in force: by its program alone, with nobody else alive."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.kernel import bpf_syscall
from tests.answers import ALL, UDP, answering, unanswered
from tests.lab import WORLD, Lab, lab

# Every 2 ms a datagram that is answered, with when each was sent: so an edge is seen within 2 ms.
_ASKING = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 53))
sock.setblocking(False)
end = time.clock_gettime(time.CLOCK_BOOTTIME) + float(sys.argv[2])
sent = {}
heard = set()
number = 0
while (now := time.clock_gettime(time.CLOCK_BOOTTIME)) < end:
    sent[number] = now
    try:
        sock.send(b"%d" % number)
    except OSError:
        pass
    number += 1
    time.sleep(0.002)
    try:
        while True:
            heard.add(int(sock.recv(100)))
    except BlockingIOError:
        pass
for number, moment in sent.items():
    print(moment, int(number in heard))
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made):
        yield made


def _passed(made: Lab, seconds: float) -> list[tuple[float, bool]]:
    """Every 2 ms for so long, since boot: whether a packet of the pod was answered."""
    asking = made.in_pod([sys.executable, "-c", _ASKING, WORLD, str(seconds)])
    output, _ = asking.communicate()
    assert asking.returncode == 0
    return [(float(moment), passed == "1") for moment, passed in map(str.split, output.splitlines())]


def _edges(passed: list[tuple[float, bool]]) -> list[tuple[float, bool]]:
    """When it begins to pass (True), or ends to."""
    return [now for before, now in itertools.pairwise(passed) if before[1] != now[1]]


def _start(made: Lab) -> float:
    """Of the one rule that has one, in seconds since boot."""
    (mark,) = (made.bpffs / "starts").glob("*/*-*")
    return int(mark.name.partition("-")[2]) / 1e9


def test_it_ends_though_podmgr_is_dead_and_its_state_deleted(made: Lab) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with made.under("loss=100% egress for=3s"):
        began = _start(made)
        assert before < began < time.clock_gettime(time.CLOCK_BOOTTIME)
        for path in made.state_dir.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        edges = _edges(_passed(made, 4))
        assert [passes for _, passes in edges] == [True]
        assert edges[0][0] - began == pytest.approx(3, abs=0.05)


def test_a_pulse_has_its_edges_where_they_belong(made: Lab) -> None:
    with made.under("loss=100% egress after=100ms every=300ms for=100ms"):
        began = _start(made)
        edges = _edges(_passed(made, 4))
    assert len(edges) >= 20
    off = sorted(abs(_from_its_edge(moment - began, passes)) for moment, passes in edges)
    print(f"edges are off by {off[len(off) // 2] * 1e3:.1f} ms, at most {off[-1] * 1e3:.1f} ms")
    assert off[len(off) * 3 // 4] < 0.02  # the others are the busy machine's: who asks is late


def _from_its_edge(seconds: float, passes: bool) -> float:
    """How late it is, of pulses of 100 ms every 300 ms from 100 ms on."""
    return (seconds - 0.1 - (0.1 if passes else 0) + 0.15) % 0.3 - 0.15


def test_until_is_a_moment_of_the_clock_on_the_wall(made: Lab) -> None:
    end = time.time() + 6
    written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(end)) + f".{int(end % 1 * 1e6):06d}Z"
    with made.under(f"loss=100% egress until={written}"):
        edges = _edges(_passed(made, end - time.time() + 1))
    assert [passes for _, passes in edges] == [True]
    end_since_boot = end - time.time() + time.clock_gettime(time.CLOCK_BOOTTIME)
    assert edges[0][0] == pytest.approx(end_since_boot, abs=0.05)


def test_what_is_over_is_listed_so_and_swept_at_the_next_occasion(made: Lab) -> None:
    rule = "loss=100% egress for=200ms"
    with made.under(rule):
        time.sleep(0.3)
        assert " over " in made.podmgr("list")
        assert '"state": "over"' in made.podmgr("list", "-o", "json")
        made.podmgr("apply", made.target, "--rule", "loss=1% ingress")
        assert "for=200ms" not in made.podmgr("list")
        assert list((made.bpffs / "starts").glob("*/*")) == []


def test_who_asks_again_for_what_is_over_gets_it_again(made: Lab) -> None:
    rule = "loss=100% egress for=200ms"
    with made.under(rule):
        first = _start(made)
        time.sleep(0.3)
        assert made.podmgr("apply", made.target, "--rule", rule).endswith(" replaced\n")
        assert _start(made) > first + 0.2


def test_what_has_begun_does_not_begin_again(made: Lab) -> None:
    rule = "loss=100% egress for=1h"
    with made.under(rule):
        first = _start(made)
        assert made.podmgr("apply", made.target, "--rule", rule).endswith(" unchanged\n")
        assert _start(made) == first
        assert unanswered(made, ALL[:4], quiet_ms=100) == set(ALL[:4])


def test_the_start_outlives_a_lost_ledger_and_another_program(made: Lab) -> None:
    rule = "loss=100% egress for=1h"
    with made.under(rule):
        first = _start(made)
        for path in made.state_dir.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        made.podmgr("apply", made.target, "--rule", rule)
        assert _start(made) == first
        made.podmgr("apply", made.target, "--rule", rule, "--rule", "loss=0% egress port=9")
        assert _start(made) == first


def test_nothing_is_left_of_it(made: Lab) -> None:
    with made.under("loss=1% egress for=1h"):
        assert Path(made.bpffs, "starts").exists()
    assert not made.bpffs.exists()


def test_an_until_in_the_past_is_refused(made: Lab) -> None:
    with (
        pytest.raises(AssertionError, match="until lies in the past"),
        made.under("loss=1% egress until=2020-01-01T00:00:00Z"),
    ):
        pass


# When the first of many datagrams over the loopback interface arrives, and when the rule began.
_HEARING = """
import glob, socket, sys, time
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
receiver.settimeout(0.002)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        sender.sendto(b"x", receiver.getsockname())
        receiver.recv(1)
        break
    except OSError:
        pass
print(time.clock_gettime(time.CLOCK_BOOTTIME), glob.glob(sys.argv[1] + "/starts/*/*")[0].rpartition("-")[2])
"""


def test_the_rules_of_a_run_end_and_its_command_runs_on(made: Lab) -> None:
    hearing = [sys.executable, "-c", _HEARING, str(made.bpffs)]
    printed = made.podmgr(
        "run", "-q", "--for", "1s", "--rule", "loss=100% egress hook=cgroup", "--", *hearing
    )
    heard, began_ns = printed.split()
    assert float(heard) - int(began_ns) / 1e9 == pytest.approx(1, abs=0.1)


_TIMES = 3
SHADOWS = ("loss=100% {}", "bandwidth=8 kbps {}", "loss=burst {} 50% length=5")


@pytest.mark.parametrize("rule", SHADOWS)
@pytest.mark.parametrize("hook", ["tc", "cgroup"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_shadow_counts_and_touches_nothing(made: Lab, rule: str, direction: str, hook: str) -> None:
    with made.under(f"{rule.format(direction)} port=53 mode=shadow hook={hook}"):
        for _ in range(_TIMES):
            assert unanswered(made) == set()
        (path,) = (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters")
        counted = bpf_syscall.pinned_counters(path)
    assert counted is not None
    asked = _TIMES * sum(packet.port == 53 for packet in ALL)
    assert counted.dropped_packets + counted.passed_packets == asked
    if "100%" in rule:
        assert counted.dropped_packets == asked


AT_TC = {
    "delay=20ms {}": "mean delay 20 ms",
    "bandwidth=8 mbps {} algorithm=edt": "-",
    "reorder=100% {} by=20ms": "late {}",
    "duplicate=100% {}": "copies {}",
    "corrupt=100% {}": "corrupted {}",
}


@pytest.mark.parametrize("rule", AT_TC)
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_shadow_of_what_changes_or_holds_packets(made: Lab, rule: str, direction: str) -> None:
    """It needs no fq, and what it would have done is told by its own figures."""
    with made.under(f"{rule.format(direction)} proto=udp port=53 mode=shadow hook=tc"):
        for _ in range(_TIMES):
            assert unanswered(made) == set()
        counted = made.counters()
        shown = made.podmgr("list", "-o", "wide")
    asked = _TIMES * sum(packet.port == 53 and packet.protocol == UDP for packet in ALL)
    assert (counted.passed_packets, counted.dropped_packets) == (asked, 0)
    assert shown.rstrip().endswith(f" {AT_TC[rule].format(asked)}")
