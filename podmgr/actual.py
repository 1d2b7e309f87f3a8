"""What the kernel has now: which of our programs hang where, by ledger row or by pin alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from podmgr import bpf_syscall, cgroups, pins, tc
from podmgr.cgroups import Cgroup
from podmgr.netns import Namespaces
from podmgr.pins import Pin
from podmgr.plan import Attachment, Link
from podmgr.proc import Runner, each
from podmgr.rules import Direction, Hook
from podmgr.settings import Settings
from podmgr.tc import Filter

_Sides = tuple[int, Direction]


def pin_of(settings: Settings, row: Attachment) -> Pin:
    """Where the row's program is pinned."""
    return Pin(settings.bpffs, row.owner, row.digest)


def cgroup_of(row: Attachment) -> Cgroup:
    """The row's cgroup, which may have vanished."""
    return Cgroup(Path(row.cgroup_path), row.cgroup_id)


def pinned_id(settings: Settings, row: Attachment) -> int | None:
    """The id of the program at the row's pin."""
    return bpf_syscall.pinned_program_id(pin_of(settings, row).program)


def unknown_pins(
    settings: Settings, rows: Sequence[Attachment], owners: Collection[str] | None = None
) -> list[Pin]:
    """Pins that no row speaks for: what a crash, or a lost ledger, left; of these owners, or of all."""
    known = {(row.owner, row.digest) for row in rows}
    return [pin for pin in pins.pinned(settings.bpffs, owners) if (pin.owner, pin.digest) not in known]


