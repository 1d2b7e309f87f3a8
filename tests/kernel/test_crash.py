"""podmgr killed between any two of its outside calls: clean finds and finishes. See `killing`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup, Target, Wish
from podmgr.kernel import bpf_syscall, cgroups, pins
from podmgr.reconcile import ledger, transaction
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings
from tests.kernel.conftest import assert_nothing_left, assert_unloaded, attached, run
from tests.kernel.killing import is_killed, kill_everywhere

RULES = ("bandwidth=10 mbps egress", "loss=uniform egress 1%", "ebpf-limit=dropper egress -DPORT=9")
CHANGED = ("bandwidth=20 mbps egress", "loss=uniform egress 1%")


def _apply(cgroup: Cgroup, settings: Settings, *rules: str) -> None:
    sourced = [SourcedRule(rule, CLI) for text in rules for rule in parse_rule_option(text)]
    outcomes = transaction.apply([Wish(Target("x", cgroup), tuple(sourced))], settings, runner=proc.run)
    assert not [outcome.error for outcome in outcomes if outcome.error]


def _clean(settings: Settings) -> None:
    outcomes = transaction.clean(None, settings, runner=proc.run)
    assert not [outcome.error for outcome in outcomes if outcome.error]


@pytest.fixture
def others(cgroup: Cgroup, other_program: Path) -> tuple[int, ...]:
    """Somebody else's program on the same cgroup."""
    run("bpftool", "cgroup", "attach", str(cgroup.path), "egress", "pinned", str(other_program), "multi")
    return attached(cgroup)


@pytest.mark.parametrize("ledger_is_lost", [False, True])
def test_clean_after_a_killed_apply(
    cgroup: Cgroup, settings: Settings, others: tuple[int, ...], ledger_is_lost: bool
) -> None:
    ours: set[int] = set()

    def check() -> None:
        pinned = [bpf_syscall.pinned_program_id(pin.program) for pin in pins.pinned(settings.bpffs)]
        ours.update(program_id for program_id in pinned if program_id is not None)
        if ledger_is_lost:
            (settings.state_dir / "ledger.json").unlink(missing_ok=True)
        _clean(settings)
        assert attached(cgroup) == others
        assert_nothing_left(settings)

    assert kill_everywhere(lambda: _apply(cgroup, settings, *RULES), check) > 10
    assert ours
    assert_unloaded(sorted(ours))


def test_clean_after_an_apply_that_was_killed_while_replacing(
    cgroup: Cgroup, settings: Settings, others: tuple[int, ...]
) -> None:
    def work() -> None:
        _apply(cgroup, settings, *CHANGED)

    def check() -> None:
        assert len(attached(cgroup)) >= len(others) + 2  # never without a limit
        _clean(settings)
        assert attached(cgroup) == others
        assert_nothing_left(settings)
        _apply(cgroup, settings, *RULES)

    _apply(cgroup, settings, *RULES)
    assert kill_everywhere(work, check) > 8
    _clean(settings)


def test_apply_finishes_what_a_killed_apply_began(cgroup: Cgroup, settings: Settings) -> None:
    def check() -> None:
        _apply(cgroup, settings, *CHANGED)
        assert len(attached(cgroup)) == 2
        assert len(list((settings.bpffs / str(cgroup.id)).iterdir())) == 4
        _clean(settings)

    assert kill_everywhere(lambda: _apply(cgroup, settings, *RULES), check) > 10
    assert_nothing_left(settings)


def test_clean_finishes_what_a_killed_clean_began(
    cgroup: Cgroup, settings: Settings, others: tuple[int, ...]
) -> None:
    def check() -> None:
        _clean(settings)
        assert attached(cgroup) == others
        assert_nothing_left(settings)
        _apply(cgroup, settings, *RULES)

    _apply(cgroup, settings, *RULES)
    assert kill_everywhere(lambda: _clean(settings), check) > 5
    _clean(settings)


def test_clean_waits_for_the_bpftool_of_a_killed_apply(cgroup: Cgroup, settings: Settings) -> None:
    """Killed while its children run: they hold the lock on, so that clean does not overtake them."""
    for number in range(1, 12):
        for delay_seconds in (0.001, 0.003, 0.006):
            is_killed(lambda: _apply(cgroup, settings, *RULES), number, delay_seconds=delay_seconds)
            _clean(settings)
            assert attached(cgroup) == ()
            assert_nothing_left(settings)


def test_an_interrupted_apply_is_undone(cgroup: Cgroup, settings: Settings, others: tuple[int, ...]) -> None:
    """Ctrl-C at each outside call: nothing is left, or all is done and only then the signal seen."""
    number, interrupted = 1, True
    undone = 0
    while interrupted:
        interrupted = is_killed(lambda: _apply(cgroup, settings, *RULES), number, by=signal.SIGINT)
        if attached(cgroup) == others:
            undone += 1
            assert_nothing_left(settings)
        else:
            assert len(attached(cgroup)) == len(others) + len(RULES)
            assert len(ledger.read(settings.state_dir)) == len(RULES)
            _clean(settings)
        number += 1
    assert undone > 8


def test_a_cgroup_that_a_killed_run_left_is_removed(settings: Settings) -> None:
    root = cgroups.find_root(settings.cgroup_root)
    argv = [sys.executable, "-m", "podmgr", "run", "--rule", RULES[0], "--", "sleep", "60"]
    process = proc.start(argv)
    while not (made := set(root.glob("podmgr-run-*"))) or not attached(_at(made)):
        assert process.poll() is None
    process.kill()
    process.wait()
    done = proc.run([sys.executable, "-m", "podmgr", "clean"])
    assert done.succeeded, done.stderr
    assert not list(root.glob("podmgr-run-*"))
    assert_nothing_left(settings)


def _at(paths: set[Path]) -> Cgroup:
    (path,) = paths
    return Cgroup(path, path.stat().st_ino)
