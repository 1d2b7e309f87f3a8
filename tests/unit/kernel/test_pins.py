"""The paths of pins, on an ordinary file system: where they lie, and which are found and removed."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import pins
from podmgr.kernel.mounts import Mount
from podmgr.kernel.pins import Mark, Pin
from podmgr.proc import Completed
from tests.unit.samples import Script, said

FAILING = Script(said("", code=1))


def pinned(pin: Pin, *, program: bool = True, maps: Sequence[str] = ("podmgr_counters",)) -> Pin:
    """A pin, all of it or half."""
    Path(pin.program).parent.mkdir(parents=True, exist_ok=True)
    if program:
        Path(pin.program).write_text("")
    if maps:
        Path(pin.maps).mkdir()
    for name in maps:
        Path(pin.maps, name).write_text("")
    return pin


def test_pin_carries_owner_and_digest_in_its_path() -> None:
    pin = Pin(Path("/bpf/podmgr"), "owner", "0000000000000abc")
    assert pin.program == "/bpf/podmgr/owner/0000000000000abc"
    assert pin.maps == "/bpf/podmgr/owner/0000000000000abc-maps"
    assert pin.counters == "/bpf/podmgr/owner/0000000000000abc-maps/podmgr_counters"


def test_pins_are_found_whole_and_halfway(tmp_path: Path) -> None:
    whole = pinned(Pin(tmp_path, "b", "0000000000000111"))
    without_maps = pinned(Pin(tmp_path, "a", "0000000000000222"), maps=())
    without_program = pinned(Pin(tmp_path, "a", "0000000000000111"), program=False)
    (tmp_path / "empty-owner").mkdir()
    (tmp_path / "a-stray-file").write_text("")
    assert list(pins.pinned(tmp_path)) == [without_program, without_maps, whole]


@pytest.mark.parametrize("name", ["gone", "file", "file/below"])
def test_no_folder_holds_no_pins(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    assert list(pins.pinned(tmp_path / name)) == []


def test_not_being_allowed_to_look_is_not_nothing_pinned(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch(
        "podmgr.kernel.pins.os.listdir", side_effect=PermissionError(errno.EACCES, "Permission denied")
    )
    with pytest.raises(PermissionDeniedError, match="not allowed to use"):
        list(pins.pinned(tmp_path))


@pytest.mark.parametrize(
    ("program", "maps"), [(True, ["podmgr_counters", "other"]), (True, []), (False, ["other"]), (False, [])]
)
def test_removing_a_pin_removes_all_there_is_of_it(tmp_path: Path, program: bool, maps: list[str]) -> None:
    other = pinned(Pin(tmp_path, "owner", "000000000000beef"))
    pins.remove(pinned(Pin(tmp_path, "owner", "0000000000000abc"), program=program, maps=maps))
    assert list(pins.pinned(tmp_path)) == [other]
    assert Path(other.program).exists() and Path(other.counters).exists()


@pytest.mark.parametrize("name", ["cilium", "0123456789ABCDEF", "0123456789abcdef0", "x-maps"])
def test_what_is_not_named_after_a_digest_is_another_s(tmp_path: Path, name: str) -> None:
    pinned(Pin(tmp_path, "owner", name))
    assert list(pins.pinned(tmp_path)) == []


@pytest.mark.parametrize(
    ("mount", "name", "words"),
    [
        ("ext4", "", "is not on a bpf file system"),
        ("ext4", "file", "is not on a bpf file system"),
        ("bpf", "", "holds the pins of others too"),
        ("bpf", "a.b", "no name may hold a dot"),
        ("bpf", "a.b/c", "no name may hold a dot"),
    ],
)
def test_folder_that_is_no_place_for_pins_is_refused(
    tmp_path: Path, mocker: MockerFixture, mount: str, name: str, words: str
) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(tmp_path, mount)])
    (tmp_path / "file").write_text("")
    with pytest.raises(PodmgrError, match=words) as caught:
        pins.require_place(tmp_path / name)
    assert "--bpffs" in (caught.value.tip or "")


def test_folder_of_its_own_that_a_container_is_given_is_a_place(
    tmp_path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(tmp_path, "bpf", Path("/podmgr"))])
    pins.require_place(tmp_path)


@pytest.mark.parametrize(("mount", "name"), [("ext4", "gone"), ("bpf", "podmgr"), ("bpf", "a/b")])
def test_folder_that_is_there_or_can_be_made_is_a_place(
    tmp_path: Path, mocker: MockerFixture, mount: str, name: str
) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(tmp_path, mount)])
    pins.require_place(tmp_path / name)


def test_removing_a_pin_that_is_gone_is_fine(tmp_path: Path) -> None:
    pins.remove(Pin(tmp_path, "owner", "0000000000000abc"))
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_maps_is_removed_and_not_followed(tmp_path: Path) -> None:
    beyond = tmp_path / "beyond"
    beyond.mkdir()
    (beyond / "precious").write_text("")
    pin = pinned(Pin(tmp_path / "bpffs", "owner", "0000000000000abc"), maps=())
    Path(pin.maps).symlink_to(beyond)
    pins.remove(pin)
    assert not Path(pin.maps).is_symlink()
    assert (beyond / "precious").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_may_write_to_is_not_ours(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(PermissionDeniedError, match="others may write to the pins' folder"):
        pins.require_own(tmp_path)


def test_a_folder_of_another_user_is_not_ours(tmp_path: Path, mocker: MockerFixture) -> None:
    pins.require_own(tmp_path)
    pins.require_own(tmp_path / "gone")
    mocker.patch("podmgr.kernel.pins.os.lstat", return_value=mocker.Mock(st_uid=1000, st_mode=0o40700))
    mocker.patch("podmgr.kernel.pins.os.geteuid", return_value=0)
    with pytest.raises(PermissionDeniedError, match="others may write to the pins' folder"):
        pins.require_own(tmp_path)


def test_owners_folder_is_made_once(tmp_path: Path) -> None:
    assert pins.make_owner(tmp_path, "owner")
    assert not pins.make_owner(tmp_path, "owner")
    assert (tmp_path / "owner").stat().st_mode & 0o777 == 0o700


def test_folders_without_pins_are_removed(tmp_path: Path) -> None:
    bpffs = tmp_path / "bpffs"
    for owner in ("a", "b"):
        (bpffs / owner).mkdir(parents=True)
    pins.remove_empty_folders(bpffs)
    assert not bpffs.exists()
    pins.remove_empty_folders(bpffs)


def test_folders_with_pins_stay(tmp_path: Path) -> None:
    pin = pinned(Pin(tmp_path, "owner", "0000000000000abc"))
    (tmp_path / "empty").mkdir()
    pins.remove_empty_folders(tmp_path)
    assert list(pins.pinned(tmp_path)) == [pin]
    assert not (tmp_path / "empty").exists()


def test_folder_on_another_file_system_is_refused(tmp_path: Path) -> None:
    runner = Script(said(""))
    with pytest.raises(PodmgrError, match="is not on a bpf file system"):
        pins.ensure_bpffs(tmp_path / "bpffs", runner=runner)
    assert runner.calls == []
    assert not (tmp_path / "bpffs").exists()


def test_without_root_another_file_system_is_a_lack_of_rights(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.pins.os.geteuid", return_value=1000)
    with pytest.raises(PermissionDeniedError, match="not allowed to use"):
        pins.ensure_bpffs(tmp_path / "bpffs", runner=FAILING)


def test_folder_on_bpffs_is_made_without_mounting(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(tmp_path, "bpf")])
    runner = Script(said(""))
    bpffs = tmp_path / "a/b"
    assert not pins.ensure_bpffs(bpffs, runner=runner)
    assert not pins.ensure_bpffs(bpffs, runner=runner)
    assert bpffs.stat().st_mode & 0o777 == 0o700
    assert runner.calls == []


def test_folder_that_may_not_be_made_is_a_lack_of_rights(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(tmp_path, "bpf")])
    mocker.patch.object(Path, "mkdir", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionDeniedError, match="not allowed to use"):
        pins.ensure_bpffs(tmp_path / "bpffs", runner=FAILING)


def test_bpffs_is_mounted_at_its_usual_place_if_need_be(tmp_path: Path, mocker: MockerFixture) -> None:
    table: list[Mount] = []
    mocker.patch("podmgr.kernel.mounts.table", return_value=table)
    mocker.patch("podmgr.kernel.pins._DEFAULT_MOUNT", tmp_path)

    def mount(argv: Sequence[str], _: bytes) -> Completed:
        table.append(Mount(Path(argv[-1]), argv[2]))
        return said("")

    runner = Script(mount)
    assert pins.ensure_bpffs(tmp_path / "podmgr", runner=runner)
    assert runner.calls == [("mount", "-t", "bpf", "bpf", str(tmp_path))]
    assert (tmp_path / "podmgr").is_dir()


def test_bpffs_that_cannot_be_mounted_is_an_error(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(Path("/"), "ext4")])
    mocker.patch("podmgr.kernel.pins._DEFAULT_MOUNT", tmp_path)
    with pytest.raises(PodmgrError, match="is not on a bpf file system"):
        pins.ensure_bpffs(tmp_path / "podmgr", runner=FAILING)
    assert not (tmp_path / "podmgr").exists()


def test_owners_are_the_folders_of_pods_and_of_plain_cgroups(tmp_path: Path) -> None:
    for owner in ("846f24d4-50e1-452e-91c0-7dfcee8503e9", "f87be1b7b104c9de4fc88b23866881f2", "4711"):
        (tmp_path / owner).mkdir()
    assert pins.owners(tmp_path) == {path.name for path in tmp_path.iterdir()}
    assert pins.owners(tmp_path, pods_only=True) == pins.owners(tmp_path) - {"4711"}


@pytest.mark.parametrize("name", ["gone", "file", "file/below"])
@pytest.mark.parametrize("pods_only", [True, False])
def test_no_folder_has_no_owners(tmp_path: Path, name: str, pods_only: bool) -> None:
    (tmp_path / "file").write_text("")
    assert pins.owners(tmp_path / name, pods_only=pods_only) == set()


def test_not_being_allowed_to_list_owners_is_not_having_none(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch(
        "podmgr.kernel.pins.os.listdir", side_effect=PermissionError(errno.EACCES, "Permission denied")
    )
    with pytest.raises(PermissionDeniedError, match="not allowed to use"):
        pins.owners(tmp_path, pods_only=True)


def test_pins_of_some_owners_alone_can_be_asked_for(tmp_path: Path) -> None:
    one, two, _ = (pinned(Pin(tmp_path, owner, "0000000000000abc")) for owner in ("a", "b", "c"))
    assert list(pins.pinned(tmp_path, {"b", "a", "gone"})) == [one, two]
    assert list(pins.pinned(tmp_path, ())) == []


# Marks: qdiscs that podmgr made

CLSACT, FQ = Mark(4026532000, 2, "clsact"), Mark(4026532000, 2, "fq")


def test_marks_are_found_until_they_are_taken_away(tmp_path: Path) -> None:
    assert pins.marks(tmp_path) == []
    other = Mark(5, 12, "fq")
    for made in (FQ, other, CLSACT, CLSACT):
        pins.mark(tmp_path, made)
    assert pins.marks(tmp_path) == [other, CLSACT, FQ]
    pins.unmark(tmp_path, CLSACT)
    pins.unmark(tmp_path, CLSACT)
    assert pins.marks(tmp_path) == [other, FQ]


def test_marks_in_a_folder_that_is_gone_are_none(tmp_path: Path) -> None:
    assert pins.marks(tmp_path / "gone") == []
    pins.unmark(tmp_path / "gone", FQ)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "name", ["", "5-2", "5-2-fq-x", "a-2-fq", "5--2-fq", "5-2-FQ", "\u0665-2-fq", "5-2-fq\n", "x"]
)
def test_what_is_no_mark_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "qdiscs" / name).mkdir(parents=True)
    pins.mark(tmp_path, FQ)
    assert pins.marks(tmp_path) == [FQ]


def test_marks_are_the_pins_of_nobody(tmp_path: Path) -> None:
    pin = pinned(Pin(tmp_path, "owner", "0000000000000abc"))
    pins.mark(tmp_path, FQ)
    assert pins.owners(tmp_path) == pins.owners(tmp_path, pods_only=True) == {"owner"}
    assert list(pins.pinned(tmp_path)) == [pin]


def test_marks_keep_the_folder_until_the_last_one_goes(tmp_path: Path) -> None:
    bpffs = tmp_path / "bpffs"
    pins.mark(bpffs, FQ)
    pins.remove_empty_folders(bpffs)
    assert pins.marks(bpffs) == [FQ]
    pins.unmark(bpffs, FQ)
    pins.remove_empty_folders(bpffs)
    assert not bpffs.exists()


def test_scope_of_a_program_is_one_of_its_maps() -> None:
    assert (
        Pin(Path("/bpf"), "owner", "0000000000000abc").scope
        == "/bpf/owner/0000000000000abc-maps/podmgr_scope"
    )
