"""Whatever a program of others returns at tc: what stands behind it sees the packets that it passes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Target, Wish
from podmgr.demo.throwaway import POD_ADDRESS, WORLD_ADDRESS, Pod
from podmgr.kernel import bpftool, cgroup_life, pins
from podmgr.programs.build import SpecMaker, compile_spec
from podmgr.reconcile.observe import Observed, observe
from podmgr.reconcile.outcome import Action
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Direction
from podmgr.rules.source import POD, SourcedRule, parse_source
from podmgr.settings import Settings
from tests.kernel.conftest import applied, assert_nothing_left, counters, run, under
from tests.kernel.network import Place, datagrams, programs

UNSPEC, DROPS = 0xFFFFFFFF, (2, 4, 8)  # SHOT, STOLEN, TRAP
ALL = (-1, *range(10), 255, 0x7FFFFFFF)

SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#ifndef VERDICT
#define VERDICT 0
#endif
#ifndef MINUS
#define MINUS 0
#endif
static __noinline int verdict(struct __sk_buff *skb) { return MINUS ? -VERDICT : VERDICT; }
SEC("tc") int odd(struct __sk_buff *skb)
{
    if (skb->len < 20)
        return 2;
    return verdict(skb);
}
char LICENSE[] SEC("license") = "GPL";
"""


SCOPED = """
#include "podmgr.h"
#ifndef VERDICT
#define VERDICT 0
#endif
SEC("tc") int scoped(struct __sk_buff *skb) { return is_exempt(skb) ? VERDICT_PASS : VERDICT; }
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def folder(tmp_path: Path, settings: Settings) -> Settings:
    """The programs of this file as the program folder."""
    (tmp_path / "odd.bpf.c").write_text(SOURCE)
    (tmp_path / "scoped.bpf.c").write_text(SCOPED)
    (tmp_path / "redirect.bpf.c").write_text(SOURCE.replace("MINUS ?", "bpf_redirect(1, 0) != 7 ?"))
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    return settings._replace(program_dir=tmp_path)


def rule(verdict: int, direction: str = "egress") -> str:
    return f"ebpf-limit=odd {direction} -DVERDICT={abs(verdict)}" + (" -DMINUS=1" if verdict < 0 else "")


@pytest.mark.parametrize("verdict", ALL)
def test_verdict_is_a_drop_or_passes_on(folder: Settings, tmp_path: Path, verdict: int) -> None:
    (parsed,) = parse_rule_option(rule(verdict))
    made = compile_spec(SpecMaker(folder).spec(parsed, counts_loopback=False), runner=proc.run)
    path, pin = tmp_path / "object", pins.Pin(folder.bpffs, "test", "0")
    path.write_bytes(made.content)
    pins.ensure_bpffs(folder.bpffs, runner=proc.run)
    pins.make_owner(folder.bpffs, "test")
    try:
        load = bpftool.load(str(path), pin.program, pin.maps, made.info.hook, Direction.EGRESS)
        assert bpftool.batch([load], runner=proc.run) == [None]
        packet = tmp_path / "packet"
        for size, expected in ((64, verdict if verdict in DROPS else UNSPEC), (14, 2)):
            packet.write_bytes(bytes(size))
            done = run("bpftool", "prog", "run", "pinned", pin.program, "data_in", str(packet))
            assert f"Return value: {expected}" in done
    finally:
        pins.remove(pin)
        pins.remove_empty_folders(folder.bpffs)


def _arrive(pod: Pod, direction: str, count: int = 200) -> int:
    inner, outer = Place(pod.pid, pod.cgroup), Place(pod.world_pid)
    ends = (inner, outer, WORLD_ADDRESS) if direction == "egress" else (outer, inner, POD_ADDRESS)
    _, (arrived,) = datagrams(*ends, count)
    return arrived


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_limit_behind_holds(pod: Pod, folder: Settings, direction: str) -> None:
    (parsed,) = parse_rule_option(f"bandwidth=8 kbps {direction} burst=1514b hook=tc")
    limit = str(parsed)
    with under(folder, pod.cgroup, limit):
        alone = _arrive(pod, direction)
    assert 0 < alone < 100
    for verdict in (0, 3, 7):
        with under(folder, pod.cgroup, rule(verdict, direction), limit) as listed:
            assert abs(_arrive(pod, direction) - alone) <= 3
            passed, _, dropped, _ = counters(listed(), limit)
            assert passed + dropped >= 200
    for verdict in DROPS[:2]:
        with under(folder, pod.cgroup, rule(verdict, direction), limit):
            assert _arrive(pod, direction) == 0


def test_redirect_is_a_pass(pod: Pod, folder: Settings) -> None:
    with under(folder, pod.cgroup, "ebpf-limit=redirect egress -DVERDICT=7", "loss=uniform egress 0%"):
        assert _arrive(pod, "egress") == 200


def test_two_programs_stand_in_the_order_written(pod: Pod, folder: Settings) -> None:
    """However often they are applied, and whichever was there first."""
    texts = [rule(1), rule(3)]
    for order in (texts, texts[::-1], texts[1:], texts):
        outcomes = applied(folder, pod.cgroup, *order)
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        ids = {str(outcome.rule): outcome.program_id for outcome in outcomes if outcome.action != "detached"}
        assert programs(pod.pid) == [ids[str(parse_rule_option(text)[0])] for text in order]
        again = applied(folder, pod.cgroup, *order)
        assert {outcome.action for outcome in again} == {Action.UNCHANGED}
    clean(None, folder, runner=proc.run)
    assert_nothing_left(folder)


# Limits behind it, under a flood


PASSES = (0, 1, 3, 7)  # OK, RECLASSIFY, PIPE, REDIRECT
RATE, BURST = 20_000_000, 20_000
FLOOD_SECONDS = 0.6
_FLOOD = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for _ in range(20):
        try:
            sock.sendto(bytes(1400), (sys.argv[1], 9))
        except OSError:
            pass
    time.sleep(0.001)
"""


