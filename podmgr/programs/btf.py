"""A reader of BTF, the kernel's description of types: how an object's maps are defined.

Apart from `elf`, which alone uses it: a format by itself, which pyelftools does not read.
"""

from __future__ import annotations

import struct

_MAGIC = 0xEB9F
_KIND_INT, _KIND_PTR, _KIND_ARRAY, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM = range(1, 7)
_KIND_FUNC_PROTO, _KIND_VAR, _KIND_DATASEC, _KIND_DECL_TAG, _KIND_ENUM64 = 13, 14, 15, 17, 19
_MODIFIERS = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag


class Btf:
    """Types of a .BTF section, as far as map definitions need them.

    Layout: Documentation/bpf/btf.rst of the kernel.
    """

    def __init__(self, data: bytes) -> None:
        """Raises ValueError, struct.error or LookupError if it cannot be read."""
        magic, _, _, header, type_start, type_bytes, string_start, string_bytes = struct.unpack_from(
            "<HBBIIIII", data
        )
        if magic != _MAGIC:
            raise ValueError("not little-endian BTF")
        self._strings = data[header + string_start : header + string_start + string_bytes]
        self._types: list[tuple[int, str, int, list[tuple[int, ...]]]] = [(0, "void", 0, [])]
        offset, end = header + type_start, header + type_start + type_bytes
        while offset < end:
            name, info, size_or_type = struct.unpack_from("<III", data, offset)
            offset += 12
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            width, rows = _rows(kind, count)
            trailer = [
                struct.unpack_from(f"<{width}I", data, offset + 4 * width * row) for row in range(rows)
            ]
            offset += 4 * width * rows
            self._types.append((kind, self._name(name), size_or_type, trailer))

    def maps(self) -> dict[str, dict[str, int]]:
        """Map name to its members: numbers as they are, types as sizes in bytes. Raises as above."""
        found: dict[str, dict[str, int]] = {}
        for kind, name, _, variables in self._types:
            if kind == _KIND_DATASEC and name == ".maps":
                for variable, _, _ in variables:
                    _, map_name, type_id, _ = self._types[variable]
                    found[map_name] = self._members(type_id)
        return found

    def _members(self, type_id: int) -> dict[str, int]:
        kind, _, _, members = self._resolve(type_id)
        if kind != _KIND_STRUCT:
            raise ValueError("a map that is no struct")
        result: dict[str, int] = {}
        for name_offset, member_type, _ in members:
            name = self._name(name_offset)
            member_kind, _, target, trailer = self._resolve(member_type)
            if member_kind != _KIND_PTR:
                result[name] = trailer[0][2] if member_kind == _KIND_ARRAY else 0
                continue
            pointed_kind, _, _, pointed = self._resolve(target)
            if name in ("key", "value"):
                result[name] = self._size(target)
            else:  # __uint(name, number) is a pointer to an array of that many
                result[name] = pointed[0][2] if pointed_kind == _KIND_ARRAY else 0
        return result

    def _resolve(self, type_id: int) -> tuple[int, str, int, list[tuple[int, ...]]]:
        for _ in range(len(self._types)):
            entry = self._types[type_id]
            if entry[0] not in _MODIFIERS:
                return entry
            type_id = entry[2]
        raise ValueError("a type that refers to itself")

    def _size(self, type_id: int, depth: int = 0) -> int:
        kind, _, size, trailer = self._resolve(type_id)
        if depth > 16:
            raise ValueError("types nested too deeply")
        if kind == _KIND_ARRAY:
            element, _, count = trailer[0]
            return count * self._size(element, depth + 1)
        return 8 if kind == _KIND_PTR else size

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()


def _rows(kind: int, count: int) -> tuple[int, int]:
    """How many u32 a trailing row of this kind has, and how many rows there are."""
    per_member = {
        _KIND_STRUCT: 3,
        _KIND_UNION: 3,
        _KIND_ENUM: 2,
        _KIND_FUNC_PROTO: 2,
        _KIND_DATASEC: 3,
        _KIND_ENUM64: 3,
    }
    if kind in per_member:
        return per_member[kind], count
    return {_KIND_INT: 1, _KIND_ARRAY: 3, _KIND_VAR: 1, _KIND_DECL_TAG: 1}.get(kind, 0), 1
