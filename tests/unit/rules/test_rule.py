"""What rules are: which keys are ours, which annotation holds, which rules collide."""

from __future__ import annotations

import pytest

from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.keys import annotation_values, bare_key


@pytest.mark.parametrize(
    ("key", "bare"),
    [
        ("bandwidth", "bandwidth"),
        ("podmgr.io/loss", "loss"),
        ("podmgr.io/ebpf-limit", "ebpf-limit"),
        ("podmgr.io/podmgr.io/loss", None),
        ("kubernetes.io/ingress-bandwidth", None),
        ("latency", None),
        ("", None),
    ],
)
def test_keys_that_are_not_ours_have_no_bare_key(key: str, bare: str | None) -> None:
    assert bare_key(key) == bare


def test_prefixed_key_replaces_the_bare_key_whole() -> None:
    annotations = {
        "podmgr.io/bandwidth": "1 mbps ingress",
        "bandwidth": "10 mbps egress",
        "loss": "uniform egress 1%",
        "app": "web",
    }
    assert annotation_values(annotations) == [
        ("podmgr.io/bandwidth", "1 mbps ingress"),
        ("loss", "uniform egress 1%"),
    ]


def test_unreadable_prefixed_key_still_hides_the_bare_key() -> None:
    assert annotation_values({"podmgr.io/loss": "", "loss": "uniform egress 1%"}) == [("podmgr.io/loss", "")]


@pytest.mark.parametrize(
    ("first", "second", "do_collide"),
    [
        ("bandwidth=1 mbps egress", "bandwidth=2 mbps egress algorithm=edt", True),
        ("bandwidth=1 mbps egress", "bandwidth=1 mbps ingress", False),
        ("loss=uniform egress 1%", "loss=exponential egress 400", True),
        ("loss=uniform egress 1%", "bandwidth=1 mbps egress", False),
        ("loss=uniform egress 1% hook=tc", "loss=uniform egress 1% hook=cgroup", True),
        ("loss=uniform egress 1% interface=a", "loss=uniform egress 1% interface=b", True),
        ("ebpf-limit=a egress interface=a", "ebpf-limit=a egress interface=b", True),
        ("ebpf-limit=a egress", "ebpf-limit=a egress -DX=1", False),
        ("ebpf-limit=a egress -DX=1 -DY", "ebpf-limit=a egress -DY -DX=1", True),
        ("ebpf-limit=a egress", "ebpf-limit=b egress", False),
        ("ebpf-limit=a egress", "ebpf-limit=a ingress", False),
        ("ebpf-limit=loss egress", "loss=uniform egress 1%", False),
    ],
)
def test_rules_collide_by_kind_or_program_and_direction(first: str, second: str, do_collide: bool) -> None:
    (one,), (other,) = parse_rule_option(first), parse_rule_option(second)
    assert (one.collision_key == other.collision_key) is do_collide


@pytest.mark.parametrize("key", ["duplicate", "corrupt", "reorder", "block"])
def test_newer_kinds_are_read_with_the_prefix_alone(key: str) -> None:
    annotations = {key: "1% egress", f"podmgr.io/{key}": "2% egress"}
    assert annotation_values({key: "1% egress"}) == []
    assert annotation_values(annotations) == [(f"podmgr.io/{key}", "2% egress")]
