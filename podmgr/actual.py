"""What the kernel has now: which of our programs hang where, by ledger row or by pin alone."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from podmgr import bpf_syscall, cgroups, pins, tc
from podmgr.cgroups import Cgroup
from podmgr.errors import PodmgrError
from podmgr.netns import Namespaces
from podmgr.pins import Pin
from podmgr.plan import Attachment, Link
from podmgr.proc import Runner, each
from podmgr.rules import Direction, Hook
from podmgr.settings import Settings
from podmgr.tc import Filter

_Side = tuple[str, Direction]
_OnCgroup = tuple[int, Direction, int | None]


def pin_of(settings: Settings, row: Attachment) -> Pin:
    """Where the row's program is pinned."""
    return Pin(settings.bpffs, row.owner, row.digest)


def cgroup_of(row: Attachment) -> Cgroup:
    """The row's cgroup, which may have vanished."""
    return _cgroup(row.cgroup_path, row.cgroup_id)


@functools.lru_cache(maxsize=1024)
def _cgroup(path: str, cgroup_id: int) -> Cgroup:
    """A path is taken to pieces when it is made, and a node's are looked at many times."""
    return Cgroup(Path(path), cgroup_id)


def pinned_id(settings: Settings, row: Attachment) -> int | None:
    """The id of the program at the row's pin."""
    return bpf_syscall.pinned_program_id(pin_of(settings, row).program)


def unknown_pins(
    settings: Settings, rows: Sequence[Attachment], owners: Collection[str] | None = None
) -> list[Pin]:
    """Pins that no row speaks for: what a crash, or a lost ledger, left; of these owners, or of all."""
    known = {(row.owner, row.digest) for row in rows}
    return [pin for pin in pins.pinned(settings.bpffs, owners) if (pin.owner, pin.digest) not in known]


