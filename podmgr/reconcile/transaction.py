"""Observe, plan, act: the transactions that change the kernel, and the view that `list` shows.

Attaching: compile, inspect, load and pin, write the ledger, attach, read back. Removing: detach,
read back, unpin, delete objects, write the ledger. A target is done whole or put back as it
was. A crash at any point leaves pins or ledger rows that `clean`, or the next `apply` on the
same target, finds and finishes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from podmgr.attachment import Attachment, PodRef, Selection
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_PARTLY, EXIT_USAGE, PodmgrError
from podmgr.kernel import bpf_syscall, cgroups, pins
from podmgr.kernel.bpf_syscall import Counters
from podmgr.kernel.cgroups import Cgroup
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.tc import Traffic
from podmgr.proc import Runner, uninterrupted
from podmgr.programs.store import ObjectStore, StoredObject
from podmgr.reconcile import ledger, others
from podmgr.reconcile.actual import Sight, cgroup_of, pin_of, unknown_pins
from podmgr.reconcile.actuator import Actuator, Failures
from podmgr.reconcile.placement import Networks
from podmgr.reconcile.plan import Plan, make_plan
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Custom, Direction, Hook
from podmgr.settings import Settings

if TYPE_CHECKING:  # `list` and `clean` need no programs, and start 10 ms sooner without
    from podmgr.attachment import Wish
    from podmgr.reconcile.desired import Desired

# Of so many packets a program which counts them all must have seen one in so many; a few, such as
# neighbour discovery of a new interface, it may have seen before others came in between.
_MANY_PACKETS = _ONE_IN = 20
_SMALL_BYTES = 60

Report = Callable[[str], None]  # takes one line for the user, beside the results


class Action(StrEnum):
    """What became of a rule."""

    ATTACHED = "attached"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    DETACHED = "detached"
    SKIPPED = "skipped"
    FAILED = "failed"


class Outcome(NamedTuple):
    """What became of one rule on one target. `pod` is None for a plain cgroup.

    `note` says why the rule is not at the hook where it would otherwise be.
    """

    target: str
    rule: str
    action: Action
    program_id: int | None = None
    error: PodmgrError | None = None
    pod: PodRef | None = None
    source: str = ""
    hook: str = ""
    note: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """The target, told apart from those of the same name in other namespaces."""
        return (self.pod.namespace if self.pod else "", self.target)


class Observed(NamedTuple):
    """An attachment as the kernel has it now."""

    attachment: Attachment
    is_active: bool
    counters: Counters | None
    traffic: Traffic | None = None
    is_bypassed: bool = False

    @property
    def state(self) -> str:
        """As `list` calls it, in every format."""
        return "bypassed" if self.is_bypassed else "active" if self.is_active else "missing"


def observe(settings: Settings) -> tuple[list[Observed], int]:
    """Every attachment of the ledger, read back from the kernel, and how many pins it lacks.

    While another podmgr is at work, pins come before their rows, so none is said to be lacking.

    Raises PermissionDeniedError if we may not look, DamagedLedgerError if the ledger cannot be
    read. Takes no lock, and starts no process.
    """
    rows = recorded(settings)
    observed = []
    with Namespaces() as namespaces:
        sight = Sight(settings, namespaces)
        attached = set(sight.attached(rows))
        traffic = {row: sight.traffic(row) for row in attached if _sees_all(row)}
    for row in sorted(rows, key=lambda row: (row.pod.namespace if row.pod else "", row.target)):
        active = row in attached
        counters = bpf_syscall.pinned_counters(pin_of(settings, row).counters) if active else None
        item = Observed(row, active, counters, traffic.get(row))
        observed.append(item._replace(is_bypassed=_is_bypassed(item)))
    unknown = 0 if ledger.is_locked(settings.state_dir) else len(unknown_pins(settings, rows))
    return observed, unknown


def since(before: Iterable[Observed], now: Iterable[Observed]) -> list[Observed]:
    """What was observed later, bypassed if between the two a program saw nothing of what passed."""
    known = {item.attachment.identity: item for item in before}
    result = []
    for item in now:
        earlier = known.get(item.attachment.identity)
        if earlier and earlier.attachment.program_id == item.attachment.program_id:
            item = item._replace(is_bypassed=item.is_bypassed or _is_bypassed(item, earlier))
        result.append(item)
    return result


def settled(settings: Settings, seconds: float) -> tuple[list[Observed], int]:
    """As `observe`, after a second look so much later; 0: one look alone."""
    before, unknown = observe(settings)
    if not seconds:
        return before, unknown
    time.sleep(seconds)
    now, unknown = observe(settings)
    return since(before, now), unknown


def bypassed(outcomes: Iterable[Outcome], settings: Settings, seconds: float) -> list[str]:
    """After so long, a line for each rule of these that is attached while packets pass it by."""
    ids = {outcome.program_id for outcome in outcomes if outcome.action is not Action.DETACHED}
    observed, _ = settled(settings, seconds)
    return [
        f"{item.attachment.target}: {bypassed_text(item)}"
        for item in observed
        if item.is_bypassed and item.attachment.program_id in ids
    ]


def bypassed_text(item: Observed) -> str:
    """What there is to say of a program that nothing reaches."""
    row = item.attachment
    link = row.links[0]
    return (
        f"'{row.rule}' is attached, but packets pass it by: {link.name} counts them, its program does not; "
        f"a filter or a tcx program before it ends the chain (tc filter show dev {link.name} {link.side}, "
        "bpftool net)"
    )


def _is_bypassed(now: Observed, before: Observed | None = None) -> bool:
    """Whether it saw hardly a packet while its interfaces counted many, since then or since attached.

    Frames of 60 bytes and less, such as ARP's and those of bridges, are none of a rule's.
    """
    row = now.attachment
    if now.traffic is None or now.counters is None:
        return False
    then = Traffic(row.links_packets, row.links_bytes) if before is None else before.traffic
    seen = _packets(now.counters) - (_packets(before.counters) if before and before.counters else 0)
    if then is None or then.packets < 0:
        return False
    packets, size = now.traffic.packets - then.packets, now.traffic.bytes - then.bytes
    return packets >= _MANY_PACKETS and packets > _ONE_IN * seen and size > _SMALL_BYTES * packets


def _packets(counters: Counters) -> int:
    return counters.passed_packets + counters.dropped_packets


def _sees_all(row: Attachment) -> bool:
    """Whether the program counts all that its interfaces carry: a custom one may look at some of it."""
    return bool(row.links) and not row.is_scoped and row.kind != Custom.kind


def recorded(settings: Settings) -> list[Attachment]:
    """What the ledger says is attached. Raises as `observe` does."""
    _require_sight(settings)
    return ledger.read(settings.state_dir)


def preview(wishes: Sequence[Wish], settings: Settings) -> list[Outcome]:
    """What `apply` would do. Touches nothing; what only compiling shows is not found out."""
    from podmgr.reconcile.desired import Desired

    rows = recorded(settings)
    with Namespaces() as namespaces:
        sight = Sight(settings, namespaces)
        desired = Desired(wishes, settings, rows, Networks(namespaces))
        store = ObjectStore(settings.state_dir)
        desired.settle({digest: stored.hook for digest in desired.specs if (stored := store.find(digest))})
        desired.require_fq()
        _require_none_lifted(desired)
        gone = set(_without_cgroup(rows))
        actual = _actual(desired, sight, [row for row in rows if row not in gone])
        plan = make_plan(desired.rows, actual)
    return [*_failures(desired), *_outcomes(plan, desired)]


def apply(
    wishes: Sequence[Wish], settings: Settings, *, runner: Runner, report: Report = lambda _: None
) -> list[Outcome]:
    """Give each target exactly the rules it is wished, and prove it. Interrupted, it is undone.

    A target that fails is put back as it was and reported as an outcome; the others go on.
    Raises PodmgrError where nothing can be done at all: no right, no bpffs, no state folder.
    """
    _require_sight(settings)
    with _transaction(settings, runner, report) as transaction:
        desired = transaction.desire(wishes)
        if desired.all_failed():  # nothing to do: mount nothing
            return _failures(desired)
        if pins.ensure_bpffs(settings.bpffs, runner=runner):
            report("mounted the bpf file system at /sys/fs/bpf")
        return transaction.apply(desired)


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
    _require_sight(settings)
    pins.require_own(settings.bpffs)
    if not (settings.state_dir.exists() or pins.owners(settings.bpffs) or pins.marks(settings.bpffs)):
        return []  # nothing was ever attached: leave no folder either
    with _transaction(settings, runner, report) as transaction:
        return transaction.clean(selection, report)


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0: all done; 1: all failed; 2: all, for what the user wrote; 3: some targets, or skipped.

    A target is done, too, of which all failed that cannot be read, and the rest is in force: 3.
    """
    outcomes = list(outcomes)
    failed = [outcome for outcome in outcomes if outcome.action is Action.FAILED]
    skipped = {outcome.place for outcome in outcomes if outcome.action is Action.SKIPPED}
    if not failed:
        return EXIT_PARTLY if skipped else EXIT_DONE
    broken = {item.place for item in failed if not (item.error and item.error.exit_code == EXIT_USAGE)}
    if {outcome.place for outcome in outcomes if outcome not in failed} - broken - skipped:
        return EXIT_PARTLY
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error is not None}
    return EXIT_USAGE if codes == {EXIT_USAGE} else EXIT_FAILED


