"""TARGET on the command line: kubectl's spellings, and the cgroup that is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.errors import PodmgrError, UsageError
from podmgr.targets import names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that looks like a cgroup2 mount, with the cgroup `a/b`."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        (folder / "cgroup.procs").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pod/web", "pod/web"),
        ("po/web", "pod/web"),
        ("pods/web", "pod/web"),
        ("svc/web", "service/web"),
        ("deploy/web", "deployment/web"),
        ("deployments/web", "deployment/web"),
        ("rs/web", "replicaset/web"),
        ("sts/web", "statefulset/web"),
        ("ds/web", "daemonset/web"),
        ("job/web", "job/web"),
        ("cj/web", "cronjob/web"),
        ("ns/shop", "namespace/shop"),
        ("cgroup/a/b", "cgroup/a/b"),
        ("cgroup//sys/fs/cgroup/a", "cgroup//sys/fs/cgroup/a"),
    ],
)
def test_kubectls_spellings_have_one_name(text: str, name: str) -> None:
    assert names.canonical(text) == name
    assert names.canonical(name) == name


@pytest.mark.parametrize(
    "text", ["", "web", "/", "pod", "pod/", "/web", "cgroup", "cgroup/", "pood/web", "node/n", "pod web"]
)
def test_anything_else_is_not_a_target(text: str) -> None:
    with pytest.raises(UsageError, match="is not a target") as caught:
        names.canonical(text)
    assert "cgroup/PATH" in (caught.value.tip or "")


def test_unprintable_target_is_shown_printable() -> None:
    with pytest.raises(UsageError, match=r"'·\[31m' is not a target"):
        names.canonical("\x1b[31m")


@pytest.mark.parametrize("text", ["cgroup/a/b", "cgroup/{root}/a/b", "cgroup/a/../a/b/"])
def test_cgroup_is_found_and_named_relative_to_the_mount(root: Path, text: str) -> None:
    target = names.resolve(text.format(root=root), root)
    assert (target.name, target.cgroup.path) == ("cgroup/a/b", root / "a/b")
    assert target.cgroup.id == (root / "a/b").stat().st_ino
    assert target.owner == str(target.cgroup.id)


def test_loopback_of_a_plain_cgroup_counts(root: Path) -> None:
    target = names.resolve("cgroup/a", root)
    assert target.counts_loopback
    assert target.pod is None


def test_cgroup_that_there_is_not_is_a_failure_and_not_misuse(root: Path) -> None:
    with pytest.raises(PodmgrError, match="cgroup a/c: No such file or directory") as caught:
        names.resolve("cgroup/a/c", root)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("text", ["cgroup//", "cgroup/.", "cgroup/a/.."])
def test_whole_machine_is_no_target(root: Path, text: str) -> None:
    text = f"cgroup/{root}" if text == "cgroup//" else text
    with pytest.raises(UsageError, match="the root cgroup is the whole machine"):
        names.resolve(text, root)
