"""What an object file holds, read before the kernel sees it: hook, direction, licence, maps.

Uses pyelftools for the ELF, and `btf` for what describes the maps. Decides nothing about rules
beyond "this object is sound".
"""

from __future__ import annotations

import io
import re
import struct
import sys
from typing import Any, NamedTuple

from podmgr.errors import PodmgrError, printable
from podmgr.rules.rule import Direction
from podmgr.settings import DEFAULT_MAX_MAP_BYTES

_MOST_SECTIONS = 4_096
_MOST_SYMBOLS = 65_536

# Names of sections for programs of a pod's traffic, as libbpf has them, by hook. What follows the
# slash is a direction; without one the program takes the rule's. At tc a name of its own may follow,
# as other loaders admit it.
_HOOKS = {
    "cgroup": re.compile(r"cgroup/skb|cgroup_skb(?:/(egress|ingress))?", re.ASCII),
    "tc": re.compile(
        r"(?:tc|tcx|classifier)(?:/(egress|ingress)(?:/[\w-]+)?)?|(?:tc|classifier)[/_][\w-]+", re.ASCII
    ),
}
_KNOWN = 'SEC("cgroup_skb/egress"), SEC("cgroup_skb/ingress"), SEC("tc"), and libbpf\'s other names for these'
_DIRECTIONS = {
    "cgroup": 'SEC("cgroup_skb/egress") and SEC("cgroup_skb/ingress")',
    "tc": 'SEC("tc/egress") and SEC("tc/ingress")',
}
_OTHERS = {
    "xdp": 'XDP sees neither what leaves nor whose it is: write it for SEC("tc")',
    "action": 'a classifier in SEC("tc") drops as well',
    "socket": "a socket filter sees a copy and drops nothing for others",
}

_EM_BPF = 247
_INSTRUCTION_BYTES = 8
_SHF_EXECINSTR = 0x4
_FLAGS_AT = 8  # in Elf64_Shdr
# Relocations that libbpf resolves by itself: R_BPF_64_64 (maps and data), R_BPF_64_32 (calls).
_PROGRAM_RELOCATIONS = frozenset({1, 10})
_DATA_SECTIONS = (".data", ".rodata", ".bss")

# enum bpf_map_type: those whose size is not (key + value) * max_entries
_PER_CPU_MAPS = frozenset({5, 6, 10, 21})
_RING_BUFFERS = frozenset({27, 31})  # max_entries is the size in bytes
_ARRAYS = frozenset({2, 6})
_ENTRY_BYTES = 48  # struct htab_elem of the kernel
_BUCKET_BYTES = 32  # 16, and up to twice as many buckets as entries
_MAPS_OF_MAPS = frozenset({12, 13})
# bpf/match.h: it has what podmgr puts in, with a limit of its own, see rules/tables.py.
_PODMGRS_OWN = ("podmgr_peers", 11, 24, 8)


class MapInfo(NamedTuple):
    """A map as the object defines it; `size_bytes` is what the kernel will set aside at most.

    0 for what grows with what podmgr puts in, some 100 bytes for each prefix.
    """

    name: str
    type_number: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    size_bytes: int


class ObjectInfo(NamedTuple):
    """A sound object. `direction` None: decided by where the program is attached."""

    section: str
    hook: str
    direction: Direction | None
    function: str
    instructions: int
    licence: str
    maps: tuple[MapInfo, ...]