def remarks(outcomes: Iterable[Outcome]) -> list[str]:
    """What there is to know of rules that are new: why where they are, and what they are not. Each once."""
    from podmgr.programs.catalog import caveats

    lines: list[str] = []
    for outcome in outcomes:
        if outcome.action in (Action.ATTACHED, Action.REPLACED):
            lines += (
                [f"{outcome.rule} is at the {outcome.hook} hook: it {outcome.note}"] if outcome.note else []
            )
            lines += caveats(parse_rule_option(outcome.rule)[0], outcome.hook)
    return list(dict.fromkeys(lines))


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

    def desire(self, wishes: Sequence[Wish]) -> Desired:
        """The wishes, each rule in its place."""
        from podmgr.reconcile.desired import Desired

        networks = Networks(self._namespaces)
        desired = Desired(wishes, self._settings, self.rows, networks)
        desired.require_fq()
        return desired

    def apply(self, desired: Desired) -> list[Outcome]:
        self._remove(_without_cgroup(self.rows))
        objects = self._build(desired)
        desired.settle({digest: stored.hook for digest, stored in objects.items()})
        _require_none_lifted(desired)
        actual = _actual(desired, self._sight, self.rows)
        plan = make_plan(desired.rows, actual)
        half_there = self._keep(plan, desired, frozenset(actual))
        loaded = self._attach_new(plan, objects, desired)
        # Only now, with the new rules in force, may the old ones go.
        old = [row for row in [*plan.detach, *half_there] if desired.may_go(row)]
        failures = self._remove(old)
        desired.fail_all(failures)
        self._unpin_unknown({wish.target.owner for wish in desired.wishes.values()}, failures)
        return [*_failures(desired), *_outcomes(_done(plan, loaded, desired), desired)]

    def _keep(self, plan: Plan, desired: Desired, healthy: Collection[Attachment]) -> list[Attachment]:
        """Make the unchanged rows ours, forget what is neither attached nor wanted to be.

        Returns the rows whose program is attached but has lost its pin: others take their place.
        """
        kept = {row.program_id for row in plan.unchanged}  # what else a row says of them is wrong
        others = [row for row in self.rows if row.program_id not in kept]
        ids = desired.cgroup_ids
        broken = [row for row in others if row.cgroup_id in ids and row not in healthy]
        attached = self._sight.attached(broken)
        self.rows = [*others, *plan.unchanged]
        self._remove([row for row in broken if row not in attached])
        return attached

    def _attach_new(
        self, plan: Plan, objects: Mapping[str, StoredObject], desired: Desired
    ) -> list[Attachment]:
        """Load, write the ledger, attach. A target that fails is put back; interrupted, all are."""
        new = plan.attach
        loaded: list[Attachment] = []
        try:
            loaded, failures = self._act.load(new, objects)
            desired.fail_all(failures)
            self.rows += loaded
            self._write()
            desired.fail_all(self._act.attach([row for row in loaded if desired.is_alive(row)]))
            self.rows = [self._with_traffic(row) if row in loaded else row for row in self.rows]
        except BaseException:
            with uninterrupted():
                self._remove(loaded or new)
            raise
        self._remove([row for row in loaded if not desired.is_alive(row)])
        return loaded

    def _with_traffic(self, row: Attachment) -> Attachment:
        """With what its interfaces have counted so far, against which `list` holds what it sees."""
        counted = self._sight.traffic(row) if _sees_all(row) else None
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
        if left := self._unpin_unknown(selection.owners if selection else None, failures):
            report(f"removed {left} {'pin' if left == 1 else 'pins'}, left by a crash")
        failed = {row.identity: error for row, error in failures}
        return [
            _outcome(
                row, Action.FAILED if row.identity in failed else Action.DETACHED, failed.get(row.identity)
            )
            for row in rows
        ]

    def finish(self) -> None:
        """Whatever happened: no qdisc and no object without use, and a true ledger."""
        self._write()
        self._act.filters.tidy(self.rows)
        pins.remove_empty_folders(self._settings.bpffs)
        self._store.prune({row.object_digest for row in self.rows})

    def _build(self, desired: Desired) -> Mapping[str, StoredObject]:
        """The objects, compiled where they are not in the store; targets that lack one fail."""
        from podmgr.programs.build import store_all

        specs = [desired.specs[row.object_digest] for row in desired.rows]
        results = store_all(
            specs, self._store, runner=self._runner, max_map_bytes=self._settings.max_map_bytes
        )
        objects: dict[str, StoredObject] = {}
        for digest, result in results.items():
            if isinstance(result, StoredObject):
                objects[digest] = result
                continue
            desired.fail_all([(row, result) for row in desired.rows if row.object_digest == digest])
        return objects

    def _remove(self, rows: Sequence[Attachment]) -> Failures:
        """Remove from the kernel, then from the rows."""
        failures = self._act.remove(rows)
        gone = {(row.identity, row.program_id) for row in rows}
        gone -= {(row.identity, row.program_id) for row, _ in failures}
        self.rows = [row for row in self.rows if (row.identity, row.program_id) not in gone]
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
            try:
                yield transaction
            finally:
                with uninterrupted():
                    transaction.finish()


