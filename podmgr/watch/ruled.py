"""A pod with the rules that it shall have: what `cache` knows, `following` completes and `podsync` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from podmgr.attachment import NOBODY
from podmgr.cluster.objects import Pod
from podmgr.errors import PodmgrError
from podmgr.rules.match import Peer
from podmgr.rules.peers import Entry
from podmgr.rules.precedence import PodRules
from podmgr.rules.rule import Rule
from podmgr.watch import events

Peers = Mapping[Peer, tuple[Entry, ...]]


@dataclass(frozen=True, slots=True)
class RuledPod:
    """A pod as the API server has it, with its rules. `pod` None: there is none of that UID.

    `cgroup_uids` are the names that its cgroup may carry. `peers` says what its rules' names stand
    for; `refused` are the rules that name what they cannot.
    """

    pod: Pod | None
    rules: PodRules
    cgroup_uids: tuple[str, ...] = ()
    peers: Peers = field(default_factory=lambda: NOBODY)
    refused: tuple[tuple[Rule, PodmgrError], ...] = ()

    @property
    def failures(self) -> list[str]:
        """What cannot be read or be had, one line each."""
        refused = [f"{rule}: {events.line(error)}" for rule, error in self.refused]
        return [events.line(error) for error in self.rules.errors] + refused
