"""What the programs of others say at the tc hook: a pass lets the next program see the packet.

TC_ACT_OK, which nearly every public program returns, ends the chain: limits behind it, also those
of other pods and of the namespace, would see no packet. So the object is changed: each exit of
the program jumps to some instructions at its end, which keep a drop (SHOT, STOLEN, TRAP) and
make TC_ACT_UNSPEC of everything else: OK, PIPE, RECLASSIFY, REDIRECT and QUEUED, too, which the
kernel takes for that anyway. Nothing moves, so jumps, relocations and BTF stay right.

Apart from `build`, which alone uses it: it rewrites instructions, and knows nothing of sources.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

from podmgr.errors import PodmgrError
from podmgr.programs.elf import ObjectInfo

# linux/pkt_cls.h
_UNSPEC, _SHOT, _STOLEN, _TRAP = -1, 2, 4, 8
_DROPS = (_SHOT, _STOLEN, _TRAP)

# linux/bpf.h, linux/bpf_common.h
_INSTRUCTION = struct.Struct("<BBhi")  # opcode, registers, offset, number
_EXIT, _JUMP = 0x95, 0x05
_JUMP_IF_EQUAL_32 = 0x16  # BPF_JMP32 | BPF_JEQ | BPF_K, of every kernel since 5.1
_MOVE_32 = 0xB4
_LOAD_64 = 0x18  # takes the room of two
_FARTHEST = 32_767
_PACKET_LOADS = frozenset({0x20, 0x28, 0x30, 0x40, 0x48, 0x50})  # BPF_LD | BPF_ABS or BPF_IND
_BPF_MAP_TYPE_PROG_ARRAY = 3

_SECTION_OFFSET_AT, _SECTION_SIZE_AT = 24, 32  # in Elf64_Shdr
_SYMBOL_SIZE_AT = 16  # in Elf64_Sym
_ALIGNMENT = 8


def passing_on(content: bytes, info: ObjectInfo, *, name: str) -> bytes:
    """The object of a tc program, which `elf.inspect` has found sound, so that its pass ends no chain.

    Raises PodmgrError if the program can end in a way that cannot be led past its end: a tail
    call, a load of the packet that ends the program, a jump too far.
    """
    from elftools.elf.elffile import ELFFile

    if any(item.type_number == _BPF_MAP_TYPE_PROG_ARRAY for item in info.maps):
        raise PodmgrError(
            f"program {name} makes tail calls: what they return would end the chain of filters",
            tip="call functions instead: static __noinline ones have a stack of their own",
        )
    elf: Any = ELFFile(io.BytesIO(content))
    number, section = next(
        (number, section)
        for number, section in enumerate(elf.iter_sections())
        if section.name == info.section
    )
    symbols = elf.get_section_by_name(".symtab")
    place, symbol = next(
        (place, symbol)
        for place, symbol in enumerate(symbols.iter_symbols())
        if symbol.name == info.function and symbol["st_shndx"] == number
    )
    if (symbol["st_value"], symbol["st_size"]) != (0, section["sh_size"]):
        raise PodmgrError(
            f"program {name} holds more in {info.section} than its function", tip="compile it with clang"
        )
    code = _led_to_end(section.data(), name)
    changed = bytearray(content)
    changed += bytes(-len(changed) % _ALIGNMENT)
    header = elf["e_shoff"] + number * elf["e_shentsize"]
    struct.pack_into("<Q", changed, header + _SECTION_OFFSET_AT, len(changed))
    struct.pack_into("<Q", changed, header + _SECTION_SIZE_AT, len(code))
    size_at = symbols["sh_offset"] + place * symbols["sh_entsize"] + _SYMBOL_SIZE_AT
    struct.pack_into("<Q", changed, size_at, len(code))
    return bytes(changed) + code


def _led_to_end(code: bytes, name: str) -> bytes:
    """The instructions with each exit a jump to the end, where the verdict is decided."""
    changed = bytearray(code)
    end = len(code) // _INSTRUCTION.size
    targets = [end]  # farthest first: an exit that is too far from the end jumps to one nearer to it
    for at in reversed([at for at, opcode in _opcodes(code, name) if opcode == _EXIT]):
        target = next((target for target in targets if target - at - 1 <= _FARTHEST), None)
        if target is None:
            raise PodmgrError(
                f"program {name} is too long: of {end:,} instructions {_FARTHEST:,} without a return",
                tip="make it shorter, or write it for the cgroup hook",
            )
        _INSTRUCTION.pack_into(changed, at * _INSTRUCTION.size, _JUMP, 0, target - at - 1, 0)
        targets.append(at)
    return bytes(changed) + _epilogue()


def _epilogue() -> bytes:
    last = len(_DROPS)  # of the jumps, then a move, then the exit
    lines = [(_JUMP_IF_EQUAL_32, 0, last - number, drop) for number, drop in enumerate(_DROPS)]
    lines += [(_MOVE_32, 0, 0, _UNSPEC), (_EXIT, 0, 0, 0)]
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def _opcodes(code: bytes, name: str) -> Iterator[tuple[int, int]]:
    """Place and opcode of each instruction. Raises PodmgrError for one that ends a program by itself."""
    is_second_half = False
    for at, (opcode, *_) in enumerate(_INSTRUCTION.iter_unpack(code)):
        if is_second_half:
            is_second_half = False
            continue
        if opcode in _PACKET_LOADS:
            raise PodmgrError(
                f"program {name} loads bytes of the packet so that one too short ends it with TC_ACT_OK",
                tip="bpf_skb_load_bytes() instead of load_byte(), load_half() and load_word()",
            )
        is_second_half = opcode == _LOAD_64
        yield at, opcode
