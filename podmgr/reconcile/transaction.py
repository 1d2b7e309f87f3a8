"""Observe, plan, act: the transactions that change the kernel.

Attaching: compile and inspect (`preparing`, before the ledger is locked), load and pin, write the
ledger, attach, read back. Removing: detach, read back, unpin, delete objects, write the ledger. A
target is done whole or put back as it was. A crash at any point leaves pins or ledger rows that
`clean`, or the next `apply` on the same target, finds and finishes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from podmgr.attachment import Attachment, Selection, Slot, Wish
from podmgr.kernel import pins, starts
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.starts import Starts
from podmgr.proc import Runner, uninterrupted
from podmgr.programs.store import ObjectStore, StoredObject
from podmgr.reconcile import ledger, lookups, others, unfinished
from podmgr.reconcile.actual import Sight, recorded, require_sight, sees_all, unknown_pins, without_cgroup
from podmgr.reconcile.actuator import Actuator
from podmgr.reconcile.decided import Decided
from podmgr.reconcile.outcome import Action, Failures, Outcome, Report
from podmgr.reconcile.placement import Networks
from podmgr.reconcile.plan import Plan, make_plan
from podmgr.reconcile.results import outcome_of, outcomes_of, told
from podmgr.settings import Settings

if TYPE_CHECKING:  # `list` and `clean` need no programs, and start 10 ms sooner without
    from podmgr.reconcile.desired import Desired
    from podmgr.reconcile.preparing import Prepared


def preview(wishes: Sequence[Wish], settings: Settings) -> list[Outcome]:
    """What `apply` would do. Touches nothing; what only compiling shows is not found out."""
    from podmgr.programs.build import SpecMaker
    from podmgr.reconcile.desired import Desiring

    rows, decided = recorded(settings), Decided(wishes)
    with Namespaces() as namespaces:
        sight = Sight(settings, namespaces)
        desiring = Desiring(settings, Networks(namespaces), decided, SpecMaker(settings))
        desired = desiring.desired(rows)
        desiring.require_fq(desired)
        store = ObjectStore(settings.state_dir)
        hooks = {digest: stored.hook for digest in desired.specs if (stored := store.find(digest))}
        desired = desiring.settled(desired, hooks)
        decided.fail_all(others.refusals(decided.alive(desired.rows)))
        gone = set(without_cgroup(rows))
        actual = _actual(decided, sight, [row for row in rows if row not in gone])
        plan = make_plan(decided.alive(desired.rows), actual)
    return told(decided, outcomes_of(plan, desired))


def apply(
    wishes: Sequence[Wish],
    settings: Settings,
    *,
    runner: Runner,
    report: Report = lambda _: None,
    prepared: Prepared | None = None,
) -> list[Outcome]:
    """Give each target exactly the rules it is wished, and prove it. Interrupted, it is undone.

    A target that fails is put back as it was and reported as an outcome; the others go on. What was not
    `prepared` by the caller is now, before the ledger is locked.
    Raises PodmgrError where nothing can be done at all: no right, no bpffs, no state folder.
    """
    from podmgr.reconcile.preparing import prepare

    require_sight(settings)
    if prepared is None:
        prepared = prepare(wishes, settings, runner=runner)
    with _transaction(settings, runner, report) as transaction:
        return transaction.apply(wishes, prepared, report)


def repair(settings: Settings, *, runner: Runner, report: Report = lambda _: None) -> None:
    """Finish what a podmgr was killed in, as every transaction does before its own work."""
    require_sight(settings)
    pins.require_own(settings.bpffs)
    with _transaction(settings, runner, report):
        pass


def clean(
    selection: Selection | None,
    settings: Settings,
    *,
    runner: Runner,
    report: Report = lambda _: None,
) -> list[Outcome]:
    """Detach and unload what podmgr attached: what the selection covers, or everything (None).

    Also what a crash left, and what a lost ledger no longer knows.
    """
    require_sight(settings)
    pins.require_own(settings.bpffs)
    if not (
        settings.state_dir.exists()
        or pins.owners(settings.bpffs)
        or pins.marks(settings.bpffs)
        or starts.owners(settings.bpffs)
    ):
        return []  # nothing was ever attached: leave no folder either
    with _transaction(settings, runner, report) as transaction:
        return transaction.clean(selection, report)


class _Transaction:
    """Under the lock. `rows` is always what the ledger should say if we ended now."""

    def __init__(
        self,
        settings: Settings,
        state: ledger.State,
        rows: list[Attachment],
        namespaces: Namespaces,
        runner: Runner,
    ) -> None:
        self.rows = rows
        self._written = list(rows)
        self._settings = settings
        self._state = state
        self._runner = runner
        self._store = ObjectStore(state.folder)
        self._namespaces = namespaces
        self._sight = Sight(settings, namespaces)
        self._act = Actuator(settings, state, self._sight, runner)

    def apply(self, wishes: Sequence[Wish], prepared: Prepared, report: Report) -> list[Outcome]:
        from podmgr.programs.build import SpecMaker
        from podmgr.reconcile.desired import Desiring
        from podmgr.reconcile.preparing import objects_of

        decided = Decided(wishes)
        maker = SpecMaker(self._settings, known=prepared.specs)
        networks = Networks(self._namespaces.knowing(decided.networks))
        desiring = Desiring(
            self._settings, networks, decided, maker, may_compile=prepared.owners.__contains__
        )
        desired = desiring.desired(self.rows)
        desiring.require_fq(desired)
        if not decided.cgroup_ids:  # nothing to do: mount nothing
            return decided.outcomes()
        if pins.ensure_bpffs(self._settings.bpffs, runner=self._runner):
            report("mounted the bpf file system at /sys/fs/bpf")
        self._remove(without_cgroup(self.rows))
        objects = objects_of(
            desired, decided, prepared, self._store, settings=self._settings, runner=self._runner
        )
        desired = desiring.settled(desired, {digest: stored.hook for digest, stored in objects.items()})
        decided.fail_all(others.refusals(decided.alive(desired.rows)))
        actual = _actual(decided, self._sight, self.rows)
        plan = make_plan(decided.alive(desired.rows), actual)
        half_there = self._keep(plan, decided, frozenset(actual))
        self._planned(decided, desired.lookups, [*plan.attach, *plan.unchanged])
        loaded = self._attach_new(plan, objects, decided, desired.lookups)
        # What is there already makes room for the new, or takes the place of what goes; and what is new
        # knows of what has failed beside it.
        new = [row for row in decided.alive(loaded) if decided.failed_rules(row.cgroup_id)]
        planned = self._planned(decided, desired.lookups, [*new, *plan.unchanged])
        decided.fail_all(lookups.write(self._settings, planned) + lookups.begin(self._settings, planned))
        self._remove([row for row in loaded if not decided.is_alive(row)])
        # Only now, with the new rules in force, may the old ones go.
        old = [row for row in [*plan.detach, *half_there] if _may_go(row, desired, decided)]
        failures = self._remove(old)
        decided.fail_all(failures)
        self._unpin_unknown({wish.target.owner for wish in decided.wishes.values()}, failures)
        for owner, rules in desired.meant.items():
            Starts(self._settings.bpffs, owner).keep(rules)
        return told(decided, outcomes_of(_done(plan, loaded, desired, decided), desired))

    def _keep(self, plan: Plan, decided: Decided, healthy: Collection[Attachment]) -> list[Attachment]:
        """Make the unchanged rows ours, forget what is neither attached nor wanted to be.

        Returns the rows whose program is attached but has lost its pin: others take their place.
        """
        kept = {row.program_id for row in plan.unchanged}  # what else a row says of them is wrong
        left = [row for row in self.rows if row.program_id not in kept]
        ids = decided.cgroup_ids
        broken = [row for row in left if row.cgroup_id in ids and row not in healthy]
        attached = self._sight.attached(broken)
        self.rows = [*left, *plan.unchanged]
        self._remove([row for row in broken if row not in attached])
        return attached

    def _attach_new(
        self,
        plan: Plan,
        objects: Mapping[str, StoredObject],
        decided: Decided,
        beside: Mapping[Slot, lookups.Lookup],
    ) -> list[Attachment]:
        """Load, write the ledger, attach. A target that fails is put back; interrupted, all are."""
        new = plan.attach
        loaded: list[Attachment] = []
        try:
            loaded, failures = self._act.load(new, objects)
            decided.fail_all(failures)
            self.rows += loaded
            self._write()
            planned = self._planned(decided, beside, loaded)
            decided.fail_all(lookups.write(self._settings, planned))
            decided.fail_all(self._act.attach(decided.alive(loaded)))
            decided.fail_all(
                lookups.begin(self._settings, [item for item in planned if decided.is_alive(item.row)])
            )
            self.rows = [self._with_traffic(row) if row in loaded else row for row in self.rows]
        except BaseException:
            with uninterrupted():
                self._remove(loaded or new)
            raise
        self._remove([row for row in loaded if not decided.is_alive(row)])
        return decided.alive(loaded)

    def _planned(
        self, decided: Decided, beside: Mapping[Slot, lookups.Lookup], rows: Iterable[Attachment]
    ) -> list[lookups.Planned]:
        """What the programs of rows that can still be had look up; what has failed hides nothing."""
        alive = decided.alive(rows)
        wanted = {row: beside[row.identity].without(decided.failed_rules(row.cgroup_id)) for row in alive}
        planned, failures = lookups.plan(wanted)
        decided.fail_all(failures)
        return planned

    def _with_traffic(self, row: Attachment) -> Attachment:
        """With what its interfaces have counted so far, against which `list` holds what it sees."""
        counted = self._sight.traffic(row) if sees_all(self._settings, row) else None
        if counted is None:
            return row
        return row._replace(links_packets=counted.packets, links_bytes=counted.bytes)

    def clean(self, selection: Selection | None, report: Report) -> list[Outcome]:
        rows = [
            row
            for row in [*self.rows, *self._sight.unknown_attachments(self.rows)]
            if selection is None or selection.covers(row)
        ]
        failures = self._remove(rows)
        owners = selection and selection.owners | {row.owner for row in rows}
        if left := self._unpin_unknown(owners, failures):
            report(f"removed {left} {'pin' if left == 1 else 'pins'}, left by a crash")
        for owner in starts.owners(self._settings.bpffs) if owners is None else owners:
            Starts(self._settings.bpffs, owner).keep(())
        failed = {row.loaded: error for row, error in failures}
        return [
            outcome_of(
                row, Action.FAILED if row.loaded in failed else Action.DETACHED, failed.get(row.loaded)
            )
            for row in rows
        ]

    def repair(self, report: Report) -> None:
        """After a podmgr that was killed in here: what is attached and what is written down are the same.

        What it had attached whole stays, what it had not goes, and so does what it was removing.
        """
        half_there = set(self.rows) - set(self._sight.attached(self.rows))
        failures = self._remove([*half_there, *self._sight.unknown_attachments(self.rows)])
        left = self._unpin_unknown(None, failures)
        if half_there or left:
            report("put in order what a podmgr that was killed had left half done")

    def finish(self) -> None:
        """Whatever happened: no qdisc and no object without use, and a true ledger."""
        self._write()
        self._act.filters.tidy(self.rows)
        pins.remove_empty_folders(self._settings.bpffs)
        self._store.prune({row.object_digest for row in self.rows})

    def _remove(self, rows: Sequence[Attachment]) -> Failures:
        """Remove from the kernel, then from the rows."""
        failures = self._act.remove(rows)
        gone = {row.loaded for row in rows} - {row.loaded for row, _ in failures}
        self.rows = [row for row in self.rows if row.loaded not in gone]
        return failures

    def _unpin_unknown(self, owners: Collection[str] | None, still_attached: Failures) -> int:
        """Unpin what a crash left between loading and attaching, for these owners or all (None); how many."""
        keep = {(row.owner, row.digest) for row, _ in still_attached}
        left = [
            pin
            for pin in unknown_pins(self._settings, self.rows, owners)
            if (pin.owner, pin.digest) not in keep
        ]
        for pin in left:
            pins.remove(pin)
        return len(left)

    def _write(self) -> None:
        """Write the ledger if it would change. With no rows always: what lies there is no ledger."""
        if self.rows != self._written or not self.rows:
            ledger.write(self._state, self.rows)
            self._written = list(self.rows)


@contextmanager
def _transaction(settings: Settings, runner: Runner, report: Report) -> Iterator[_Transaction]:
    def on_wait() -> None:
        report("another podmgr is at work; waiting for it")

    with ledger.locked(settings.state_dir, on_wait=on_wait) as state:
        rows, aside = ledger.read_or_set_aside(state)
        if aside is not None:
            report(f"the ledger could not be read; it is kept as {aside}")
        with Namespaces() as namespaces:
            transaction = _Transaction(settings, state, rows, namespaces, runner)
            is_in_order = False
            try:
                if unfinished.begin(state):
                    transaction.repair(report)
                is_in_order = True
                yield transaction
            finally:
                with uninterrupted():
                    transaction.finish()
                    if is_in_order:
                        unfinished.end(state)


def _actual(decided: Decided, sight: Sight, rows: Sequence[Attachment]) -> list[Attachment]:
    """What is healthy on the targets that have not failed, and what only pins tell of.

    Fails targets whose pins are another living cgroup's. For what only pins tell of all is looked at
    only if a look at the targets alone shows cause.
    """
    near = {wish.target.owner: wish.target.cgroup for wish in decided.wishes.values()}
    healthy = sight.healthy_near(rows, near)
    unknown = sight.unknown_attachments(rows, near) if sight.has_unknown_near(healthy, near) else []
    decided.require_one_cgroup_each([*rows, *unknown])
    ids = decided.cgroup_ids
    return [row for row in (*unknown, *healthy) if row.cgroup_id in ids]


def _done(plan: Plan, loaded: Sequence[Attachment], desired: Desired, decided: Decided) -> Plan:
    """The part of the plan that was carried out, with the program ids that came of it."""
    ids = {row.program: row.program_id for row in loaded}
    return plan._replace(
        attach=tuple(row._replace(program_id=ids[row.program]) for row in decided.alive(plan.attach)),
        detach=tuple(row for row in plan.detach if _may_go(row, desired, decided)),
        unchanged=tuple(decided.alive(plan.unchanged)),
    )


def _may_go(row: Attachment, desired: Desired, decided: Decided) -> bool:
    """Whether an old row is in nobody's place. What the command line put there is its own."""
    return row.identity not in desired.left_alone and decided.may_go(row)
