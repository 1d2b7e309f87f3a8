"""Finding profiles: podmgr's own, then NAME.toml of a folder that only root could have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podmgr.errors import PermissionDeniedError, PodmgrError, RuleError
from podmgr.programs.profiles import all_profiles, find_profile, finder
from podmgr.rules.grammar import parse_value
from podmgr.settings import Settings

STRANGER = 54_322


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "programs"
    made.mkdir()
    made.chmod(0o755)
    put(made, "office", 'up = "3 mbps"\nround-trip = "20ms"\n')
    return made


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_the_grammar_reads_ones_own_where_it_is_told_who_finds_them(folder: Path) -> None:
    rules = parse_value("profile", "OFFICE", finder(Settings(program_dir=folder)))
    assert [str(rule) for rule in rules] == [
        "bandwidth=3 mbps egress algorithm=edt",
        "delay=10ms egress",
        "delay=10ms ingress",
    ]
    with pytest.raises(RuleError, match="there is no profile 'office'"):
        parse_value("profile", "office")


def test_ones_own_names_its_file_as_the_source(folder: Path) -> None:
    assert find_profile("office", Settings(program_dir=folder)).source == str(folder / "office.toml")


def test_podmgrs_own_cannot_be_hidden(folder: Path) -> None:
    put(folder, "lte", 'up = "400 gbps"')
    with pytest.raises(PodmgrError, match=r"lte\.toml hides podmgr's own profile lte"):
        find_profile("lte", Settings(program_dir=folder))
    assert find_profile("3g", Settings(program_dir=folder)).round_trip_ns == 300_000_000


def test_one_that_others_could_have_written_is_refused_as_a_rule(folder: Path) -> None:
    os.chown(folder / "office.toml", STRANGER, 0)
    settings = Settings(program_dir=folder)
    with pytest.raises(PermissionDeniedError, match=f"profile office: user {STRANGER} can write"):
        find_profile("office", settings)
    with pytest.raises(RuleError, match=f"user {STRANGER} can write"):
        parse_value("profile", "office", finder(settings))


def test_a_name_that_is_nearly_one_of_ones_own_is_guessed(folder: Path) -> None:
    with pytest.raises(PodmgrError, match="there is no profile 'ofice'") as caught:
        find_profile("ofice", Settings(program_dir=folder))
    assert "did you mean 'office'?" in (caught.value.tip or "")
    assert str(folder / "ofice.toml") in (caught.value.tip or "")


def test_all_are_listed_and_what_is_wrong_with_others_is_told(folder: Path) -> None:
    put(folder, "broken", 'up = "fast"')
    put(folder, "Capital", 'up = "1 mbps"')
    put(folder, "dsl", 'up = "1 mbps"')
    found, wrong = all_profiles(Settings(program_dir=folder))
    assert {"lte", "office", "dsl"} <= found.keys()
    assert not found.keys() & {"broken", "Capital"}
    assert [error.message.partition(":")[0] for error in wrong] == [
        "profile broken",
        f"{folder / 'dsl.toml'} hides podmgr's own profile dsl",
    ]


def test_without_a_folder_there_are_podmgrs_own(tmp_path: Path) -> None:
    found, wrong = all_profiles(Settings(program_dir=tmp_path / "none"))
    assert "lte" in found
    assert wrong == []
