"""Which rules hold on a pod: its own annotations over those of the services that select it.

Pure. Pod rules beat service rules per collision key; of two services that collide the older
one (creationTimestamp, then name) wins, with a warning. An annotation that cannot be read is
reported and stops no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from podmgr.errors import RuleError
from podmgr.grammar import parse_value
from podmgr.rules import CollisionKey, Rule, annotation_values, collision_key


@dataclass(frozen=True, slots=True)
class SourcedRule:
    """A rule and where it was written: "pod", "service/NAME" or "cli"."""

    rule: Rule
    source: str


@dataclass(frozen=True, slots=True)
class AnnotatedService:
    """What of a Service matters here. `created` sorts as text (RFC 3339); "" is unknown."""

    name: str
    selector: Mapping[str, str]
    annotations: Mapping[str, str]
    created: str = ""

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels belongs to the service; an empty selector selects none."""
        return bool(self.selector) and all(labels.get(name) == value for name, value in self.selector.items())


@dataclass(frozen=True, slots=True)
class PodRules:
    """The rules that hold, what could not be read, and what was overruled (one line each)."""

    rules: tuple[SourcedRule, ...]
    errors: tuple[RuleError, ...]
    warnings: tuple[str, ...]


def rules_of_pod(
    name: str,
    annotations: Mapping[str, str],
    labels: Mapping[str, str],
    services: Iterable[AnnotatedService] = (),
) -> PodRules:
    """The rules for one pod, from its annotations and those of its namespace's services."""
    errors: list[RuleError] = []
    warnings: list[str] = []
    winners: dict[CollisionKey, SourcedRule] = {}
    layers = [("pod", f"pod/{name}", annotations)]
    selecting = [service for service in services if service.selects(labels)]
    for service in sorted(selecting, key=lambda service: (service.created, service.name)):
        layers.append((f"service/{service.name}", f"service/{service.name}", service.annotations))
    for source, where, layer in layers:
        for key, value in annotation_values(layer):
            try:
                rules = parse_value(key, value)
            except RuleError as error:
                errors.append(error.on(where))
                continue
            for rule in rules:
                winner = winners.setdefault(collision_key(rule), SourcedRule(rule, source))
                if winner.source not in (source, "pod"):
                    warnings.append(f"{where}: '{rule}' gives way to '{winner.rule}' of {winner.source}")
    return PodRules(tuple(winners.values()), tuple(errors), tuple(warnings))
