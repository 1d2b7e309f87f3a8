"""Attached is not effective: `list` says where others keep the packets from our program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Target
from podmgr.cli.render import attachments_document, attachments_table
from podmgr.demo.throwaway import POD_ADDRESS, WORLD_ADDRESS, Pod, throw_away_pod
from podmgr.reconcile.observe import observe, since
from podmgr.reconcile.transaction import clean
from podmgr.settings import Settings
from tests.kernel.conftest import Cli, applied, compile_by_hand, run
from tests.kernel.network import Place, datagrams, tc

ENDING = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("tc") int other(struct __sk_buff *skb) { return 0; }
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def pod(cgroup_root: Path, settings: Settings) -> Iterator[Pod]:
    with throw_away_pod(cgroup_root) as pod:
        yield pod
        clean(Target("x", pod.cgroup).selection, settings, runner=proc.run)


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[Path]:
    """The pin of a program that passes with TC_ACT_OK, which ends the chain."""
    pin = Path(f"/sys/fs/bpf/ending-{os.getpid()}")
    run("bpftool", "prog", "load", str(compile_by_hand(tmp_path, ENDING)), str(pin))
    yield pin
    pin.unlink()


def send(pod: Pod, side: str, count: int = 100) -> int:
    inner, outer = Place(pod.pid, pod.cgroup), Place(pod.world_pid)
    ends = (inner, outer, WORLD_ADDRESS) if side == "egress" else (outer, inner, POD_ADDRESS)
    return datagrams(*ends, count)[1][0]


def states(settings: Settings) -> list[str]:
    return [item.state for item in observe(settings)[0]]


def kernel_has_tcx() -> bool:
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6)


TCX = """
import socket, struct, sys
from podmgr.kernel import bpf_syscall
index, number = socket.if_nametoindex("eth0"), {"ingress": 46, "egress": 47}[sys.argv[2]]
attr = bytearray(64)
struct.pack_into("=IIII", attr, 0, index, bpf_syscall.open_pin(sys.argv[3]), number, 0)
bpf_syscall.call(int(sys.argv[1]), attr, "tcx")
"""
BPF_PROG_ATTACH, BPF_PROG_DETACH = 8, 9


def tcx(pod: Pod, command: int, side: str, ending: Path) -> None:
    """Without iproute2 and bpftool, which may be too old for it."""
    Place(pod.pid).run(sys.executable, "-c", TCX, str(command), side, str(ending))


def put_before(pod: Pod, ending: Path, side: str, kind: str) -> None:
    if kind == "tcx":
        tcx(pod, BPF_PROG_ATTACH, side, ending)
    else:
        tc(pod.pid, f"filter add dev eth0 {side} prio 1 handle 1 bpf da object-pinned {ending}")


def take_away(pod: Pod, ending: Path, side: str, kind: str) -> None:
    if kind == "tcx":
        tcx(pod, BPF_PROG_DETACH, side, ending)
    else:
        tc(pod.pid, f"filter del dev eth0 {side} prio 1")


@pytest.mark.parametrize("side", ["egress", "ingress"])
@pytest.mark.parametrize("kind", ["filter", "tcx"])
def test_what_ends_the_chain_before_ours_is_told(
    pod: Pod, settings: Settings, ending: Path, side: str, kind: str
) -> None:
    if kind == "tcx" and not kernel_has_tcx():
        return
    (outcome,) = applied(settings, pod.cgroup, f"loss=uniform {side} 100%")
    assert outcome.error is None
    assert states(settings) == ["active"]  # idle
    put_before(pod, ending, side, kind)
    assert send(pod, side) == 100
    assert states(settings) == ["bypassed"]
    observed = observe(settings)[0]
    assert "bypassed" in attachments_table(observed, wide=False)
    assert json.loads(json.dumps(attachments_document(observed)))["attachments"][0]["state"] == "bypassed"
    again = applied(settings, pod.cgroup, f"loss=uniform {side} 100%")
    assert [item.action for item in again] == ["unchanged"]
    assert states(settings) == ["bypassed"]
    take_away(pod, ending, side, kind)
    assert send(pod, side) == 0
    assert states(settings) == ["active"]


def test_what_comes_later_is_told_by_two_looks(pod: Pod, settings: Settings, ending: Path) -> None:
    applied(settings, pod.cgroup, "loss=uniform egress 0%")
    assert send(pod, "egress") == 100
    put_before(pod, ending, "egress", "filter")
    before = observe(settings)[0]
    assert [item.state for item in since(before, observe(settings)[0])] == ["active"]  # idle
    send(pod, "egress")
    now = observe(settings)[0]
    assert [item.state for item in now] == ["active"]  # it has seen packets since it was attached
    assert [item.state for item in since(before, now)] == ["bypassed"]


@pytest.mark.parametrize("side", ["egress", "ingress"])
def test_rule_that_acts_is_active(pod: Pod, settings: Settings, side: str) -> None:
    """Whether it lets pass or drops; and one at the cgroup hook, which no interface is held against."""
    applied(settings, pod.cgroup, f"loss=uniform {side} 50%", f"bandwidth=8 kbps {side}")
    before = observe(settings)[0]
    send(pod, side)
    now = observe(settings)[0]
    assert [item.state for item in now] == [item.state for item in since(before, now)] == ["active"] * 2


def test_apply_and_list_wait_and_tell(pod: Pod, settings: Settings, ending: Path) -> None:
    """With --settle, on the spot: by what passes meanwhile."""
    target, words = f"cgroup/{pod.cgroup.path}", ("--rule", "loss=uniform egress 100%", "--settle", "1s")
    podmgr = Cli(settings)
    rule = "loss=uniform egress 100%"
    applied(settings, pod.cgroup, "loss=uniform egress 0%")
    assert "bypassed" not in podmgr("list", "--settle", "100ms").stdout
    put_before(pod, ending, "egress", "filter")
    sending = Place(pod.pid, pod.cgroup).start(sys.executable, "-I", "-S", "-c", FLOOD, WORLD_ADDRESS)
    try:
        assert "bypassed" in podmgr("list", "--settle", "1s").stdout
        done = podmgr("apply", target, *words)
        assert f"'{rule}' is attached, but packets pass it by" in done.stderr
    finally:
        sending.kill()
        sending.communicate()
    assert podmgr("list", "--settle", "x", code=2).stderr


FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    s.sendto(bytes(100), (sys.argv[1], 9))
    time.sleep(0.002)
"""
