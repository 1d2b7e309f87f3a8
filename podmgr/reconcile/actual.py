"""What the kernel has now: which of our programs hang where, by ledger row or by pin alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from podmgr.attachment import Attachment, Cgroup, Link
from podmgr.errors import PodmgrError
from podmgr.kernel import bpf_syscall, cgroups, pins
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.pins import Pin
from podmgr.kernel.tc import Filter, Traffic
from podmgr.reconcile import chain, ledger
from podmgr.rules.rule import Direction, Hook
from podmgr.rules.source import UNKNOWN
from podmgr.rules.timing import ALWAYS
from podmgr.settings import Settings

_Side = tuple[int, Direction]
_OnCgroup = tuple[int, Direction, int | None]


def pin_of(settings: Settings, row: Attachment) -> Pin:
    """Where the row's program is pinned."""
    return Pin(settings.bpffs, row.owner, row.digest)


def pinned_id(settings: Settings, row: Attachment) -> int | None:
    """The id of the program at the row's pin."""
    return bpf_syscall.pinned_program_id(pin_of(settings, row).program)


def unknown_pins(
    settings: Settings, rows: Sequence[Attachment], owners: Collection[str] | None = None
) -> list[Pin]:
    """Pins that no row speaks for: what a crash, or a lost ledger, left; of these owners, or of all."""
    known = {(row.owner, row.digest) for row in rows}
    return [pin for pin in pins.pinned(settings.bpffs, owners) if (pin.owner, pin.digest) not in known]


def sees_all(settings: Settings, row: Attachment) -> bool:
    """Whether the program counts all that its interfaces carry: a custom one may look at some of it."""
    if not row.links or row.is_scoped or row.rule is None or row.rule.brings_program:
        return False
    return row.rule.timing == ALWAYS and not os.path.exists(pin_of(settings, row).peers)


def recorded(settings: Settings) -> list[Attachment]:
    """What the ledger says is attached. Raises as `observe` does."""
    require_sight(settings)
    return ledger.read(settings.state_dir)


def without_cgroup(rows: Sequence[Attachment]) -> list[Attachment]:
    """The rows whose cgroup has vanished, each cgroup looked for once."""
    places = {row.cgroup_id: row.cgroup for row in rows}
    gone = {cgroup_id for cgroup_id, cgroup in places.items() if not cgroups.exists(cgroup)}
    return [row for row in rows if row.cgroup_id in gone]


def require_sight(settings: Settings) -> None:
    """Raise unless we may look at what hangs on cgroups: an empty answer would lie."""
    pins.require_place(settings.bpffs)
    path = cgroups.find_root(settings.cgroup_root)
    with cgroups.opened(Cgroup(path, os.stat(path).st_ino)) as fd:
        if fd is None:
            raise PodmgrError(f"cgroup {path} has vanished", tip="podmgr doctor")
        bpf_syscall.attached_programs(fd, Direction.EGRESS)


