"""Many pods with rules at tc, and many changes of one: what it takes, and that nothing is left."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup, Target, Wish
from podmgr.demo.throwaway import Pod, throw_away_pod
from podmgr.kernel import cgroup_life, pins
from podmgr.reconcile import ledger
from podmgr.reconcile.observe import observe
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Direction
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings
from tests.kernel.conftest import Cli, applied, assert_nothing_left, assert_unloaded, attached, run
from tests.kernel.network import Place, namespace_number, programs, tc_state, waits_until
from tests.kernel.tcdump import Interfaces

MANY = 110
ROUNDS = int(os.environ.get("PODMGR_TEST_ROUNDS", "100"))
RULE, CHANGED = "loss=uniform egress 1%", "loss=uniform egress 2%"

LIST_SECONDS = 1.0
APPLY_SECONDS, CLEAN_SECONDS = 30.0, 30.0  # generous: it is about the order of magnitude


@dataclass(frozen=True)
class Sandbox:
    """A cgroup and a network namespace with one interface."""

    cgroup: Cgroup
    pid: int


_SANDBOX = """
ip -batch - <<END
link add eth0 type veth peer name peer0
link set eth0 up
END
echo $$ > "$0"
echo
exec sleep infinity > /dev/null
"""


@pytest.fixture
def sandboxes(cgroup_root: Path) -> Iterator[list[Sandbox]]:
    """So many pods."""
    holders: list[subprocess.Popen[bytes]] = []
    made = [cgroup_life.create(cgroup_root, f"many-{number}") for number in range(MANY)]
    try:
        for cgroup in made:
            argv = ["unshare", "--net", "sh", "-c", _SANDBOX, str(cgroup.path / "cgroup.procs")]
            holders.append(proc.start(argv, prepare=proc.die_with_parent, streams=subprocess.PIPE))
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline()
        yield [Sandbox(cgroup, holder.pid) for cgroup, holder in zip(made, holders, strict=True)]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
        for cgroup in made:
            cgroup_life.remove(cgroup)


def _wish(cgroup: Cgroup, *texts: str) -> Wish:
    rules = tuple(SourcedRule(rule, CLI) for text in texts for rule in parse_rule_option(text))
    return Wish(Target(cgroup.path.name, cgroup, counts_loopback=False), rules)


def _cpu_seconds() -> float:
    """What ended children have used, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def test_many_pods_at_tc_are_applied_listed_and_cleaned_in_time(
    podmgr: Cli, sandboxes: list[Sandbox]
) -> None:
    settings = podmgr.settings
    before = [tc_state(sandbox.pid) for sandbox in sandboxes]
    wishes = [_wish(sandbox.cgroup, RULE) for sandbox in sandboxes]

    took, outcomes = _timed(lambda: apply(wishes, settings, runner=proc.run))
    assert {outcome.action for outcome in outcomes} == {Action.ATTACHED}
    assert {outcome.hook for outcome in outcomes} == {"tc"}
    assert all(len(programs(sandbox.pid)) == 1 for sandbox in sandboxes)
    again, outcomes = _timed(lambda: apply(wishes, settings, runner=proc.run))
    assert {outcome.action for outcome in outcomes} == {Action.UNCHANGED}
    listing, working = [], []
    for _ in range(5):
        spent = _cpu_seconds()
        seconds, rows = _timed(podmgr.listed)
        working.append(_cpu_seconds() - spent)
        assert [(row["state"], row["hook"]) for row in rows] == [("active", "tc")] * MANY
        listing.append(seconds)
    observing = [_timed(lambda: observe(settings))[0] for _ in range(5)]
    changing, outcomes = _timed(
        lambda: apply([_wish(sandbox.cgroup, CHANGED) for sandbox in sandboxes], settings, runner=proc.run)
    )
    assert {outcome.action for outcome in outcomes} == {Action.REPLACED}
    cleaning, outcomes = _timed(lambda: clean(None, settings, runner=proc.run))
    assert len(outcomes) == MANY
    print(
        f"{MANY} pods at tc: apply {took:.2f} s, again {again:.2f} s, change {changing:.2f} s, "
        f"clean {cleaning:.2f} s; list {min(listing):.2f} s (command, "
        f"{min(working):.2f} s of a CPU), {min(observing):.2f} s (in process)"
    )
    assert_nothing_left(settings)
    assert [tc_state(sandbox.pid) for sandbox in sandboxes] == before
    # The best, and on a machine that is busy otherwise what it had of a CPU: waiting is not podmgr's.
    assert min(*listing, *working) < LIST_SECONDS
    assert max(took, again, changing) < APPLY_SECONDS
    assert cleaning < CLEAN_SECONDS


