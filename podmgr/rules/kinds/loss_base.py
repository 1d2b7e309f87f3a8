"""What all rules of `loss` have in common: where they act, and what they say of it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from podmgr.rules.rule import DefaultHook, Direction, Hook, Rule

DECIDES = ("decides", "per packet as the hook sees it; a GSO packet is one, as with netem")
HOOKS: Mapping[Direction, DefaultHook] = {
    Direction.EGRESS: DefaultHook(
        Hook.TC,
        Hook.TC,
        "TCP takes a drop at the cgroup hook for congestion; at the interface it is loss",
    ),
    Direction.INGRESS: DefaultHook(
        Hook.TC,
        Hook.CGROUP,
        "on its own interfaces a pod also loses what the kernel would answer, such as pings; what "
        "arrives on shared ones belongs to no cgroup yet",
    ),
}


@dataclass(frozen=True, slots=True)
class Loss(Rule, ABC):
    """A rule that loses packets."""

    key: ClassVar[str] = "loss"
    kind: ClassVar[str] = "loss"

    def caveats(self, hook: Hook) -> list[str]:
        if self.direction is not Direction.EGRESS or hook is not Hook.CGROUP:
            return []
        return [
            "loss egress at the cgroup hook is not loss to TCP: UDP datagrams are lost, but TCP "
            "sees congestion, sends the segment again and counts no retransmit"
        ]
