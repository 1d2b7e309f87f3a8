"""Modules are small, and one that a single other uses says why it stands by itself."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 350
FILES = sorted((ROOT / "podmgr").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_module_that_one_alone_uses_says_why_it_is_apart() -> None:
    graph = grimp.build_graph("podmgr", exclude_type_checking_imports=True)
    silent = []
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name not in graph.modules or path.name.startswith("__") or name == "podmgr.cli.main":
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        if len(graph.find_modules_that_directly_import(name)) == 1 and "Apart from " not in docstring:
            silent.append(name)
    assert silent == []
