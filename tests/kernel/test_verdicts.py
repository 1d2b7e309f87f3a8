"""Whatever a program of others returns at tc: what stands behind it sees the packets that it passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import bpftool, pins, proc
from podmgr.build import SpecMaker, compile_spec
from podmgr.grammar import parse_rule_option
from podmgr.reconcile import Action, clean
from podmgr.rules import Direction
from podmgr.settings import Settings
from podmgr.throwaway import POD_ADDRESS, WORLD_ADDRESS, Pod, throw_away_pod
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


@pytest.fixture
def folder(tmp_path: Path, settings: Settings) -> Settings:
    """The programs of this file as the program folder."""
    (tmp_path / "odd.bpf.c").write_text(SOURCE)
    (tmp_path / "redirect.bpf.c").write_text(SOURCE.replace("MINUS ?", "bpf_redirect(1, 0) != 7 ?"))
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    return settings._replace(program_dir=tmp_path)


@pytest.fixture
def pod(cgroup_root: Path) -> Iterator[Pod]:
    with throw_away_pod(cgroup_root) as pod:
        yield pod


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
        ids = {outcome.rule: outcome.program_id for outcome in outcomes if outcome.action != "detached"}
        assert programs(pod.pid) == [ids[str(parse_rule_option(text)[0])] for text in order]
        again = applied(folder, pod.cgroup, *order)
        assert {outcome.action for outcome in again} == {Action.UNCHANGED}
    clean(None, folder, runner=proc.run)
    assert_nothing_left(folder)
