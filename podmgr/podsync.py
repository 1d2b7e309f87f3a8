"""Bringing pods in order: their rules from the cluster, their cgroups on this machine, one transaction.

Owns what is said about it: the journal, Kubernetes Events, and each complaint once. Which pods,
and when again, is the caller's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from podmgr import cgroups, ledger, pins, reconcile
from podmgr.annotations import CLI, PodRules
from podmgr.cgroups import Cgroup, PodIndex
from podmgr.cluster import Pod
from podmgr.desired import Target, Wish
from podmgr.errors import PodmgrError
from podmgr.journal import Journal
from podmgr.ledger import DamagedLedgerError
from podmgr.plan import PodRef, Selection
from podmgr.proc import Runner
from podmgr.reconcile import Action, Outcome
from podmgr.settings import Settings

MISSING_SECONDS = 15.0  # a running pod whose cgroup is not there for so long is an error

_VERBS = {Action.ATTACHED: "RuleApplied", Action.REPLACED: "RuleApplied", Action.DETACHED: "RuleRemoved"}


class Announce(Protocol):
    """Says something on a pod, where `kubectl describe` shows it."""

    def __call__(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pod as the API server has it, with its rules. `pod` None: there is none of that UID."""

    pod: Pod | None
    rules: PodRules


@dataclass(slots=True)
class Synced:
    """The UIDs of the pods that are not in order: no cgroup yet, or a failure."""

    waiting: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)


