"""CHANGELOG.md is in the form from which a release is cut: https://keepachangelog.com."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from podmgr import __version__

TEXT = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
HEADINGS = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)


def test_what_is_new_stands_above_the_version_that_podmgr_says() -> None:
    unreleased, newest, *_ = HEADINGS
    assert unreleased == "[Unreleased]"
    assert newest.split(" - ")[0] == f"[{__version__}]"


def test_a_version_has_its_number_and_at_most_its_day() -> None:
    for heading in HEADINGS[1:]:
        match = re.fullmatch(r"\[\d+\.\d+\.\d+\](?: - (\S+))?", heading)
        assert match, heading
        assert match[1] is None or date.fromisoformat(match[1])


def test_entries_stand_under_the_kinds_of_change_in_their_order() -> None:
    for part in re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds]
        before, *sections = re.split(r"^### .*$", part, flags=re.MULTILINE)
        assert not before.strip()
        assert all(re.fullmatch(r"\n(?:- .+\n)+\n*", section) for section in sections)