@dataclass
class Sight:
    """A look at the kernel. tc is asked once for each namespace, until `forget` is called.

    Cgroups are looked at anew each time: that costs a system call.
    """

    settings: Settings
    namespaces: Namespaces
    runner: Runner
    _filters: dict[int, dict[_Sides, list[Filter]]] = field(default_factory=dict)
    _indexes: dict[int, frozenset[int]] = field(default_factory=dict)

    def forget(self, namespaces: Iterable[int]) -> None:
        """Something was changed there."""
        for namespace in namespaces:
            self._filters.pop(namespace, None)
            self._indexes.pop(namespace, None)

    def attached(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """The rows whose program the kernel has on the row's cgroup, or on its interfaces.

        An interface that is gone is no reason, as long as another is left.
        """
        self._look_at([(row, link) for row in rows for link in row.links])
        return [row for row in rows if row.program_id is not None and self._has(row)]

    def is_attached(self, row: Attachment) -> bool:
        """The same for one row."""
        return bool(self.attached([row]))

    def healthy(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """The rows whose program is attached and pinned: nothing is left to do for them."""
        return [row for row in self.attached(rows) if pinned_id(self.settings, row) == row.program_id]

    def filters_of(self, row: Attachment) -> list[tuple[Link, Filter]]:
        """The filters that run the row's program, as far as they are there."""
        self._look_at([(row, link) for link in row.links])
        return [
            (link, item)
            for link in row.links
            for item in self._filters[link.namespace].get((link.index, link.side), ())
            if item.program_id is not None and item.program_id == row.program_id
        ]

    def filters_on(self, namespace: int, index: int) -> list[Filter]:
        """Everybody's filters on both sides of an interface."""
        fd = self.namespaces.descriptor(namespace)
        if fd is None:
            return []
        found = tc.filters(fd, [(index, side) for side in Direction], runner=self.runner)
        return [item for filters in found.values() for item in filters]

    def has_unknown_near(self, rows: Sequence[Attachment], near: Mapping[str, Cgroup]) -> bool:
        """Whether a look at some cgroups alone, by owner, shows what their rows do not explain.

        Programs of others on these cgroups count too: whose they are is seen by a look at all pins.
        """
        ids = {cgroup.id for cgroup in near.values()}
        healthy = self.healthy([row for row in rows if row.cgroup_id in ids or row.owner in near])
        explained = {row.program_id for row in healthy}
        if unknown_pins(self.settings, healthy, near):
            return True
        return any(
            not explained.issuperset(_attached_to(cgroup, direction))
            for cgroup in near.values()
            for direction in Direction
        )

    def unknown_attachments(
        self, rows: Sequence[Attachment], near: Mapping[str, Cgroup] | None = None
    ) -> list[Attachment]:
        """Attachments that only their pins tell of. `near` are cgroups known by their owner.

        The kernel is the truth: a row speaks for its pin only if the pinned program is attached
        where the row says. If not, the program is looked for everywhere.
        """
        orphans: dict[int, Pin] = {}
        for pin in unknown_pins(self.settings, self.healthy(rows)):
            program_id = bpf_syscall.pinned_program_id(pin.program)
            if program_id is not None:
                orphans[program_id] = pin
        if not orphans:
            return []
        root = cgroups.find_root(self.settings.cgroup_root)
        found = [
            _unknown_row(root, cgroup, direction, program_id, orphans[program_id])
            for cgroup in cgroups.walk_everywhere(root)
            for direction in Direction
            for program_id in _attached_to(cgroup, direction)
            if program_id in orphans
        ]
        left = {key: pin for key, pin in orphans.items() if key not in {row.program_id for row in found}}
        return found + self._unknown_on_interfaces(left, near or {})

    def _unknown_on_interfaces(
        self, orphans: Mapping[int, Pin], near: Mapping[str, Cgroup]
    ) -> list[Attachment]:
        """These programs, wherever a filter runs one of them."""
        links: dict[int, list[Link]] = {}
        for namespace in self.namespaces.all() if orphans else []:
            names = self._interfaces(namespace)
            sides = [(index, side) for index in names for side in Direction]
            fd = self.namespaces.descriptor(namespace)
            found = tc.filters(fd, sides, runner=self.runner) if fd is not None else {}
            for (index, side), filters in found.items():
                for item in filters:
                    if item.program_id is not None and item.program_id in orphans:
                        place = Link(namespace, index, side, names[index])
                        links.setdefault(item.program_id, []).append(place)
        return [
            _unknown_at_tc(key, orphans[key], tuple(sorted(set(places))), near)
            for key, places in links.items()
        ]

    def _interfaces(self, namespace: int) -> dict[int, str]:
        fd = self.namespaces.descriptor(namespace)
        found = tc.interfaces(fd, runner=self.runner) if fd is not None else []
        return {item.index: item.name for item in found}

    def _has(self, row: Attachment) -> bool:
        if not row.links:
            return row.program_id in _attached_to(cgroup_of(row), row.direction)
        held = {link for link, _ in self.filters_of(row)}
        return bool(held) and all(link in held or self._is_gone(link) for link in row.links)

    def _is_gone(self, link: Link) -> bool:
        if link.namespace not in self._indexes:
            self._indexes[link.namespace] = frozenset(self._interfaces(link.namespace))
        return link.index not in self._indexes[link.namespace]

    def _look_at(self, places: Sequence[tuple[Attachment, Link]]) -> None:
        """Ask tc for what is not known yet, several namespaces at a time."""
        missing: dict[int, set[_Sides]] = {}
        for row, link in places:
            known = self._filters.get(link.namespace, {})
            if (link.index, link.side) not in known:
                missing.setdefault(link.namespace, set()).add((link.index, link.side))
                self.namespaces.descriptor(link.namespace, cgroup_of(row))

        def look(namespace: int) -> dict[_Sides, list[Filter]]:
            fd = self.namespaces.descriptor(namespace)
            sides = sorted(missing[namespace])
            found = tc.filters(fd, sides, runner=self.runner) if fd is not None else {}
            return {side: found.get(side, []) for side in sides}

        for namespace, found in zip(missing, each(look, list(missing)), strict=True):
            self._filters.setdefault(namespace, {}).update(found)
        for _, link in places:
            self._filters.setdefault(link.namespace, {})


def _attached_to(cgroup: Cgroup, direction: Direction) -> Collection[int]:
    """What hangs on the cgroup now; nothing if it has vanished."""
    with cgroups.opened(cgroup) as fd:
        return () if fd is None else bpf_syscall.attached_programs(fd, direction).program_ids


def _unknown_row(root: Path, cgroup: Cgroup, direction: Direction, program_id: int, pin: Pin) -> Attachment:
    return Attachment(
        target=cgroups.display_name(root, cgroup),
        owner=pin.owner,
        cgroup_path=str(cgroup.path),
        cgroup_id=cgroup.id,
        rule="",
        kind="unknown",
        direction=direction,
        hook=Hook.CGROUP.value,
        source="unknown",
        digest=pin.digest,
        object_digest="",
        program_id=program_id,
    )


def _unknown_at_tc(
    program_id: int, pin: Pin, links: tuple[Link, ...], near: Mapping[str, Cgroup]
) -> Attachment:
    """Whose it is, only the pin's folder says: a pod's UID, or a cgroup's number."""
    is_cgroup = pin.owner.isdigit()
    place = near.get(pin.owner) or Cgroup(Path("/"), int(pin.owner) if is_cgroup else 0)
    return Attachment(
        target=f"{'cgroup' if is_cgroup else 'pod'}/{pin.owner}",
        owner=pin.owner,
        cgroup_path=str(place.path),
        cgroup_id=place.id,
        rule="",
        kind="unknown",
        direction=links[0].side,
        hook=Hook.TC.value,
        source="unknown",
        digest=pin.digest,
        object_digest="",
        program_id=program_id,
        links=links,
    )
