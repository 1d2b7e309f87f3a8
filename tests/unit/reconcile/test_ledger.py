"""The ledger: written whole, read back alike, kept when damaged, locked as long as a child lives."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from podmgr.attachment import Attachment, Link, PodRef
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.reconcile import ledger
from podmgr.reconcile.ledger import DamagedLedgerError
from podmgr.rules.rule import Direction
from tests.unit.samples import attachment, rules

UID = "846f24d4-50e1-452e-91c0-7dfcee8503e9"
ROWS = [
    attachment(program_id=12),
    attachment(
        "bandwidth=10 mbps egress burst=64kb",
        digest="abcdef",
        owner=UID,
        pod=PodRef("default", "web", UID),
        target="pod/web",
        program_id=13,
    ),
]
LINKS = (
    Link(4026532000, 2, Direction.EGRESS, "eth0"),
    Link(4026532000, 3, Direction.INGRESS, 'a"b\\c'),
)
AT_TC = [attachment(program_id=14, links=LINKS, is_scoped=True)]
TRY_LOCK = (
    "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1] + '/lock', 2), fcntl.LOCK_EX | fcntl.LOCK_NB)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def written(folder: Path, rows: list[Attachment]) -> Path:
    """The ledger file with these rows."""
    with ledger.locked(folder) as state:
        ledger.write(state, rows)
    return folder / "ledger.json"


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def is_locked_for_others(folder: Path) -> bool:
    done = subprocess.run([sys.executable, "-c", TRY_LOCK, str(folder)], capture_output=True, check=False)
    assert done.returncode == 0 or b"BlockingIOError" in done.stderr
    return done.returncode != 0


# Contents


def test_rows_survive_writing_and_reading(folder: Path) -> None:
    written(folder, ROWS)
    assert ledger.read(folder) == ROWS


def test_links_survive_writing_and_reading_by_another_process(folder: Path) -> None:
    """Names of interfaces too, which are not compared: they are shown."""
    written(folder, AT_TC)
    ledger._cached.remember((), ())
    (row,) = ledger.read(folder)
    assert [row] == AT_TC
    assert row.links == LINKS and row.is_scoped
    assert [(link.name, type(link.side)) for link in row.links] == [(link.name, Direction) for link in LINKS]


def test_row_of_an_earlier_version_has_no_links(folder: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        for row in content["attachments"]:
            del row["links"], row["is_scoped"]

    changed(written(folder, ROWS), forget)
    assert ledger.read(folder) == ROWS


@given(
    st.lists(
        st.builds(
            lambda rule, target, cgroup_id, program_id: attachment(
                str(rule),
                target=target,
                cgroup_id=cgroup_id,
                direction=rule.direction,
                program_id=program_id,
            ),
            rules,
            st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=200),
            st.integers(1, 2**63),
            st.none() | st.integers(1, 2**32 - 1),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_every_row_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[Attachment]) -> None:
    folder = tmp_path_factory.mktemp("state", numbered=True) / "state"
    written(folder, rows)
    assert ledger.read(folder) == rows


def test_no_rows_leave_no_file(folder: Path) -> None:
    written(folder, ROWS)
    (folder / "ledger.json.new").write_text("left by a crash")
    written(folder, [])
    assert names(folder) == []
    assert ledger.read(folder) == []


def test_no_folder_means_no_rows(folder: Path) -> None:
    assert ledger.read(folder) == []
    assert not folder.exists()


def test_entries_of_an_earlier_boot_are_left_out(folder: Path) -> None:
    changed(written(folder, ROWS), lambda content: content.update(boot_id="another boot"))
    assert ledger.read(folder) == []


def test_staging_file_of_a_crash_is_not_read(folder: Path) -> None:
    written(folder, ROWS[:1])
    (folder / "ledger.json.new").write_text("{")
    assert ledger.read(folder) == ROWS[:1]
    written(folder, ROWS)
    assert names(folder) == ["ledger.json"]


# Damage

ABSENT = "<absent>"


def row_changes(**fields: object) -> Callable[[Path], None]:
    return lambda path: changed(path, lambda content: content["attachments"][0].update(fields))


def link_changes(**fields: object) -> Callable[[Path], None]:
    """The first row has a link, with these fields."""
    link = {"namespace": 4026532000, "index": 2, "side": "egress", "name": "eth0"} | fields
    return row_changes(links=[{name: value for name, value in link.items() if value != ABSENT}])


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_text(""),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "not UTF-8": lambda path: path.write_bytes(b'"\xff"'),
    "another program's": lambda path: path.write_text('{"hello": "world"}'),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("5"),
    "nested too deeply": lambda path: path.write_text("[" * 100_000),
    "of a later version": lambda path: changed(path, lambda content: content.update(version=2)),
    "without a version": lambda path: changed(path, lambda content: content.pop("version")),
    "without a boot": lambda path: changed(path, lambda content: content.pop("boot_id")),
    "without attachments": lambda path: changed(path, lambda content: content.pop("attachments")),
    "attachments no list": lambda path: changed(path, lambda content: content.update(attachments=5)),
    "a row no object": lambda path: changed(path, lambda content: content["attachments"].append("row")),
    "a field more": row_changes(extra=1),
    "a field less": lambda path: changed(path, lambda content: content["attachments"][0].pop("owner")),
    "a direction that is none": row_changes(direction="sideways"),
    "a pod that is none": row_changes(pod={"name": "web"}),
    "a rule that cannot be read": row_changes(rule="bandwidth=fast"),
    "a rule that is no text": row_changes(rule=5),
    "an owner that is a path": row_changes(owner="../etc"),
    "an owner that is no text": row_changes(owner=5),
    "a digest that is a path": row_changes(digest="../etc"),
    "an empty digest": row_changes(digest=""),
    "a cgroup that is no number": row_changes(cgroup_id="7"),
    "links that are no list": row_changes(links=5),
    "links that are nothing": row_changes(links=None),
    "a link that is no object": row_changes(links=["eth0"]),
    "a link that is a list": row_changes(links=[["eth0", 2]]),
    "a side that is none": link_changes(side="sideways"),
    "a link without a side": link_changes(side=ABSENT),
    "a link without a number": link_changes(index=ABSENT),
    "an interface that is no number": link_changes(index="2"),
    "a namespace that is no number": link_changes(namespace=None),
    "a name that is no text": link_changes(name=2),
    "a link with a field more": link_changes(extra=1),
    "a scope that is no yes or no": row_changes(is_scoped="yes"),
    "a folder": become_a_folder,
}


def test_link_without_damage_is_read(folder: Path) -> None:
    link_changes()(written(folder, ROWS))
    assert ledger.read(folder)[0].links == LINKS[:1]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_ledger_is_never_read_as_empty(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(written(folder, ROWS))
    with pytest.raises(DamagedLedgerError, match=r"ledger\.json is not a ledger that podmgr can read"):
        ledger.read(folder)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_ledger_is_set_aside_and_kept(folder: Path, damage: Callable[[Path], object]) -> None:
    path = written(folder, ROWS)
    damage(path)
    content = path.read_bytes() if path.is_file() else None
    with ledger.locked(folder) as state:
        rows, aside = ledger.read_or_set_aside(state)
        assert ledger.read_or_set_aside(state) == ([], None)
    assert rows == []
    assert aside is not None and aside.parent == folder and aside.name.startswith("ledger.json.damaged-")
    assert (aside.read_bytes() if aside.is_file() else None) == content
    assert names(folder) == [aside.name]


def test_sound_ledger_is_not_set_aside(folder: Path) -> None:
    written(folder, ROWS)
    with ledger.locked(folder) as state:
        assert ledger.read_or_set_aside(state) == (ROWS, None)


def test_ledger_that_may_not_be_read_is_no_damaged_one(folder: Path, mocker: MockerFixture) -> None:
    written(folder, ROWS)
    mocker.patch.object(Path, "open", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionDeniedError, match="not allowed to read the ledger in"):
        ledger.read(folder)


# A full disk, and crashes


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_full_disk_leaves_the_old_ledger(folder: Path, mocker: MockerFixture, call: str) -> None:
    written(folder, ROWS[:1])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    mocker.patch(f"podmgr.reconcile.ledger.{call}", side_effect=full)
    with pytest.raises(PodmgrError) as caught:
        written(folder, ROWS)
    assert "cannot write the ledger" in caught.value.message
    assert "No space left on device" in caught.value.message
    assert names(folder) == ["ledger.json"]
    assert ledger.read(folder) == ROWS[:1]


def test_crash_before_the_rename_leaves_the_old_ledger(folder: Path, mocker: MockerFixture) -> None:
    written(folder, ROWS[:1])
    mocker.patch("podmgr.reconcile.ledger.os.replace", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        written(folder, ROWS)
    assert ledger.read(folder) == ROWS[:1]


def test_ledger_is_on_the_disk_before_it_takes_its_name(folder: Path, mocker: MockerFixture) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def recorded(*args: Any, name: str = name, real: Callable[..., object] = real) -> None:
            calls.append(name)
            real(*args)

        mocker.patch(f"podmgr.reconcile.ledger.os.{name}", side_effect=recorded)
    written(folder, ROWS)
    assert calls == ["fsync", "replace", "fsync"]


# The folder


def test_folder_is_made_for_its_owner_alone(folder: Path) -> None:
    with ledger.locked(folder / "deeper") as state:
        assert state.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o720, 0o1777])
def test_folder_that_others_may_write_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with (
        pytest.raises(PermissionDeniedError, match="others may write to the state folder") as caught,
        ledger.locked(folder),
    ):
        pass
    is_for_all = bool(mode & 0o1000)  # closing /tmp would harm others
    assert (caught.value.tip == f"chmod go-w {folder}") is not is_for_all


def test_folder_of_another_user_is_refused_and_stays_his(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 0)
    with (
        pytest.raises(PermissionDeniedError, match="others may write to the state folder") as caught,
        ledger.locked(folder),
    ):
        pass
    assert caught.value.tip == "name a folder for podmgr alone with --state-dir"


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o500])
def test_folder_that_others_may_only_read_is_accepted(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with ledger.locked(folder) as state:
        assert state.folder == folder


def test_folder_that_may_not_be_made_is_a_lack_of_rights(folder: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(Path, "mkdir", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with (
        pytest.raises(PermissionDeniedError, match="not allowed to use the state folder"),
        ledger.locked(folder),
    ):
        pass


@pytest.mark.parametrize("below", ["", "deeper"])
def test_state_folder_that_is_a_file_is_an_error(folder: Path, below: str) -> None:
    folder.write_text("")
    with pytest.raises(PodmgrError, match="state folder"), ledger.locked(folder / below):
        pass
    assert ledger.read(folder / below) == []


# The lock


def test_lock_excludes_another_process(folder: Path) -> None:
    with ledger.locked(folder):
        assert is_locked_for_others(folder)
    assert not is_locked_for_others(folder)


def test_lock_ends_with_an_error_in_the_block(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), ledger.locked(folder):
        raise ZeroDivisionError
    assert not is_locked_for_others(folder)


def test_lock_lasts_until_the_last_child_has_ended(folder: Path) -> None:
    with ledger.locked(folder) as state:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=state.fds)
    assert is_locked_for_others(folder)
    child.communicate()
    assert not is_locked_for_others(folder)


def test_other_children_do_not_hold_the_lock(folder: Path) -> None:
    with ledger.locked(folder):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert not is_locked_for_others(folder)
    child.communicate()


def test_waiting_is_announced_once_and_ends_with_the_other(folder: Path, mocker: MockerFixture) -> None:
    announced: list[str] = []
    with ledger.locked(folder) as first:
        release = [lambda: None, lambda: fcntl.flock(first.lock, fcntl.LOCK_UN)]
        sleep = mocker.patch("podmgr.reconcile.ledger.time.sleep", side_effect=lambda _: release.pop(0)())
        with ledger.locked(folder, on_wait=lambda: announced.append("waiting")):
            assert announced == ["waiting"]
        assert sleep.call_count == 2


def test_free_lock_is_not_waited_for(folder: Path) -> None:
    announced: list[str] = []
    with ledger.locked(folder, on_wait=lambda: announced.append("waiting")):
        assert announced == []


def test_lock_that_is_never_free_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LOCK_TIMEOUT_SECONDS", -1.0)
    with (
        ledger.locked(folder),
        pytest.raises(PodmgrError, match="another podmgr has held the lock"),
        ledger.locked(folder),
    ):
        pass


def test_rows_of_a_pod_keep_its_names(folder: Path) -> None:
    row = ROWS[1]._replace(pod=PodRef("default", "web", ""))
    written(folder, [row])
    assert ledger.read(folder)[0].pod == PodRef("default", "web", "")


@pytest.mark.parametrize(
    "field",
    [
        {"owner": ".."},
        {"owner": ""},
        {"owner": "a/b"},
        {"digest": ".."},
        {"program_id": "5"},
        {"cgroup_path": "/a\0b"},
        {"digest": "f" * 65},
    ],
)
def test_row_that_would_lead_elsewhere_damages_the_ledger(tmp_path: Path, field: dict[str, object]) -> None:
    with ledger.locked(tmp_path / "state") as state:
        ledger.write(state, [attachment(program_id=5)])
        path = state.folder / "ledger.json"
        content = json.loads(path.read_text())
        content["attachments"][0] |= field
        path.write_text(json.dumps(content))
        with pytest.raises(ledger.DamagedLedgerError):
            ledger.read(state.folder)


# What is remembered


@pytest.fixture
def parsed(mocker: MockerFixture) -> MagicMock:
    """Counts how often a ledger is parsed."""
    spy: MagicMock = mocker.patch("podmgr.reconcile.ledger.json.loads", side_effect=json.loads)
    return spy


def forget() -> None:
    """As a process that has just begun."""
    ledger._cached.remember((), ())


def test_ledger_that_has_not_changed_is_not_parsed_again(folder: Path, parsed: MagicMock) -> None:
    written(folder, ROWS)
    assert ledger.read(folder) == ROWS
    assert parsed.call_count == 0  # it was written here
    forget()
    for _ in range(3):
        assert ledger.read(folder) == ROWS
    assert parsed.call_count == 1


def test_reader_may_change_the_list_that_it_was_given(folder: Path) -> None:
    given = list(ROWS)
    written(folder, given)
    given.clear()
    ledger.read(folder).clear()
    forget()
    ledger.read(folder).pop()
    assert ledger.read(folder) == ROWS


WRITE = """
import sys
from pathlib import Path
from podmgr.reconcile import ledger
folder = Path(sys.argv[1])
with ledger.locked(folder) as state:
    ledger.write(state, ledger.read(folder)[1:])