def inspect(
    content: bytes,
    *,
    name: str,
    direction: Direction | None = None,
    cpus: int = 1,
    max_map_bytes: int = DEFAULT_MAX_MAP_BYTES,
) -> ObjectInfo:
    """Check an object and say what it holds. `cpus`: how often per-CPU maps are laid out.

    Of a program for each direction, that of `direction` is meant. Raises PodmgrError with the
    reason if it is not an ELF file for BPF in this machine's byte order, with exactly one such
    program in a known section, a licence, relocations that libbpf resolves, and maps of less than
    `max_map_bytes`.
    """
    from elftools.common.exceptions import ELFError  # 60 ms: only where objects are read
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(io.BytesIO(content))
        return _inspect(elf, name, direction, cpus, max_map_bytes)
    except PodmgrError:
        raise
    except (
        ELFError,
        struct.error,
        UnicodeDecodeError,
        LookupError,
        OverflowError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise _refuse(name, f"is not a readable ELF object ({error})") from error


def uses_map(content: bytes, name: str) -> bool:
    """Whether code of the object, which `inspect` has found sound, refers to the map."""
    from elftools.elf.elffile import ELFFile

    elf: Any = ELFFile(io.BytesIO(content))
    symbols = elf.get_section_by_name(".symtab")
    relocations = [section for section in elf.iter_sections() if section["sh_type"] == "SHT_REL"]
    return any(
        symbols.get_symbol(relocation["r_info_sym"]).name == name
        for section in relocations
        if elf.get_section(section["sh_info"])["sh_flags"] & _SHF_EXECINSTR
        for relocation in section.iter_relocations()
    )


def check_direction(info: ObjectInfo, direction: Direction, *, name: str) -> None:
    """Raise PodmgrError if the object's section contradicts the rule's direction."""
    if info.direction not in (None, direction):
        raise PodmgrError(
            f"program {name} is for {info.direction}, the rule says {direction}",
            tip='SEC("cgroup_skb/" INTERFACE) follows the rule',
        )


def _refuse(name: str, reason: str, tip: str = "podmgr compile shows what an object holds") -> PodmgrError:
    return PodmgrError(f"program {name} {reason}", tip=tip)


def without_others(content: bytes, section: str) -> bytes:
    """The object with no other program than that of `section`: libbpf skips what is not executable."""
    from elftools.elf.elffile import ELFFile

    elf: Any = ELFFile(io.BytesIO(content))
    changed = bytearray(content)
    for number, other in enumerate(elf.iter_sections()):
        if _is_program(other) and other.name != section:
            at = elf["e_shoff"] + number * elf["e_shentsize"] + _FLAGS_AT
            struct.pack_into("<Q", changed, at, other["sh_flags"] & ~_SHF_EXECINSTR)
    return bytes(changed)


def _is_program(section: Any) -> bool:
    executable = section["sh_type"] == "SHT_PROGBITS" and section["sh_flags"] & _SHF_EXECINSTR
    return bool(executable and section.name != ".text" and section["sh_size"])


def _place(section: str) -> tuple[str, Direction | None] | None:
    """Hook and direction of a program by the name of its section; None if it is for something else."""
    for hook, pattern in _HOOKS.items():
        if match := pattern.fullmatch(section):
            return hook, Direction(match[1]) if match[1] else None
    return None


def _inspect(elf: Any, name: str, direction: Direction | None, cpus: int, max_map_bytes: int) -> ObjectInfo:
    if elf.num_sections() > _MOST_SECTIONS:
        raise _refuse(name, f"has more than {_MOST_SECTIONS:,} sections")
    if elf.header["e_machine"] not in ("EM_BPF", _EM_BPF):
        raise _refuse(name, f"is an object for {elf.header['e_machine']}, not for BPF", "clang -target bpf")
    if elf.little_endian != (sys.byteorder == "little"):
        order = "little" if elf.little_endian else "big"
        reason = f"is an object of {order}-endian byte order, which this machine's is not"
        raise _refuse(name, reason, "clang -target bpf, on the machine where it shall run")
    sections = [(index, section) for index, section in enumerate(elf.iter_sections()) if section.name]
    symbols = elf.get_section_by_name(".symtab")
    if symbols is None:
        raise _refuse(name, "has no symbol table", "do not strip symbols")
    if symbols.num_symbols() > _MOST_SYMBOLS:
        raise _refuse(name, f"has more than {_MOST_SYMBOLS:,} symbols")
    section, function, hook, own_direction = _program(sections, symbols, name, direction)
    _check_relocations(elf, sections, symbols, name)
    licence = _licence(elf, name)
    maps = _maps(elf, sections, name, cpus)
    size = sum(item.size_bytes for item in maps)
    if size >= max_map_bytes:
        largest = max(maps, key=lambda item: item.size_bytes)
        raise _refuse(
            name,
            f"would take {size:,} bytes of maps; it must stay under {max_map_bytes:,}",
            f"the largest is {largest.name} with {largest.size_bytes:,} bytes; --max-map-bytes allows more",
        )
    return ObjectInfo(
        section=section.name,
        hook=hook,
        direction=own_direction,
        function=function,
        instructions=section["sh_size"] // _INSTRUCTION_BYTES,
        licence=licence,
        maps=tuple(maps),
    )


def _program(
    sections: list[tuple[int, Any]], symbols: Any, name: str, direction: Direction | None
) -> tuple[Any, str, str, Direction | None]:
    """The one section with a program of the direction, the one function in it, its hook and direction."""
    programs = []
    for index, section in sections:
        if not _is_program(section):
            continue
        place = _place(section.name)
        if place is None:
            kind = re.split(r"[/.]", section.name)[0]
            reason = f"has an unknown section {printable(section.name)[:60]!r}"
            raise _refuse(name, reason, _OTHERS.get(kind) or f"known: {_KNOWN}")
        programs.append((index, section, *place))
    if direction is not None and len(programs) > 1:
        programs = [program for program in programs if program[3] in (None, direction)] or programs[:1]
    if len(programs) != 1:
        found = ", ".join(f'SEC("{section.name}")' for _, section, _, _ in programs) or "none"
        raise _refuse(
            name,
            f"holds {len(programs)} programs",
            f"one for each direction, in a section that says it, such as tc/egress; it has {found}",
        )
    index, section, hook, own = programs[0]
    functions = [
        symbol.name
        for symbol in symbols.iter_symbols()
        if symbol["st_shndx"] == index and symbol["st_info"]["type"] == "STT_FUNC"
    ]
    if len(functions) != 1:
        raise _refuse(
            name,
            f"holds {len(functions)} functions in {section.name}",
            f"one function under one SEC: {_DIRECTIONS[hook]} tell directions apart",
        )
    return section, functions[0], hook, own


def _check_relocations(elf: Any, sections: list[tuple[int, Any]], symbols: Any, name: str) -> None:
    for _, section in sections:
        if section["sh_type"] not in ("SHT_REL", "SHT_RELA"):
            continue
        patched = elf.get_section(section["sh_info"])
        if not patched["sh_flags"] & _SHF_EXECINSTR:
            continue  # data, debugging information and BTF
        for relocation in section.iter_relocations():
            kind = relocation["r_info_type"]
            symbol = symbols.get_symbol(relocation["r_info_sym"])
            if kind not in _PROGRAM_RELOCATIONS:
                raise _refuse(name, f"has an unknown relocation of type {kind}")
            if symbol["st_shndx"] == "SHN_UNDEF":
                raise _refuse(name, f"refers to {symbol.name!r}, which it does not define")


def _licence(elf: Any, name: str) -> str:
    section = elf.get_section_by_name("license")
    licence = section.data().split(b"\0")[0].decode("ascii") if section else ""
    if not licence:
        raise _refuse(name, "has no licence", 'add: char LICENSE[] SEC("license") = "GPL";')
    return str(licence)


def _maps(elf: Any, sections: list[tuple[int, Any]], name: str, cpus: int) -> list[MapInfo]:
    if any(section.name.startswith((".struct_ops", "struct_ops")) for _, section in sections):
        raise _refuse(name, "defines struct_ops", "only programs for a pod's traffic are allowed")
    if elf.get_section_by_name("maps") is not None:
        raise _refuse(name, "defines maps the old way", 'define them with BTF, in SEC(".maps")')
    maps = [
        MapInfo(section.name, 2, 4, section["sh_size"], 1, section["sh_size"])
        for _, section in sections
        if section.name.startswith(_DATA_SECTIONS)
        and section["sh_type"] in ("SHT_PROGBITS", "SHT_NOBITS")
        and not section.name.startswith(".data.rel")
        and section["sh_size"]
    ]
    if elf.get_section_by_name(".maps") is None:
        return maps
    btf = elf.get_section_by_name(".BTF")
    if btf is None:
        raise _refuse(name, "has maps but no BTF", "compile with -g")
    from podmgr.programs.btf import Btf  # as pyelftools: only where objects are read

    maps += [_map_info(map_name, members, name, cpus) for map_name, members in Btf(btf.data()).maps().items()]
    return maps


def _map_info(map_name: str, members: dict[str, int], name: str, cpus: int) -> MapInfo:
    kind, entries = members.get("type", 0), members.get("max_entries", 0)
    key = members.get("key_size", members.get("key", 0))
    value = members.get("value_size", members.get("value", 0))
    if kind in _MAPS_OF_MAPS or "values" in members:
        raise _refuse(name, f"has a map of maps, {map_name}", "only plain maps are allowed")
    if "pinning" in members:
        raise _refuse(name, f"pins its map {map_name} by itself", "podmgr pins maps, and removes them")
    if kind in _RING_BUFFERS:
        size = entries
    else:
        copies = cpus if kind in _PER_CPU_MAPS else 1
        # Outside of arrays each entry has a header, and hangs in a table of buckets.
        overhead = key if kind in _ARRAYS else _padded(key) + _ENTRY_BYTES + _BUCKET_BYTES
        size = entries * (overhead + _padded(value) * copies)
    if (map_name, kind, key, value) == _PODMGRS_OWN:
        size = 0
    return MapInfo(map_name, kind, key, value, entries, size)


def _padded(size: int) -> int:
    return -(-size // 8) * 8