def test_many_pods_are_cleaned_with_the_ledger_lost(settings: Settings, sandboxes: list[Sandbox]) -> None:
    before = [tc_state(sandbox.pid) for sandbox in sandboxes]
    apply([_wish(sandbox.cgroup, RULE) for sandbox in sandboxes], settings, runner=proc.run)
    (settings.state_dir / "ledger.json").unlink()
    took, outcomes = _timed(lambda: clean(None, settings, runner=proc.run))
    print(f"{MANY} pods at tc, ledger lost: clean {took:.2f} s")
    assert [outcome.error for outcome in outcomes] == [None] * MANY
    assert [tc_state(sandbox.pid) for sandbox in sandboxes] == before
    assert_nothing_left(settings)
    assert took < CLEAN_SECONDS


# One pod, again and again


def _maps_of(program_ids: list[int]) -> set[int]:
    rows = [json.loads(run("bpftool", "-j", "prog", "show", "id", str(id))) for id in program_ids]
    return {id for row in rows for id in row.get("map_ids", [])}


def _all_maps() -> set[int]:
    return {row["id"] for row in json.loads(run("bpftool", "-j", "map", "show") or "[]")}


def test_round_after_round_leaves_nothing(cgroup_root: Path, settings: Settings) -> None:
    """Apply, change, remove, so many times as PODMGR_TEST_ROUNDS says.

    Two other pods have these rules all the while, so that nothing is compiled anew.
    """
    rules, changed = (RULE, "loss=uniform ingress 1%"), (CHANGED, "bandwidth=1 gbps egress hook=tc")
    seen, maps = set[int](), set[int]()
    with _keeping(settings, cgroup_root, rules, changed), throw_away_pod(cgroup_root) as pod:
        target = Target("x", pod.cgroup)
        world = Place(pod.world_pid)
        looking = Interfaces(Path(f"/proc/{pod.pid}/ns/net"))
        before, descriptors, start = tc_state(pod.pid), -1, 0.0
        for number in range(ROUNDS + 1):
            if number == 1:  # the first one compiled, and opened what stays open
                descriptors, start = len(os.listdir("/proc/self/fd")), time.monotonic()
            _must_be(Action.ATTACHED, 2, apply([_wish(pod.cgroup, *rules)], settings, runner=proc.run))
            ids = looking.programs()
            assert len(ids) == 2
            if number in (0, 1, ROUNDS):
                maps |= _maps_of(list(ids))
            outcomes = apply([_wish(pod.cgroup, *changed)], settings, runner=proc.run)
            assert sorted(outcome.action for outcome in outcomes) == ["attached", "detached", "replaced"]
            seen |= {*ids, *looking.programs()}
            _must_be(Action.DETACHED, 2, clean(target.selection, settings, runner=proc.run))
            assert looking.programs() == ()
        per_round = (time.monotonic() - start) / ROUNDS
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert tc_state(pod.pid) == before
        assert not list((settings.bpffs / "qdiscs").glob(f"{namespace_number(pod.pid)}-*"))
        assert not (settings.bpffs / str(pod.cgroup.id)).exists()
        assert len(seen) == 4 * (ROUNDS + 1)
        assert_unloaded(sorted(seen))
        assert maps
        assert waits_until(lambda: not maps & _all_maps())
        looking.close()
        cgroup_life.kill(pod.cgroup)  # the other end of the veth goes when nothing holds the namespace
        assert waits_until(lambda: "eth0" not in world.run("ip", "link", "show"))
    assert_nothing_left(settings)
    print(f"{ROUNDS} rounds of apply, change, remove: {per_round * 1000:.0f} ms a round")


