"""Bringing pods in order: their rules from the cluster, their cgroups on this machine, one transaction.

What is said about it is `telling`'s. Which pods, and when again, is the caller's business.

Apart from `loop`, which alone uses it: one reconcile, without the threads and queues around it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from podmgr.attachment import Attachment, Cgroup, Selection, Slot, Target, Wish
from podmgr.cluster import reasons
from podmgr.cluster.objects import Pod
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life, cgroups, pins, starts
from podmgr.kernel.pod_cgroups import PodIndex
from podmgr.proc import Runner
from podmgr.programs.build import NotCompiledError
from podmgr.reconcile import ledger, transaction
from podmgr.reconcile.ended import without_ended
from podmgr.reconcile.ledger import DamagedLedgerError
from podmgr.reconcile.observe import Observed, bypassed_text, observe, since
from podmgr.reconcile.outcome import Outcome
from podmgr.reconcile.refresh import Moved, refresh
from podmgr.rules.rule import Rule
from podmgr.rules.source import CLI, Layer, Source
from podmgr.settings import Settings
from podmgr.watch import events
from podmgr.watch.journal import Journal
from podmgr.watch.ruled import RuledPod, ends_of, wish_of
from podmgr.watch.telling import Announce, Telling
from podmgr.watch.workshop import Workshop

MISSING_SECONDS = 15.0  # a running pod whose cgroup is not there for so long is an error


@dataclass(slots=True)
class Synced:
    """The UIDs of the pods that are not in order: no cgroup yet, programs to compile, or a failure.

    `early` have a cgroup without processes: what acts on interfaces is to come. `reasons` are of those that
    failed. `ends` says of pods in how many seconds the next of their rules is over.
    """

    waiting: set[str] = field(default_factory=set)
    early: set[str] = field(default_factory=set)
    ends: dict[str, float] = field(default_factory=dict)
    compiling: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


class PodSync:
    """Brings pods in order, and remembers only what it has said.

    `enforces` says of a namespace whether it enforces its rules.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        announce: Announce,
        *,
        runner: Runner,
        workshop: Workshop,
        enforces: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._telling = Telling(journal, announce)
        self._runner = runner
        self._workshop = workshop
        self._enforces = enforces
        self._clock = clock
        self._index = PodIndex(cgroups.find_root(settings.cgroup_root))
        self._missing_since: dict[str, float] = {}
        self._networks: dict[str, Path] = {}
        self._seen = ledger.signature(settings.state_dir)
        self._wishes_of: Mapping[str, Wish] = {}  # of pods whose rules have names
        self._is_disturbed = False
        self._observed: list[Observed] = []
        self._bypassed: set[Slot] = set()

    def was_disturbed(self) -> bool:
        """Whether another podmgr has changed something since this was last asked."""
        self._look()
        was_disturbed, self._is_disturbed = self._is_disturbed, False
        return was_disturbed

    def _look(self) -> None:
        """Note what another has changed, before we change something ourselves."""
        now = ledger.signature(self._settings.state_dir)
        self._is_disturbed |= now != self._seen
        self._seen = now

    def sighted(self, uid: str, cgroup: Cgroup) -> None:
        """Kubelet has made the cgroup that is called after this UID, or its first process has come."""
        self._index.sighted(uid, cgroup)

    def have_network(self, uids: Iterable[str], path: Path) -> None:
        """The runtime keeps the network namespace of these pods, by any name of theirs, there."""
        self._networks.update(dict.fromkeys(uids, path))

    def traces(self) -> set[str]:
        """The UIDs of pods that have something of ours, by the ledger, their pins, or when a rule began.

        What the command line put on a pod is not watch's.
        """
        return self._traces(self._rows())

    def _traces(self, rows: Sequence[Attachment]) -> set[str]:
        uids = {row.pod.uid for row in rows if row.pod and row.pod.uid and row.source != CLI}
        others = {row.owner for row in rows} - uids
        began = {owner for owner in starts.owners(self._settings.bpffs) if not owner.isdigit()}
        return uids | ((pins.owners(self._settings.bpffs, pods_only=True) | began) - others)

    def by_hand(self) -> dict[str, list[Rule]]:
        """The rules that the command line has put on pods, by UID."""
        found: dict[str, list[Rule]] = {}
        for row in self._rows():
            if row.source == CLI and row.rule is not None and row.pod and row.pod.uid:
                found.setdefault(row.pod.uid, []).append(row.rule)
        return found

    def _rows(self) -> list[Attachment]:
        try:
            return ledger.read(self._settings.state_dir)
        except DamagedLedgerError:
            return []  # the next transaction sets it aside; the pins tell what there is

    def sync(self, wanted: Mapping[str, RuledPod]) -> Synced:
        """Give these pods their rules, and take from those that are gone what they had.

        Raises PodmgrError where nothing can be done at all.
        """
        result = Synced()
        self._look()
        rows = self._rows()
        traces = self._traces(rows)
        places = {row.holder: row for row in rows if row.pod and row.source != CLI}
        living: dict[str, RuledPod] = {}
        gone: set[str] = set()
        for uid, item in wanted.items():
            self._telling.complain(uid, item)
            if item.pod is None:
                self._missing_since.pop(uid, None)
                self._networks.pop(uid, None)
            if item.pod is not None and (item.rules.rules or uid in traces):
                living[uid] = item
            elif item.pod is None and uid in traces:
                gone.add(uid)
        wishes = self._wishes(living, traces, places, gone, result)
        self._remember(wanted, wishes, rows)
        self._workshop.forget(wanted.keys() - living.keys())
        self._apply(wishes, rows, result)
        result.ends = ends_of(wishes, self._settings)
        for selection in self._gone(gone, places, result):
            result.outcomes += self._clean(selection)
        self._seen = ledger.signature(self._settings.state_dir)
        ending = {uid for uid, item in wanted.items() if item.pod and item.pod.is_terminating}
        result.failed |= self._telling.tell(result.outcomes, wanted, ending)
        result.reasons = {
            item.pod.uid: f"'{item.rule}': {item.error.message}" if item.rule else item.error.message
            for item in result.outcomes
            if item.pod and item.error
        }
        return result

    def _apply(self, wishes: Sequence[Wish], rows: Iterable[Attachment], result: Synced) -> None:
        """Give the pods their rules whose programs are compiled; let those of the others be compiled."""
        by_hand = {row.holder for row in rows if row.source == CLI and row.rule and row.rule.brings_program}
        ready, prepared = self._workshop.ready_of(wishes, by_hand)
        result.compiling |= {wish.target.owner for wish in wishes} - {wish.target.owner for wish in ready}
        if not ready:
            return
        outcomes = transaction.apply(
            ready, self._settings, runner=self._runner, report=self._journal.warning, prepared=prepared
        )
        lacking = {item.pod for item in outcomes if isinstance(item.error, NotCompiledError)}
        for wish in ready:
            if wish.target.pod in lacking:
                self._workshop.prepared(wish)
                result.compiling.add(wish.target.owner)
        done = (item for item in outcomes if not isinstance(item.error, NotCompiledError))
        kept, ended = without_ended(done, ready)
        result.waiting |= {pod.uid for pod in ended}  # looked at again: a container may come back
        result.outcomes += kept

    def refresh(self, changes: Mapping[str, Moved]) -> None:
        """Tell the programs of these pods what their rules' names stand for now: nothing else changes.

        Raises PodmgrError if some could not be told.
        """
        known = self._wishes_of  # the loop is another thread
        wishes = [
            (known[uid]._replace(peers=moved.now), moved.before)
            for uid, moved in changes.items()
            if uid in known
        ]
        for _, error in refresh(wishes, self._settings) if wishes else ():
            raise error

    def _remember(
        self, wanted: Mapping[str, RuledPod], wishes: Iterable[Wish], rows: Iterable[Attachment]
    ) -> None:
        """The wishes of pods whose rules have names, in a new mapping: `refresh` may read the old one."""
        found = {uid: wish for uid, wish in self._wishes_of.items() if uid not in wanted}
        for row in rows:  # what the command line put on pods that are wished nothing
            item = wanted.get(row.holder)
            if row.source == CLI and row.pod and item and item.peers:
                target = Target(row.target, row.cgroup, row.pod)
                found[row.holder] = Wish(target, (), is_standing=True, peers=item.peers)
        self._wishes_of = found | {wish.target.owner: wish for wish in wishes if wish.peers}

    def look_for_bypassed(self) -> None:
        """Tell, once, of rules of pods that are attached while packets pass them by, since the last look."""
        try:
            observed = observe(self._settings)[0]
        except PodmgrError:
            return  # what cannot be looked at is told elsewhere
        before = {item.attachment.identity: item.counters for item in self._observed}
        now = since(self._observed, observed)
        self._observed = observed
        for item in now:
            if not item.is_bypassed:
                continue
            row = item.attachment
            if row.pod is None or row.identity in self._bypassed:
                continue
            line = bypassed_text(item)
            self._journal.warning(line, **events.names(row.pod))
            self._telling.announce(row.pod, reasons.BYPASSED, line, is_warning=True)
            self._bypassed.add(row.identity)
        self._bypassed &= {  # until it sees packets again, or is gone
            item.attachment.identity
            for item in now
            if item.is_bypassed or item.counters == before.get(item.attachment.identity)
        }

    def remove_all(self) -> list[Outcome]:
        """Take from all pods what they have, but for what the command line put there."""
        uids = self.traces()
        outcomes = self._clean(Selection(owners=frozenset(uids), spared=frozenset({CLI})))
        self._telling.tell(outcomes, uids)
        return outcomes

    def _clean(self, selection: Selection) -> list[Outcome]:
        return transaction.clean(selection, self._settings, runner=self._runner, report=self._journal.warning)

    def _gone(self, gone: Iterable[str], places: Mapping[str, Attachment], result: Synced) -> list[Selection]:
        """What to remove of pods that are gone.

        Who may delete a pod may do so while its processes run on. What its namespace enforces
        holds to their end.
        """
        spared: dict[frozenset[Source], set[str]] = {}
        for uid in gone:
            sources, row = {CLI}, places.get(uid)
            if row and row.pod and self._enforces(row.pod.namespace) and _is_populated(row):
                sources.add(Source(Layer.NAMESPACE, row.pod.namespace))
                result.waiting.add(uid)
            spared.setdefault(frozenset(sources), set()).add(uid)
        return [Selection(owners=frozenset(uids), spared=sources) for sources, uids in spared.items()]

    def _wishes(
        self,
        living: Mapping[str, RuledPod],
        traces: Collection[str],
        places: Mapping[str, Attachment],
        gone: set[str],
        result: Synced,
    ) -> list[Wish]:
        """A wish for each pod that has a cgroup. Those that have none wait, or are as good as gone."""
        pods = {uid: item.pod for uid, item in living.items() if item.pod is not None}
        found = dict(zip(pods, self._index.find(living[uid].cgroup_uids for uid in pods), strict=True))
        wishes = []
        for uid, pod in pods.items():
            cgroup, item = found[uid], living[uid]
            if cgroup is not None:
                self._missing_since.pop(uid, None)
                wishes.append(wish_of(pod, cgroup, item, self._networks.get(uid)))
                continue
            if (cgroup := self._index.early(item.cgroup_uids)) is not None:
                whole = wish_of(pod, cgroup, item, self._networks.get(uid))
                if whole.network is None:
                    result.early.add(uid)
                    self._workshop.ahead(whole)
                wishes.append(whole._replace(is_early=whole.network is None))
                continue
            is_empty = uid in places and cgroups.exists(places[uid].cgroup)
            if uid in traces and not is_empty:
                gone.add(uid)
            is_coming = bool(item.rules.rules) and not pod.is_terminating
            if is_coming or is_empty:  # its processes may come back
                result.waiting.add(uid)
            if is_coming:
                self._workshop.ahead(wish_of(pod, Cgroup(self._index.likely(uid), 0), item))
                self._miss(pod, living[uid].cgroup_uids)
        return wishes

    def _miss(self, pod: Pod, cgroup_uids: Sequence[str]) -> None:
        """Complain of a running pod that has had no cgroup for long."""
        since = self._missing_since.setdefault(pod.ref.uid, self._clock())
        if pod.phase == "Running" and self._clock() - since > MISSING_SECONDS:
            self._missing_since[pod.ref.uid] = math.inf  # said once; it is looked for all the time
            self._telling.say_failed(pod.ref, [events.line(self._index.why_none(cgroup_uids))])


def _is_populated(row: Attachment) -> bool:
    place = row.cgroup
    return cgroups.exists(place) and cgroup_life.is_populated(place)