class Sight:
    """A look at the kernel. tc is asked once for each namespace, until `forget` is called.

    Cgroups are looked at anew each time: that costs a system call.
    """

    def __init__(self, settings: Settings, namespaces: Namespaces, runner: Runner) -> None:
        self.settings = settings
        self.namespaces = namespaces
        self.runner = runner
        self._filters: dict[int, dict[_Side, list[Filter]]] = {}
        self._names: dict[int, dict[int, str]] = {}

    def forget(self, namespaces: Iterable[int]) -> None:
        """Something was changed there."""
        for namespace in namespaces:
            self._filters.pop(namespace, None)
            self._names.pop(namespace, None)

    def attached(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """The rows whose program the kernel has on the row's cgroup, or on its interfaces.

        An interface that is gone is no reason, as long as another is left.
        """
        self._look_at(rows)
        lacking = [row for row in rows if len(self._held(row)) < len(row.links)]
        for namespace in {link.namespace for row in lacking for link in row.links} - self._names.keys():
            self._names[namespace] = self._interfaces(namespace)
        self._look_at(lacking)  # by the names that the interfaces have now
        on_cgroups = _on_cgroups(row for row in rows if not row.links)
        return [row for row in rows if row.program_id is not None and self._has(row, on_cgroups)]

    def is_attached(self, row: Attachment) -> bool:
        """The same for one row."""
        return bool(self.attached([row]))

    def healthy(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """The rows whose program is attached and pinned: nothing is left to do for them."""
        return [row for row in self.attached(rows) if pinned_id(self.settings, row) == row.program_id]

    def filters_of(self, row: Attachment) -> list[tuple[Link, str, Filter]]:
        """The filters that run the row's program, each with the name that its interface has now."""
        self.attached([row])
        return self._held(row)

    def filters_on(self, namespace: int, names: Collection[str]) -> dict[str, list[Filter]]:
        """Everybody's filters on both sides of interfaces."""
        fd = self.namespaces.descriptor(namespace)
        sides = [(name, side) for name in names if tc.is_plain(name) for side in Direction]
        found = tc.filters(fd, sides, runner=self.runner) if fd is not None else {}
        return {name: [item for side in Direction for item in found.get((name, side), ())] for name in names}

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
        return found + self._unknown_on_interfaces(left, near or {})

    def _unknown_on_interfaces(
        self, orphans: Mapping[int, Pin], near: Mapping[str, Cgroup]
    ) -> list[Attachment]:
        """These programs, wherever a filter runs one of them."""
        links: dict[int, list[Link]] = {}
        for namespace in self.namespaces.all() if orphans else []:
            with suppress(PodmgrError):  # anybody may make one, and fill it with what tc cannot tell
                for place, item in self._all_filters(namespace):
                    if item.program_id is not None and item.program_id in orphans:
                        links.setdefault(item.program_id, []).append(place)
        return [
            _unknown_at_tc(key, orphans[key], tuple(sorted(set(places))), near)
            for key, places in links.items()
        ]

    def _all_filters(self, namespace: int) -> Iterator[tuple[Link, Filter]]:
        indexes = {name: index for index, name in self._interfaces(namespace).items() if tc.is_plain(name)}
        fd = self.namespaces.descriptor(namespace)
        sides = [(name, side) for name in indexes for side in Direction]
        found = tc.filters(fd, sides, runner=self.runner) if fd is not None else {}
        for (name, side), filters in found.items():
            for item in filters:
                yield Link(namespace, indexes[name], side, name), item

    def _interfaces(self, namespace: int) -> dict[int, str]:
        fd = self.namespaces.descriptor(namespace)
        found = tc.interfaces(fd, runner=self.runner) if fd is not None else []
        return {item.index: item.name for item in found}

    def _has(self, row: Attachment, on_cgroups: Collection[_OnCgroup]) -> bool:
        if not row.links:
            return (row.cgroup_id, row.direction, row.program_id) in on_cgroups
        held = {link for link, _, _ in self._held(row)}
        gone = {link for link in row.links if link.index not in self._names.get(link.namespace, {link.index})}
        return bool(held) and held | gone == set(row.links)

    def _held(self, row: Attachment) -> list[tuple[Link, str, Filter]]:
        """What is known of the row's filters."""
        return [
            (link, name, item)
            for link in row.links
            for name in self._names_of(link)
            for item in self._filters.get(link.namespace, {}).get((name, link.side), ())
            if item.program_id is not None and item.program_id == row.program_id
        ]

    def _names_of(self, link: Link) -> list[str]:
        """By which its filters may be found: when they were attached, and, once looked up, now."""
        names = (link.name, self._names.get(link.namespace, {}).get(link.index, link.name))
        return [name for name in dict.fromkeys(names) if tc.is_plain(name)]

    def _look_at(self, rows: Sequence[Attachment]) -> None:
        """Ask tc for what is not known yet, several namespaces at a time."""
        missing: dict[int, set[_Side]] = {}
        for row in rows:
            for link in row.links:
                known = self._filters.setdefault(link.namespace, {})
                sides = {(name, link.side) for name in self._names_of(link)} - known.keys()
                if sides:
                    missing.setdefault(link.namespace, set()).update(sides)
                    self.namespaces.descriptor(link.namespace, cgroup_of(row))

        def look(namespace: int) -> dict[_Side, list[Filter]]:
            fd = self.namespaces.descriptor(namespace)
            sides = sorted(missing[namespace])
            found = tc.filters(fd, sides, runner=self.runner) if fd is not None else {}
            return {side: found.get(side, []) for side in sides}

        for namespace, found in zip(missing, each(look, list(missing)), strict=True):
            self._filters[namespace] |= found


def _on_cgroups(rows: Iterable[Attachment]) -> set[_OnCgroup]:
    """What hangs now on the cgroups of the rows, in their directions; each is looked at once."""
    directions: dict[Cgroup, set[Direction]] = {}
    for row in rows:
        directions.setdefault(cgroup_of(row), set()).add(row.direction)
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
