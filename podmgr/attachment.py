"""The words that everybody shares: whose rules (targets, wishes), and what hangs where (attachments).

Pure data. Which rules hold is `rules`' business, what the kernel has is `reconcile`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from podmgr.rules.match import Peer
from podmgr.rules.peers import Entry
from podmgr.rules.rule import Direction, Hook, Rule
from podmgr.rules.source import Layer, Source, SourcedRule

Slot = tuple[object, ...]
NOBODY: Mapping[Peer, tuple[Entry, ...]] = MappingProxyType({})


class Cgroup(NamedTuple):
    """A directory of the cgroup2 hierarchy. `id` is its inode number: never reused while it lives."""

    path: Path
    id: int


def slot_of(cgroup_id: int, rule: Rule) -> Slot:
    """Equal for two rules on one cgroup of which one replaces the other."""
    return (cgroup_id, *rule.succession_key)


class PodRef(NamedTuple):
    """A pod's names. `uid` is "" when a manifest was applied that no API server has seen."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """One side of an interface: what it sends (egress) or receives (ingress).

    `namespace` is the inode number of its network namespace, in which `index` is its own. The
    name may change.
    """

    namespace: int
    index: int
    side: Direction
    name: str = field(compare=False)


class Attachment(NamedTuple):
    """One rule's program on one cgroup, or for it on interfaces (`links`, at the tc hook).

    Several rules may share a program; `position` is the rule's place among them.

    The rows of the ledger; with `program_id` None, what shall be.

    `owner` names the directory on bpffs (pod UID, or cgroup id), `digest` the pin in it,
    `object_digest` the object file. `target` is what the user calls it. An attachment whose
    `rule` is None was found by its pin alone: the ledger does not know it. With `is_scoped`
    the interfaces are also others', and the program is told whose packets it may touch.
    `priority` is its place in the chain of filters there, `links_packets` and `links_bytes` what
    the interfaces had counted when it was attached (-1: not known).
    """

    target: str
    owner: str
    cgroup_path: str
    cgroup_id: int
    rule: Rule | None
    direction: Direction
    hook: Hook
    source: Source
    digest: str
    object_digest: str
    pod: PodRef | None = None
    program_id: int | None = None
    links: tuple[Link, ...] = ()
    is_scoped: bool = False
    priority: int = 0
    links_packets: int = -1
    links_bytes: int = -1
    position: int = 0

    @property
    def cgroup(self) -> Cgroup:
        """The row's cgroup, which may have vanished."""
        return _cgroup(self.cgroup_path, self.cgroup_id)

    @property
    def kind(self) -> str:
        """What the rule's kind is called."""
        return self.rule.kind if self.rule else "unknown"

    @property
    def program(self) -> Slot:
        """Equal for the same program in the same place, for however many rules it acts."""
        return (self.cgroup_id, self.digest, self.direction, self.links, self.priority)

    @property
    def loaded(self) -> Slot:
        """Equal for the same loaded program in the same place."""
        return (*self.program, self.program_id)

    @property
    def identity(self) -> Slot:
        """Equal for the same rule with the same program in the same place."""
        return (*self.program, self.position)

    @property
    def holder(self) -> str:
        """Whose it is now: the pod's UID, or the owner. A static pod that is made anew gets another
        UID and keeps its cgroup; the pins stay in the folder of the first.
        """
        return self.pod.uid if self.pod and self.pod.uid else self.owner

    @property
    def slot(self) -> Slot:
        """Equal for two attachments of which one replaces the other."""
        return slot_of(self.cgroup_id, self.rule) if self.rule else self.identity


@functools.lru_cache(maxsize=1024)
def _cgroup(path: str, cgroup_id: int) -> Cgroup:
    """A path is taken to pieces when it is made, and a node's are looked at many times."""
    return Cgroup(Path(path), cgroup_id)


class Selection(NamedTuple):
    """Whose attachments are meant: by cgroup id, and by holder (pod UID, or cgroup id as text)."""

    cgroup_ids: frozenset[int] = frozenset()
    owners: frozenset[str] = frozenset()
    spared: frozenset[Source] = frozenset()  # attachments of these sources are left alone

    def covers(self, row: Attachment) -> bool:
        is_meant = row.cgroup_id in self.cgroup_ids or row.holder in self.owners
        return is_meant and row.source not in self.spared

    def __or__(self, other: Selection) -> Selection:
        return self._replace(cgroup_ids=self.cgroup_ids | other.cgroup_ids, owners=self.owners | other.owners)


class Target(NamedTuple):
    """A cgroup as the user named it. A pod with a network namespace of its own keeps its loopback.

    `starts_here`: what will live in the cgroup is started by podmgr.
    """

    name: str
    cgroup: Cgroup
    pod: PodRef | None = None
    counts_loopback: bool = True
    starts_here: bool = False

    @property
    def owner(self) -> str:
        """Names the folder of its pins."""
        return self.pod.uid if self.pod and self.pod.uid else str(self.cgroup.id)

    @property
    def selection(self) -> Selection:
        """Everything on it."""
        return Selection(frozenset({self.cgroup.id}), frozenset({self.owner}))


class Wish(NamedTuple):
    """All the rules that one target shall have, and no others: done whole, or not at all.

    A standing wish is one that nobody waits for, of rules that several people wrote. Each of
    its rules is done by itself; one that fails leaves in force what it would have replaced.
    So does a key that cannot be read (`unreadable`, by source and bare key). Of a layer of which nobody
    knows what it says now (`unseen`), all that is there stays as it is. What the command
    line put on the target stays, over colliding rules, but for those of a namespace that
    enforces them (`enforcing`, by source). `beaten` are rules, by source, that hold if those that
    beat them fail. `peers` says what the names in their matches stand for now; of one that is not
    in it nobody knows, and what a program knows of it stays.
    `containers` are the runtime's ids of a pod's containers, by name; None: a container is a cgroup of that
    name. `is_early`: no process has come yet, so what acts on interfaces is left out, for now.
    `network` is where the runtime keeps the pod's network namespace, if it has said so.
    """

    target: Target
    rules: tuple[SourcedRule, ...]
    is_standing: bool = False
    unreadable: frozenset[tuple[Source, str]] = frozenset()
    enforcing: frozenset[Source] = frozenset()
    beaten: frozenset[tuple[Source, Rule]] = frozenset()
    peers: Mapping[Peer, tuple[Entry, ...]] = NOBODY
    containers: Mapping[str, str] | None = None
    is_early: bool = False
    network: Path | None = None
    unseen: frozenset[Layer] = frozenset()
