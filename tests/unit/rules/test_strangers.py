"""What strangers write into annotations: names that lead nowhere, and a bound to whatever they write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from podmgr.errors import RuleError
from podmgr.programs.profiles import finder
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.precedence import AnnotatedNamespace, rules_of_pod
from podmgr.settings import Settings

LEADING_OUT = [
    "../secret",
    "..",
    "/etc/passwd",
    "a/b",
    "./x",
    "x.toml",
    "a\\b",
    "~root",
    "$HOME",
    "x\0y",
    "%2e%2e/x",
]


@pytest.mark.parametrize("name", LEADING_OUT)
@pytest.mark.parametrize(
    "rule",
    [
        "ebpf-limit={} egress",
        "profile={}",
        "delay=10ms egress jitter=1ms distribution={}",
    ],
)
def test_no_name_leads_out_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, name: str
) -> None:
    """It is refused by its letters: no file is looked at, whether it exists or not."""
    (tmp_path / "programs").mkdir()
    for ending in ("bpf.c", "toml", "dist"):
        (tmp_path / f"secret.{ending}").write_text("")
    opened: list[str] = []

    def noted(path: Any, *rest: Any, **named: Any) -> Any:
        opened.append(os.fspath(path) if not isinstance(path, int) else "")
        return real(path, *rest, **named)

    read = finder(Settings(program_dir=tmp_path / "programs"))
    real: Any = os.open
    monkeypatch.setattr(os, "open", noted)
    with pytest.raises(RuleError):
        parse_rule_option(rule.format(name), read)
    assert opened == []


def test_many_annotations_of_any_size_are_read_within_bounds() -> None:
    """A megabyte of them, as much as an object may hold: each is told, none is kept whole."""
    annotations = {f"podmgr.io/x{number}": "1 mbps egress;" * 300 for number in range(240)}
    annotations |= {"loss": "0% egress;" * 90_000, "bandwidth": "1 mbps egress"}
    found = rules_of_pod("web", annotations, {}, [], AnnotatedNamespace("shop", {}))
    assert [str(rule.rule) for rule in found.rules] == ["bandwidth=1 mbps egress"]
    assert len(found.errors) == 241
    assert sum(len(error.message) + len(error.detail or "") for error in found.errors) < 200_000
