"""The three things done to the kernel: load and pin, attach, remove. Each is read back.

Programs go to cgroups here, to interfaces by way of `filters`.

Paths reach bpftool as open descriptors, so that no odd name gets into a batch file and no
cgroup is exchanged for another of the same name in between.

Apart from `transaction`, which alone uses it: what is done to the kernel, without the decision what to do.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from podmgr.attachment import Attachment
from podmgr.errors import PodmgrError, ToolTimeoutError
from podmgr.kernel import bpf_syscall, bpftool, cgroups, pins
from podmgr.kernel.pins import Pin
from podmgr.proc import Runner
from podmgr.programs import elf
from podmgr.programs.store import StoredObject
from podmgr.reconcile import others
from podmgr.reconcile.actual import Sight, pin_of, pinned_id
from podmgr.reconcile.filters import Filters
from podmgr.reconcile.ledger import State
from podmgr.reconcile.outcome import Failures
from podmgr.settings import Settings

_LOG_LINES = 15
_MOST_CGROUPS_AT_ONCE = 256


class Actuator(NamedTuple):
    """Acts within one transaction, whose lock all child processes inherit."""

    settings: Settings
    state: State
    sight: Sight
    runner: Runner

    @property
    def filters(self) -> Filters:
        return Filters(self.settings, self.sight)

    def load(
        self, rows: Sequence[Attachment], objects: Mapping[str, StoredObject]
    ) -> tuple[list[Attachment], Failures]:
        """Load and pin, each program once. Returns the rows that worked, with program ids, and the others.

        Custom programs come last and by themselves: the verifier may take longer over one than
        bpftool is given, and the others shall not fail with it.
        """
        loaded: list[Attachment] = []
        failures: Failures = []
        for is_brought in (False, True):
            batch = [row for row in _programs(rows) if _is_brought(row) == is_brought]
            try:
                done, failed = self._load(batch, objects)
            except ToolTimeoutError as error:
                for row in batch:
                    pins.remove(pin_of(self.settings, row))
                done, failed = [], [(row, error) for row in batch]
            loaded += done
            failures += failed
        ids = {row.program: row.program_id for row in loaded}
        errors = {row.program: error for row, error in failures}  # some have a program already, and lose it
        return (
            [row._replace(program_id=ids[row.program]) for row in rows if row.program in ids],
            [(row, errors[row.program]) for row in rows if row.program in errors],
        )

    def _load(
        self, rows: Sequence[Attachment], objects: Mapping[str, StoredObject]
    ) -> tuple[list[Attachment], Failures]:
        if not rows:
            return [], []
        new = {owner for owner in {row.owner for row in rows} if pins.make_owner(self.settings.bpffs, owner)}
        for row in rows:
            if row.owner not in new:
                pins.remove(pin_of(self.settings, row))  # a crash may have left half of one
        with ExitStack() as stack:
            bpffs = self._open_bpffs(stack)
            folder = f"/proc/self/fd/{self.state.fd}/{objects[rows[0].object_digest].path.parent.name}"
            commands, opened = [], Path(f"/proc/self/fd/{bpffs}")
            for row in rows:
                pin = Pin(opened, row.owner, row.digest)
                path = f"{folder}/{objects[row.object_digest].path.name}"
                commands.append(bpftool.load(path, pin.program, pin.maps, row.hook, row.direction))
            results = bpftool.batches(commands, runner=self.runner, pass_fds=[*self.state.fds, bpffs])
        loaded: list[Attachment] = []
        failures: Failures = []
        for row, failure in zip(rows, results, strict=True):
            program_id = pinned_id(self.settings, row)
            if failure is None and program_id is not None:
                loaded.append(row._replace(program_id=program_id))
                continue
            pins.remove(pin_of(self.settings, row))
            failures.append((row, _refused(row, failure)))
        unscoped = self._tell_scope(loaded, objects)
        failures += unscoped
        for row, _ in unscoped:
            pins.remove(pin_of(self.settings, row))
            loaded.remove(row)
        return loaded, failures

    def _tell_scope(self, rows: Sequence[Attachment], objects: Mapping[str, StoredObject]) -> Failures:
        """Tell programs that ask for it whose packets they may touch, before they see any.

        Returns those that do not ask, on interfaces that are also others'.
        """
        asking = [row for row in rows if os.path.exists(pin_of(self.settings, row).scope)]
        failures: Failures = [
            (row, _unscoped(row))
            for row in rows
            if row.is_scoped and not (row in asking and _asks(row, objects[row.object_digest]))
        ]
        if not asking:
            return failures
        with ExitStack() as stack:
            bpffs = self._open_bpffs(stack)
            commands, opened = [], Path(f"/proc/self/fd/{bpffs}")
            for row in asking:
                pin = Pin(opened, row.owner, row.digest)
                commands.append(bpftool.set_scope(pin.scope, row.cgroup_id, cgroups.level(row.cgroup)))
            results = bpftool.batch(commands, runner=self.runner, pass_fds=[*self.state.fds, bpffs])
        failed = zip(asking, results, strict=True)
        return failures + [(row, _refused(row, failure)) for row, failure in failed if failure is not None]

    def attach(self, rows: Sequence[Attachment]) -> Failures:
        """Attach, and read back that each program is attached; those that are not, with the reason."""
        programs = _programs(rows)
        on_cgroups = [row for row in programs if not row.links]
        failures = [failure for some in _chunks(on_cgroups) for failure in self._attach(some)]
        failures += self._attach_at_tc([row for row in programs if row.links])
        return _of_all(failures, rows)

    def _attach_at_tc(self, rows: Sequence[Attachment]) -> Failures:
        complaints = self.filters.attach(rows) if rows else {}
        attached = {row.program_id for row in self.sight.attached(rows)}
        failed = [row for row in rows if row.program_id not in attached or row in complaints]
        return [(row, complaints.get(row) or _not_there(row)) for row in failed]

    def _attach(self, rows: Sequence[Attachment]) -> Failures:
        """Those that take the place of another's program fail, and are for the caller to remove."""
        places = {(row.cgroup, row.direction) for row in rows}
        acting = {place: others.effective(*place) for place in places}
        failures = self._attach_to_cgroups(rows)
        lifted = {place: others.lifted(before, *place) for place, before in acting.items()}
        known = {row.identity for row, _ in failures}
        for row in rows:
            holder = lifted[row.cgroup, row.direction]
            if holder is not None and row.identity not in known:
                failures.append((row, others.refusal(str(row.rule), row.cgroup, holder)))
        return failures

    def _attach_to_cgroups(self, rows: Sequence[Attachment]) -> Failures:
        with ExitStack() as stack:
            bpffs = self._open_bpffs(stack)
            handles = _open_cgroups(rows, stack)
            present = [row for row in rows if handles[row.cgroup_id] is not None]
            commands = [
                bpftool.attach(
                    f"/proc/self/fd/{handles[row.cgroup_id]}",
                    row.direction,
                    f"/proc/self/fd/{bpffs}/{row.owner}/{row.digest}",
                )
                for row in present
            ]
            results = bpftool.batch(
                commands, runner=self.runner, pass_fds=[*self.state.fds, bpffs, *_open(handles)]
            )
            said = dict(zip((row.identity for row in present), results, strict=True))
        attached = {row.identity for row in self.sight.attached(rows)}
        return [
            (row, self._why_not(row, said.get(row.identity))) for row in rows if row.identity not in attached
        ]

    def remove(self, rows: Sequence[Attachment]) -> Failures:
        """Detach, read back, unpin. What could not be detached keeps its pin and is returned."""
        programs = _programs(rows)
        self.filters.detach([row for row in programs if row.links])
        return _of_all([failure for some in _chunks(programs) for failure in self._detach(some)], rows)

    def _detach(self, rows: Sequence[Attachment]) -> Failures:
        at_pin = {(row.owner, row.digest): pinned_id(self.settings, row) for row in rows}
        with ExitStack() as stack:
            attached = [row for row in self.sight.attached(rows) if not row.links]
            if attached:
                handles = _open_cgroups(attached, stack)
                fds = [*self.state.fds, *_open(handles)]
                pinned = [row for row in attached if at_pin[row.owner, row.digest] == row.program_id]
                bpffs = self._open_bpffs(stack) if pinned else -1
                fds += [bpffs] if pinned else []
                programs = {
                    row.program_id: f"/proc/self/fd/{bpffs}/{row.owner}/{row.digest}" for row in pinned
                }
                commands = [
                    bpftool.detach(
                        f"/proc/self/fd/{handles[row.cgroup_id]}",
                        row.direction,
                        programs.get(row.program_id, row.program_id or 0),
                    )
                    for row in attached
                ]
                bpftool.batch(commands, runner=self.runner, pass_fds=fds)
        still = self.sight.attached(rows)
        kept = {(row.owner, row.digest) for row in still}
        for row in rows:
            is_its_own = row.program_id is None or at_pin[row.owner, row.digest] in (None, row.program_id)
            if is_its_own and (row.owner, row.digest) not in kept:
                pins.remove(pin_of(self.settings, row))
        return [(row, _still_attached(row)) for row in still]

    def _open_bpffs(self, stack: ExitStack) -> int:
        fd = os.open(self.settings.bpffs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return fd

    def _why_not(self, row: Attachment, failure: bpftool.Failure | None) -> PodmgrError:
        """The kernel says only EPERM or E2BIG; what it means is read from the cgroups."""
        cgroup = row.cgroup
        with cgroups.opened(cgroup) as fd:
            if fd is None:
                return PodmgrError(f"cgroup {cgroup.path} has vanished", tip="apply again when it is back")
            there = bpf_syscall.attached_programs(fd, row.direction)
        if len(there.program_ids) >= bpf_syscall.MAX_PROGRAMS:
            return PodmgrError(
                f"cgroup {cgroup.path} is full: {len(there.program_ids)} {row.direction} programs",
                tip="the kernel allows no more; bpftool prog show tells whose they are",
            )
        root = cgroups.find_root(self.settings.cgroup_root)
        for above in [cgroup, *cgroups.ancestors(root, cgroup)]:
            with cgroups.opened(above) as fd:
                if fd is None or not (there := bpf_syscall.attached_programs(fd, row.direction)).is_exclusive:
                    continue
                return PodmgrError(
                    f"cgroup {above.path} has an exclusive {row.direction} program: it admits no other",
                    tip=f"its owner must attach it with 'multi'; bpftool prog show id {there.program_ids[0]}",
                )
        return PodmgrError(
            f"the kernel refuses to attach '{row.rule}' to {cgroup.path}",
            detail=_last_lines(failure.log) if failure else None,
            tip=failure.error if failure else "podmgr doctor",
        )


def _still_attached(row: Attachment) -> PodmgrError:
    if row.links:
        names = ", ".join(link.name for link in row.links)
        return PodmgrError(
            f"program {row.program_id} is still attached to {names} of {row.target}",
            tip="podmgr clean again; tc filter show dev DEV egress shows it",
        )
    return PodmgrError(
        f"program {row.program_id} is still attached to {row.cgroup_path}",
        tip=f"bpftool cgroup detach {row.cgroup_path} {row.direction} id {row.program_id}",
    )


def _not_there(row: Attachment) -> PodmgrError:
    return PodmgrError(
        f"'{row.rule}' is not on all interfaces of {row.target}, though the kernel did not complain",
        tip="somebody else changes its filters; apply again",
    )


def _is_brought(row: Attachment) -> bool:
    return row.rule is not None and row.rule.brings_program


def _asks(row: Attachment, stored: StoredObject) -> bool:
    """Whether the program looks at its scope: the header defines the map for those that do not, too."""
    return not _is_brought(row) or elf.uses_map(stored.path.read_bytes(), pins.SCOPE_MAP)


def _unscoped(row: Attachment) -> PodmgrError:
    return PodmgrError(
        f"the program of '{row.rule}' would touch the packets of others: {row.target} has no interfaces "
        "of its own",
        tip="include podmgr.h and ask is_exempt(), or write it for the cgroup hook",
    )


def _refused(row: Attachment, failure: bpftool.Failure | None) -> PodmgrError:
    return PodmgrError(
        f"the kernel refuses the program of '{row.rule}'",
        detail=_last_lines(failure.log) if failure else None,
        tip="the lines above are the kernel's verifier; podmgr doctor shows what this kernel can do",
    )


def _programs(rows: Iterable[Attachment]) -> list[Attachment]:
    """A row for each program: what several rules share is loaded, attached and removed once."""
    return list({row.loaded: row for row in rows}.values())


def _of_all(failures: Failures, rows: Iterable[Attachment]) -> Failures:
    """The failures of programs, said of each rule that one acts for."""
    errors = {row.loaded: error for row, error in failures}
    return [(row, errors[row.loaded]) for row in rows if row.loaded in errors]


def _chunks(rows: Sequence[Attachment]) -> Iterator[list[Attachment]]:
    """Rows of so many cgroups at a time that their descriptors take a quarter of what we may open."""
    may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    at_once = max(1, min(may_open // 4, _MOST_CGROUPS_AT_ONCE)) if may_open > 0 else _MOST_CGROUPS_AT_ONCE
    by_cgroup: dict[int, list[Attachment]] = {}
    for row in rows:
        by_cgroup.setdefault(row.cgroup_id, []).append(row)
    groups = list(by_cgroup.values())
    for start in range(0, len(groups), at_once):
        yield [row for group in groups[start : start + at_once] for row in group]


def _open_cgroups(rows: Sequence[Attachment], stack: ExitStack) -> dict[int, int | None]:
    """A descriptor for each cgroup of the rows; None for one that has vanished."""
    distinct = {row.cgroup_id: row.cgroup for row in rows}
    return {key: stack.enter_context(cgroups.opened(cgroup)) for key, cgroup in distinct.items()}


def _open(handles: Mapping[int, int | None]) -> list[int]:
    return [fd for fd in handles.values() if fd is not None]


def _last_lines(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-_LOG_LINES:])
