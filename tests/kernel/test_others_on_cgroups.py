"""What others have on a pod's cgroup and above acts as before: beside ours, and after it has gone."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.kernel import bpf_syscall, cgroup_life, cgroups, pins
from podmgr.reconcile import others
from podmgr.reconcile.outcome import Action
from podmgr.reconcile.transaction import clean
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import Cli, MakeCgroup, applied, attached, compile_by_hand, run

DROPPING = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("cgroup_skb/SIDE") int node_filter(struct __sk_buff *skb) { return 0; }
char LICENSE[] SEC("license") = "GPL";
"""
RULES = {"egress": "bandwidth=10 mbps egress", "ingress": "bandwidth=10 mbps ingress"}
CHANGED = {"egress": "bandwidth=20 mbps egress", "ingress": "bandwidth=20 mbps ingress"}


@pytest.fixture
def node(make_cgroup: MakeCgroup) -> Cgroup:
    """The cgroup that holds pods."""
    return make_cgroup("kubepods")


@pytest.fixture
def pod(node: Cgroup) -> Cgroup:
    return cgroup_life.create(cgroup_life.create(node.path, "burstable").path, "pod")


@pytest.fixture
def attach(tmp_path: Path, settings: Settings) -> Iterator[Callable[..., int]]:
    """Attaches a dropping program of others; its id."""
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    pins.remove_empty_folders(settings.bpffs)
    made: list[Path] = []
    done: list[tuple[str, ...]] = []

    def attach(cgroup: Cgroup, side: str, *flags: str) -> int:
        pin = Path(f"/sys/fs/bpf/others-{os.getpid()}-{len(made)}")
        path = compile_by_hand(tmp_path, DROPPING.replace("SIDE", side))
        run("bpftool", "prog", "load", str(path), str(pin))
        made.append(pin)
        words = (str(cgroup.path), side, "pinned", str(pin))
        run("bpftool", "cgroup", "attach", *words, *flags)
        done.append(words)
        return int(json.loads(run("bpftool", "-j", "prog", "show", "pinned", str(pin)))["id"])

    yield attach
    for words in done:
        run("bpftool", "cgroup", "detach", *words)
    for pin in made:
        pin.unlink()


def passes(cgroup: Cgroup) -> bool:
    """Whether a datagram gets from one process of the cgroup to itself."""
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.settimeout(0.2)\n"
        "try: s.sendto(b'x', s.getsockname()); s.recv(9); print('yes')\n"
        "except OSError: print('no')\n"
    )
    done = proc.run([sys.executable, "-I", "-S", "-c", code], prepare=lambda: cgroup_life.join(cgroup))
    return done.stdout.strip() == "yes"


@pytest.mark.parametrize("side", ["egress", "ingress"])
@pytest.mark.parametrize("is_below_multi", [False, True])
def test_override_above_is_not_lifted(
    node: Cgroup, pod: Cgroup, settings: Settings, attach: Callable[..., int], side: str, is_below_multi: bool
) -> None:
    """Who may annotate a pod would else rid it of the node's filter."""
    program = attach(node, side, "override")
    if is_below_multi:  # then the node's filter does not act on the pod, with us or without
        attach(Cgroup(pod.path.parent, pod.path.parent.stat().st_ino), side, "multi")
    before = others.effective(pod, Direction(side))
    for rule in (RULES[side], CHANGED[side]):
        (outcome,) = applied(settings, pod, rule)
        if is_below_multi:
            assert outcome.error is None
            continue
        assert outcome.action is Action.FAILED and outcome.error is not None
        assert f"program {program} (node_filter) of cgroup {node.path}" in outcome.error.message
        assert "'multi'" in (outcome.error.tip or "")
        assert attached(pod, Direction(side)) == ()
    assert not passes(pod)
    assert before <= others.effective(pod, Direction(side))
    other = {"egress": "ingress", "ingress": "egress"}[side]
    outcomes = applied(settings, pod, RULES[other])  # nobody's place is taken there
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    clean(None, settings, runner=proc.run)
    assert others.effective(pod, Direction(side)) == before
    assert not passes(pod)


@pytest.mark.parametrize("side", ["egress", "ingress"])
@pytest.mark.parametrize("place", ["pod", "node"])
def test_multi_acts_beside_ours(
    node: Cgroup, pod: Cgroup, settings: Settings, attach: Callable[..., int], side: str, place: str
) -> None:
    program = attach(pod if place == "pod" else node, side, "multi")
    for rule in (RULES[side], CHANGED[side]):
        (outcome,) = applied(settings, pod, rule)
        assert outcome.error is None
        assert {program, outcome.program_id} == others.effective(pod, Direction(side))
        assert not passes(pod)
    clean(None, settings, runner=proc.run)
    assert others.effective(pod, Direction(side)) == {program}


