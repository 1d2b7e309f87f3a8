"""What kubectl reads, and what it means by it; and what strangers write."""

from __future__ import annotations

import math
from typing import Any

import pytest

from podmgr.cluster import documents
from podmgr.cluster.documents import read
from podmgr.errors import PodmgrError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: =", "="),
        ("a: 2024-01-01", "2024-01-01"),
        ("a: 2024-99-99", "2024-99-99"),
        ("a: 1:30", "1:30"),
        ("a: 190:20:30", "190:20:30"),
        ("a: 0x1f", 31),
        ("a: 010", 8),
        ("a: 0o10", 8),
        ("a: 08", 8.0),
        ("a: 0b11", 3),
        ("a: -5", -5),
        ("a: 1_000", 1000),
        ("a: 1.5e3", 1500.0),
        ("a: .inf", math.inf),
        ("a: yes", True),
        ("a: Off", False),
        ("a: ~", None),
        ("a:", None),
        ("a: 'yes'", "yes"),
        ('a: "5"', "5"),
        ("a: |\n  5\n", "5\n"),
        ("a: !!str 5", "5"),
        ("a: ! 5", "5"),
        ("a: " + "1" * 5000, "1" * 5000),
        ("a: &x 1\n", 1),
    ],
)
def test_a_plain_scalar_is_what_gos_yaml_library_takes_it_for(text: str, value: Any) -> None:
    assert read("f", text) == [{"a": value}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": "\\ud83d\\ude80"}', [{"a": "🚀"}]),
        ('{"a": "\\ud83d"}', [{"a": "\ufffd"}]),
        ('{"a": 1} {"b": 2}', [{"a": 1}, {"b": 2}]),
        ('{"a": 1}{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ('{"a": 1}\n---\n{"b": 2}\n---\n', [{"a": 1}, {"b": 2}]),
        ("{a: b}", [{"a": "b"}]),
        ("\ufeffa: 1", [{"a": 1}]),
        ("a: 1\n---\n---\nb: 2\n...\n", [{"a": 1}, {"b": 2}]),
        ("---\n---\n", []),
        ("", []),
        ("1: x\nyes: z\n", [{"1": "x", "yes": "z"}]),
        ("x: &a {k: 1, l: 2}\nz: {<<: *a, k: 3}", [{"x": {"k": 1, "l": 2}, "z": {"k": 3, "l": 2}}]),
        ("x: &a {k: 1}\nz: {<<: [*a, {m: 4}]}", [{"x": {"k": 1}, "z": {"k": 1, "m": 4}}]),
    ],
)
def test_documents_are_read_as_kubectl_reads_them(text: str, found: list[Any]) -> None:
    assert read("f", text) == found


@pytest.mark.parametrize(
    "text",
    ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 2}", '{"a": 1, "a": 2}', '{"x": [{"a": 1, "b": 2, "a": 3}]}'],
)
def test_a_key_that_is_written_twice_is_an_error(text: str) -> None:
    with pytest.raises(PodmgrError, match="the key a is written twice"):
        read("f", text)


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [*a]",
        "a: *b",
        "a: [",
        "a: b: c",
        "\x07",
        "\x01" * 1_000_000,
        "{" + "\x01" * 1_000_000,
        "[" * 200_000,
        "- " * 200_000,
        '{"a":' * 5_000,
        "? [a]\n: b",
        "{<<: 5}",
        '{"a": NaN}x',
        '{"a": 1} {"a"',
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(text: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        read("f", text)
    shown = "\n".join([caught.value.message, caught.value.detail or "", caught.value.tip or ""])
    assert shown.startswith("f")
    assert len(shown) < 400
    assert shown.replace("\n", "").isprintable()


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 1 << 20)
    with pytest.raises(PodmgrError, match="larger than 1 MiB"):
        read("f", "#" * (1 << 20) + "#")


@pytest.mark.parametrize("text", ["{", "a: [", "a: *x", "a: &a [*a]", '{"a": 1} b', "\0"])
def test_the_caller_says_what_the_file_should_be(text: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        read("f", text, tip="a shopping list")
    assert caught.value.tip == "a shopping list"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\n---\nb: 2\n---\nc: *x\n", "line 5: the alias *x stands for nothing: an anchor holds only"),
        ("a: *x\n---\nb: &x 2\n", "line 1: the alias *x stands for nothing"),
    ],
)
def test_alias_of_another_document_is_told_how_far_an_anchor_holds(text: str, message: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        read("f", text, tip="")
    assert caught.value.message.removeprefix("f: ").startswith(message)
    assert ("within its document" in caught.value.message) is message.endswith("only")
