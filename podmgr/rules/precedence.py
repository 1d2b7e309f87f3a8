"""Which rules hold on a pod: its own annotations, over its services', over its namespace's.

Pure. A stronger layer beats a weaker one per collision key; of two services that collide the
older one (creationTimestamp, then name) wins, with a warning. What a profile stands for has the
lowest rank in its layer. A namespace that enforces its rules is no layer: they hold beside all
others. An annotation that cannot be read is reported and stops no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from podmgr.errors import RuleError
from podmgr.rules.annotations import unknown_keys
from podmgr.rules.grammar import parse_value
from podmgr.rules.keys import (
    ENFORCE,
    STANDARD_KEYS,
    annotation_values,
    bare_key,
)
from podmgr.rules.kinds import BY_KEY
from podmgr.rules.peers import Tenant
from podmgr.rules.profiles import is_replaced, rules_of_built_in
from podmgr.rules.rule import CollisionKey, Rule
from podmgr.rules.source import POD, STANDARD, Layer, Source, SourcedRule
from podmgr.rules.words import Profiles

MAX_RULES = 32  # of one pod, besides enforced ones: a cgroup has room for 64 programs a direction


class NotText(str):
    """What stands, as JSON, where an annotation has its text: a number, a list. Only files have such."""

    __slots__ = ()


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

    @property
    def errors(self) -> list[RuleError]:
        """Why it cannot be told whether it enforces."""
        try:
            self.check()
        except RuleError as error:
            return [error.on(f"namespace/{self.name}")]
        return []

    def check(self) -> None:
        """Raise RuleError if it cannot be told whether it enforces."""
        value = self.annotations.get(ENFORCE, "false")
        _require_text(ENFORCE, value)
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
    unreadable: frozenset[tuple[Source, str]] = frozenset()
    enforcing: frozenset[Source] = frozenset()
    beaten: frozenset[tuple[Source, Rule]] = frozenset()


class _Annotated(NamedTuple):
    """The annotations of one source. `where` is what errors call it."""

    source: Source
    where: str
    annotations: Mapping[str, str]
    may_be_beaten: bool = True


def rules_of_pod(
    name: str,
    annotations: Mapping[str, str],
    labels: Mapping[str, str],
    services: Iterable[AnnotatedService] = (),
    namespace: AnnotatedNamespace | None = None,
    *,
    kind: str = "pod",
    reads_standard: bool = False,
    tenant: Tenant | None = None,
    profiles: Profiles = rules_of_built_in,
) -> PodRules:
    """The rules for one pod, from its annotations and those of its namespace and its services.

    `kind` is what errors call it: a workload's, where its pod template is all there is.
    `reads_standard`: also from Kubernetes' own annotations of the pod, which all others beat.
    `tenant` says which names its rules may have; None: any.
    `profiles` says what the name of one stands for.
    """
    errors = namespace.errors if namespace is not None else []
    warnings: list[str] = []
    unreadable: set[tuple[Source, str]] = set()
    winners: dict[CollisionKey, SourcedRule] = {}
    enforced: dict[Rule, SourcedRule] = {}
    beaten: set[tuple[Source, Rule]] = set()
    found: list[tuple[_Annotated, Rule]] = []
    where = f"{kind}/{name}"
    layers = list(_layers(where, annotations, labels, services, namespace))
    if reads_standard and annotations.keys() & STANDARD_KEYS.keys():
        layers.append(_Annotated(STANDARD, where, annotations))
    for layer in layers:
        if layer.source != STANDARD:
            is_pods = layer.source.layer is not Layer.NAMESPACE
            errors += [error.on(layer.where) for error in unknown_keys(layer.annotations, is_pods=is_pods)]
        for key, value in _values(layer):
            try:
                rules = _read(key, value, profiles)
                _require_own_names(key, value, rules, tenant)
                found += [(layer, rule) for rule in rules]
            except RuleError as error:
                errors.append(error.on(layer.where))
                unreadable |= {(layer.source, lost) for lost in _unread(key, layer)}
    for layer, rule in sorted(found, key=_rank):
        if not layer.may_be_beaten:
            if not (rule.of_profile and is_replaced(rule, enforced)):
                enforced[rule] = SourcedRule(rule, layer.source, is_enforced=True)
            continue
        if rule.collision_key not in winners and len(winners) == MAX_RULES:
            warnings.append(f"{layer.where}: '{rule}' is left out: a pod has {MAX_RULES} rules at most")
            continue
        winner = winners.setdefault(rule.collision_key, SourcedRule(rule, layer.source))
        if winner.source != layer.source:
            beaten.add((layer.source, rule))
        if layer.source != winner.source and _are_services(layer.source, winner.source):
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
    where: str,
    annotations: Mapping[str, str],
    labels: Mapping[str, str],
    services: Iterable[AnnotatedService],
    namespace: AnnotatedNamespace | None,
) -> Iterable[_Annotated]:
    """From the strongest to the weakest."""
    yield _Annotated(POD, where, annotations)
    selecting = [service for service in services if service.selects(labels)]
    for service in sorted(selecting, key=lambda service: (service.created, service.name)):
        source = Source(Layer.SERVICE, service.name)
        yield _Annotated(source, str(source), service.annotations)
    if namespace is not None:
        source = Source(Layer.NAMESPACE, namespace.name)
        yield _Annotated(source, str(source), namespace.annotations, may_be_beaten=not namespace.enforces)


def _values(layer: _Annotated) -> list[tuple[str, str]]:
    if layer.source != STANDARD:
        return annotation_values(layer.annotations)
    return [(key, layer.annotations[key]) for key in STANDARD_KEYS if key in layer.annotations]


def _rank(found: tuple[_Annotated, Rule]) -> tuple[int, bool]:
    """The strongest first; within a layer, also that of several services, what a profile stands for last."""
    layer, rule = found
    return (-layer.source.strength, bool(rule.of_profile))


def _unread(key: str, layer: _Annotated) -> set[str]:
    """The keys of rules that an annotation which cannot be read may be.

    What a profile would have set stays, but not over what the layer itself says now; where rules are
    enforced also over that, since a slip shall lift none.
    """
    bare = bare_key(key) or key
    kind = BY_KEY.get(bare)
    if kind is None or not kind.stands_for:
        return {bare}
    written = {bare_key(other) for other, _ in _values(layer)} if layer.may_be_beaten else set()
    return set(kind.stands_for) - written


def _read(key: str, value: str, profiles: Profiles) -> tuple[Rule, ...]:
    """The rules of one annotation, podmgr's or a standard one."""
    _require_text(key, value)
    if key not in STANDARD_KEYS:
        return parse_value(key, value, profiles)
    try:
        return (STANDARD_KEYS[key](value),)
    except ValueError as error:
        problem, expected = error.args
        raise RuleError(problem, key=key, value=value, column=1, expected=expected) from error


def _require_own_names(key: str, value: str, rules: Iterable[Rule], tenant: Tenant | None) -> None:
    """Raise RuleError for the name of a namespace that is not the rules' own to name."""
    for peer in (peer for rule in rules for peer in rule.match.names):
        if tenant is not None and not tenant.may_name(peer):
            raise RuleError(
                f"{peer} is of another namespace",
                key=key,
                value=value,
                column=max(0, value.lower().find(str(peer))) + 1,
                expected="names of its own namespace; the operator may list others: --peer-namespaces",
            )


def _require_text(key: str, value: str) -> None:
    if isinstance(value, NotText):
        quoted = f'put it into quotes: {key}: "..."'
        raise RuleError("not text", key=key, value=value, column=1, expected=quoted)


def _are_services(*sources: Source) -> bool:
    return all(source.layer is Layer.SERVICE for source in sources)
