"""Protocol buffers on the wire, as far as NRI needs them: numbers, texts, messages, maps of texts.

Pure. https://protobuf.dev/programming-guides/encoding has the form. No library: NRI's few messages take 80
lines, and the stub that would be made for it exists for Go alone.

Apart from `ttrpc`: it knows neither calls nor NRI.
"""

from __future__ import annotations

from collections.abc import Mapping

from podmgr.errors import PodmgrError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MOST_VARINT_BYTES = 10


class WireError(PodmgrError):
    """What came is no message."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"what came over NRI cannot be read: {what}", tip="is it NRI's socket? see --nri-socket"
        )


class Message:
    """A message that was read. What it lacks is "", 0 or empty; of a field given twice the last counts."""

    def __init__(self, content: bytes) -> None:
        self._fields = _fields(content)

    def number(self, field: int) -> int:
        found = [item for item in self._fields.get(field, ()) if isinstance(item, int)]
        return found[-1] if found else 0

    def content(self, field: int) -> bytes:
        found = self._all(field)
        return found[-1] if found else b""

    def text(self, field: int) -> str:
        """What is no UTF-8 is read all the same: it matches nothing."""
        return self.content(field).decode(errors="replace")

    def message(self, field: int) -> Message:
        return Message(self.content(field))

    def messages(self, field: int) -> list[Message]:
        return [Message(item) for item in self._all(field)]

    def texts(self, field: int) -> dict[str, str]:
        """A map of texts: messages of a key and a value."""
        return {item.text(1): item.text(2) for item in self.messages(field)}

    def _all(self, field: int) -> list[bytes]:
        return [item for item in self._fields.get(field, ()) if isinstance(item, bytes)]


def encoded(fields: Mapping[int, int | str | bytes]) -> bytes:
    """A message of numbers, texts and encoded messages. What is "", 0 or empty is left out."""
    parts = []
    for field, value in fields.items():
        if not value:
            continue
        if isinstance(value, int):
            parts += [_varint(field << 3 | _VARINT), _varint(value)]
            continue
        content = value.encode() if isinstance(value, str) else value
        parts += [_varint(field << 3 | _BYTES), _varint(len(content)), content]
    return b"".join(parts)


def _fields(content: bytes) -> dict[int, list[int | bytes]]:
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(content):
        tag, at = _read_varint(content, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _read_varint(content, at)
            found.setdefault(field, []).append(value)
            continue
        if kind == _BYTES:
            length, at = _read_varint(content, at)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise WireError(f"a field of kind {kind}")
        if at + length > len(content):
            raise WireError("it is cut off")
        if kind == _BYTES:
            found.setdefault(field, []).append(content[at : at + length])
        at += length
    return found


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(content[at : at + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value & (1 << 64) - 1, at + index + 1
    raise WireError("a number without end")


def _varint(value: int) -> bytes:
    found = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
