"""What a namespace enforces holds on every packet, whatever pods and services say beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from podmgr import proc
from podmgr.attachment import Target, Wish
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.precedence import AnnotatedNamespace, AnnotatedService, rules_of_pod
from podmgr.settings import Settings
from tests.answers import ALL, answering, unanswered
from tests.lab import WORLD, Lab, lab

# Each would let packets pass that the namespace loses, were it heard.
LIFTING = {
    "both halves of all addresses": {"loss": "0% egress peer=0.0.0.0/1; 0% egress peer=128.0.0.0/1"},
    "the same of IPv6": {"loss": "0% egress peer=::/1; 0% egress peer=8000::/1"},
    "one peer and port": {"podmgr.io/loss": f"0% egress peer={WORLD} port=53 proto=udp local-port=6000"},
    "without a match": {"loss": "0% egress"},
    "for a time": {"loss": "0% egress for=1h"},
    "in pulses": {"loss": "0% egress every=1s for=1s"},
    "later": {"loss": "100% egress after=1h"},
    "in the shadow": {"loss": "100% egress mode=shadow"},
    "in runs": {"loss": "burst egress 0.001% length=5 port=1-65535"},
    "another kind": {"bandwidth": "400 gbps egress peer=0.0.0.0/1; 400 gbps egress peer=128.0.0.0/1"},
}


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made):
        yield made


@contextmanager
def _under(made: Lab, own: dict[str, str], of_service: dict[str, str]) -> Iterator[None]:
    """A namespace that loses all, and what a pod and its service say."""
    enforcing = {"podmgr.io/enforce": "true", "podmgr.io/loss": "100% egress"}
    found = rules_of_pod(
        "web",
        own,
        {"app": "web"},
        [AnnotatedService("web", {"app": "web"}, of_service)],
        AnnotatedNamespace("shop", enforcing),
    )
    assert not found.errors
    settings = Settings(state_dir=made.state_dir, bpffs=made.bpffs)
    target = Target("pod/web", made.cgroup, counts_loopback=False)
    outcomes = apply([Wish(target, found.rules, enforcing=found.enforcing)], settings, runner=proc.run)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    try:
        yield
    finally:
        clean(None, settings, runner=proc.run)


@pytest.mark.parametrize("lifting", LIFTING)
def test_no_rule_of_a_pod_or_a_service_lifts_what_is_enforced(made: Lab, lifting: str) -> None:
    with _under(made, LIFTING[lifting], LIFTING[lifting]):
        assert unanswered(made, quiet_ms=150) == set(ALL)
