"""Throw-away pods that live at once, and podmgr's rules on them, apart from the machine's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from podmgr import proc
from podmgr.attachment import Target, Wish
from podmgr.demo.throwaway import Pod, throw_away_pod
from podmgr.kernel import cgroup_life, cgroups
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings


@contextmanager
def pods(names: Sequence[str]) -> Iterator[list[Pod]]:
    """Throw-away pods that live at once, each with a world of its own."""
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-bench-{os.getpid()}")
    try:
        with ExitStack() as stack:
            yield [
                stack.enter_context(throw_away_pod(cgroup_life.create(root.path, name).path))
                for name in names
            ]
    finally:
        cgroup_life.remove(root)


@contextmanager
def own_settings() -> Iterator[Settings]:
    """Pins and state apart from the machine's; what was put under rules is cleaned when the block ends."""
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as folder:
        bpffs = Path(f"/sys/fs/bpf/podmgr-bench-{os.getpid()}")
        settings = Settings(Path(folder) / "state", bpffs, program_dir=Path(folder), trusts_invoker=True)
        try:
            yield settings
        finally:
            clean(None, settings, runner=proc.run)


def put_under(pod: Pod, rules: Sequence[str], settings: Settings) -> None:
    """These rules on the pod. Raises PodmgrError if one of them cannot be had."""
    sourced = tuple(SourcedRule(rule, CLI) for text in rules for rule in parse_rule_option(text))
    wish = Wish(Target("pod", pod.cgroup, counts_loopback=False), sourced)
    for outcome in apply([wish], settings, runner=proc.run):
        if outcome.error:
            raise outcome.error