@pytest.mark.parametrize("flags", [(), ("override",)])
@pytest.mark.parametrize("place", ["pod", "node", "child"])
def test_other_kinds_of_attachment_stay(
    node: Cgroup,
    pod: Cgroup,
    settings: Settings,
    attach: Callable[..., int],
    place: str,
    flags: tuple[str, ...],
) -> None:
    """An exclusive one admits no other; below the pod, ours comes on top."""
    child = cgroup_life.create(pod.path, "container")
    if place == "child" and not flags:  # the kernel itself refuses the pair in either order
        return
    where = {"pod": pod, "node": node, "child": child}[place]
    program = attach(where, "egress", *flags)
    (outcome,) = applied(settings, pod, RULES["egress"])
    assert (outcome.error is None) == (place == "child")
    if outcome.error is not None:
        assert str(program) in outcome.error.message + (outcome.error.tip or "")
    assert program in others.effective(child, Direction.EGRESS)
    clean(None, settings, runner=proc.run)
    assert program in others.effective(child, Direction.EGRESS)


@pytest.mark.parametrize("side", ["egress", "ingress"])
def test_link_above_acts_beside_ours(
    node: Cgroup, pod: Cgroup, settings: Settings, tmp_path: Path, side: str
) -> None:
    pin = Path(f"/sys/fs/bpf/link-{os.getpid()}")
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    pins.remove_empty_folders(settings.bpffs)
    run("bpftool", "prog", "load", str(compile_by_hand(tmp_path, DROPPING.replace("SIDE", side))), str(pin))
    program, folder = bpf_syscall.open_pin(pin), os.open(node.path, os.O_RDONLY)
    attr = bytearray(64)
    struct.pack_into("=IIII", attr, 0, program, folder, ["ingress", "egress"].index(side), 0)
    link = bpf_syscall.call(28, attr, "make a link")  # BPF_LINK_CREATE
    try:
        before = others.effective(pod, Direction(side))
        assert len(before) == 1
        for rule in (RULES[side], CHANGED[side]):
            (outcome,) = applied(settings, pod, rule)
            assert outcome.error is None
            assert others.effective(pod, Direction(side)) == before | {outcome.program_id}
        clean(None, settings, runner=proc.run)
        assert others.effective(pod, Direction(side)) == before
    finally:
        for fd in (link, program, folder):
            os.close(fd)
        pin.unlink()


def test_run_lifts_nothing_either(node: Cgroup, settings: Settings, attach: Callable[..., int]) -> None:
    program = attach(node, "egress", "override")
    argv = [sys.executable, "-m", "podmgr", "run", "--rule", RULES["egress"], "true"]
    environment = dict(os.environ) | {"PODMGR_CGROUP_ROOT": str(node.path)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert f"program {program} (node_filter)" in done.stderr
    clean(None, settings, runner=proc.run)


def test_what_vanishes_unforeseen_is_put_back(
    node: Cgroup,
    pod: Cgroup,
    settings: Settings,
    attach: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Attached by others between our look and our attaching."""
    program = attach(node, "egress", "override")
    monkeypatch.setattr(others, "would_be_lifted", lambda *_: None)
    (outcome,) = applied(settings, pod, RULES["egress"])
    assert outcome.error is not None and f"program {program}" in outcome.error.message
    assert attached(pod) == () and others.effective(pod, Direction.EGRESS) == {program}


def test_dry_run_tells_it_too(pod: Cgroup, node: Cgroup, podmgr: Cli, attach: Callable[..., int]) -> None:
    program = attach(node, "egress", "override")
    done = podmgr("apply", "--dry-run", f"cgroup/{pod.path}", "--rule", RULES["egress"], code=1)
    assert f"program {program} (node_filter)" in done.stderr


def test_nothing_hangs_on_a_cgroup_that_was_removed_while_open(pod: Cgroup) -> None:
    """Others come and go while all cgroups are looked at."""
    with cgroups.opened(pod) as fd:
        assert fd is not None
        cgroup_life.remove(pod)
        assert bpf_syscall.attached_programs(fd, Direction.EGRESS).program_ids == ()
        assert bpf_syscall.effective_programs(fd, Direction.EGRESS) == ()
