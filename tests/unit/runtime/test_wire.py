"""Protocol buffers: what is written is read again, and what is no message is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.runtime.wire import Message, WireError, encoded

fields = st.integers(1, 2**20)


def test_bytes_are_those_of_the_specification() -> None:
    assert encoded({1: 150}).hex() == "089601"
    assert encoded({2: "testing"}).hex() == "120774657374696e67"
    assert encoded({3: encoded({1: 150})}).hex() == "1a03089601"
    assert encoded({1: 0, 2: "", 3: b""}) == b""


@given(fields, st.integers(1, 2**64 - 1))
def test_number_is_read_again(field: int, value: int) -> None:
    assert Message(encoded({field: value})).number(field) == value


@given(fields, st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_read_again(field: int, value: str) -> None:
    assert Message(encoded({field: value})).text(field) == value


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text("abc"), max_size=5))
def test_map_is_read_again(wanted: dict[str, str]) -> None:
    content = b"".join(
        encoded({5: encoded({1: key, 2: value}) or b"\x0a\x00"}) for key, value in wanted.items()
    )
    assert Message(content).texts(5) == wanted


@given(st.binary(max_size=60))
def test_whatever_comes_is_a_message_or_refused(content: bytes) -> None:
    try:
        message = Message(content)
    except WireError:
        return
    for field in range(1, 5):
        message.number(field), message.text(field)


@pytest.mark.parametrize(
    "content",
    [b"\x0a\x05abc", b"\x80" * 11, b"\x0b", b"\x09\x01", b"\x08"],
    ids=["cut off", "endless", "a group", "fixed and cut off", "no value"],
)
def test_what_is_no_message_is_refused(content: bytes) -> None:
    with pytest.raises(WireError, match="cannot be read"):
        Message(content)


def test_fields_that_are_not_known_are_passed_over() -> None:
    content = b"\x79" + bytes(8) + b"\x7d" + bytes(4) + encoded({1: "a", 99: 5})
    assert Message(content).text(1) == "a"


def test_field_of_another_kind_is_as_if_it_were_not_there() -> None:
    assert Message(encoded({1: 5})).text(1) == ""
    assert Message(encoded({1: "a"})).number(1) == 0
