"""Which rules hold on a pod: its own annotations, over its services', over its namespace's.

Pure. A stronger layer beats a weaker one per collision key; of two services that collide the
older one (creationTimestamp, then name) wins, with a warning. A namespace that enforces its
rules is no layer: they hold beside all others. An annotation that cannot be read is reported
and stops no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from podmgr.errors import RuleError
from podmgr.grammar import parse_value
from podmgr.rules import PREFIX, CollisionKey, Rule, annotation_values, bare_key, collision_key

ENFORCE = PREFIX + "enforce"
MAX_RULES = 32  # of one pod, besides enforced ones: a cgroup has room for 64 programs a direction
CLI = "cli"
POD = "pod"


class SourcedRule(NamedTuple):
    """A rule and where it was written: "pod", "service/NAME", "namespace/NAME" or "cli".

    An enforced rule holds beside a colliding one of another source.
    """

    rule: Rule
    source: str
    is_enforced: bool = False


_STRENGTHS = {"namespace": 1, "service": 2, POD: 3, CLI: 4}


def strength(source: str) -> int:
    """Of two sources whose rules collide, the one that wins has the greater strength."""
    return _STRENGTHS.get(source.partition("/")[0], 0)


class AnnotatedService(NamedTuple):
    """What of a Service matters here. `created` sorts as text (RFC 3339); "" is unknown."""

    name: str
    selector: Mapping[str, str]
    annotations: Mapping[str, str]
    created: str = ""

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels belongs to the service; an empty selector selects none."""
        return bool(self.selector) and all(labels.get(name) == value for name, value in self.selector.items())


class AnnotatedNamespace(NamedTuple):
    """What of a Namespace matters here."""

    name: str
    annotations: Mapping[str, str]

    @property
    def enforces(self) -> bool:
        """Whether its rules hold in addition, so that no pod or service of it can lift them.

        A value that is neither true nor false counts as true: a slip shall lift no limit.
        """
        return self.annotations.get(ENFORCE, "false").strip().lower() != "false"

    def check(self) -> None:
        """Raise RuleError if it cannot be told whether it enforces."""
        value = self.annotations.get(ENFORCE, "false")
        if value.strip().lower() not in ("true", "false"):
            raise RuleError(
                "neither true nor false", key=ENFORCE, value=value, column=1, expected='"true" or "false"'
            )


class PodRules(NamedTuple):
    """The rules that hold, what could not be read, and what was overruled (one line each).

    `unreadable` names by (source, bare key) where rules may be that could not be read,
    `enforcing` the sources whose rules hold beside all others. `beaten` are the rules, by source,
    that a stronger one keeps from holding.
    """

    rules: tuple[SourcedRule, ...]
    errors: tuple[RuleError, ...]
    warnings: tuple[str, ...]
    unreadable: frozenset[tuple[str, str]] = frozenset()
    enforcing: frozenset[str] = frozenset()
    beaten: frozenset[tuple[str, Rule]] = frozenset()


class _Layer(NamedTuple):
    source: str
    where: str
    annotations: Mapping[str, str]
    may_be_beaten: bool = True


def rules_of_pod(
    name: str,
    annotations: Mapping[str, str],
    labels: Mapping[str, str],
    services: Iterable[AnnotatedService] = (),
    namespace: AnnotatedNamespace | None = None,
) -> PodRules:
    """The rules for one pod, from its annotations and those of its namespace and its services."""
    errors: list[RuleError] = []
    warnings: list[str] = []
    unreadable: set[tuple[str, str]] = set()
    winners: dict[CollisionKey, SourcedRule] = {}
    enforced: dict[Rule, SourcedRule] = {}
    beaten: set[tuple[str, Rule]] = set()
    if namespace is not None:
        try:
            namespace.check()
        except RuleError as error:
            errors.append(error.on(f"namespace/{namespace.name}"))
    layers = list(_layers(name, annotations, labels, services, namespace))
    for layer in layers:
        for key, value in annotation_values(layer.annotations):
            try:
                rules = parse_value(key, value)
            except RuleError as error:
                errors.append(error.on(layer.where))
                unreadable.add((layer.source, bare_key(key) or key))
                continue
            for rule in rules:
                if not layer.may_be_beaten:
                    enforced[rule] = SourcedRule(rule, layer.source, is_enforced=True)
                    continue
                if collision_key(rule) not in winners and len(winners) == MAX_RULES:
                    warnings.append(
                        f"{layer.where}: '{rule}' is left out: a pod has {MAX_RULES} rules at most"
                    )
                    continue
                winner = winners.setdefault(collision_key(rule), SourcedRule(rule, layer.source))
                if winner.source != layer.source:
                    beaten.add((layer.source, rule))
                if layer.source != winner.source and _is_service(layer.source) and _is_service(winner.source):
                    loser = f"{layer.where}: '{rule}'"
                    warnings.append(f"{loser} gives way to '{winner.rule}' of {winner.source}")
    others = [sourced for sourced in winners.values() if sourced.rule not in enforced]
    return PodRules(
        (*others, *enforced.values()),
        tuple(errors),
        tuple(warnings),
        frozenset(unreadable),
        frozenset(layer.source for layer in layers if not layer.may_be_beaten),
        frozenset(beaten),
    )


def _layers(
    name: str,
    annotations: Mapping[str, str],
    labels: Mapping[str, str],
    services: Iterable[AnnotatedService],
    namespace: AnnotatedNamespace | None,
) -> Iterable[_Layer]:
    """From the strongest to the weakest."""
    yield _Layer(POD, f"pod/{name}", annotations)
    selecting = [service for service in services if service.selects(labels)]
    for service in sorted(selecting, key=lambda service: (service.created, service.name)):
        source = f"service/{service.name}"
        yield _Layer(source, source, service.annotations)
    if namespace is not None:
        source = f"namespace/{namespace.name}"
        yield _Layer(source, source, namespace.annotations, may_be_beaten=not namespace.enforces)


def _is_service(source: str) -> bool:
    return source.startswith("service/")