class Sight:
    """A look at the kernel. A namespace is looked at once, until `forget` is called.

    Cgroups are looked at anew each time: that costs a system call.
    """

    def __init__(self, settings: Settings, namespaces: Namespaces) -> None:
        self.settings = settings
        self.namespaces = namespaces
        self._filters: dict[int, dict[_Side, list[Filter]]] = {}
        self._indexes: dict[int, set[int]] = {}
        self._traffic: dict[int, Mapping[_Side, Traffic]] = {}

    def forget(self, namespaces: Iterable[int]) -> None:
        """Something was changed there."""
        for namespace in namespaces:
            self._filters.pop(namespace, None)
            self._indexes.pop(namespace, None)
            self._traffic.pop(namespace, None)

    def attached(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """The rows whose program the kernel has on the row's cgroup, or on its interfaces.

        An interface that is gone is no reason, as long as another is left.
        """
        self._look_at(rows)
        on_cgroups = _on_cgroups(row for row in rows if not row.links)
        return [row for row in rows if row.program_id is not None and self._has(row, on_cgroups)]

    def healthy(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """The rows whose program is attached and pinned: nothing is left to do for them."""
        return [row for row in self.attached(rows) if pinned_id(self.settings, row) == row.program_id]

    def filters_of(self, row: Attachment) -> list[tuple[Link, Filter]]:
        """The filters that run the row's program."""
        self._look_at([row])
        return [
            (link, item)
            for link in row.links
            for item in self._filters[link.namespace][link.index, link.side]
            if item.program_id is not None and item.program_id == row.program_id
        ]

    def traffic(self, row: Attachment) -> Traffic | None:
        """What the row's interfaces have counted on their sides; None if they cannot be looked at."""
        found = []
        for link in row.links:
            if chain.is_watched(row, link):
                continue
            if link.namespace not in self._traffic:
                control = self.namespaces.traffic_control(link.namespace, row.cgroup)
                self._traffic[link.namespace] = control.traffic() if control else {}
            counted = self._traffic[link.namespace].get((link.index, link.side))
            if counted is not None:
                found.append(counted)
        packets, size = (sum(numbers) for numbers in zip(*found, strict=True)) if found else (0, 0)
        return Traffic(packets, size) if found else None

    def healthy_near(self, rows: Sequence[Attachment], near: Mapping[str, Cgroup]) -> list[Attachment]:
        """The healthy rows of these cgroups, and of their owners."""
        ids = {cgroup.id for cgroup in near.values()}
        return self.healthy([row for row in rows if row.cgroup_id in ids or row.owner in near])

    def has_unknown_near(self, healthy: Sequence[Attachment], near: Mapping[str, Cgroup]) -> bool:
        """Whether a look at some cgroups alone, by owner, shows what their healthy rows do not explain.

        Programs of others on these cgroups count too: whose they are is seen by a look at all pins.
        """
        if unknown_pins(self.settings, healthy, near):
            return True
        explained = {row.program_id for row in healthy}
        return any(not explained.issuperset(_all_attached_to(cgroup)) for cgroup in near.values())

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
            for direction, program_ids in _attached_to(cgroup).items()
            for program_id in program_ids
            if program_id in orphans
        ]
        left = {key: pin for key, pin in orphans.items() if key not in {row.program_id for row in found}}
        recorded_ids = {row.program_id for row in rows}  # of which not all is there: equal to no wish
        return found + [
            row._replace(priority=0) if row.program_id in recorded_ids else row
            for row in self._unknown_on_interfaces(left, near or {})
        ]

    def _unknown_on_interfaces(
        self, orphans: Mapping[int, Pin], near: Mapping[str, Cgroup]
    ) -> list[Attachment]:
        """These programs, wherever a filter runs one of them."""
        links: dict[int, list[Link]] = {}
        priorities: dict[int, int] = {}
        for namespace in self.namespaces.all() if orphans else []:
            with suppress(PodmgrError):  # anybody may make one, and it may vanish
                for place, item in self._all_filters(namespace):
                    if item.program_id is not None and item.program_id in orphans:
                        links.setdefault(item.program_id, []).append(place)
                        priorities[item.program_id] = item.priority
        return [
            _unknown_at_tc(key, orphans[key], tuple(sorted(set(places))), near)._replace(
                priority=priorities[key]
            )
            for key, places in links.items()
        ]

    def _all_filters(self, namespace: int) -> list[tuple[Link, Filter]]:
        control = self.namespaces.traffic_control(namespace)
        if control is None:
            return []
        return [
            (Link(namespace, interface.index, side, interface.name), item)
            for interface in control.interfaces()
            for side in Direction
            for item in control.filters(interface.index, side)
        ]

    def _has(self, row: Attachment, on_cgroups: Collection[_OnCgroup]) -> bool:
        if not row.links:
            return (row.cgroup_id, row.direction, row.program_id) in on_cgroups
        held = {(link, item.priority) for link, item in self.filters_of(row)}
        if row.rule is None:  # as it was found
            return bool(held)
        return bool(held) and all(
            all((link, number) in held for number, _ in chain.places(row, link)) or self._is_gone(link)
            for link in row.links
        )

    def _is_gone(self, link: Link) -> bool:
        """Whether the interface is not there any more."""
        if link.namespace not in self._indexes:
            control = self.namespaces.traffic_control(link.namespace)
            found = control.interfaces() if control else ()
            self._indexes[link.namespace] = {item.index for item in found}
        return link.index not in self._indexes[link.namespace]

    def _look_at(self, rows: Iterable[Attachment]) -> None:
        """Ask for what is not known yet, each namespace at once."""
        missing: dict[int, set[_Side]] = {}
        near: dict[int, Cgroup] = {}
        for row in rows:
            for link in row.links:
                if (link.index, link.side) not in self._filters.get(link.namespace, ()):
                    missing.setdefault(link.namespace, set()).add((link.index, link.side))
                    near.setdefault(link.namespace, row.cgroup)
        for namespace, sides in missing.items():
            control = self.namespaces.traffic_control(namespace, near[namespace])
            found = {side: control.filters(*side) if control else [] for side in sides}
            self._filters.setdefault(namespace, {}).update(found)


def _on_cgroups(rows: Iterable[Attachment]) -> set[_OnCgroup]:
    """What hangs now on the cgroups of the rows, in their directions; each is looked at once."""
    directions: dict[Cgroup, set[Direction]] = {}
    for row in rows:
        directions.setdefault(row.cgroup, set()).add(row.direction)
    return {
        (cgroup.id, direction, program_id)
        for cgroup, sides in directions.items()
        for direction, program_ids in _attached_to(cgroup, sides).items()
        for program_id in program_ids
    }


def _attached_to(
    cgroup: Cgroup, directions: Iterable[Direction] = Direction
) -> dict[Direction, Sequence[int]]:
    """What hangs on the cgroup now; nothing if it has vanished."""
    with cgroups.opened(cgroup) as fd:
        if fd is None:
            return {}
        return {side: bpf_syscall.attached_programs(fd, side).program_ids for side in directions}


def _all_attached_to(cgroup: Cgroup) -> set[int]:
    return {program_id for program_ids in _attached_to(cgroup).values() for program_id in program_ids}


def _unknown_row(root: Path, cgroup: Cgroup, direction: Direction, program_id: int, pin: Pin) -> Attachment:
    return Attachment(
        target=cgroups.display_name(root, cgroup),
        owner=pin.owner,
        cgroup_path=str(cgroup.path),
        cgroup_id=cgroup.id,
        rule=None,
        direction=direction,
        hook=Hook.CGROUP,
        source=UNKNOWN,
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
        rule=None,
        direction=links[0].side,
        hook=Hook.TC,
        source=UNKNOWN,
        digest=pin.digest,
        object_digest="",
        program_id=program_id,
        links=links,
    )
