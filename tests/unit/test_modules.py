"""Modules are small, and one that a single other uses says why it stands by itself."""

from __future__ import annotations

import ast
import re
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
        is_plain = name.startswith(
            ("podmgr.rules.kinds.", "podmgr.cli.main")
        )  # a file for a kind, and `main`
        if name not in graph.modules or path.name.startswith("__") or is_plain:
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        if len(graph.find_modules_that_directly_import(name)) == 1 and "Apart from " not in docstring:
            silent.append(name)
    assert silent == []


def test_picture_of_the_wings_names_each_module_and_no_other() -> None:
    text = (ROOT / "podmgr/README.md").read_text()
    rooms = {
        room: set(re.findall(r"`([a-z_]+)`", cell))
        for room, cell in re.findall(r"^\| \[`(\w+)/`\]\(\w+\) \| (.*) \|$", text, re.MULTILINE)
    }
    there = {
        folder.name: {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
        for folder in (ROOT / "podmgr").iterdir()
        if (folder / "__init__.py").exists()
    }
    assert {room: names - rooms.get(room, set()) for room, names in there.items()} == {
        room: set() for room in there
    }
    wrong = {
        room: {name for name in names if name not in there[room] and name in set().union(*there.values())}
        for room, names in rooms.items()
    }
    assert not any(wrong.values())
