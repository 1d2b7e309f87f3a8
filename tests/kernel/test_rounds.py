"""The same again and again, in one process as `watch` is one: nothing of it grows.

`make rounds` does it ten thousand times; PODMGR_TEST_ROUNDS says how often.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup, Target, Wish
from podmgr.reconcile import ledger, transaction
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings
from tests.how_often import ROUNDS
from tests.kernel.conftest import Cli, assert_nothing_left, assert_unloaded, attached
from tests.kernel.network import tc_state

RULES = ("bandwidth=10 mbps egress", "loss=uniform egress 1%", "loss=burst ingress 1% length=5")
WARM_UP = 20  # of the rounds: caches of the process fill
GROWTH_KB = 4096  # of its memory: what the allocator keeps varies by as much

pytestmark = pytest.mark.timeout(300 + 5 * ROUNDS)


def test_rounds_of_apply_and_clean_leave_everything_as_small_as_it_was(podmgr: Cli, cgroup: Cgroup) -> None:
    settings = podmgr.settings
    target = Target("x", cgroup)
    wish = Wish(target, tuple(SourcedRule(rule, CLI) for text in RULES for rule in parse_rule_option(text)))
    before_all = tc_state(None)
    program_ids: set[int] = set()
    after_warm_up = _sizes(settings)
    for number in range(WARM_UP + ROUNDS):
        if number == WARM_UP:
            after_warm_up = _sizes(settings)
        outcomes = transaction.apply([wish], settings, runner=proc.run)
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        program_ids |= {row.program_id for row in ledger.read(settings.state_dir) if row.program_id}
        transaction.clean(target.selection, settings, runner=proc.run)
        assert attached(cgroup) == ()
    memory, *others = _sizes(settings)
    memory_before, *others_before = after_warm_up
    print(f"{ROUNDS} rounds: memory {memory_before} to {memory} kB; descriptors, files: {others}")
    assert others == others_before
    assert memory - memory_before < GROWTH_KB
    assert tc_state(None) == before_all
    assert_nothing_left(settings)
    assert len(program_ids) >= (WARM_UP + ROUNDS) * len(RULES)
    assert_unloaded(sorted(program_ids))


def _sizes(settings: Settings) -> list[int]:
    """This process's memory in kB and its descriptors; the files that are kept."""
    gc.collect()
    memory = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    files = [path for folder in (settings.state_dir, settings.bpffs) for path in folder.rglob("*")]
    return [memory, len(os.listdir("/proc/self/fd")), len(files)]
