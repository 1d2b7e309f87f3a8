"""What is in a BPF map, read and changed by the system call: thousands of entries, a few microseconds each.

A process for each change, as bpftool is one, would take longer than a change of a table may.

Apart from `program_tables`, which alone uses it: it knows the system call, and nothing of what is in a map.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from podmgr.errors import PodmgrError
from podmgr.kernel.bpf_syscall import ATTR_BYTES, call, open_pin

# enum bpf_cmd of linux/bpf.h
_MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _MAP_GET_NEXT_KEY = 1, 2, 3, 4


class PinnedMap:
    """A pinned map of one value for each key, both of a fixed number of bytes. Use it with `with`.

    Raises PodmgrError if nothing is pinned there, and for what the kernel refuses.
    """

    def __init__(self, pin: str | Path, key_bytes: int, value_bytes: int) -> None:
        self._pin = pin
        self._fd = open_pin(pin)
        self._key = ctypes.create_string_buffer(key_bytes)
        self._value = ctypes.create_string_buffer(value_bytes)
        self._next = ctypes.create_string_buffer(key_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def __getitem__(self, key: bytes) -> bytes:
        self._key.raw = key
        self._call(_MAP_LOOKUP_ELEM, self._value)
        return self._value.raw

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._key.raw, self._value.raw = key, value
        self._call(_MAP_UPDATE_ELEM, self._value)

    def __delitem__(self, key: bytes) -> None:
        """What is gone already is fine."""
        self._key.raw = key
        with suppress(FileNotFoundError):
            self._call(_MAP_DELETE_ELEM, None)

    def __iter__(self) -> Iterator[bytes]:
        """All keys, as they are: nothing may change meanwhile."""
        key: bytes | None = None
        while True:
            if key is not None:
                self._key.raw = key
            try:
                self._call(_MAP_GET_NEXT_KEY, self._next, has_key=key is not None)
            except FileNotFoundError:
                return
            key = self._next.raw
            yield key

    def _call(self, command: int, value: ctypes.Array[ctypes.c_char] | None, *, has_key: bool = True) -> None:
        attr = bytearray(ATTR_BYTES)
        key = ctypes.addressof(self._key) if has_key else 0
        struct.pack_into("=IxxxxQQ", attr, 0, self._fd, key, 0 if value is None else ctypes.addressof(value))
        try:
            call(command, attr, f"change {self._pin}")
        except PodmgrError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise
