"""The cgroup that a target means."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.errors import PodmgrError, UsageError
from podmgr.targets.cgroup import resolve


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that looks like a cgroup2 mount, with the cgroup `a/b`."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        (folder / "cgroup.procs").write_text("")
    return tmp_path


@pytest.mark.parametrize("text", ["cgroup/a/b", "cgroup/{root}/a/b", "cgroup/a/../a/b/"])
def test_cgroup_is_found_and_named_relative_to_the_mount(root: Path, text: str) -> None:
    target = resolve(text.format(root=root), root)
    assert (target.name, target.cgroup.path) == ("cgroup/a/b", root / "a/b")
    assert target.cgroup.id == (root / "a/b").stat().st_ino
    assert target.owner == str(target.cgroup.id)


def test_loopback_of_a_plain_cgroup_counts(root: Path) -> None:
    target = resolve("cgroup/a", root)
    assert target.counts_loopback
    assert target.pod is None


def test_cgroup_that_there_is_not_is_a_failure_and_not_misuse(root: Path) -> None:
    with pytest.raises(PodmgrError, match="cgroup a/c: No such file or directory") as caught:
        resolve("cgroup/a/c", root)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("text", ["cgroup//", "cgroup/.", "cgroup/a/.."])
def test_whole_machine_is_no_target(root: Path, text: str) -> None:
    text = f"cgroup/{root}" if text == "cgroup//" else text
    with pytest.raises(UsageError, match="the root cgroup is the whole machine"):
        resolve(text, root)
