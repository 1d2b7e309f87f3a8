"""One compilation: what clang is given, what it says of bad source, and which clang it is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.errors import MissingToolError, PodmgrError
from podmgr.proc import Completed
from podmgr.programs import clang
from tests.unit.samples import Script, said


def compiled(
    source: bytes,
    *,
    macros: Sequence[tuple[str, str | None]] = (),
    runner: proc.Runner = proc.run,
) -> bytes:
    return clang.compile_c(source, name="dropper", macros=macros, runner=runner)


def test_source_becomes_an_object_through_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compiled(b"int x;").startswith(b"\x7fELF")
    assert list(tmp_path.iterdir()) == []


def test_equal_input_gives_equal_objects() -> None:
    assert compiled(b"int x;") == compiled(b"int x;") != compiled(b"int y;")


def test_macros_reach_the_source_as_written() -> None:
    source = b'_Static_assert(A == 1 && B == 2 && sizeof(INTERFACE) == 7 && 1 C, "");'
    assert compiled(source, macros=[("A", None), ("B", "2"), ("INTERFACE", '"egress"'), ("C", "")])


def test_system_headers_are_found() -> None:
    assert compiled(b"#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n")


def test_headers_of_the_folder_that_we_stand_in_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "podmgr.h").write_text("#error from the working directory\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PodmgrError) as caught:
        compiled(b'#include "podmgr.h"\n')
    assert "file not found" in (caught.value.detail or "")


def test_error_shows_clangs_lines_under_the_programs_name() -> None:
    with pytest.raises(PodmgrError, match=r"^dropper\.bpf\.c does not compile$") as caught:
        compiled(b"int x;\nint f(void) { return y; }\n")
    detail = caught.value.detail or ""
    assert "dropper.bpf.c:2:22: error: use of undeclared identifier 'y'" in detail
    assert "<stdin>" not in detail


def test_long_errors_are_cut() -> None:
    with pytest.raises(PodmgrError) as caught:
        compiled(b"".join(b"int f%d(void) { return y; }\n" % number for number in range(19)))
    assert len((caught.value.detail or "").splitlines()) == 12


def test_warnings_and_notes_hide_no_error() -> None:
    warnings = b"".join(b"int f%d(int *p) { char *c = p; return *c; }\n" % number for number in range(20))
    with pytest.raises(PodmgrError) as caught:
        compiled(warnings + b"int x;\nchar x;\n")
    (line,) = (caught.value.detail or "").splitlines()
    assert line.startswith("dropper.bpf.c:22:6: error: redefinition of 'x'")


def test_a_macro_that_is_wrong_shows_no_pages_of_what_it_became() -> None:
    wide = b"int f(int x) { return " + b" || ".join(b"x == PORT" for _ in range(9)) + b"; }\n"
    asserting = b"_Static_assert(1" + b" && PORT" * 400 + b' && 0, "PORT is odd");\n'
    with pytest.raises(PodmgrError) as caught:
        compiled(asserting + b"#undef PORT\n" + wide, macros=[("PORT", "1")])
    lines = (caught.value.detail or "").splitlines()
    assert len(lines) == 2  # one for each line of source, however often
    assert max(map(len, lines)) < 250
    assert "PORT is odd" in lines[0]
    assert all(re.match(r"dropper\.bpf\.c:[0-9]+:", line) for line in lines)


def test_an_error_without_a_place_names_the_program() -> None:
    runner = Script(said("", code=1, stderr="fatal error: error in backend: Cannot select: 0x1\nPLEASE\n"))
    with pytest.raises(PodmgrError) as caught:
        compiled(b"", runner=runner)
    assert caught.value.detail == "dropper.bpf.c: fatal error: error in backend: Cannot select: 0x1"


@pytest.mark.parametrize(
    ("header", "tip"),
    [("bpf/bpf_helpers.h", "install the libbpf headers"), ("other.h", "the lines above are clang's")],
)
def test_missing_libbpf_headers_are_recognised(header: str, tip: str) -> None:
    stderr = f"<stdin>:1:10: fatal error: '{header}' file not found\n"
    runner = Script(said("", code=1, stderr=stderr))
    with pytest.raises(PodmgrError) as caught:
        compiled(b"", runner=runner)
    assert tip in (caught.value.tip or "")


def test_clang_is_told_target_and_macros() -> None:
    runner = Script(Completed((), 0, b"object", ""))
    found = compiled(b"source", macros=[("A", None), ("B", "1")], runner=runner)
    (argv,) = runner.calls
    assert found == b"object"
    assert runner.inputs == [b"source"]
    assert argv[:1] + argv[-4:] == ("clang", "-c", "-", "-o", "-")
    assert [word for word in argv if word.startswith("-D")][:2] == ["-DA", "-DB=1"]
    assert set(clang.FLAGS) < set(argv)


def test_identity_changes_with_the_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "clang-99"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    (tmp_path / "clang").symlink_to(binary)
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = [clang.identity()]
    assert str(binary) in seen[0]
    assert seen[0].endswith(" ".join(clang.FLAGS))
    binary.write_text("#!/bin/sh\n# longer\n")
    seen.append(clang.identity())
    os.utime(binary, ns=(1, 1))
    seen.append(clang.identity())
    assert len(set(seen)) == 3
    assert clang.identity() == seen[2]


def test_no_clang_is_a_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="clang is not installed"):
        clang.identity()
    with pytest.raises(MissingToolError, match="clang is not installed"):
        compiled(b"int x;")
