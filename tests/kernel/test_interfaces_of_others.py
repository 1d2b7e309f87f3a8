"""What others have on a pod's interfaces is used where it serves, and never changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Target
from podmgr.demo.throwaway import WORLD_ADDRESS, Pod
from podmgr.reconcile.outcome import Action
from podmgr.reconcile.transaction import clean
from podmgr.settings import Settings
from tests.kernel.conftest import applied, assert_nothing_left, compile_by_hand, run, under
from tests.kernel.network import Place, datagrams, programs, qdisc_kinds, tc, tc_state

RULE, CHANGED = "loss=uniform egress 100%", "loss=uniform egress 50%"
TBF = "qdisc add dev eth0 root handle 5: tbf rate 1gbit burst 1mb latency 50ms"

FOREIGN_PROGRAM = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
SEC("tc") int other(struct __sk_buff *skb) { return TC_ACT_UNSPEC; }
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """The pin of somebody else's program for tc."""
    pin = Path(f"/sys/fs/bpf/foreign-{os.getpid()}")
    run("bpftool", "prog", "load", str(compile_by_hand(tmp_path, FOREIGN_PROGRAM)), str(pin))
    yield pin
    pin.unlink()


def _program(foreign: Path, priority: int, handle: int = 1, side: str = "egress") -> str:
    place = f"filter add dev eth0 {side} protocol all prio {priority} handle {handle}"
    return f"{place} bpf da object-pinned {foreign}"


def _apply_change_and_clean(pod: Pod, settings: Settings, *expected: str) -> None:
    """Each line of `expected` must be there all the while; what the rules do, they do."""

    def has_it_all() -> bool:
        return all(line in tc_state(pod.pid).splitlines() for line in expected)

    for rule in (RULE, CHANGED, RULE):
        (outcome,) = applied(settings, pod.cgroup, rule)
        assert outcome.error is None
        assert has_it_all()
        (again,) = applied(settings, pod.cgroup, rule)
        assert (again.action, again.program_id) == (Action.UNCHANGED, outcome.program_id)
        assert outcome.program_id in programs(pod.pid)
    _, (received,) = datagrams(Place(pod.pid, pod.cgroup), Place(pod.world_pid), WORLD_ADDRESS, 100)
    assert received == 0
    clean(None, settings, runner=proc.run)
    assert has_it_all()
    assert_nothing_left(settings)


@pytest.mark.parametrize("priority", [1, 99, 100, 101, 200, 49152])
@pytest.mark.parametrize("side", ["egress", "ingress"])
def test_a_filter_of_others_on_their_clsact_stays(
    pod: Pod, settings: Settings, foreign: Path, priority: int, side: str
) -> None:
    """Whatever its priority, also that of ours."""
    tc(pod.pid, "qdisc add dev eth0 clsact")
    tc(pod.pid, _program(foreign, priority, side=side))
    before = tc_state(pod.pid)
    _apply_change_and_clean(pod, settings, *before.splitlines())
    assert tc_state(pod.pid) == before


def test_a_filter_of_another_kind_stays(pod: Pod, settings: Settings) -> None:
    tc(pod.pid, "qdisc add dev eth0 clsact")
    tc(pod.pid, "filter add dev eth0 egress protocol ip u32 match u32 0 0 classid 1:1")
    before = tc_state(pod.pid)
    _apply_change_and_clean(pod, settings, *before.splitlines())
    assert tc_state(pod.pid) == before


def test_a_filter_of_another_kind_with_our_priority_stays_and_ours_is_refused(
    pod: Pod, settings: Settings
) -> None:
    """tc takes filters of one kind and protocol alone under one priority."""
    tc(pod.pid, "qdisc add dev eth0 clsact")
    tc(pod.pid, "filter add dev eth0 egress protocol ipv6 prio 100 u32 match u32 0 0 classid 1:1")
    before = tc_state(pod.pid)
    (outcome,) = applied(settings, pod.cgroup, RULE)
    assert outcome.error is not None
    assert "the kernel refuses" in outcome.error.message
    assert outcome.error.detail
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)


def test_a_clsact_of_others_stays_though_it_holds_no_filter(pod: Pod, settings: Settings) -> None:
    tc(pod.pid, "qdisc add dev eth0 clsact")
    before = tc_state(pod.pid)
    _apply_change_and_clean(pod, settings, *before.splitlines())
    assert tc_state(pod.pid) == before


