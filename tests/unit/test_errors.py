"""Errors: exit codes, what they show of a value, and that nothing unprintable gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.errors import (
    MissingToolError,
    PermissionDeniedError,
    PodmgrError,
    RuleError,
    UsageError,
    printable,
)


def rule_error(value: str, column: int, *, key: str = "loss", problem: str = "no") -> RuleError:
    return RuleError(problem, key=key, value=value, column=column, expected="something else")


def caret(error: RuleError) -> tuple[str, int]:
    """The excerpt of an error and the place in it that the caret points at."""
    assert error.detail is not None
    shown, pointer = error.detail.split("\n")
    assert pointer.strip() == "^"
    return shown, pointer.index("^")


@pytest.mark.parametrize(
    ("kind", "code"), [(PodmgrError, 1), (MissingToolError, 1), (PermissionDeniedError, 1), (UsageError, 2)]
)
def test_each_error_has_its_exit_code(kind: type[PodmgrError], code: int) -> None:
    assert kind("it failed").exit_code == code


def test_unreadable_rule_is_a_usage_error() -> None:
    assert rule_error("x", 1).exit_code == 2


def test_error_keeps_message_tip_and_detail() -> None:
    error = PodmgrError("it failed", tip="do this", detail="long\nstory")
    assert (str(error), error.message, error.tip, error.detail) == (
        "it failed",
        "it failed",
        "do this",
        "long\nstory",
    )


def test_rule_error_names_key_column_and_what_is_accepted() -> None:
    error = rule_error("uniform egress 200%", 16, problem="200% is out of range")
    assert error.message == "loss: 200% is out of range (column 16)"
    assert error.tip == "something else"
    assert error.detail == "loss=uniform egress 200%\n                    ^"


def test_rule_error_says_which_object_carries_the_annotation() -> None:
    error = rule_error("uniform egress 200%", 16).on("pod/web")
    assert error.message == "pod/web: loss: no (column 16)"
    assert (error.where, error.key, error.column) == ("pod/web", "loss", 16)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"]), min_size=1, max_size=500), st.data())
def test_caret_stands_under_the_column(value: str, data: st.DataObject) -> None:
    column = data.draw(st.integers(1, len(value)))
    shown, offset = caret(rule_error(value, column))
    assert shown[offset] == printable(value[column - 1])


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 5000])
def test_caret_may_stand_behind_the_value(length: int) -> None:
    shown, offset = caret(rule_error("x" * length, length + 1))
    assert offset == len(shown)
    assert ("…" in shown) is (length > 100)


@pytest.mark.parametrize(
    ("column", "is_cut_before", "is_cut_behind"),
    [(1, False, True), (2_000, True, True), (3_950, True, True), (3_951, True, False), (4_001, True, False)],
)
def test_long_value_is_cut_to_a_screen_width(column: int, is_cut_before: bool, is_cut_behind: bool) -> None:
    shown, _ = caret(rule_error("x" * 4_000, column))
    assert len(shown) <= len("loss=") + 102
    assert (shown.startswith("loss=…"), shown.endswith("…")) == (is_cut_before, is_cut_behind)


@given(st.text())
def test_printable_replaces_one_for_one(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)


@pytest.mark.parametrize("character", ["\x1b", "\n", "\r", "\0", "\x07", "\x9b", "\u202e", "\ud800"])
def test_control_characters_become_dots(character: str) -> None:
    assert printable(f"a{character}b") == "a·b"


@given(st.text(), st.text(), st.text(), st.data())
def test_rule_error_shows_nothing_unprintable(
    key: str, value: str, problem: str, data: st.DataObject
) -> None:
    column = data.draw(st.integers(1, len(value) + 1))
    error = rule_error(value, column, key=key, problem=problem)
    assert error.message.isprintable()
    assert all(line.isprintable() for line in (error.detail or "").split("\n"))


def test_rule_error_shows_the_objects_name_without_control_characters() -> None:
    error = rule_error("x", 1).on("pod/a\x1b[31mb")
    assert "\x1b" not in error.message