@contextmanager
def _keeping(settings: Settings, root: Path, *rules: tuple[str, ...]) -> Iterator[None]:
    """A pod for each tuple of rules, which has them while the block runs."""
    with ExitStack() as stack:
        for number, texts in enumerate(rules):
            parent = cgroup_life.create(root, f"keeper-{number}")
            stack.callback(cgroup_life.remove, parent)
            pod = stack.enter_context(throw_away_pod(parent.path))
            apply([_wish(pod.cgroup, *texts)], settings, runner=proc.run)
        yield
        clean(None, settings, runner=proc.run)


def _must_be(action: Action, count: int, outcomes: list[Outcome]) -> None:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert [outcome.action for outcome in outcomes] == [action] * count


# While a rule changes


@contextmanager
def _sampled(pod: Pod) -> Iterator[list[tuple[int, int]]]:
    """How many programs the pod's cgroup has, and how many its interfaces, all the while.

    The first look of a pair is at the interfaces: what moves from there to the cgroup may be
    missed by no look, but be counted twice.
    """
    looking, stop = Interfaces(Path(f"/proc/{pod.pid}/ns/net")), threading.Event()
    samples: list[tuple[int, int]] = []

    def sample() -> None:
        while not stop.is_set():
            first = len(attached(pod.cgroup))
            on_interfaces = len(looking.programs(Direction.EGRESS))
            samples.append((max(first, len(attached(pod.cgroup))), on_interfaces))

    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample)
        try:
            yield samples
        finally:
            stop.set()
            sampling.result()
            looking.close()


def test_a_changed_rule_is_attached_at_tc_before_the_old_one_goes(pod: Pod, settings: Settings) -> None:
    applied(settings, pod.cgroup, RULE)
    with _sampled(pod) as samples:
        for percent in range(2, 100):
            (outcome,) = applied(settings, pod.cgroup, f"loss=uniform egress {percent}%")
            assert outcome.action is Action.REPLACED
            assert programs(pod.pid) == [outcome.program_id]
            if percent > 4 and any(on_interfaces == 2 for _, on_interfaces in samples):
                break  # on a busy machine few looks meet the moment at which both are there
    assert {on_interfaces for _, on_interfaces in samples} == {1, 2}
    clean(None, settings, runner=proc.run)
    assert_nothing_left(settings)


def test_a_rule_that_moves_from_hook_to_hook_is_never_nowhere(pod: Pod, settings: Settings) -> None:
    before, at_cgroup, at_tc = tc_state(pod.pid), f"{RULE} hook=cgroup", f"{RULE} hook=tc"
    applied(settings, pod.cgroup, at_cgroup)
    with _sampled(pod) as samples:
        for rule in (at_tc, at_cgroup, at_tc, at_cgroup, at_tc, at_cgroup):
            (outcome,) = applied(settings, pod.cgroup, rule)
            assert outcome.action is Action.REPLACED
            (again,) = applied(settings, pod.cgroup, rule)
            assert (again.action, again.program_id) == (Action.UNCHANGED, outcome.program_id)
            is_at_tc = rule == at_tc
            assert programs(pod.pid) == ([outcome.program_id] if is_at_tc else [])
            assert attached(pod.cgroup) == (() if is_at_tc else (outcome.program_id,))
            assert ("clsact" in tc_state(pod.pid)) == is_at_tc
    assert (0, 0) not in samples
    assert {(1, 0), (0, 1)} <= set(samples)
    assert tc_state(pod.pid) == before
    clean(None, settings, runner=proc.run)
    assert_nothing_left(settings)


def test_podmgrs_that_come_at_once_wait_for_each_other(pod: Pod, settings: Settings) -> None:
    """Eight at a time put rules on one pod's interface: the last one's hold, and no other's."""
    before = tc_state(pod.pid)
    with ThreadPoolExecutor(8) as pool:
        wishes = [[_wish(pod.cgroup, f"loss=uniform egress {percent}%")] for percent in range(1, 17)]
        done = list(pool.map(lambda wish: apply(wish, settings, runner=proc.run), wishes))
    assert [outcome.error for outcomes in done for outcome in outcomes if outcome.error] == []
    (row,) = ledger.read(settings.state_dir)
    assert programs(pod.pid) == [row.program_id]
    assert len(list(pins.pinned(settings.bpffs))) == 1
    clean(None, settings, runner=proc.run)
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)