def test_a_root_qdisc_of_others_stays(pod: Pod, settings: Settings) -> None:
    tc(pod.pid, TBF)
    before = tc_state(pod.pid)
    _apply_change_and_clean(pod, settings, *before.splitlines())
    assert tc_state(pod.pid) == before


def test_a_root_qdisc_of_others_is_an_error_for_what_delays(pod: Pod, settings: Settings) -> None:
    tc(pod.pid, TBF)
    before = tc_state(pod.pid)
    (outcome,) = applied(settings, pod.cgroup, "bandwidth=10 mbps egress algorithm=edt")
    assert outcome.error is not None
    assert "eth0 has the root qdisc tbf 5:" in outcome.error.message
    assert "algorithm=tbf" in (outcome.error.tip or "")
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)


def test_an_ingress_qdisc_of_others_is_an_error(pod: Pod, settings: Settings) -> None:
    """Beside the older ingress qdisc there can be no clsact."""
    tc(pod.pid, "qdisc add dev eth0 ingress")
    tc(pod.pid, "filter add dev eth0 parent ffff: protocol ip u32 match u32 0 0 classid 1:1")
    before = tc_state(pod.pid)
    (outcome,) = applied(settings, pod.cgroup, RULE)
    assert outcome.error is not None
    assert "eth0 has an ingress qdisc" in outcome.error.message
    assert "hook=cgroup" in (outcome.error.tip or "")
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)
    with under(settings, pod.cgroup, f"{RULE} hook=cgroup"):
        assert tc_state(pod.pid) == before


@pytest.mark.parametrize("priority", [1, 200])
def test_a_filter_that_others_put_on_our_clsact_keeps_it(
    pod: Pod, settings: Settings, foreign: Path, priority: int
) -> None:
    applied(settings, pod.cgroup, RULE)
    ours = programs(pod.pid)
    tc(pod.pid, _program(foreign, priority))
    (theirs,) = set(programs(pod.pid)) - set(ours)
    applied(settings, pod.cgroup, CHANGED)
    assert theirs in programs(pod.pid)
    clean(None, settings, runner=proc.run)
    assert programs(pod.pid) == [theirs]
    assert_nothing_left(settings)
    tc(pod.pid, "filter del dev eth0 egress")
    with under(settings, pod.cgroup, RULE):  # the clsact is theirs now
        assert len(programs(pod.pid)) == 1
    assert "clsact" in qdisc_kinds(pod.pid)


def test_a_clsact_that_others_made_in_our_clsacts_place_stays(pod: Pod, settings: Settings) -> None:
    """They took away ours, rule and all, and made their own: it cannot be told apart, but if it is used."""
    applied(settings, pod.cgroup, RULE)
    tc(pod.pid, "qdisc del dev eth0 clsact")
    tc(pod.pid, "qdisc add dev eth0 clsact")
    tc(pod.pid, "filter add dev eth0 ingress protocol ip u32 match u32 0 0 classid 1:1")
    before = tc_state(pod.pid)
    (outcome,) = applied(settings, pod.cgroup, RULE)
    assert outcome.error is None
    assert programs(pod.pid) == [outcome.program_id]
    clean(Target("x", pod.cgroup).selection, settings, runner=proc.run)
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)


def test_a_rule_whose_qdisc_was_taken_away_comes_back(pod: Pod, settings: Settings) -> None:
    before = tc_state(pod.pid)
    applied(settings, pod.cgroup, RULE)
    tc(pod.pid, "qdisc del dev eth0 clsact")
    with under(settings, pod.cgroup, RULE):
        assert len(programs(pod.pid)) == 1
    assert tc_state(pod.pid) == before


def test_a_shared_interface_with_an_ingress_qdisc_is_passed_over(settings: Settings, pod: Pod) -> None:
    """For a cgroup whose interfaces are others' too: the rule acts on those that take clsact."""
    place = Place(pod.pid, pod.cgroup)
    tc(pod.pid, "qdisc add dev eth0 ingress")
    before = tc_state(pod.pid)
    outsider = Place(pod.pid).start("sleep", "infinity")
    try:
        while not os.path.samefile(f"/proc/{outsider.pid}/ns/net", f"/proc/{pod.pid}/ns/net"):
            assert outsider.poll() is None
        with under(settings, pod.cgroup, RULE, counts_loopback=True) as listed:
            assert [link.name for link in listed()[RULE].attachment.links] == ["lo"]
            assert datagrams(place, place, "127.0.0.1", 100) == (0, [0])
    finally:
        outsider.kill()
        outsider.communicate()
    assert tc_state(pod.pid) == before
