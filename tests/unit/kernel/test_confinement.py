"""Whether AppArmor holds this process, as /proc says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.kernel import confinement


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(confinement, "_PROFILE", tmp_path / "current")
    return tmp_path / "current"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("unconfined\n", ""),
        ("cri-containerd.apparmor.d (enforce)\n", "cri-containerd.apparmor.d"),
        ("a profile (of mine) (kill)\n", "a profile (of mine)"),
        ("crio-default (complain)\n", ""),
        ("crio-default (unconfined)\n", ""),
        ("", ""),
    ],
)
def test_a_profile_that_forbids_is_named(profile: Path, text: str, name: str) -> None:
    profile.write_text(text)
    assert confinement.apparmor_profile() == name


def test_without_apparmor_there_is_none(profile: Path) -> None:
    assert confinement.apparmor_profile() == ""
    profile.mkdir()
    assert confinement.apparmor_profile() == ""