def _without_cgroup(rows: Sequence[Attachment]) -> list[Attachment]:
    """The rows whose cgroup has vanished, each cgroup looked for once."""
    places = {row.cgroup_id: cgroup_of(row) for row in rows}
    gone = {cgroup_id for cgroup_id, cgroup in places.items() if not cgroups.exists(cgroup)}
    return [row for row in rows if row.cgroup_id in gone]


def _actual(desired: Desired, sight: Sight, rows: Sequence[Attachment]) -> list[Attachment]:
    """What is healthy on the targets that have not failed, and what only pins tell of.

    Fails targets whose pins are another living cgroup's. For what only pins tell of all is looked at
    only if a look at the targets alone shows cause.
    """
    near = {wish.target.owner: wish.target.cgroup for wish in desired.wishes.values()}
    healthy = sight.healthy_near(rows, near)
    unknown = sight.unknown_attachments(rows, near) if sight.has_unknown_near(healthy, near) else []
    desired.require_one_cgroup_each([*rows, *unknown])
    ids = desired.cgroup_ids
    return [row for row in (*unknown, *healthy) if row.cgroup_id in ids]


def _require_none_lifted(desired: Desired) -> None:
    """Fail what would switch off a program of others, before anything is attached."""
    found: dict[tuple[int, Direction], others.Holder | None] = {}
    for row in desired.rows:
        place = (row.cgroup_id, row.direction)
        if row.hook != Hook.CGROUP:
            continue
        if place not in found:
            found[place] = others.would_be_lifted(cgroup_of(row), row.direction)
        if holder := found[place]:
            desired.fail(row.cgroup_id, row.rule, others.refusal(row.rule, cgroup_of(row), holder))


