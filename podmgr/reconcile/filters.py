"""Programs on interfaces: filters of clsact, with the qdiscs that they need.

A filter's place in the chain is said by `chain`; its handle is the number of its program, so that two
never stand in each other's way.

Apart from `actuator`, which alone uses it: interfaces are reached otherwise than cgroups.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podmgr.attachment import Attachment, Link
from podmgr.errors import PodmgrError
from podmgr.kernel import pins
from podmgr.kernel.netlink import RefusedError
from podmgr.kernel.pins import Mark
from podmgr.kernel.tc import Filter, Qdisc, TrafficControl
from podmgr.proc import uninterrupted
from podmgr.reconcile import chain, qdiscs
from podmgr.reconcile.actual import Sight, pin_of
from podmgr.rules.hooks import at_cgroup
from podmgr.rules.kinds import template_of
from podmgr.rules.rule import Direction, FqNeeds
from podmgr.settings import Settings

Complaints = dict[Attachment, PodmgrError]


class Filters(NamedTuple):
    """Acts within one transaction."""

    settings: Settings
    sight: Sight

    def attach(self, rows: Sequence[Attachment]) -> Complaints:
        """Put pinned programs on their interfaces; what the kernel had to say of those that it refused.

        Whether they are attached is for the caller to read back.
        """
        by_namespace: dict[int, list[tuple[Attachment, Link]]] = {}
        for row in rows:
            for link in row.links:
                by_namespace.setdefault(link.namespace, []).append((row, link))
        complaints: Complaints = {}
        for namespace, places in by_namespace.items():
            control = self.sight.namespaces.traffic_control(namespace, places[0][0].cgroup)
            with uninterrupted():
                complaints |= self._attach(places, control) if control else _vanished(places)
        self.sight.forget(by_namespace)
        return complaints

    def _attach(self, places: Sequence[tuple[Attachment, Link]], control: TrafficControl) -> Complaints:
        there = control.qdiscs()
        complaints: Complaints = {}
        for index in sorted({link.index for _, link in places}):
            of_interface = [(row, link) for row, link in places if link.index == index]
            complaints |= self._prepare(of_interface, there.get(index, []), control)
        for row, link in places:
            if row in complaints:
                continue
            pin = Path(pin_of(self.settings, row).program)
            try:
                for number, class_id in chain.places(row, link):
                    control.add_filter(link.index, link.side, number, row.program_id or 0, pin, class_id)
            except PodmgrError as error:
                complaints[row] = _refused(row, error)
        return complaints

    def _prepare(
        self, places: Sequence[tuple[Attachment, Link]], there: Collection[Qdisc], control: TrafficControl
    ) -> Complaints:
        """The qdiscs that these rows need on their interface; rows that cannot have theirs."""
        link, rows = places[0][1], [row for row, _ in places]
        place = (link.namespace, link.index, link.name, there)
        delaying = [row for row in rows if _needs_fq(row)]
        try:
            self._ensure(qdiscs.lacking_clsact(*place), control)
        except PodmgrError as error:
            return dict.fromkeys(rows, error)
        try:
            if delaying:
                self._provide_fq(link, delaying, there, control)
        except RefusedError as error:
            return {row: _without_fq(row, error) for row in delaying}
        except qdiscs.NoFqError as error:
            return {row: error.of(row.rule) for row in delaying if row.rule}
        except PodmgrError as error:
            return dict.fromkeys(delaying, error)
        return {}

    def _provide_fq(
        self, link: Link, delaying: Sequence[Attachment], there: Collection[Qdisc], control: TrafficControl
    ) -> None:
        """The fq that holds the packets of these rows. Raises NoFqError, RefusedError."""
        mark = Mark(link.namespace, link.index, qdiscs.FQ)
        if mark in pins.marks(self.settings.bpffs):
            there = qdiscs.enlarged(mark, there, control)
        may_make = not any(row.is_scoped for row in delaying)
        place = (link.namespace, link.index, link.name, there)
        self._ensure(qdiscs.lacking_fq(*place, may_make=may_make, needs=_fq_needs(delaying)), control)

    def _ensure(self, mark: Mark | None, control: TrafficControl) -> None:
        """Make a qdisc that lacks. The mark comes first: without its qdisc it does no harm."""
        if mark is None:
            return
        pins.mark(self.settings.bpffs, mark)
        try:
            qdiscs.make(mark, control)
        except RefusedError:
            pins.unmark(self.settings.bpffs, mark)
            if mark.kind != qdiscs.CLSACT:
                raise
            # somebody else was faster, and theirs will do; if not, the filters fail

    def detach(self, rows: Sequence[Attachment]) -> None:
        """Take off the filters that run these programs, and no others."""
        doomed: dict[int, list[tuple[Link, Filter]]] = {}
        self.sight.attached(rows)  # looks at each namespace once, for all
        for row in rows:
            for link, item in self.sight.filters_of(row):
                doomed.setdefault(link.namespace, []).append((link, item))
        for namespace, found in doomed.items():
            control = self.sight.namespaces.traffic_control(namespace)
            if control is None:
                continue
            for link, item in found:
                with suppress(RefusedError):  # gone already, as the caller will see
                    control.delete_filter(link.index, link.side, item.priority, item.handle)
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
        for namespace, marks in by_namespace.items():
            with suppress(PodmgrError):  # what cannot be looked at keeps its marks, for the next time
                control = self.sight.namespaces.traffic_control(namespace)
                kept = _unmake(marks, control) if control else ()
                for mark in marks:
                    if mark not in kept:
                        pins.unmark(self.settings.bpffs, mark)


def _unmake(marks: Sequence[Mark], control: TrafficControl) -> set[Mark]:
    """Remove these qdiscs, unless somebody uses them; marks of those that are still ours."""
    there = control.qdiscs()
    kept: set[Mark] = set()
    for mark in marks:
        found = [item for side in Direction for item in control.filters(mark.index, side)]
        if any(_is_of_podmgr(item, mark.kind) for item in found):
            kept.add(mark)  # of a rule that a lost ledger does not know
        elif mark.kind == qdiscs.FQ or not found:
            try:
                qdiscs.unmake(mark, there.get(mark.index, ()), control)
            except RefusedError:
                kept.add(mark)
    return kept


def _is_of_podmgr(item: Filter, kind: str) -> bool:
    """Whether a filter is one of podmgr's that needs a qdisc of that kind."""
    priorities = chain.DEPARTURES if kind == qdiscs.FQ else chain.PRIORITIES
    return item.priority in priorities and item.handle == item.program_id


