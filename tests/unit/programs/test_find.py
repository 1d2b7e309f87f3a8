"""Finding programs: the built-ins first, then the program folder, if only root could have written it.

These tests give files away to other users, and need root for that.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.programs.find import find_source, shipped_folder
from podmgr.programs.spec import ProgramSource
from podmgr.rules.kinds import BUILT_IN_PROGRAMS
from podmgr.settings import Settings

INVOKER, STRANGER = 54_321, 54_322
EMPTY_GROUP = 54_323
SOURCE = "int x;\n"
INCLUDING = '#include "shared.h"\n'
BUILT_IN = ", ".join(sorted(BUILT_IN_PROGRAMS))
NAMED = b"""\
#line 1 "dropper.bpf.c"
#line 1 "shared.h"
int x;

#line 2 "dropper.bpf.c"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program folder that only root can write, with one program and the header that it includes."""
    made = tmp_path / "programs"
    made.mkdir()
    made.chmod(0o755)
    for name, text in (("dropper.bpf.c", INCLUDING), ("shared.h", SOURCE)):
        (made / name).write_text(text)
        (made / name).chmod(0o644)
    return made


@pytest.fixture(autouse=True)
def called_through_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(INVOKER))


def find(folder: Path, name: str = "dropper", *, trusts_invoker: bool = False) -> ProgramSource:
    return find_source(name, Settings(program_dir=folder, trusts_invoker=trusts_invoker))


PARTS = pytest.mark.parametrize("part", [".", "dropper.bpf.c", "shared.h"])


# What is found


def test_roots_program_is_found_with_its_headers(folder: Path) -> None:
    found = find(folder)
    assert (found.name, found.content, found.is_object) == ("dropper", NAMED, False)
    (folder / "dropper.bpf.c").write_text('#include "shared.h"\n#include "podmgr.h"\n')
    content = find(folder).content
    assert SOURCE.encode() in content
    assert b"#define PODMGR_H" in content


def test_ready_object_is_found(folder: Path) -> None:
    (folder / "ready.bpf.o").write_bytes(b"\x7fELF")
    assert find(folder, "ready") == ProgramSource("ready", b"\x7fELF", is_object=True)


def test_source_goes_before_a_ready_object(folder: Path) -> None:
    (folder / "dropper.bpf.o").write_bytes(b"\x7fELF")
    assert not find(folder).is_object


@pytest.mark.parametrize("name", sorted(BUILT_IN_PROGRAMS))
@pytest.mark.parametrize("is_there", [True, False], ids=["with a folder", "without a folder"])
def test_built_in_program_is_podmgrs_own(folder: Path, name: str, is_there: bool) -> None:
    found = find(folder if is_there else folder / "gone", name)
    shipped = shipped_folder("bpf")
    assert found.content.endswith((shipped / f"{name}.bpf.c").read_bytes().partition(b'"podmgr.h"')[2])
    assert b"#define PODMGR_H" in found.content


@pytest.mark.parametrize("name", sorted(BUILT_IN_PROGRAMS))
@pytest.mark.parametrize("suffix", [".bpf.c", ".bpf.o"])
def test_program_that_hides_a_built_in_is_refused(folder: Path, name: str, suffix: str) -> None:
    (folder / f"{name}{suffix}").write_text(SOURCE)
    with pytest.raises(PodmgrError, match=f"hides podmgr's own program {name}"):
        find(folder, name)


def test_unknown_program_names_those_that_there_are(folder: Path) -> None:
    with pytest.raises(PodmgrError, match="there is no program dropp") as caught:
        find(folder, "dropp")
    assert (caught.value.tip or "").endswith(f"known: {BUILT_IN}, dropper")


def test_only_programs_that_could_be_used_are_named(folder: Path) -> None:
    for name in ("ready.bpf.o", "both.bpf.c", "both.bpf.o", "a b.bpf.c", ".bpf.c", "-x.bpf.c", "edt.bpf.c"):
        (folder / name).write_text(SOURCE)
    (folder / "linked.bpf.c").symlink_to("dropper.bpf.c")
    (folder / "dangling.bpf.c").symlink_to("gone")
    (folder / "strange.bpf.c").mkdir()
    os.mkfifo(folder / "pipe.bpf.c")
    for name in ("open.bpf.c", "hidden.bpf.c"):
        (folder / name).write_text(SOURCE)
        (folder / name).chmod(0o666)
    (folder / "hidden.bpf.o").write_bytes(b"\x7fELF")  # the source goes first, and is refused
    own = ", ".join(sorted(BUILT_IN_PROGRAMS - {"edt"}))
    with pytest.raises(PodmgrError) as caught:
        find(folder, "dropp")
    assert (caught.value.tip or "").endswith(f"known: {own}, both, dropper, linked, ready")


