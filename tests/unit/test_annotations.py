"""Which rules hold on a pod: pod over service, older over younger, and a bad annotation stops no other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from podmgr.annotations import AnnotatedService, PodRules, rules_of_pod

LABELS = {"app": "web", "tier": "front"}


def service(
    name: str,
    annotations: Mapping[str, str],
    *,
    created: str = "2024-01-01T00:00:00Z",
    selector: Mapping[str, str] | None = None,
) -> AnnotatedService:
    return AnnotatedService(name, {"app": "web"} if selector is None else selector, annotations, created)


def pod(annotations: Mapping[str, str], *services: AnnotatedService) -> PodRules:
    return rules_of_pod("web-1", annotations, LABELS, services)


def found(result: PodRules) -> list[tuple[str, str]]:
    return [(str(sourced.rule), sourced.source) for sourced in result.rules]


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
                "ebpf-limit": "dropper egress -DX=1; other egress",
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
