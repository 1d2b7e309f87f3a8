"""What doctor says of a kubeconfig. The tools are replaced; without them nothing is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from podmgr import doctor
from podmgr.doctor import Finding, Status
from podmgr.settings import Settings
from tests.unit.samples import Script, said


def findings(kubeconfig: Path) -> list[Finding]:
    return list(doctor.examine(Settings(), runner=Script(said("", code=1)), named=str(kubeconfig)))


def written(folder: Path, cluster: dict[str, Any], user: dict[str, Any] | None = None) -> Path:
    path = folder / "kubeconfig"
    content = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(json.dumps(content))
    return path


PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "command": "true", "args": ["a\0b"]}


@pytest.mark.parametrize(
    ("cluster", "user", "reason"),
    [
        ({"server": "https://[bad"}, {}, "its server"),
        ({"server": "https://x", "proxy-url": "http://h:99999"}, {}, "proxy-url"),
        ({"server": "https://x"}, {"exec": PLUGIN}, "its exec args"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_a_finding_among_others(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], reason: str
) -> None:
    *_, found, last = findings(written(tmp_path, cluster, user))
    assert (found.name, found.status) == ("kubeconfig", Status.MISSING)
    assert reason in found.found and found.advice
    assert last.name == "self-test"