def _require_sight(settings: Settings) -> None:
    """Raise unless we may look at what hangs on cgroups: an empty answer would lie."""
    pins.require_place(settings.bpffs)
    path = cgroups.find_root(settings.cgroup_root)
    with cgroups.opened(Cgroup(path, os.stat(path).st_ino)) as fd:
        if fd is None:
            raise PodmgrError(f"cgroup {path} has vanished", tip="podmgr doctor")
        bpf_syscall.attached_programs(fd, Direction.EGRESS)


def _done(plan: Plan, loaded: Sequence[Attachment], desired: Desired) -> Plan:
    """The part of the plan that was carried out, with the program ids that came of it."""
    ids = {row.identity: row.program_id for row in loaded}
    return plan._replace(
        attach=tuple(
            row._replace(program_id=ids[row.identity]) for row in plan.attach if desired.is_alive(row)
        ),
        detach=tuple(row for row in plan.detach if desired.may_go(row)),
        unchanged=tuple(row for row in plan.unchanged if desired.is_alive(row)),
    )


def _failures(desired: Desired) -> list[Outcome]:
    return [
        Outcome(target.name, rule, Action.FAILED, None, error, target.pod)
        for target, rule, error in desired.failures()
    ]


def _outcomes(plan: Plan, desired: Desired) -> list[Outcome]:
    def outcome(row: Attachment, action: Action) -> Outcome:
        return _outcome(row, action)._replace(note=desired.note(row))

    outcomes = [outcome(row, Action.UNCHANGED) for row in plan.unchanged]
    outcomes += [
        outcome(row, Action.REPLACED if row.slot in plan.replaced else Action.ATTACHED) for row in plan.attach
    ]
    outcomes += [_outcome(row, Action.DETACHED) for row in plan.detach if row.slot not in plan.replaced]
    return outcomes


def _outcome(row: Attachment, action: Action, error: PodmgrError | None = None) -> Outcome:
    return Outcome(row.target, _name(row), action, row.program_id, error, row.pod, row.source, row.hook)


def _name(row: Attachment) -> str:
    """The rule; of an attachment that only a pin tells of, the program."""
    return row.rule or f"program {row.program_id}"
