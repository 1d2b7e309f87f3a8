"""A pod with its rules, what it is wished, and when the next of its rules is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from podmgr.attachment import NOBODY, Cgroup, Target, Wish
from podmgr.cluster.objects import Pod
from podmgr.errors import PodmgrError
from podmgr.kernel import starts
from podmgr.reconcile.merged import forms
from podmgr.rules.match import Peer
from podmgr.rules.peers import Entry
from podmgr.rules.precedence import PodRules
from podmgr.rules.rule import Rule
from podmgr.rules.source import Layer
from podmgr.rules.timing import ALWAYS
from podmgr.settings import Settings
from podmgr.watch import events


@dataclass(frozen=True, slots=True)
class RuledPod:
    """A pod as the API server has it, with its rules. `pod` None: there is none of that UID.

    `cgroup_uids` are the names that its cgroup may carry. `peers` says what its rules' names stand
    for; `refused` are the rules that name what they cannot. `unseen` are layers that may not be read.
    """

    pod: Pod | None
    rules: PodRules
    cgroup_uids: tuple[str, ...] = ()
    peers: Mapping[Peer, tuple[Entry, ...]] = field(default_factory=lambda: NOBODY)
    refused: tuple[tuple[Rule, PodmgrError], ...] = ()
    unseen: frozenset[Layer] = frozenset()

    @property
    def warnings(self) -> list[str]:
        """What is overruled or waited for, one line each."""
        rules = [sourced.rule for sourced in self.rules.rules]
        return [*self.rules.warnings, *(self.pod.lacks(rules) if self.pod else ())]

    @property
    def failures(self) -> list[str]:
        """What cannot be read or be had, one line each."""
        refused = [f"{rule}: {events.line(error)}" for rule, error in self.refused]
        return [events.line(error) for error in self.rules.errors] + refused


def wish_of(pod: Pod, cgroup: Cgroup, item: RuledPod, network: Path | None = None) -> Wish:
    rules = item.rules
    target = Target(f"pod/{pod.ref.name}", cgroup, pod.ref, counts_loopback=pod.has_host_network)
    return Wish(
        target,
        rules.rules,
        is_standing=True,
        unreadable=rules.unreadable,
        enforcing=rules.enforcing,
        beaten=rules.beaten,
        peers=item.peers,
        containers=dict(pod.containers),
        network=network,
        unseen=item.unseen,
    )


def ends_of(wishes: Iterable[Wish], settings: Settings) -> dict[str, float]:
    """When the next rule of each pod is over, in seconds from now."""
    ends: dict[str, float] = {}
    for wish in wishes:
        rules = [sourced.rule for sourced in wish.rules if sourced.rule.timing != ALWAYS]
        if not rules:
            continue
        began = starts.Starts(settings.bpffs, wish.target.owner)
        left = [starts.seconds_left(form, began.of(form)) for rule in rules for form in forms(rule)]
        if coming := [seconds for seconds in left if seconds is not None and seconds > 0]:
            ends[wish.target.owner] = min(coming)
    return ends


def failures_of(wanted: Mapping[str, RuledPod], *, with_unseen: bool = False) -> dict[str, str]:
    """Pods of which a rule cannot be read or be had, by UID, and what is said of the first.

    `with_unseen`: also those of which it is not known what their namespace or services set.
    """
    found = {uid: item.failures[0] for uid, item in wanted.items() if item.failures}
    if with_unseen:
        unknown = "what its namespace or services set may not be read"
        found |= {uid: unknown for uid, item in wanted.items() if item.unseen and item.pod}
    return found