def _limit(direction: str) -> str:
    return f"bandwidth={RATE // 1_000_000} mbps {direction} burst={BURST // 1000}kb hook=tc"


def _carried(sender: Place, host: str, listed: Callable[[], dict[str, Observed]], limit: str) -> float:
    """The share of the limit that passes while datagrams come at several times its rate."""
    flood = (sys.executable, "-I", "-S", "-c", _FLOOD, host)
    sender.run(*flood, "0.1")  # the bucket is drained
    before, started = counters(listed(), limit)[1], time.monotonic()
    sender.run(*flood, str(FLOOD_SECONDS))
    passed, seconds = counters(listed(), limit)[1] - before, time.monotonic() - started
    assert passed <= 1.02 * RATE / 8 * seconds + BURST
    return passed * 8 / RATE / FLOOD_SECONDS


def _assert_held(shares: Mapping[int | None, float], alone: float) -> None:
    print(f"alone {alone:.3f}; behind", {verdict: f"{share:.3f}" for verdict, share in shares.items()})
    assert alone > 0.8
    assert max(shares.values()) <= 1.05 * alone + BURST * 8 / RATE / FLOOD_SECONDS


@pytest.mark.parametrize("is_enforced", [False, True], ids=["own", "enforced"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_limit_holds_behind_whatever_passes(
    pod: Pod, folder: Settings, direction: str, is_enforced: bool
) -> None:
    sender, host = (Place(pod.pid, pod.cgroup), WORLD_ADDRESS)
    if direction == "ingress":
        sender, host = Place(pod.world_pid), POD_ADDRESS
    limit = _limit(direction)
    shares: dict[int | None, float] = {}

    def listed() -> dict[str, Observed]:
        return {str(item.attachment.rule): item for item in observe(folder)[0]}

    limiting = SourcedRule(parse_rule_option(limit)[0], parse_source("namespace/shop"), is_enforced)
    for verdict in (None, *PASSES):
        rules = [] if verdict is None else parse_rule_option(rule(verdict, direction))
        wish = Wish(Target("pod/x", pod.cgroup), (*(SourcedRule(item, POD) for item in rules), limiting))
        outcomes = apply([wish], folder, runner=proc.run)
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        shares[verdict] = _carried(sender, host, listed, limit)
    _assert_held(shares, shares.pop(None))
    clean(None, folder, runner=proc.run)


def test_limit_of_another_pod_on_shared_interfaces_holds_too(
    pod: Pod, folder: Settings, cgroup_root: Path
) -> None:
    other, limit = cgroup_life.create(cgroup_root, "other"), _limit("egress")
    shares: dict[int | None, float] = {}
    sender = Place(pod.pid, other)
    with sender.start("sh", "-c", "echo ready; exec sleep infinity") as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            with under(folder, other, limit) as listed:
                alone = _carried(sender, WORLD_ADDRESS, listed, limit)
                for verdict in PASSES:
                    with under(folder, pod.cgroup, f"ebpf-limit=scoped egress -DVERDICT={verdict}"):
                        shares[verdict] = _carried(sender, WORLD_ADDRESS, listed, limit)
        finally:
            process.kill()
    cgroup_life.remove(other)
    _assert_held(shares, alone)
