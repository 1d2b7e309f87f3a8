"""The parts of a cluster that names lead to, each followed by an informer while some rule needs it.

A few namespaces are followed one by one, many as a whole: of a large cluster a node hears no more
than it must.

Apart from `following`, which alone uses it: it starts and stops, and knows nothing of names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from podmgr.cluster.api import Api
from podmgr.cluster.directory import Change, Directory, Part, Resource
from podmgr.cluster.informer import Informer
from podmgr.errors import PodmgrError
from podmgr.watch.journal import Journal

MOST_APART = 8  # namespaces of a resource that are followed one by one: each is a thread and a connection

Look = Callable[[Directory], list[Change]]
Hear = Callable[[Part, Look], None]


@dataclass
class _Feed:
    """An informer that may be stopped by itself. `is_listed`: all that it follows has been heard."""

    informer: Informer
    stopping: threading.Event
    is_listed: threading.Event


@dataclass
class Feeds:
    """Informers' threads give `hear` news of a part, and `fail` a part of which there are none at present.

    One thread starts and stops.
    """

    connect: Callable[[], Api]
    hear: Hear
    fail: Callable[[Part], None]
    journal: Journal
    _feeds: dict[Part, _Feed] = field(default_factory=dict)

    def require(self, parts: Collection[Part]) -> list[Part]:
        """Follow these parts and no others; those that are not followed any more.

        What a whole will cover stays until it is there.
        """
        wanted = chosen(parts, self._feeds)
        for part in wanted - self._feeds.keys():
            self._start(part)
        late = {part.resource for part in wanted if part == part.whole and not self._is_listed(part)}
        gone = [part for part in self._feeds.keys() - wanted if part.resource not in late]
        for part in gone:
            self._feeds.pop(part).stopping.set()
        return [part for part in gone if part.whole not in wanted]

    def is_listed(self, part: Part) -> bool:
        """Whether all of it has been heard, by itself or as part of a whole."""
        return self._is_listed(part) or self._is_listed(part.whole)

    def failure(self, part: Part) -> PodmgrError | None:
        """Why nothing is heard of it at present."""
        feed = self._feeds.get(part) or self._feeds.get(part.whole)
        return feed.informer.failure if feed else None

    def stop(self) -> None:
        """Hear nothing more."""
        for feed in self._feeds.values():
            feed.stopping.set()

    def connected(self) -> dict[str, bool]:
        """Whether each resource is followed at present, in all parts that are needed."""
        found: dict[str, bool] = {}
        for part, feed in self._feeds.items():
            is_well = feed.is_listed.is_set() and feed.informer.failure is None
            found[part.resource] = found.get(part.resource, True) and is_well
        return found

    def _is_listed(self, part: Part) -> bool:
        feed = self._feeds.get(part)
        return feed is not None and feed.is_listed.is_set()

    def _start(self, part: Part) -> None:
        stopping, is_listed = threading.Event(), threading.Event()

        def lost(name: str, error: PodmgrError) -> None:
            self.journal.failure(error, before=f"{name}: ", after="; the rules stay, trying again")
            self.fail(part)

        informer = Informer(
            str(part),
            part.path,
            part.query,
            self.connect,
            _Sink(part, self._heard, stopping, is_listed),
            stopping,
            on_lost=lost,
            on_found=lambda name: self.journal.info(f"{name}: the API server answers again"),
        )
        self._feeds[part] = _Feed(informer, stopping, is_listed)
        threading.Thread(target=informer.run, name=str(part), daemon=True).start()

    def _heard(self, part: Part, look: Look) -> None:
        """Of a namespace, until the whole is there, which may be ahead of it."""
        self.hear(
            part,
            lambda directory: (
                look(directory) if part == part.whole or not self._is_listed(part.whole) else []
            ),
        )


def chosen(parts: Collection[Part], followed: Collection[Part]) -> set[Part]:
    """What to follow for these parts: a resource whole where it must be, is already, or is in many."""
    wanted: set[Part] = set()
    for resource in Resource:
        mine = {part for part in parts if part.resource is resource}
        whole = Part(resource)
        is_whole = whole in mine or whole in followed or len(mine) > MOST_APART
        wanted |= {whole} if mine and is_whole else mine
    return wanted


@dataclass(frozen=True, slots=True)
class _Sink:
    """An informer's news, until nobody wants them any more."""

    part: Part
    hear: Hear
    stopping: threading.Event
    is_listed: threading.Event

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None:
        def look(directory: Directory) -> list[Change]:
            changes = directory.replace(self.part, items)
            self.is_listed.set()
            return changes

        self._tell(look)

    def put(self, item: Mapping[str, Any]) -> None:
        self._tell(lambda directory: directory.put(self.part.resource, item))

    def remove(self, item: Mapping[str, Any]) -> None:
        self._tell(lambda directory: directory.remove(self.part.resource, item))

    def _tell(self, look: Look) -> None:
        self.hear(self.part, lambda directory: [] if self.stopping.is_set() else look(directory))