NO_FOLDER = pytest.mark.parametrize(
    ("name", "problem"),
    [("gone", "gone: No such file or directory"), ("dropper.bpf.c", r"dropper\.bpf\.c is not a folder")],
)


@NO_FOLDER
def test_a_folder_that_is_none_holds_no_programs_and_is_told(folder: Path, name: str, problem: str) -> None:
    with pytest.raises(PodmgrError, match=f"there is no program dropper: .*{problem}") as caught:
        find(folder / name)
    assert (caught.value.tip or "").endswith(f"known: {BUILT_IN}")


@NO_FOLDER
def test_a_folder_that_is_named_on_the_command_line_is_there(folder: Path, name: str, problem: str) -> None:
    named = str(folder / name)
    words = [sys.executable, "-m", "podmgr", "compile", "--explain", "loss=uniform egress 1%"]
    later = os.environ | {"PODMGR_PROGRAM_DIR": named}  # like the default one it may come later
    assert subprocess.run(words, env=later, capture_output=True, check=True).stdout
    done = subprocess.run([*words, "--program-dir", named], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(problem, done.stderr)


def test_program_that_is_a_folder_is_refused(folder: Path) -> None:
    (folder / "strange.bpf.c").mkdir()
    with pytest.raises(PodmgrError, match=r"strange\.bpf\.c"):
        find(folder, "strange")


def test_device_is_refused(folder: Path) -> None:
    (folder / "null.bpf.c").symlink_to(os.devnull)
    with pytest.raises(PodmgrError, match=r"null\.bpf\.c is not a regular file"):
        find(folder, "null")


# Who may have written it


@PARTS
def test_what_everybody_can_write_is_refused(folder: Path, part: str) -> None:
    (folder / part).chmod(0o757)
    with pytest.raises(PermissionDeniedError, match="everybody can write"):
        find(folder)
    with pytest.raises(PermissionDeniedError, match="everybody can write"):
        find(folder, trusts_invoker=True)


@PARTS
def test_sticky_bit_makes_no_folder_trusted(folder: Path, part: str) -> None:
    (folder / part).chmod(0o1777)
    with pytest.raises(PermissionDeniedError, match="everybody can write"):
        find(folder)


@PARTS
@pytest.mark.parametrize("trusts_invoker", [True, False])
def test_what_a_stranger_owns_is_refused(folder: Path, part: str, trusts_invoker: bool) -> None:
    os.chown(folder / part, STRANGER, 0)
    with pytest.raises(PermissionDeniedError, match=f"user {STRANGER} can write .*; programs must be root's"):
        find(folder, trusts_invoker=trusts_invoker)


@PARTS
def test_what_a_stranger_owns_is_refused_also_without_the_right_to_write(folder: Path, part: str) -> None:
    os.chown(folder / part, STRANGER, 0)
    (folder / part).chmod(0o555)
    with pytest.raises(PermissionDeniedError, match=f"user {STRANGER} can write"):
        find(folder)


@PARTS
def test_what_the_invoker_owns_is_trusted_only_in_a_folder_named_on_the_command_line(
    folder: Path, part: str
) -> None:
    os.chown(folder / part, INVOKER, 0)
    assert find(folder, trusts_invoker=True).content == NAMED
    with pytest.raises(PermissionDeniedError, match=f"user {INVOKER} can write"):
        find(folder)


def test_without_sudo_only_roots_programs_are_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID")
    assert find(folder, trusts_invoker=True).content == NAMED
    os.chown(folder / "dropper.bpf.c", INVOKER, 0)
    with pytest.raises(PermissionDeniedError, match=f"user {INVOKER} can write"):
        find(folder, trusts_invoker=True)


def test_user_who_is_not_root_trusts_himself_and_not_who_the_environment_names(
    folder: Path, mocker: MockerFixture
) -> None:
    mocker.patch("podmgr.programs.vetting.os.getuid", return_value=STRANGER)
    os.chown(folder / "dropper.bpf.c", STRANGER, 0)
    assert find(folder, trusts_invoker=True).content == NAMED
    with pytest.raises(PermissionDeniedError, match=f"user {STRANGER} can write"):
        find(folder)
    os.chown(folder / "dropper.bpf.c", INVOKER, 0)
    with pytest.raises(PermissionDeniedError, match=f"user {INVOKER} can write"):
        find(folder, trusts_invoker=True)


@PARTS
@pytest.mark.parametrize("trusts_invoker", [True, False])
def test_what_a_group_with_other_members_can_write_is_refused(
    folder: Path, part: str, trusts_invoker: bool
) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(folder / part, 0, nobody.pw_gid)
    (folder / part).chmod(0o775)
    with pytest.raises(PermissionDeniedError, match=r"nobody.* can write"):
        find(folder, trusts_invoker=trusts_invoker)


@PARTS
def test_members_count_also_where_the_group_is_not_their_first(
    folder: Path, part: str, mocker: MockerFixture
) -> None:
    group = grp.struct_group(("devs", "x", EMPTY_GROUP, ["nobody"]))
    mocker.patch("podmgr.programs.vetting.grp.getgrgid", return_value=group)
    os.chown(folder / part, 0, EMPTY_GROUP)
    (folder / part).chmod(0o775)
    with pytest.raises(PermissionDeniedError, match="nobody can write"):
        find(folder)


@PARTS
def test_group_that_may_only_read_does_not_matter(folder: Path, part: str) -> None:
    os.chown(folder / part, 0, pwd.getpwnam("nobody").pw_gid)
    (folder / part).chmod(0o755)
    assert find(folder).content == NAMED


@PARTS
def test_group_without_other_members_may_write(folder: Path, part: str) -> None:
    os.chown(folder / part, 0, EMPTY_GROUP)
    (folder / part).chmod(0o775)
    assert find(folder).content == NAMED


def test_ready_object_is_held_to_the_same_rules(folder: Path) -> None:
    ready = folder / "ready.bpf.o"
    ready.write_bytes(b"\x7fELF")
    os.chown(ready, STRANGER, 0)
    with pytest.raises(PermissionDeniedError, match=f"user {STRANGER} can write"):
        find(folder, "ready")


# What the tip says must harm nobody else


COPY = "copy the program and its headers to a folder that only its owner can write to"


def tip(folder: Path, *, trusts_invoker: bool = False) -> str:
    with pytest.raises(PermissionDeniedError, match=r"^program dropper: ") as caught:
        find(folder, trusts_invoker=trusts_invoker)
    return caught.value.tip or ""


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o777, "chmod o-w {}"), (0o775, "chmod g-w,o-w {}"), (0o1777, COPY)]
)
def test_a_folder_of_ones_own_is_to_be_closed_and_one_for_all_to_be_left_alone(
    folder: Path, mode: int, expected: str
) -> None:
    os.chown(folder, 0, pwd.getpwnam("nobody").pw_gid)
    folder.chmod(mode)
    assert tip(folder).startswith(expected.format(folder))


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o1777])
def test_a_folder_of_somebody_else_is_to_be_left_alone(folder: Path, mode: int) -> None:
    os.chown(folder, STRANGER, 0)
    folder.chmod(mode)
    assert tip(folder).startswith(COPY)
    assert tip(folder, trusts_invoker=True).startswith(COPY)


def test_a_folder_of_the_invoker_is_his_to_close(folder: Path) -> None:
    os.chown(folder, INVOKER, 0)
    folder.chmod(0o777)
    assert tip(folder, trusts_invoker=True) == f"chmod o-w {folder}"


def test_who_is_not_root_is_told_to_change_nothing_of_others(folder: Path, mocker: MockerFixture) -> None:
    for name in ("getuid", "geteuid"):
        mocker.patch(f"podmgr.programs.vetting.os.{name}", return_value=STRANGER)
    folder.chmod(0o777)  # root's
    assert tip(folder, trusts_invoker=True).startswith(COPY)
    folder.chmod(0o755)
    os.chown(folder / "dropper.bpf.c", INVOKER, 0)
    assert tip(folder, trusts_invoker=True).startswith(COPY)
    os.chown(folder / "dropper.bpf.c", STRANGER, 0)
    (folder / "dropper.bpf.c").chmod(0o666)
    assert tip(folder, trusts_invoker=True) == f"chmod o-w {folder / 'dropper.bpf.c'}"


def test_a_program_is_to_become_roots_and_a_link_is_not_to_be_followed(folder: Path) -> None:
    path = folder / "dropper.bpf.c"
    os.chown(path, STRANGER, 0)
    assert tip(folder) == f"chown root:root {path}; chmod g-w,o-w {path}"
    path.rename(folder / "real.c")
    path.symlink_to("real.c")
    os.lchown(path, STRANGER, 0)
    assert tip(folder).startswith(COPY)


