"""Compiling what a pod will need before it has a cgroup, or before it has a network.

Owns the guess: a pod's place in the hierarchy is as its neighbours' are, and its network is its own. Where
the guess is wrong, the transaction compiles. Nothing here attaches or fails anything.

Apart from `watch.ahead`, which alone uses it: it needs the same steps as a transaction, and no lock but to
store what it made.
"""

from __future__ import annotations

from collections.abc import Callable

from podmgr.attachment import Link, Wish
from podmgr.errors import PodmgrError
from podmgr.kernel.netns import Namespaces
from podmgr.proc import Runner
from podmgr.programs.build import Compiled, compile_spec
from podmgr.programs.spec import ProgramSpec
from podmgr.programs.store import ObjectStore
from podmgr.reconcile import ledger
from podmgr.reconcile.decided import Decided
from podmgr.reconcile.desired import Desiring
from podmgr.reconcile.placement import Networks
from podmgr.rules.rule import Rule
from podmgr.settings import Settings


class _Expected(Networks):
    """Networks that nobody has seen: a rule for interfaces will find some."""

    def _links(self, rule: Rule, network: object, counts_loopback: bool) -> tuple[Link, ...]:  # noqa: ARG002
        return ()


def compile_ahead(
    wish: Wish, settings: Settings, *, runner: Runner, is_wanted: Callable[[], bool] = lambda: True
) -> int:
    """Keep the programs that this wish will need in the store; how many were compiled.

    What does not compile is told when it is attached. What is compiled is kept if that `is_wanted` still.
    """
    decided = Decided([wish])
    with Namespaces() as namespaces:
        desired = Desiring(settings, _Expected(namespaces), decided).desired(())
    store = ObjectStore(settings.state_dir)
    specs = {row.object_digest: desired.specs[row.object_digest] for row in decided.alive(desired.rows)}
    made: dict[str, Compiled] = {}
    for digest, spec in specs.items():
        if store.find(digest) is None and (compiled := _compiled(spec, settings, runner)) is not None:
            made[digest] = compiled
    if made:
        with ledger.locked(settings.state_dir):
            for digest, compiled in made.items() if is_wanted() else ():
                store.add(digest, compiled.info.hook, compiled.content)
    return len(made)


def _compiled(spec: ProgramSpec, settings: Settings, runner: Runner) -> Compiled | None:
    try:
        return compile_spec(spec, runner=runner, max_map_bytes=settings.max_map_bytes)
    except PodmgrError:
        return None