class PodSync:
    """Brings pods in order, and remembers only what it has complained of."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        announce: Announce,
        *,
        runner: Runner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._announce = announce
        self._runner = runner
        self._clock = clock
        self._index = PodIndex(cgroups.find_root(settings.cgroup_root))
        self._complaints: dict[str, object] = {}
        self._missing_since: dict[str, float] = {}

    def traces(self) -> set[str]:
        """The UIDs of pods that have something of ours, by the ledger or by their pins.

        What the command line put on a pod is not watch's.
        """
        try:
            rows = ledger.read(self._settings.state_dir)
        except DamagedLedgerError:
            rows = []  # the next transaction sets it aside; the pins tell what there is
        uids = {row.pod.uid for row in rows if row.pod and row.pod.uid and row.source != CLI}
        others = {row.owner for row in rows} - uids
        return uids | (pins.owners(self._settings.bpffs, pods_only=True) - others)

    def sync(self, wanted: Mapping[str, Wanted]) -> Synced:
        """Give these pods their rules, and take from those that are gone what they had.

        Raises PodmgrError where nothing can be done at all.
        """
        result = Synced()
        traces = self.traces()
        living: dict[str, Wanted] = {}
        gone: set[str] = set()
        for uid, item in wanted.items():
            self._complain(uid, item)
            if item.pod is not None and (item.rules.rules or uid in traces):
                living[uid] = item
            elif item.pod is None and uid in traces:
                gone.add(uid)
        wishes = self._wishes(living, traces, gone, result)
        if wishes:
            result.outcomes += reconcile.apply(
                wishes, self._settings, runner=self._runner, report=self._journal.info
            )
        if gone:
            selection = Selection(owners=frozenset(gone), spared_source=CLI)
            result.outcomes += reconcile.clean(
                selection, self._settings, runner=self._runner, report=self._journal.info
            )
        result.failed |= self._tell(result.outcomes)
        return result

    def remove_all(self) -> list[Outcome]:
        """Take from all pods what they have, but for what the command line put there."""
        selection = Selection(owners=frozenset(self.traces()), spared_source=CLI)
        outcomes = reconcile.clean(selection, self._settings, runner=self._runner, report=self._journal.info)
        self._tell(outcomes)
        return outcomes

    def _wishes(
        self, living: Mapping[str, Wanted], traces: Collection[str], gone: set[str], result: Synced
    ) -> list[Wish]:
        """A wish for each pod that has a cgroup. Those that have none wait, or are as good as gone."""
        pods = {uid: item.pod for uid, item in living.items() if item.pod is not None}
        found = dict(zip(pods, self._index.find(pod.cgroup_uids for pod in pods.values()), strict=True))
        wishes = []
        for uid, pod in pods.items():
            cgroup, rules = found[uid], living[uid].rules
            if cgroup is not None:
                self._missing_since.pop(uid, None)
                wishes.append(_wish(pod, cgroup, rules))
                continue
            if uid in traces:
                gone.add(uid)
            if rules.rules:
                result.waiting.add(uid)
                self._miss(pod)
        return wishes

    def _miss(self, pod: Pod) -> None:
        """Complain of a running pod that has had no cgroup for long."""
        since = self._missing_since.setdefault(pod.ref.uid, self._clock())
        if pod.phase == "Running" and self._clock() - since > MISSING_SECONDS:
            self._missing_since[pod.ref.uid] = math.inf  # said once; it is looked for all the time
            why = (
                "no cgroup of this pod with processes in it"
                if len(self._index)
                else "no pod has a cgroup v2 directory here: the node may run its pods on cgroup v1"
            )
            self._say_failed(pod.ref, why, "podmgr doctor; see --cgroup-root and --node-name")

    def _complain(self, uid: str, item: Wanted) -> None:
        """Of what cannot be read or is overruled, when it is new."""
        complaints = [str(error) for error in item.rules.errors] + list(item.rules.warnings)
        if item.pod is None or not complaints:
            self._complaints.pop(uid, None)
            if item.pod is None:
                self._missing_since.pop(uid, None)
            return
        if self._complaints.get(uid) == complaints:
            return
        self._complaints[uid] = complaints
        for error in item.rules.errors:
            text = f"{error.message}: {(error.detail or '').splitlines()[0]}"
            self._say_failed(item.pod.ref, text, error.tip or "")
        for line in item.rules.warnings:
            self._journal.warning(line, **_names(item.pod.ref))

    def _tell(self, outcomes: Iterable[Outcome]) -> set[str]:
        """Say what has changed, an Event for each pod and reason; the UIDs of those that failed."""
        said: dict[tuple[str, str], tuple[PodRef, list[str]]] = {}
        failed: set[str] = set()
        for outcome in outcomes:
            if outcome.pod is None:
                continue
            if outcome.error is not None:
                failed.add(outcome.pod.uid)
                self._say_failed(
                    outcome.pod, f"{outcome.rule}: {_line(outcome.error)}", outcome.error.tip or ""
                )
            elif outcome.action in _VERBS:
                fields = {"rule": outcome.rule, "source": outcome.source, "program_id": outcome.program_id}
                self._journal.info(f"{outcome.rule} {outcome.action}", **_names(outcome.pod), **fields)
                key = (outcome.pod.uid, _VERBS[outcome.action])
                origin = f" ({outcome.source})" if outcome.source not in ("", "pod") else ""
                said.setdefault(key, (outcome.pod, []))[1].append(outcome.rule + origin)
        for (_, reason), (pod, rules) in said.items():
            self._announce(pod, reason, "; ".join(rules))
        return failed

    def _say_failed(self, pod: PodRef, text: str, tip: str) -> None:
        self._journal.error(text, **_names(pod), **({"tip": tip} if tip else {}))
        self._announce(pod, "RuleFailed", f"{text}; {tip}" if tip else text, is_warning=True)


def _wish(pod: Pod, cgroup: Cgroup, rules: PodRules) -> Wish:
    target = Target(f"pod/{pod.ref.name}", cgroup, pod.ref, counts_loopback=pod.has_host_network)
    return Wish(target, rules.rules, is_standing=True, unreadable=rules.unreadable, enforcing=rules.enforcing)


def _names(pod: PodRef) -> dict[str, str]:
    return {"namespace": pod.namespace, "pod": pod.name, "uid": pod.uid}


def _line(error: PodmgrError) -> str:
    """The error in one line, with the first of clang's or the verifier's own that says `error`."""
    lines = [line.strip() for line in (error.detail or "").splitlines() if line.strip()]
    telling = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    return f"{error.message} ({telling})" if telling else error.message
