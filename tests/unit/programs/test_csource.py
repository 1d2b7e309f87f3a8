"""C source as text: what a source offers, and headers made part of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import PodmgrError
from podmgr.programs.csource import expand, offered_macros, plain, without_comments

HEADERS = {"a.h": b"int a;\n", "b.h": b'#include "a.h"\nint b;\n'}


def nothing(_: str) -> None:
    """A folder without headers."""


@pytest.mark.parametrize(
    ("source", "macros"),
    [
        (b"#ifndef PORT\n#endif", ("PORT",)),
        (b"  #  ifndef\tPORT /* the port */\n", ("PORT",)),
        (b"#ifndef B\n#ifndef A\n#ifndef B\n", ("A", "B")),
        (b"/*\n#ifndef PORT\n*/ // \\\n#ifndef A", ("A",)),
        (b'char *x = "/*";\n#ifndef PORT\n// */', ("PORT",)),
        (b"#ifdef PORT\n#if PORT\n#define PORT 1\n", ()),
        (b"int x; #ifndef PORT\n", ()),
        (b"#ifndefPORT\n", ()),
        (b"\xff\xfe\n#ifndef PORT", ("PORT",)),
        (b"", ()),
    ],
)
def test_macros_that_the_source_tests_with_ifndef_may_be_set(source: bytes, macros: tuple[str, ...]) -> None:
    assert offered_macros(source) == set(macros)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (b"one\r\n\r\ntwo\r\n", b"one\n\ntwo\n"),
        (b"one\rtwo", b"one\ntwo"),
        (b"#define A \\\r\n 1\r\n", b"#define A \\\n 1\n"),
        (b"\xef\xbb\xbfone\n", b"one\n"),
        (b"one\n\xef\xbb\xbf", b"one\n\xef\xbb\xbf"),
        (b"", b""),
    ],
)
def test_what_other_systems_write_around_lines_is_gone(written: bytes, meant: bytes) -> None:
    assert plain(written) == meant


@given(st.binary())
def test_comments_go_and_every_line_stays(source: bytes) -> None:
    clean = without_comments(source)
    assert len(clean) == len(source)
    assert clean.count(b"\n") == source.count(b"\n")


def test_comments_are_blotted_out_but_not_what_looks_like_one_in_a_string() -> None:
    assert without_comments(b'a/*b*/c//d\n"/*e*/"\'"\'//f') == b'a     c   \n"/*e*/"\'"\'   '


def test_only_what_is_included_is_asked_for_and_by_plain_names() -> None:
    asked: list[str] = []

    def read(header: str) -> bytes | None:
        asked.append(header)
        return HEADERS.get(header)

    expand("x.bpf.c", b'// #include "c.h"\n#include <d.h>\n#include "b.h"\n', read)
    assert asked == ["b.h", "a.h"]
    for name in ("../a.h", "/a.h", "x/a.h", "a.c", ".h", "a\0.h"):
        with pytest.raises(PodmgrError, match="includes"):
            expand("x.bpf.c", f'#include "{name}"\n'.encode(), read)
    assert asked == ["b.h", "a.h"]


def test_headers_become_part_of_the_text_and_lines_keep_their_numbers() -> None:
    expanded = expand("x.bpf.c", b'one\n#include "b.h" /* why */\nthree\n', HEADERS.get)
    assert expanded.decode().splitlines() == [
        "one",
        '#line 1 "b.h"',
        '#line 1 "a.h"',
        "int a;",
        "",
        '#line 2 "b.h"',
        "int b;",
        "",
        '#line 3 "x.bpf.c"',
        "three",
    ]


def test_system_headers_are_left_to_the_compiler() -> None:
    source = b"#include <linux/bpf.h>\n# include <bpf/bpf_helpers.h> // why\n"
    assert expand("x.bpf.c", source, nothing) == source


@pytest.mark.parametrize(
    "line",
    [
        '#include "sub/x.h"',
        '#include "/etc/passwd"',
        '#include "../a.h"',
        '#include "missing.h"',
        "#include MACRO",
        "#include",
        '#import "missing.h"',
        "# \t include_next MACRO",
        '#embed "missing"',
        '#include \\\n"a.h"',
        '#include "a.h" junk',
    ],
)
def test_any_other_include_is_refused(line: str) -> None:
    with pytest.raises(PodmgrError, match="includes"):
        expand("x.bpf.c", line.encode() + b"\n", HEADERS.get)


def test_an_include_in_a_comment_is_none() -> None:
    source = b'// #include "missing.h"\n/*\n#include "missing.h"\n*/\n'
    assert expand("x.bpf.c", source, nothing) == source


def test_a_header_that_asks_to_be_read_once_is() -> None:
    headers = {"once.h": b"#pragma once\nint once;\n"}
    expanded = expand("x.bpf.c", b'#include "once.h"\n#include "once.h"\n', headers.get)
    assert expanded.count(b"int once;") == 1
    assert b"pragma" not in expanded


def test_headers_that_include_each_other_come_to_an_end() -> None:
    headers = {"a.h": b'#include "b.h"\n', "b.h": b'#include "a.h"\nint b;\n'}
    assert expand("x.bpf.c", b'#include "a.h"\n', headers.get).count(b"int b;") == 1


def test_headers_that_multiply_are_refused() -> None:
    headers = {f"{level}.h": f'#include "{level + 1}.h"\n'.encode() * 4 for level in range(14)}
    headers["14.h"] = b"int x;\n" * 100
    with pytest.raises(PodmgrError, match="larger than 16 MiB"):
        expand("x.bpf.c", b'#include "0.h"\n', headers.get)
