"""What a crash leaves besides programs: nft is asked only where a cgroup tells of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr import proc
from podmgr.kernel import leftovers
from tests.unit.samples import Script, said

CHAIN = '{"nftables": [{"chain": {"family": "inet", "table": "podmgr-0123ab", "name": "of-4194305-5"}}]}'


@pytest.fixture
def nft(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(proc, "find", lambda name: f"/usr/sbin/{name}")
    return Script(said(CHAIN))


def test_without_a_crash_nothing_is_asked(tmp_path: Path, nft: Script) -> None:
    (tmp_path / "pod").mkdir()
    assert leftovers.remove(tmp_path, runner=nft) == []
    assert nft.calls == []


def test_cgroup_and_table_of_a_maker_that_is_gone_are_removed(tmp_path: Path, nft: Script) -> None:
    cgroup = tmp_path / "podmgr-run-4194305-5"
    cgroup.mkdir()
    assert leftovers.remove(tmp_path, runner=nft) == [str(cgroup), "the nft table inet podmgr-0123ab"]
    assert not cgroup.exists()
