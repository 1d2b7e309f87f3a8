"""SECURITY.md: each promise names a test that holds it, and that test is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.documents import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()
PROMISED = TEXT[TEXT.index("## What is promised") : TEXT.index("## What is not promised")]
LINES = [line for line in PROMISED.splitlines() if line.startswith(("- ", "| `"))]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NAMED = sorted(set(_TEST.findall(TEXT)))


@cache
def found_in(path: str) -> dict[str, ast.FunctionDef]:
    """The tests that pytest would find in a file, by their name."""
    tree = ast.parse((ROOT / path).read_text())
    return {
        item.name: item
        for item in tree.body
        if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")
    }


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[2:60])
def test_a_promise_names_the_test_that_holds_it(line: str) -> None:
    assert _TEST.search(line)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_a_test_that_is_named_is_there_and_always_run(path: str, name: str) -> None:
    assert Path(path).name.startswith("test_")
    found = found_in(path)
    assert name in found
    marks = [ast.unparse(mark) for mark in found[name].decorator_list]
    assert not [mark for mark in marks if re.search(r"mark\.(skip\b|xfail)", mark)]


def test_nothing_else_looks_like_a_test_and_is_none() -> None:
    assert len(_TEST.findall(TEXT)) == TEXT.count("::")


@pytest.mark.parametrize(
    "who", ["may annotate pods", "may log in to the node", "owns a pod with `CAP_NET_ADMIN`"]
)
def test_each_of_the_three_has_promises(who: str) -> None:
    (section,) = [part for part in PROMISED.split("\n### ") if part.startswith(f"Who {who}")]
    assert len([line for line in section.splitlines() if line.startswith("- ")]) >= 5


def test_each_capability_has_its_line() -> None:
    told = re.findall(r"^\| `([A-Z_]+)` \|", PROMISED, re.MULTILINE)
    documents = yaml.safe_load_all((ROOT / "k3s/podmgr.yaml").read_text())
    (daemon_set,) = (item for item in documents if item["kind"] == "DaemonSet")
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    assert sorted(told) == sorted(container["securityContext"]["capabilities"]["add"])