"""


def test_what_another_process_writes_is_seen(folder: Path) -> None:
    written(folder, ROWS)
    assert ledger.read(folder) == ROWS
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True)
    assert ledger.read(folder) == ROWS[1:]
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True)
    assert ledger.read(folder) == []


def test_each_folder_has_its_own_rows(tmp_path: Path) -> None:
    written(tmp_path / "a", ROWS[:1])
    written(tmp_path / "b", ROWS[1:])
    for _ in range(2):
        assert ledger.read(tmp_path / "a") == ROWS[:1]
        assert ledger.read(tmp_path / "b") == ROWS[1:]
    assert ledger.read(tmp_path / "c") == []


def test_damage_after_a_reading_is_seen(folder: Path) -> None:
    path = written(folder, ROWS)
    ledger.read(folder)
    path.write_text(path.read_text()[:-5])
    for _ in range(2):
        with pytest.raises(DamagedLedgerError):
            ledger.read(folder)


def test_rows_that_could_not_be_written_are_not_remembered(folder: Path, mocker: MockerFixture) -> None:
    written(folder, ROWS[:1])
    mocker.patch("podmgr.reconcile.ledger.os.replace", side_effect=OSError(errno.ENOSPC, "full"))
    with pytest.raises(PodmgrError, match="cannot write the ledger"):
        written(folder, ROWS)
    assert ledger.read(folder) == ROWS[:1]


def test_ledger_of_an_earlier_boot_stays_empty(folder: Path) -> None:
    changed(written(folder, ROWS), lambda content: content.update(boot_id="earlier"))
    forget()
    assert ledger.read(folder) == []
    assert ledger.read(folder) == []


def test_ledger_has_a_line_for_each_row(folder: Path) -> None:
    """So that two of them can be compared by eye, and one can be searched."""
    lines = written(folder, ROWS).read_text().splitlines()
    assert len(lines) == len(ROWS) + 2
    assert [json.loads(line.rstrip(","))["rule"] for line in lines[1:-1]] == [str(row.rule) for row in ROWS]


def test_signature_tells_of_each_change_and_of_nothing_else(folder: Path) -> None:
    seen = [ledger.signature(folder)]
    for rows in (ROWS, ROWS[:1], ROWS):
        written(folder, rows)
        seen.append(ledger.signature(folder))
        ledger.read(folder)
        assert ledger.signature(folder) == seen[-1]
    written(folder, [])
    assert ledger.signature(folder) == seen[0] == ()
    assert len(set(seen)) == len(seen)
