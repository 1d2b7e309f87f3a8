"""Which rules hold on a pod: pod over service over namespace, unless the namespace enforces its own.

Of services the older wins; a bad annotation stops no other.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import UnknownKeyError
from podmgr.rules.annotations import hints
from podmgr.rules.keys import ENFORCE
from podmgr.rules.precedence import MAX_RULES, AnnotatedNamespace, AnnotatedService, PodRules, rules_of_pod
from podmgr.rules.rule import Rule
from podmgr.rules.source import parse_source
from tests.unit.samples import rules

LABELS = {"app": "web", "tier": "front"}


def service(
    name: str,
    annotations: Mapping[str, str],
    *,
    created: str = "2024-01-01T00:00:00Z",
    selector: Mapping[str, str] | None = None,
) -> AnnotatedService:
    return AnnotatedService(name, {"app": "web"} if selector is None else selector, annotations, created)


def pod(
    annotations: Mapping[str, str],
    *services: AnnotatedService,
    namespace: Mapping[str, str] | None = None,
) -> PodRules:
    space = None if namespace is None else AnnotatedNamespace("shop", namespace)
    return rules_of_pod("web-1", annotations, LABELS, services, space)


def found(result: PodRules) -> list[tuple[str, str]]:
    return [(str(sourced.rule), str(sourced.source)) for sourced in result.rules]


def test_pod_without_annotations_has_no_rules() -> None:
    assert pod({}) == PodRules((), (), ())


def test_annotations_that_are_not_ours_are_ignored() -> None:
    assert pod({"app": "10 mbps egress", "kubernetes.io/egress-bandwidth": "10M"}) == PodRules((), (), ())


def test_service_rules_hold_on_the_pods_it_selects() -> None:
    result = pod({}, service("front", {"bandwidth": "10 mbps egress"}))
    assert found(result) == [("bandwidth=10 mbps egress", "service/front")]


@pytest.mark.parametrize(
    ("selector", "is_selected"),
    [
        ({"app": "web"}, True),
        ({"app": "web", "tier": "front"}, True),
        ({"app": "web", "tier": "back"}, False),
        ({"app": "web", "zone": "a"}, False),
        ({"app": ""}, False),
        ({}, False),
    ],
)
def test_selector_selects_pods_with_all_its_labels_and_an_empty_one_none(
    selector: dict[str, str], is_selected: bool
) -> None:
    candidate = service("front", {"bandwidth": "10 mbps egress"}, selector=selector)
    assert candidate.selects(LABELS) is is_selected
    assert bool(pod({}, candidate).rules) is is_selected


def test_pod_rule_beats_service_rule_without_a_warning() -> None:
    result = pod({"bandwidth": "1 mbps egress"}, service("front", {"bandwidth": "10 mbps egress"}))
    assert found(result) == [("bandwidth=1 mbps egress", "pod")]
    assert result.warnings == ()


def test_pod_rule_beats_service_rule_per_collision_key() -> None:
    result = pod(
        {"bandwidth": "1 mbps egress", "ebpf-limit": "dropper egress"},
        service(
            "front",
            {
                "bandwidth": "10 mbps egress; 20 mbps ingress",
                "loss": "uniform egress 1%",
                "ebpf-limit": "dropper egress; other egress",
            },
        ),
    )
    assert sorted(found(result)) == [
        ("bandwidth=1 mbps egress", "pod"),
        ("bandwidth=20 mbps ingress", "service/front"),
        ("ebpf-limit=dropper egress", "pod"),
        ("ebpf-limit=other egress", "service/front"),
        ("loss=uniform egress 1%", "service/front"),
    ]


def test_prefixed_key_of_the_pod_replaces_its_bare_key_only() -> None:
    result = pod(
        {"podmgr.io/bandwidth": "1 mbps ingress", "bandwidth": "2 mbps egress"},
        service("front", {"bandwidth": "3 mbps egress"}),
    )
    assert found(result) == [
        ("bandwidth=1 mbps ingress", "pod"),
        ("bandwidth=3 mbps egress", "service/front"),
    ]


@pytest.mark.parametrize(
    ("created_a", "created_b", "winner", "loser"),
    [
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z", "a", "b"),
        ("2024-01-01T00:00:01Z", "2024-01-01T00:00:00Z", "b", "a"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z", "a", "b"),
        ("", "", "a", "b"),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_older_service_wins_then_the_name_with_a_warning(
    created_a: str, created_b: str, winner: str, loser: str, is_reversed: bool
) -> None:
    rates = {"a": "1 mbps egress", "b": "2 mbps egress"}
    services = [
        service("a", {"bandwidth": rates["a"]}, created=created_a),
        service("b", {"bandwidth": rates["b"]}, created=created_b),
    ]
    result = pod({}, *(reversed(services) if is_reversed else services))
    assert found(result) == [(f"bandwidth={rates[winner]}", f"service/{winner}")]
    assert result.warnings == (
        f"service/{loser}: 'bandwidth={rates[loser]}' gives way to "
        f"'bandwidth={rates[winner]}' of service/{winner}",
    )


def test_services_that_do_not_collide_add_up() -> None:
    result = pod(
        {}, service("a", {"bandwidth": "1 mbps egress"}), service("b", {"bandwidth": "2 mbps ingress"})
    )
    assert found(result) == [
        ("bandwidth=1 mbps egress", "service/a"),
        ("bandwidth=2 mbps ingress", "service/b"),
    ]
    assert result.warnings == ()


def test_bad_annotation_is_reported_and_stops_no_other_key() -> None:
    result = pod({"bandwidth": "10 mpbs egress", "loss": "uniform egress 1%"})
    assert found(result) == [("loss=uniform egress 1%", "pod")]
    (error,) = result.errors
    assert error.message == "pod/web-1: bandwidth: unknown unit 'mpbs' (column 4)"
    assert (error.key, error.value, error.where) == ("bandwidth", "10 mpbs egress", "pod/web-1")
    assert "did you mean 'mbps'?" in (error.tip or "")


def test_bad_annotation_of_a_service_stops_no_other_service() -> None:
    result = pod(
        {"ebpf-limit": "../x egress"},
        service("a", {"podmgr.io/loss": "uniform egress 101%"}),
        service("b", {"loss": "uniform egress 1%"}),
    )
    assert found(result) == [("loss=uniform egress 1%", "service/b")]
    assert [(error.where, error.key) for error in result.errors] == [
        ("pod/web-1", "ebpf-limit"),
        ("service/a", "podmgr.io/loss"),
    ]


def test_one_bad_rule_of_a_value_drops_the_value() -> None:
    result = pod({"bandwidth": "1 mbps egress; 2 xbps ingress"})
    assert result.rules == ()
    assert len(result.errors) == 1


def test_annotations_of_a_service_that_selects_others_are_not_read() -> None:
    assert pod({}, service("a", {"bandwidth": "nonsense"}, selector={"app": "db"})) == PodRules((), (), ())


# Namespaces


def test_namespaces_rules_hold_on_all_its_pods() -> None:
    result = pod({}, namespace={"bandwidth": "10 mbps egress", "unrelated": "x"})
    assert found(result) == [("bandwidth=10 mbps egress", "namespace/shop")]
    assert not result.rules[0].is_enforced


def test_pod_and_service_beat_the_namespace_per_collision_key_without_a_warning() -> None:
    result = pod(
        {"bandwidth": "1 mbps egress"},
        service("front", {"bandwidth": "2 mbps ingress"}),
        namespace={"bandwidth": "3 mbps egress; 3 mbps ingress", "loss": "uniform egress 1%"},
    )
    assert sorted(found(result)) == [
        ("bandwidth=1 mbps egress", "pod"),
        ("bandwidth=2 mbps ingress", "service/front"),
        ("loss=uniform egress 1%", "namespace/shop"),
    ]
    assert result.warnings == ()


def test_enforced_rules_hold_beside_those_of_pod_and_service() -> None:
    result = pod(
        {"bandwidth": "10 mbps egress"},
        service("front", {"bandwidth": "20 mbps ingress"}),
        namespace={"bandwidth": "1 mbps egress; 1 mbps ingress", ENFORCE: "true"},
    )
    assert sorted(found(result)) == [
        ("bandwidth=1 mbps egress", "namespace/shop"),
        ("bandwidth=1 mbps ingress", "namespace/shop"),
        ("bandwidth=10 mbps egress", "pod"),
        ("bandwidth=20 mbps ingress", "service/front"),
    ]
    assert {str(item.source) for item in result.rules if item.is_enforced} == {"namespace/shop"}
    assert result.warnings == ()


def test_enforced_rule_that_the_pod_has_too_holds_once() -> None:
    result = pod({"bandwidth": "1000 kbps egress"}, namespace={"bandwidth": "1 mbps egress", ENFORCE: "true"})
    assert found(result) == [("bandwidth=1 mbps egress", "namespace/shop")]
    assert result.rules[0].is_enforced


@pytest.mark.parametrize(
    ("value", "enforces"),
    [("true", True), ("True", True), (" TRUE ", True), ("false", False), ("False", False), (None, False)],
)
def test_namespace_enforces_if_it_says_true(value: str | None, enforces: bool) -> None:
    namespace = AnnotatedNamespace("shop", {} if value is None else {ENFORCE: value})
    assert namespace.enforces is enforces
    namespace.check()


@pytest.mark.parametrize("value", ["yes", "1", "", "ture", "true false"])
def test_what_is_neither_true_nor_false_is_an_error_and_lifts_no_limit(value: str) -> None:
    result = pod({"bandwidth": "2 mbps egress"}, namespace={"bandwidth": "1 mbps egress", ENFORCE: value})
    (error,) = result.errors
    assert error.message == f"namespace/shop: {ENFORCE}: neither true nor false (column 1)"
    assert (error.value, error.tip) == (value, '"true" or "false"')
    assert {str(item.rule): item.is_enforced for item in result.rules} == {
        "bandwidth=2 mbps egress": False,
        "bandwidth=1 mbps egress": True,
    }


def test_enforcing_is_the_namespaces_right_alone() -> None:
    mine = {"bandwidth": "1 mbps egress", ENFORCE: "true"}
    result = pod(mine, service("front", mine), namespace={"bandwidth": "2 mbps egress"})
    assert found(result) == [("bandwidth=1 mbps egress", "pod")]
    assert not result.rules[0].is_enforced


# What cannot be read


def test_unreadable_keys_are_named_by_source_and_bare_key() -> None:
    result = pod(
        {"podmgr.io/bandwidth": "nonsense", "loss": "uniform egress 1%"},
        service("front", {"loss": "nonsense"}),
        service("back", {"loss": "nonsense"}, selector={"app": "db"}),
        namespace={"ebpf-limit": "../x egress", ENFORCE: "perhaps"},
    )
    assert result.unreadable == {
        (parse_source("pod"), "bandwidth"),
        (parse_source("service/front"), "loss"),
        (parse_source("namespace/shop"), "ebpf-limit"),
    }
    assert len(result.errors) == 4


def test_what_can_be_read_leaves_nothing_unreadable() -> None:
    assert pod({"bandwidth": "1 mbps egress"}, namespace={ENFORCE: "true"}).unreadable == frozenset()


@pytest.mark.parametrize(("value", "enforcing"), [("true", {"namespace/shop"}), ("false", set())])
def test_a_namespace_that_enforces_is_named_also_when_its_rules_cannot_be_read(
    value: str, enforcing: set[str]
) -> None:
    assert pod({}, namespace={ENFORCE: value, "bandwidth": "nonsense"}).enforcing == set(
        map(parse_source, enforcing)
    )


# Too many, and too weak

MANY = "; ".join(f"program-{number} egress" for number in range(MAX_RULES + 3))


def test_pod_has_so_many_rules_at_most_and_is_told_which_are_left_out() -> None:
    result = pod({"ebpf-limit": MANY})
    assert len(result.rules) == MAX_RULES
    assert result.warnings == tuple(
        f"pod/web-1: 'ebpf-limit=program-{MAX_RULES + number} egress' is left out: "
        f"a pod has {MAX_RULES} rules at most"
        for number in range(3)
    )


def test_rules_of_the_pod_itself_are_not_left_out_for_those_of_others() -> None:
    result = pod({"loss": "uniform egress 1%"}, service("front", {"ebpf-limit": MANY}))
    assert ("loss=uniform egress 1%", "pod") in found(result)
    assert len(result.rules) == MAX_RULES


def test_enforced_rules_are_never_left_out() -> None:
    result = pod({"ebpf-limit": MANY}, namespace={"bandwidth": "1 mbps egress", ENFORCE: "true"})
    assert len(result.rules) == MAX_RULES + 1
    assert ("bandwidth=1 mbps egress", "namespace/shop") in found(result)


def test_rule_that_is_beaten_takes_no_room() -> None:
    text = "; ".join(f"program-{number} egress" for number in range(MAX_RULES))
    result = pod({"ebpf-limit": text}, service("front", {"ebpf-limit": "program-0 egress"}))
    assert len(result.rules) == MAX_RULES
    assert result.warnings == ()


def test_beaten_rules_are_known_by_their_sources() -> None:
    result = pod(
        {"bandwidth": "1 mbps egress"},
        service("a", {"bandwidth": "2 mbps egress; 2 mbps ingress"}),
        service("b", {"bandwidth": "3 mbps ingress"}, created="2025-01-01T00:00:00Z"),
        namespace={"bandwidth": "4 mbps egress", "loss": "uniform egress 1%"},
    )
    assert {(str(source), str(rule)) for source, rule in result.beaten} == {
        ("service/a", "bandwidth=2 mbps egress"),
        ("service/b", "bandwidth=3 mbps ingress"),
        ("namespace/shop", "bandwidth=4 mbps egress"),
    }


def test_enforced_rules_are_not_beaten() -> None:
    result = pod({"bandwidth": "1 mbps egress"}, namespace={"bandwidth": "4 mbps egress", ENFORCE: "true"})
    assert result.beaten == frozenset()
    assert result.enforcing == {parse_source("namespace/shop")}


# Whatever the layers say


def annotated(rules: list[Rule]) -> dict[str, str]:
    return {rules[0].key: "; ".join(rule.value for rule in rules)} if rules else {}


VALUES = st.lists(rules, max_size=3, unique_by=lambda rule: rule.collision_key).map(
    lambda found: annotated([rule for rule in found if rule.key == found[0].key])
)


@given(VALUES, VALUES, VALUES, VALUES, st.booleans())
def test_enforced_rules_are_always_among_the_rules_and_no_others_collide(
    own: dict[str, str], first: dict[str, str], second: dict[str, str], space: dict[str, str], enforces: bool
) -> None:
    layers = [service("a", first), service("b", second, created="2025-01-01T00:00:00Z")]
    result = pod(own, *layers, namespace=space | ({ENFORCE: "true"} if enforces else {}))
    assert result.errors == ()
    enforced = {item.rule for item in result.rules if item.is_enforced}
    alone = pod({}, namespace=space)
    assert enforced == ({item.rule for item in alone.rules} if enforces else set())
    assert len({item.rule for item in result.rules}) == len(result.rules)
    others = [item.rule.collision_key for item in result.rules if not item.is_enforced]
    assert len(set(others)) == len(others)


@given(VALUES, VALUES, VALUES, st.booleans())
def test_every_rule_of_the_pod_holds_whatever_others_say(
    own: dict[str, str], of_service: dict[str, str], space: dict[str, str], enforces: bool
) -> None:
    result = pod(own, service("a", of_service), namespace=space | ({ENFORCE: "true"} if enforces else {}))
    assert {item.rule for item in pod(own).rules} <= {item.rule for item in result.rules}


# What is not read


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("podmgr.io/bandwith", "did you mean podmgr.io/bandwidth?"),
        ("podmgr.io/Bandwidth", "did you mean podmgr.io/bandwidth?"),
        ("podmgr.io/lost", "did you mean podmgr.io/loss?"),
        ("podmgr.io/ebpf_limit", "did you mean podmgr.io/ebpf-limit?"),
        ("podmgr.io/xyz", "keys are podmgr.io/bandwidth"),
        ("podmgr.io/", "keys are podmgr.io/bandwidth"),
        ("podmgr.io/enforce", "annotate the namespace"),
    ],
)
def test_an_unknown_key_of_ours_is_an_error_and_stops_no_other(key: str, meant: str) -> None:
    found = rules_of_pod("web", {key: "10 mbps egress", "loss": "uniform egress 1%"}, {})
    assert [str(sourced.rule) for sourced in found.rules] == ["loss=uniform egress 1%"]
    (error,) = found.errors
    assert isinstance(error, UnknownKeyError)
    assert error.message.startswith("pod/web: ") and key in error.message
    assert meant in (error.tip or "")


def test_an_unknown_key_of_a_service_or_a_namespace_names_it() -> None:
    service = AnnotatedService("front", {"app": "web"}, {"podmgr.io/los": "uniform egress 1%"})
    space = AnnotatedNamespace("shop", {"podmgr.io/enforced": "true", "podmgr.io/enforce": "true"})
    found = rules_of_pod("web", {}, {"app": "web"}, [service], space)
    assert [error.message for error in found.errors] == [
        "service/front: unknown annotation podmgr.io/los",
        "namespace/shop: unknown annotation podmgr.io/enforced",
    ]


@pytest.mark.parametrize("key", ["bandwith", "Bandwidth", "bandwidht", "bandwidths", "los", "ebpf_limit"])
def test_a_bare_key_one_letter_off_is_a_hint_and_no_error(key: str) -> None:
    assert rules_of_pod("web", {key: "x"}, {}).errors == ()
    (hint,) = hints("pod/web", [key])
    assert f"annotation {key} is not read; did you mean" in hint


@pytest.mark.parametrize(
    "key", ["delay", "example.com/los", "glass", "bandwidth", "loss", "band", "limit", ""]
)
def test_what_may_be_anybodys_is_left_alone(key: str) -> None:
    assert hints("pod/web", [key]) == []


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("10M", "bandwidth=10 mbps egress"),
        ("1.5G", "bandwidth=1.5 gbps egress"),
        ("512Ki", "bandwidth=524.288 kbps egress"),
        ("1e6", "bandwidth=1 mbps egress"),
        (" 100000 ", "bandwidth=100 kbps egress"),
    ],
)
def test_standard_annotations_are_quantities_of_bits_per_second(value: str, rule: str) -> None:
    annotations = {"kubernetes.io/egress-bandwidth": value}
    assert rules_of_pod("web", annotations, {}).rules == ()
    found = rules_of_pod("web", annotations, {}, reads_standard=True)
    assert [(str(item.rule), str(item.source)) for item in found.rules] == [(rule, "standard")]
    (hint,) = hints("pod/web", annotations)
    assert "--standard-annotations" in hint
    assert hints("pod/web", annotations, reads_standard=True) == []


@pytest.mark.parametrize("value", ["10mbps", "-1M", "1k", "500G", "", "1" * 50, "1Zi"])
def test_a_standard_annotation_that_is_no_rate_is_an_error(value: str) -> None:
    found = rules_of_pod("web", {"kubernetes.io/ingress-bandwidth": value}, {}, reads_standard=True)
    assert found.rules == ()
    (error,) = found.errors
    assert "kubernetes.io/ingress-bandwidth" in error.message


def test_every_other_layer_beats_a_standard_annotation() -> None:
    annotations = {"kubernetes.io/egress-bandwidth": "10M", "kubernetes.io/ingress-bandwidth": "20M"}
    space = AnnotatedNamespace("shop", {"bandwidth": "1 mbps egress"})
    found = rules_of_pod("web", annotations, {}, (), space, reads_standard=True)
    assert {str(item.rule): str(item.source) for item in found.rules} == {
        "bandwidth=1 mbps egress": "namespace/shop",
        "bandwidth=20 mbps ingress": "standard",
    }


# Profiles


def test_profile_sets_both_directions_and_its_rules_are_the_pods() -> None:
    assert found(pod({"podmgr.io/profile": "3g"})) == [
        ("bandwidth=768 kbps egress algorithm=edt", "pod"),
        ("bandwidth=1.6 mbps ingress algorithm=edt", "pod"),
        ("delay=150ms egress", "pod"),
        ("delay=150ms ingress", "pod"),
    ]


def test_bare_profile_may_be_anybodys() -> None:
    assert pod({"profile": "3g"}) == PodRules((), (), ())


def test_pods_own_rule_beats_its_profiles_part_of_that_kind_and_direction_alone() -> None:
    result = pod({"podmgr.io/profile": "3g", "bandwidth": "1 mbps egress", "delay": "9ms ingress"})
    assert found(result) == [
        ("bandwidth=1 mbps egress", "pod"),
        ("delay=9ms ingress", "pod"),
        ("bandwidth=1.6 mbps ingress algorithm=edt", "pod"),
        ("delay=150ms egress", "pod"),
    ]
    assert (result.errors, result.warnings, result.beaten) == ((), (), frozenset())


def test_pods_profile_beats_a_services_rule_and_a_services_profile_yields_to_the_pods_rule() -> None:
    ours = pod({"podmgr.io/profile": "3g"}, service("front", {"delay": "1ms egress", "loss": "1% egress"}))
    assert ("delay=150ms egress", "pod") in found(ours)
    assert ("delay=1ms egress", "service/front") not in found(ours)
    assert ("loss=uniform egress 1%", "service/front") in found(ours)
    theirs = pod({"delay": "1ms egress"}, service("front", {"podmgr.io/profile": "3g"}))
    assert found(theirs)[0] == ("delay=1ms egress", "pod")
    assert ("delay=150ms ingress", "service/front") in found(theirs)
    assert len(found(theirs)) == 4


def test_profile_of_an_older_service_yields_to_the_rule_of_a_younger_one() -> None:
    older = service("a", {"podmgr.io/profile": "3g"}, created="2023-01-01T00:00:00Z")
    result = pod({}, older, service("b", {"delay": "1ms egress"}))
    assert ("delay=1ms egress", "service/b") in found(result)
    assert ("delay=150ms ingress", "service/a") in found(result)
    assert result.warnings == (
        "service/a: 'delay=150ms egress' gives way to 'delay=1ms egress' of service/b",
    )


def test_enforced_profile_holds_beside_what_the_pod_says() -> None:
    space = {"podmgr.io/profile": "3g", ENFORCE: "true", "delay": "5ms egress"}
    result = pod({"podmgr.io/profile": "lte", "bandwidth": "400 gbps egress"}, namespace=space)
    enforced = [str(sourced.rule) for sourced in result.rules if sourced.is_enforced]
    assert enforced == [
        "delay=5ms egress",
        "bandwidth=768 kbps egress algorithm=edt",
        "bandwidth=1.6 mbps ingress algorithm=edt",
        "delay=150ms ingress",
    ]
    assert ("bandwidth=400 gbps egress", "pod") in found(result)


def test_profile_that_there_is_not_leaves_what_it_had_set_but_not_over_what_the_pod_says() -> None:
    result = pod({"podmgr.io/profile": "3gg", "delay": "9ms egress"})
    assert found(result) == [("delay=9ms egress", "pod")]
    (error,) = result.errors
    assert error.message == "pod/web-1: podmgr.io/profile: there is no profile '3gg' (column 1)"
    assert {key for _, key in result.unreadable} == {"bandwidth", "loss"}
    enforcing = pod({}, namespace={"podmgr.io/profile": "3gg", "delay": "9ms egress", ENFORCE: "true"})
    assert {key for _, key in enforcing.unreadable} == {"bandwidth", "loss", "delay"}


def test_two_profiles_are_one_error_and_stop_no_other_rule() -> None:
    result = pod({"podmgr.io/profile": "3g; lte", "loss": "1% egress"})
    assert found(result) == [("loss=uniform egress 1%", "pod")]
    assert [error.problem for error in result.errors] == ["two profiles: 3g and lte"]


def test_only_a_rule_for_all_packets_replaces_a_profiles_part() -> None:
    result = pod({"podmgr.io/profile": "3g", "delay": "1ms egress peer=10.0.0.0/8"})
    assert ("delay=1ms egress peer=10.0.0.0/8", "pod") in found(result)
    assert ("delay=150ms egress", "pod") in found(result)
