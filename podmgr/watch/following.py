"""What the names in rules stand for, followed live: an event reaches the maps within milliseconds.

Owns the copy of what names lead to, who names what, and the thread that tells the kernel. It waits
for neither the queue nor a reconcile: it changes the contents of maps, for the pods that name what
has changed; which programs there are is the loop's business. A reconcile that has begun before an
event may write what was true then; what it has written is compared again when it has ended.

Apart from `loop`, which alone uses it: it has a thread and a lock of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from podmgr.attachment import NOBODY
from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.directory import Change, Directory, Part
from podmgr.cluster.names import name_all, names_of
from podmgr.cluster.peers import UNKNOWN, Resolved, concerns, may_not_be_seen, parts_of, resolve
from podmgr.errors import PodmgrError
from podmgr.reconcile.refresh import Moved
from podmgr.rules.match import Peer
from podmgr.rules.peers import in_namespace
from podmgr.rules.rule import Rule
from podmgr.rules.tables import Peers
from podmgr.watch.feeds import Feeds, Look
from podmgr.watch.journal import Journal
from podmgr.watch.ruled import RuledPod

GATHER_SECONDS = 0.005  # a change comes in several events: slices, pods

_FIRST_LIST_SECONDS = 1.0  # a reconcile waits so long for what is named for the first time
_LOOK_SECONDS = 0.005
_LAST_SECONDS = 2.0
_FLOOD = 256  # changes at once, above which it is not looked whom each concerns

NONE_BY_HAND: Mapping[str, Sequence[Rule]] = MappingProxyType({})

Refresh = Callable[[Mapping[str, Moved]], None]  # by the UID of a pod


@dataclass(slots=True)
class _Names:
    """What a pod's rules name. `written` None: no reconcile has written it yet."""

    namespace: str
    peers: frozenset[Peer]
    written: Peers | None = None


@dataclass
class _State:
    """What several threads share, under a lock."""

    directory: Directory = field(default_factory=Directory)
    names: dict[str, _Names] = field(default_factory=dict)
    found: dict[Peer, Resolved] = field(default_factory=dict)
    stale: set[Peer] = field(default_factory=set)  # among `found`
    suspects: set[str] = field(default_factory=set)  # pods in whose maps may be what is not so any more
    unsettled: set[str] = field(default_factory=set)  # pods that need more: rules come or go, or words

    def naming(self, peer: Peer) -> set[str]:
        """The pods that name a peer, which has its namespace."""
        return {
            uid
            for uid, names in self.names.items()
            if any(in_namespace(other, names.namespace) == peer for other in names.peers)
        }