def _needs_fq(row: Attachment) -> bool:
    return row.rule is not None and template_of(row.rule).needs_fq


def _fq_needs(rows: Sequence[Attachment]) -> FqNeeds:
    """What these rows need of an fq together: one adds to the departure time of another."""
    needs = [row.rule.fq_needs for row in rows if row.rule is not None]
    known = [item for item in needs if item is not None]
    return FqNeeds(
        max((item.flow_packets for item in known), default=0), sum(item.horizon_ns for item in known)
    )


def _vanished(places: Sequence[tuple[Attachment, Link]]) -> Complaints:
    gone = PodmgrError("its network namespace has vanished", tip="apply again when it is back")
    return {row: gone for row, _ in places}


def _without_fq(row: Attachment, error: RefusedError) -> PodmgrError:
    if error.errno != errno.ENOENT:
        return _refused(row, error)
    unknown = qdiscs.unknown_fq(error)
    return unknown.of(row.rule) if row.rule else unknown


def _refused(row: Attachment, error: PodmgrError) -> PodmgrError:
    other = at_cgroup(row.rule) if row.rule else ""
    return PodmgrError(
        f"the kernel refuses '{row.rule}' on {row.target}",
        detail=error.message,
        tip="podmgr doctor" + (f"; or use {other}" if other else ""),
    )
