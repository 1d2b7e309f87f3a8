"""A minute of the soak, which `make soak` runs for an hour: zeros."""

from __future__ import annotations

from tests.bench import soak
from tests.bench.effort import Effort


def test_pods_rules_the_server_and_podmgr_come_and_go_and_nothing_is_lost() -> None:
    found = soak.measure(Effort(seconds=60))
    assert [str(claim) for claim in found.claims if not claim.is_met] == []
