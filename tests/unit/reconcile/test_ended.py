"""Failures of pods that end meanwhile are none; those of pods whose first process is to come are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from podmgr.attachment import Cgroup, PodRef, Target, Wish
from podmgr.errors import PodmgrError
from podmgr.reconcile.ended import without_ended
from podmgr.reconcile.outcome import Action, Outcome

POD = PodRef("shop", "web", "1-2")


@pytest.mark.parametrize(
    ("events", "known", "has_ended"),
    [
        ("populated 1", {}, False),
        ("populated 0", {}, True),
        ("populated 0", {"is_early": True}, False),
        ("populated 0", {"network": Path("/run/netns/x")}, False),
        (None, {"is_early": True}, True),
    ],
)
def test_a_pod_has_ended_when_its_processes_have(
    tmp_path: Path, events: str | None, known: Mapping[str, Any], has_ended: bool
) -> None:
    place = tmp_path / "pod"
    number = 1 << 40  # no cgroup has it
    if events is not None:
        place.mkdir()
        (place / "cgroup.events").write_text(f"{events}\n")
        number = os.stat(place).st_ino
    wish = Wish(Target("pod/web", Cgroup(place, number), POD), (), is_standing=True, **known)
    failure = Outcome("pod/web", None, Action.FAILED, None, PodmgrError("no"), POD)
    kept, ended = without_ended([failure], [wish])
    assert (kept, ended) == (([], [POD]) if has_ended else ([failure], []))