class Following:
    """`refresh` writes into the maps of pods; `on_change` is given pods for which that is not enough."""

    def __init__(
        self,
        connect: Callable[[], Api],
        refresh: Refresh,
        on_change: Callable[[set[str]], None],
        journal: Journal,
        stopping: threading.Event,
    ) -> None:
        self._refresh = refresh
        self._on_change = on_change
        self._journal = journal
        self._stopping = stopping
        self._feeds = Feeds(connect, self._hear, self._fail, journal)
        self._node = ""
        self._state = _State()
        self._news = threading.Condition()  # its lock is that over the state
        self._thread: threading.Thread | None = None

    def start(self, node: str) -> None:
        """Which node this is."""
        self._node = node

    def stop(self) -> None:
        """Write nothing more: what is being written is waited for."""
        self._feeds.stop()
        with self._news:
            self._news.notify()
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)

    def connected(self) -> dict[str, bool]:
        """Whether each resource that names lead to is followed at present."""
        return self._feeds.connected()

    def with_names(
        self, wanted: Mapping[str, RuledPod], by_hand: Mapping[str, Sequence[Rule]] = NONE_BY_HAND
    ) -> dict[str, RuledPod]:
        """These pods with what their rules' names stand for now, and from now on followed.

        A rule whose names may not be looked up, or that nobody has looked up yet, is left out;
        what it would replace stays. `on_change` tells when that may be otherwise. The names of
        what the command line put on pods, `by_hand`, are followed beside it.
        """
        others = {
            uid: [*(rule for _, rule in item.rules.beaten), *by_hand.get(uid, ())]
            for uid, item in wanted.items()
        }
        self._wait_for(self._register(wanted, others))
        return {uid: self._named(item, others[uid]) for uid, item in wanted.items()}

    def written(self, wanted: Mapping[str, RuledPod]) -> None:
        """A reconcile has written what these pods had when it began."""
        with self._news:
            for uid, item in wanted.items():
                if (names := self._state.names.get(uid)) is not None:
                    names.written = item.peers
                    self._state.suspects.add(uid)
            if self._state.suspects:
                self._news.notify()

    def _register(self, wanted: Mapping[str, RuledPod], others: Mapping[str, Sequence[Rule]]) -> list[Part]:
        """Note who names what, and follow it; the parts of which nothing has been heard yet."""
        state, is_new = self._state, False
        with self._news:
            for uid, item in wanted.items():
                peers = names_of([*(one.rule for one in item.rules.rules), *others[uid]])
                before = state.names.get(uid)
                if item.pod is None or not peers:
                    is_new |= state.names.pop(uid, None) is not None
                elif before is None or before.peers != peers:
                    state.names[uid] = _Names(item.pod.ref.namespace, peers)
                    is_new = True
            named = {
                in_namespace(peer, names.namespace) for names in state.names.values() for peer in names.peers
            }
            parts = {part for peer in named for part in parts_of(peer, self._node)}
        if is_new:
            gone = self._feeds.require(parts)
            with self._news:
                self._look_again()
                for part in gone:
                    state.directory.forget(part)
                for peer in state.found.keys() - named:
                    del state.found[peer]
            if parts and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="names", daemon=True)
                self._thread.start()
        return sorted(part for part in parts if not self._feeds.is_listed(part))

    def _wait_for(self, parts: Collection[Part]) -> None:
        """A little, for their first lists: most often a reconcile later is spared."""
        deadline = time.monotonic() + _FIRST_LIST_SECONDS
        for part in parts:
            while not self._feeds.is_listed(part) and self._feeds.failure(part) is None:
                if time.monotonic() > deadline or self._stopping.wait(_LOOK_SECONDS):
                    return

    def _named(self, item: RuledPod, others: Sequence[Rule]) -> RuledPod:
        if item.pod is None:
            return item
        with self._news:
            self._look_again()
            named = name_all(item.rules.rules, others, item.pod.ref.namespace, self._find)
        if not named.peers and named.rules == item.rules.rules:
            return item
        rules = item.rules._replace(
            rules=named.rules,
            warnings=(*item.rules.warnings, *(f"pod/{item.pod.ref.name}: {line}" for line in named.remarks)),
            unreadable=item.rules.unreadable | named.unreadable,
        )
        refused = tuple((sourced.rule, error) for sourced, error in named.refused)
        return replace(item, rules=rules, peers=named.peers or NOBODY, refused=refused)

    def _find(self, peer: Peer) -> Resolved:
        """What a peer stands for. The lock is held, and `_look_again` has been called."""
        if peer not in self._state.found:
            self._state.found[peer] = self._look_up(peer)
        return self._state.found[peer]

    def _look_again(self) -> None:
        """What stands for something else now, and whom that concerns. The lock is held."""
        state = self._state
        while state.stale:
            peer = state.stale.pop()
            before, now = state.found[peer], self._look_up(peer)
            state.found[peer] = now
            if now.entries != before.entries:
                state.suspects |= state.naming(peer)
            if _said(now) != _said(before):
                state.unsettled |= state.naming(peer)

    def _look_up(self, peer: Peer) -> Resolved:
        for part in parts_of(peer, self._node):
            if self._feeds.is_listed(part):
                continue
            failure = self._feeds.failure(part)
            is_refusal = isinstance(failure, StatusError)
            return Resolved(error=may_not_be_seen(failure)) if failure and is_refusal else UNKNOWN
        return resolve(self._state.directory, peer, self._node)

    # Called by informers' threads.

    def _hear(self, part: Part, look: Look) -> None:
        with self._news:
            changes = look(self._state.directory)
            is_flood = len(changes) > _FLOOD
            self._spoil(
                lambda peer, known: (
                    ((is_flood or known.is_refused) and self._needs(peer, part))
                    or (not is_flood and self._is_news(changes, peer))
                )
            )

    def _fail(self, part: Part) -> None:
        with self._news:
            self._spoil(lambda peer, known: known.is_refused and self._needs(peer, part))

    def _spoil(self, is_stale: Callable[[Peer, Resolved], bool]) -> None:
        stale = {peer for peer, known in self._state.found.items() if is_stale(peer, known)}
        if stale:
            self._state.stale |= stale
            self._news.notify()

    def _is_news(self, changes: Collection[Change], peer: Peer) -> bool:
        return any(concerns(self._state.directory, change, peer, self._node) for change in changes)

    def _needs(self, peer: Peer, part: Part) -> bool:
        return any(part in (one, one.whole) for one in parts_of(peer, self._node))

    # The thread that tells the kernel.

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._news:
                self._news.wait_for(lambda: self._has_work or self._stopping.is_set(), 1.0)
            if self._has_work and not self._stopping.wait(GATHER_SECONDS):
                self._tell()

    @property
    def _has_work(self) -> bool:
        state = self._state
        return bool(state.stale or state.suspects or state.unsettled)

    def _tell(self) -> None:
        with self._news:
            self._look_again()
            changes = self._changes()
            unsettled, self._state.unsettled = self._state.unsettled, set()
        try:
            if changes:
                self._refresh(changes)
        except Exception as problem:  # the next reconcile of these pods does it
            self._journal.failure(problem)
            unsettled |= changes.keys()
        if unsettled:
            self._on_change(unsettled)

    def _changes(self) -> dict[str, Moved]:
        """What to write. Noted as written before it is: a reconcile that ends later has the last word."""
        suspects, self._state.suspects = self._state.suspects, set()
        changes: dict[str, Moved] = {}
        for uid in suspects:
            names = self._state.names.get(uid)
            if names is None or names.written is None:
                continue
            peers = self._peers(names)
            if peers != names.written:
                changes[uid] = Moved(names.written, peers)
                names.written = peers
        return changes

    def _peers(self, names: _Names) -> Peers:
        """What a reconcile would write: of a name that nobody can look up, nothing."""
        found = {peer: self._find(in_namespace(peer, names.namespace)) for peer in sorted(names.peers)}
        return {peer: known.entries for peer, known in found.items() if not known.is_refused}


def _said(known: Resolved) -> tuple[bool, str, str]:
    """What of it users are told."""
    error: PodmgrError | None = known.error
    return known.is_known, known.remark, error.message if error else ""
