"""What a killed run has left is removed in order, as it was written down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life, private_network
from podmgr.reconcile import abandoned, lease
from podmgr.settings import Settings
from tests.unit.samples import Script, said


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "state", tmp_path / "bpf", cgroup_root=tmp_path)


def left(settings: Settings, **notes: object) -> None:
    held = lease.take(settings.state_dir, "podmgr-run-1-1")
    for what, name in notes.items():
        held.note(what, name)
    held.let_go()


def test_table_network_and_cgroup_go(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(private_network, "delete", deleted.append)
    nft = Script(said(""))
    told: list[str] = []
    cgroup = tmp_path / "podmgr-run-1-1"
    cgroup.mkdir()
    left(settings, network="podmgr-0123ab", cgroup=cgroup, table="podmgr-0123ab")
    abandoned.finish(settings, runner=nft, report=told.append)
    assert [argv[0] for argv in nft.calls] == ["nft"]
    assert deleted == ["podmgr-0123ab"]
    assert not cgroup.exists()
    assert told == [f"removed {cgroup}, left by a crash"]
    assert list(lease.abandoned(settings.state_dir)) == []


def test_without_a_table_nft_is_not_asked(settings: Settings) -> None:
    nft = Script(said(""))
    left(settings, cgroup="/nowhere/podmgr-run-1-1")
    abandoned.finish(settings, runner=nft, report=lambda _: None)
    assert nft.calls == []
    assert list(lease.abandoned(settings.state_dir)) == []


def test_what_cannot_be_removed_is_tried_again_by_the_next(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise PodmgrError("it is busy")

    monkeypatch.setattr(private_network, "delete", fail)
    left(settings, network="podmgr-0123ab")
    with pytest.raises(PodmgrError, match="it is busy"):
        abandoned.finish(settings, runner=Script(said("")), report=lambda _: None)
    (again,) = lease.abandoned(settings.state_dir)
    assert again.notes() == {"network": "podmgr-0123ab"}
    again.end()


def test_gone_already_is_fine() -> None:
    private_network.delete("podmgr-000000")


def test_who_lives_in_one_himself_goes_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = tmp_path / "podmgr-run-1-1"
    cgroup.mkdir()
    (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n")
    killed: list[Cgroup] = []
    monkeypatch.setattr(cgroup_life, "kill", killed.append)
    left(settings, cgroup=cgroup)
    abandoned.finish(settings, runner=Script(said("")), report=lambda _: None)
    assert killed == []
    (again,) = lease.abandoned(settings.state_dir)
    again.end()
