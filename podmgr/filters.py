"""Programs on interfaces: filters of clsact, with the qdiscs that they need.

A filter's priority is podmgr's own and says its place in the chain; its handle is the number of
its program, so that two never stand in each other's way.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from podmgr import pins, qdiscs, tc
from podmgr.actual import Sight, cgroup_of
from podmgr.catalog import DELAYING, recipe
from podmgr.errors import PodmgrError
from podmgr.grammar import parse_rule_option
from podmgr.pins import Mark
from podmgr.plan import Attachment, Link
from podmgr.proc import Runner, each
from podmgr.settings import Settings
from podmgr.tc import Command, Filter, Qdisc

# Behind filters that were given a small number to be first, before those that the kernel numbers.
FIRST_PRIORITY = 100
_DELAYING_PRIORITY = FIRST_PRIORITY + DELAYING

Complaints = dict[Attachment, PodmgrError]


class _Batch:
    """What is sent to tc for one namespace, and for which rows each command is."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.rows: list[Collection[Attachment]] = []
        self.marks: dict[Command, Mark] = {}

    def add(self, command: Command, rows: Collection[Attachment]) -> None:
        self.commands.append(command)
        self.rows.append(rows)

    def make(self, mark: Mark | None, name: str, rows: Collection[Attachment]) -> None:
        """Make a qdisc, if it is not there; the two sides of an interface share it."""
        if mark is not None and mark not in self.marks.values():
            command = qdiscs.making(mark, name)
            self.marks[command] = mark
            self.add(command, rows)