def test_other_programs_of_the_folder_do_not_matter(folder: Path) -> None:
    (folder / "other.bpf.c").write_text(SOURCE)
    os.chown(folder / "other.bpf.c", STRANGER, 0)
    assert find(folder).content == NAMED


@pytest.mark.parametrize("given_away", ["elsewhere", "elsewhere/real.c"])
def test_symlink_is_as_trusted_as_what_it_points_to(folder: Path, given_away: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o755)
    (elsewhere / "real.c").write_text(SOURCE)
    (folder / "linked.bpf.c").symlink_to(elsewhere / "real.c")
    assert find(folder, "linked").content.endswith(SOURCE.encode())
    os.chown(folder.parent / given_away, STRANGER, 0)
    with pytest.raises(PermissionDeniedError, match=f"user {STRANGER} can write"):
        find(folder, "linked")


def test_symlink_to_nothing_is_no_program(folder: Path) -> None:
    (folder / "dangling.bpf.c").symlink_to("gone")
    with pytest.raises(PodmgrError, match="there is no program dangling"):
        find(folder, "dangling")


@pytest.mark.parametrize(("name", "file"), [("bpf", "podmgr.h"), ("examples", "")])
def test_shipped_folders_are_found(name: str, file: str) -> None:
    assert (shipped_folder(name) / file).exists()


def test_access_control_list_that_lets_others_write_is_refused(folder: Path) -> None:
    entries = [(1, 6, -1), (2, 6, STRANGER), (4, 4, -1), (0x10, 6, -1), (0x20, 4, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(folder / "dropper.bpf.c", "system.posix_acl_access", value)
    with pytest.raises(PermissionDeniedError, match="access control list"):
        find(folder)


def test_link_to_itself_is_an_ordinary_failure(folder: Path) -> None:
    (folder / "loop.bpf.c").symlink_to("loop.bpf.c")
    with pytest.raises(PodmgrError):
        find(folder, "loop")


def test_sudo_uid_that_is_no_number_trusts_root_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "abc")
    assert find(folder, trusts_invoker=True).name == "dropper"


def test_program_below_a_folder_that_others_can_write_is_refused(folder: Path) -> None:
    """Whoever can write an ancestor can put another folder in this one's place."""
    folder.parent.chmod(0o777)
    with pytest.raises(PermissionDeniedError, match="everybody can write"):
        find(folder)
    folder.parent.chmod(0o1777)  # in a sticky folder only owners move their own
    assert find(folder).name == "dropper"


def test_header_in_a_subfolder_is_refused_as_nobody_vetted_it(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "x.h").write_text("int x;\n")
    (folder / "dropper.bpf.c").write_text('#include "sub/x.h"\n')
    with pytest.raises(PodmgrError, match="includes"):
        find(folder)


def make_pipe(path: Path) -> None:
    os.mkfifo(path, 0o644)


def make_writable(path: Path) -> None:
    path.write_text(SOURCE)
    path.chmod(0o666)


BAD = pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_pipe, "bad.h is not a regular file"),
        (Path.mkdir, "bad.h is not a regular file"),
        (make_writable, "everybody can write .*bad.h"),
    ],
    ids=["pipe", "folder", "writable"],
)


@BAD
def test_a_header_that_is_not_included_is_not_looked_at(
    folder: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(folder / "bad.h")
    assert find(folder).content == NAMED, reason


@BAD
def test_a_bad_header_that_is_included_is_told_with_the_program(
    folder: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(folder / "bad.h")
    (folder / "shared.h").write_text('#include "bad.h"\n')
    with pytest.raises(PodmgrError, match=rf"^dropper\.bpf\.c includes bad\.h: .*{reason}"):
        find(folder)


def test_the_kernels_types_are_made_for_who_includes_them_and_does_not_bring_them(folder: Path) -> None:
    settings = Settings(program_dir=folder)
    made: list[bytes] = []

    def vmlinux() -> bytes:
        made.append(b"int kernel;\n")
        return made[-1]

    assert find_source("dropper", settings, vmlinux=vmlinux).content == NAMED
    assert not made
    (folder / "shared.h").write_text('#include "vmlinux.h"\n')
    assert b"int kernel;" in find_source("dropper", settings, vmlinux=vmlinux).content
    (folder / "vmlinux.h").write_text("int brought;\n")
    assert b"int brought;" in find_source("dropper", settings, vmlinux=vmlinux).content
    assert len(made) == 1


def test_pipe_that_is_called_a_program_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "pipe.bpf.c", 0o644)
    with pytest.raises(PodmgrError, match="not a regular file"):
        find(folder, "pipe")
