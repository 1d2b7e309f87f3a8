"""The documents, which are all Markdown files of the checkout: what they link to is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, ROOT

_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*<?([^\s>]+)|(?:src|href)=[\"']([^\"']+)", re.MULTILINE
)
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//")


def links(text: str) -> Iterator[str]:
    """The targets that are not elsewhere on the net."""
    for match in _LINK.finditer(_CODE.sub("", text)):
        target = next(group for group in match.groups() if group)
        if not _ELSEWHERE.match(target):
            yield target


def anchors(text: str) -> set[str]:
    """What the headings are called in a link."""
    headings = re.findall(r"^#+ +(.+?) *$", _CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def broken(document: Path) -> list[str]:
    """The links that lead nowhere."""
    found = []
    for link in links(document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    assert broken(ROOT / name) == []


@pytest.mark.parametrize("folder", ["bpf", "examples", "k3s", "podmgr", "tests"])
def test_a_folder_tells_what_is_in_it(folder: str) -> None:
    assert f"{folder}/README.md" in DOCUMENTS


def test_readme_has_links() -> None:
    assert len(list(links((ROOT / "README.md").read_text()))) >= 5


def test_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A `b`, c\n")
    document = tmp_path / "x.md"
    document.write_text(
        "# Head line\n[a](there.md) [b](https://example.com/x) [c](gone.md 'title') [d](#head-line)\n"
        '[e](#gone) [f](there.md#a-b-c) [g](there.md#gone) <img src="gone.png"> [h][ref]\n'
        "```\n[i](code.md)\n```\n[ref]: gone-too.md\n"
    )
    assert broken(document) == ["gone.md", "#gone", "there.md#gone", "gone.png", "gone-too.md"]