class Filters(NamedTuple):
    """Acts within one transaction, whose lock all child processes inherit (`lock_fd`)."""

    settings: Settings
    sight: Sight
    runner: Runner
    lock_fd: int

    def attach(self, rows: Sequence[Attachment]) -> Complaints:
        """Put pinned programs on their interfaces; what tc had to say of those that it refused.

        Whether they are attached is for the caller to read back.
        """
        complaints: Complaints = {}
        by_namespace = _by_namespace(rows)
        for namespace, places in by_namespace.items():
            self.sight.namespaces.descriptor(namespace, cgroup_of(places[0][0]))

        def attach(namespace: int) -> Complaints:
            return self._attach(namespace, by_namespace[namespace])

        with tc.without_folders():
            for found in each(attach, list(by_namespace)):
                complaints |= found
        self.sight.forget(by_namespace)
        return complaints

    def _attach(self, namespace: int, places: Sequence[tuple[Attachment, Link]]) -> Complaints:
        fd = self.sight.namespaces.descriptor(namespace)
        if fd is None:
            gone = PodmgrError("its network namespace has vanished", tip="apply again when it is back")
            return {row: gone for row, _ in places}
        there = tc.qdiscs(fd, runner=self.runner)
        batch = _Batch()
        complaints: Complaints = {}
        for link in sorted({link for _, link in places}):
            of_link = [row for row, other in places if other == link]
            complaints |= self._prepare(link, of_link, there.get(link.name, []), batch)
        bpffs = os.open(self.settings.bpffs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for row, link in places:
                if row not in complaints:
                    pin = f"/proc/self/fd/{bpffs}/{row.owner}/{row.digest}"
                    batch.add(_add(row, link, pin), [row])
            said = tc.batch(fd, batch.commands, runner=self.runner, pass_fds=[self.lock_fd, bpffs])
        finally:
            os.close(bpffs)
        for number, reason in said.items():
            mark = batch.marks.get(batch.commands[number])
            if mark is not None:
                pins.unmark(self.settings.bpffs, mark)
            if mark is not None and mark.kind == qdiscs.CLSACT:
                continue  # somebody else was faster, and theirs will do; if not, the filters fail
            for row in batch.rows[number]:
                complaints.setdefault(row, _refused(row, batch.commands[number], reason))
        return complaints

    def _prepare(
        self, link: Link, rows: Sequence[Attachment], there: Collection[Qdisc], batch: _Batch
    ) -> Complaints:
        """The qdiscs that these rows need on the link, each made once; rows that cannot have theirs."""
        place = (link.namespace, link.index, link.name, there)
        complaints: Complaints = {}
        try:
            wanted = {qdiscs.lacking_clsact(*place): rows}
        except PodmgrError as error:
            return dict.fromkeys(rows, error)
        delaying = [row for row in rows if _needs_fq(row)]
        if delaying:
            is_ours = not any(row.is_scoped for row in delaying)
            try:
                wanted[qdiscs.lacking_fq(*place, may_make=is_ours)] = delaying
            except PodmgrError as error:
                complaints = dict.fromkeys(delaying, error)
        for mark, for_rows in wanted.items():
            if mark is not None:
                pins.mark(self.settings.bpffs, mark)
            batch.make(mark, link.name, for_rows)
        return complaints

    def detach(self, rows: Sequence[Attachment]) -> None:
        """Take off the filters that run these programs, and no others."""
        doomed: dict[int, list[Command]] = {}
        self.sight.attached(rows)  # asks tc for all at once
        for row in rows:
            for link, name, item in self.sight.filters_of(row):
                command = tc.delete_filter(name, link.side, item.priority, item.handle)
                doomed.setdefault(link.namespace, []).append(command)

        def detach(namespace: int) -> None:
            fd = self.sight.namespaces.descriptor(namespace)
            if fd is not None:
                tc.batch(fd, doomed[namespace], runner=self.runner, pass_fds=[self.lock_fd])

        each(detach, list(doomed))
        self.sight.forget(doomed)

    def tidy(self, rows: Sequence[Attachment]) -> None:
        """Remove the qdiscs of ours that none of these rows needs, unless others use them now."""
        needed = {Mark(link.namespace, link.index, qdiscs.CLSACT) for row in rows for link in row.links}
        needed |= {
            Mark(link.namespace, link.index, qdiscs.FQ)
            for row in rows
            for link in row.links
            if _needs_fq(row)
        }
        by_namespace: dict[int, list[Mark]] = {}
        for mark in pins.marks(self.settings.bpffs):
            if mark not in needed:
                by_namespace.setdefault(mark.namespace, []).append(mark)
                self.sight.namespaces.descriptor(mark.namespace)

        def tidy(namespace: int) -> None:
            with suppress(PodmgrError):  # what cannot be looked at keeps its marks, for the next time
                self._tidy(namespace, by_namespace[namespace])

        each(tidy, list(by_namespace))

    def _tidy(self, namespace: int, marks: Sequence[Mark]) -> None:
        fd = self.sight.namespaces.descriptor(namespace)
        doomed: dict[Command, Mark] = {}
        kept: set[Mark] = set()
        failed: Collection[int] = ()
        if fd is not None:
            there = tc.qdiscs(fd, runner=self.runner)
            known = {item.index: item.name for item in tc.interfaces(fd, runner=self.runner)}
            names = {mark: known[mark.index] for mark in marks if mark.index in known}
            filters = self.sight.filters_on(namespace, set(names.values()))
            for mark, name in names.items():
                if any(_is_of_podmgr(item, mark.kind) for item in filters[name]):
                    kept.add(mark)  # of a rule that a lost ledger does not know
                elif mark.kind == qdiscs.FQ or not filters[name]:
                    command = qdiscs.unmake(mark, name, there.get(name, [])) if tc.is_plain(name) else None
                    doomed |= {command: mark} if command else {}
            failed = tc.batch(fd, list(doomed), runner=self.runner, pass_fds=[self.lock_fd])
        kept |= {mark for number, mark in enumerate(doomed.values()) if number in failed}
        for mark in marks:
            if mark not in kept:
                pins.unmark(self.settings.bpffs, mark)


def _is_of_podmgr(item: Filter, kind: str) -> bool:
    """Whether a filter is one of podmgr's that needs a qdisc of that kind."""
    priorities = [_DELAYING_PRIORITY] if kind == qdiscs.FQ else range(FIRST_PRIORITY, _DELAYING_PRIORITY + 1)
    return item.priority in priorities and item.handle == item.program_id


def _by_namespace(rows: Sequence[Attachment]) -> Mapping[int, list[tuple[Attachment, Link]]]:
    found: dict[int, list[tuple[Attachment, Link]]] = {}
    for row in rows:
        for link in row.links:
            found.setdefault(link.namespace, []).append((row, link))
    return found


def _add(row: Attachment, link: Link, pin: str) -> Command:
    priority = FIRST_PRIORITY + recipe(parse_rule_option(row.rule)[0]).order
    return tc.add_filter(link.name, link.side, priority, row.program_id or 0, pin)


def _needs_fq(row: Attachment) -> bool:
    return bool(row.rule) and recipe(parse_rule_option(row.rule)[0]).needs_fq


def _refused(row: Attachment, command: Command, reason: str) -> PodmgrError:
    if qdiscs.FQ in command and "unknown" in reason:
        return PodmgrError(
            f"'{row.rule}' delays packets through the fq qdisc, which this kernel does not have",
            detail=reason,
            tip="modprobe sch_fq, or use algorithm=tbf",
        )
    return PodmgrError(
        f"tc refuses '{row.rule}' on {row.target}", detail=reason, tip="podmgr doctor; or use hook=cgroup"
    )
