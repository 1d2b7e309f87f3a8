"""What an object file may hold: sound ones are described, all others refused with the reason."""

from __future__ import annotations

import functools
import io
import struct
import sys

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from podmgr import proc
from podmgr.errors import PodmgrError
from podmgr.programs import clang, elf
from podmgr.programs.find import find_source
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.unit.samples import EGRESS, HEADERS, INGRESS, LICENCE, PROGRAM, bpf_object

SOUND = HEADERS + PROGRAM + LICENCE
HASH = """struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, %s);
__type(key, __u32); __type(value, %s); } %s SEC(".maps");
"""
OF_MAPS = """struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 1); __type(key, __u32);
__array(values, struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1);
__type(key, __u32); __type(value, __u32); }); } outer SEC(".maps");
"""
PINNED = """struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32);
__type(value, __u32); __uint(pinning, 1); } shared SEC(".maps");
"""
OLD_MAP = 'struct { int a, b, c, d; } old SEC("maps") = { 2, 4, 4, 1 };\n'


def program(section: str, name: str = "other", body: str = "return 1;") -> str:
    return f'SEC("{section}") int {name}(struct __sk_buff *skb) {{ {body} }}\n'


def inspect(source: str, *, cpus: int = 1) -> elf.ObjectInfo:
    return elf.inspect(bpf_object(source), name="sample", cpus=cpus)


def refusal(content: bytes) -> PodmgrError:
    with pytest.raises(PodmgrError) as caught:
        elf.inspect(content, name="sample")
    assert caught.value.message.startswith("program sample ")
    assert caught.value.tip
    return caught.value


# Sound objects


@pytest.mark.parametrize(
    ("section", "hook", "direction"),
    [("cgroup_skb/egress", "cgroup", EGRESS), ("cgroup_skb/ingress", "cgroup", INGRESS), ("tc", "tc", None)],
)
def test_section_tells_hook_and_direction(section: str, hook: str, direction: Direction | None) -> None:
    info = inspect(HEADERS + program(section) + LICENCE)
    assert (info.section, info.hook, info.direction) == (section, hook, direction)
    assert (info.function, info.licence, info.maps) == ("other", "GPL", ())


def test_instructions_are_counted() -> None:
    assert inspect(SOUND).instructions == 2


@functools.cache
def shipped(name: str) -> bytes:
    return clang.compile_c(
        find_source(name, Settings()).content,
        name=name,
        macros=(("INTERFACE", '"ingress"'), ("DIRECTION_EGRESS", "0")),
        runner=proc.run,
    )


def test_maps_are_measured_as_the_kernel_lays_them_out() -> None:
    info = elf.inspect(shipped("bandwidth"), name="bandwidth", cpus=6)
    assert info.direction is INGRESS
    sizes = {
        item.name: (item.key_bytes, item.value_bytes, item.max_entries, item.size_bytes) for item in info.maps
    }
    assert sizes == {
        "podmgr_bucket": (4, 16, 1, 20),
        "podmgr_counters": (4, 72, 1, 4 + 6 * 72),  # per CPU
    }


@pytest.mark.parametrize(
    ("value", "value_bytes", "padded"),
    [
        ("__u64", 8, 8),
        ("char", 1, 8),
        ("struct { char a[9]; }", 9, 16),
        ("__u16[3]", 6, 8),
        ("const volatile __u32", 4, 8),
        ("void *", 8, 8),
        ("enum { A }", 4, 8),
        ("union { __u32 a; __u64 b[2]; }", 16, 16),
    ],
)
def test_values_of_every_type_have_their_size(value: str, value_bytes: int, padded: int) -> None:
    (item,) = inspect(SOUND + f"typedef typeof({value}) named;\n" + HASH % (10, "named", "table")).maps
    assert (item.name, item.value_bytes, item.size_bytes) == ("table", value_bytes, 10 * (88 + padded))


def test_sizes_may_be_given_as_numbers() -> None:
    source = """struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(key_size, 6); __uint(value_size, 12);
    __uint(max_entries, 3); } table SEC(".maps");
    """
    (item,) = inspect(SOUND + source).maps
    assert (item.key_bytes, item.value_bytes, item.size_bytes) == (6, 12, 3 * (88 + 16))


def ring(size_bytes: int) -> bytes:
    source = """struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, %d); } ring SEC(".maps");"""
    return bpf_object(SOUND + source % size_bytes)


def test_ring_buffer_is_as_large_as_it_says_and_all_maps_stay_under_one_mib() -> None:
    (item,) = elf.inspect(ring((1 << 20) - 1), name="sample").maps
    assert item.size_bytes == 1_048_575
    assert "1,048,576 bytes of maps" in refusal(ring(1 << 20)).message


def test_global_variables_are_maps() -> None:
    source = (
        HEADERS + "static volatile int hits[16];\nvolatile const int limit = 3;\nint seed = 7;\n" + LICENCE
    )
    source += program("tc", body="hits[skb->len & 15]++; return limit + seed;")
    sizes = {item.name: item.size_bytes for item in inspect(source).maps}
    assert sizes == {".bss": 64, ".rodata": 4, ".data": 4}


def test_subprograms_are_allowed() -> None:
    source = HEADERS + "static __attribute__((noinline)) int twice(int x) { return x * 2; }\n" + LICENCE
    assert inspect(source + program("tc", body="return twice(skb->len);")).function == "other"


@pytest.mark.parametrize("direction", [EGRESS, INGRESS])
def test_program_without_a_direction_takes_the_rules(direction: Direction) -> None:
    elf.check_direction(inspect(HEADERS + program("tc") + LICENCE), direction, name="sample")


def test_section_that_contradicts_the_rule_is_refused() -> None:
    info = inspect(SOUND)
    elf.check_direction(info, EGRESS, name="sample")
    with pytest.raises(PodmgrError, match="program sample is for egress, the rule says ingress"):
        elf.check_direction(info, INGRESS, name="sample")


# Refused objects


REFUSED = {
    "no licence": (HEADERS + PROGRAM, "has no licence"),
    "an empty licence": (SOUND.replace("GPL", ""), "has no licence"),
    "no program": (HEADERS + LICENCE, "holds 0 programs"),
    "only a subprogram": (HEADERS + LICENCE + "int f(void) { return 1; }\n", "holds 0 programs"),
    "two programs": (SOUND + program("cgroup_skb/ingress"), "holds 2 programs"),
    "two functions in a section": (SOUND + program("cgroup_skb/egress"), "holds 2 functions"),
    "a section of another kind": (
        HEADERS + program("cgroup/sock") + LICENCE,
        "has an unknown section 'cgroup/sock'",
    ),
    "a hook that podmgr does not know": (
        HEADERS + program("kprobe/tcp_sendmsg") + LICENCE,
        "has an unknown section 'kprobe/tcp_sendmsg'",
    ),
    "an unknown section beside a known one": (SOUND + program("xdp"), "has an unknown section 'xdp'"),
    "an undefined function": (
        HEADERS + "extern int missing(void);\n" + program("tc", body="return missing();") + LICENCE,
        "refers to 'missing', which it does not define",
    ),
    "an undefined variable": (
        HEADERS + "extern int absent;\n" + program("tc", body="return absent;") + LICENCE,
        "refers to 'absent', which it does not define",
    ),
    "a map of 100 MB": (SOUND + HASH % (1_000_000, "char[96]", "huge"), "184,000,000 bytes of maps"),
    "maps that are too large together": (
        SOUND + HASH % (65_536, "__u32", "one") + HASH % (65_536, "__u32", "two"),
        "12,582,912 bytes of maps",
    ),
    "a variable that is too large": (
        HEADERS + "char big[2 << 20];\n" + program("tc", body="return big[skb->len & 7];") + LICENCE,
        "2,097,152 bytes of maps",
    ),
    "a map that pins itself": (SOUND + PINNED, "pins its map shared by itself"),
    "a map of maps": (SOUND + OF_MAPS, "has a map of maps, outer"),
    "a map defined the old way": (SOUND + OLD_MAP, "defines maps the old way"),
    "struct_ops": (
        SOUND + 'struct { int (*init)(void); } ops SEC(".struct_ops") = { 0 };\n',
        "defines struct_ops",
    ),
    "a struct_ops program": (
        SOUND + program("struct_ops/init"),
        "has an unknown section 'struct_ops/init'",
    ),
}


@pytest.mark.parametrize(("source", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_unsound_object_is_refused_with_the_reason(source: str, reason: str) -> None:
    assert reason in refusal(bpf_object(source)).message


def test_refusal_of_large_maps_names_the_largest() -> None:
    error = refusal(bpf_object(SOUND + HASH % (9, "__u32", "small") + HASH % (1 << 20, "__u32", "large")))
    assert (error.tip or "").startswith("the largest is large with 100,663,296 bytes")


def test_per_cpu_map_counts_for_every_cpu() -> None:
    source = (SOUND + HASH % (900, "char[256]", "table")).replace("TYPE_HASH", "TYPE_PERCPU_HASH")
    assert inspect(source, cpus=4).maps[0].size_bytes == 900 * (88 + 4 * 256)
    with pytest.raises(PodmgrError, match="bytes of maps"):
        inspect(source, cpus=5)


def test_maps_without_btf_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clang, "FLAGS", [flag for flag in clang.FLAGS if flag != "-g"])
    source = (SOUND + HASH % (1, "__u32", "table")).encode()
    content = clang.compile_c(source, name="x", macros=(), runner=proc.run)
    assert "has maps but no BTF" in refusal(content).message


def test_object_for_another_machine_is_refused() -> None:
    argv = ["clang", "-target", "x86_64", "-x", "c", "-c", "-", "-o", "-"]
    done = proc.run(argv, stdin=b"int x;")
    assert "is an object for EM_X86_64, not for BPF" in refusal(done.output).message


def test_object_of_the_other_byte_order_is_refused() -> None:
    other, target = ("big", "bpfeb") if sys.byteorder == "little" else ("little", "bpfel")
    argv = ["clang", "-target", target, "-O2", "-g", "-x", "c", "-c", "-", "-o", "-"]
    source = f'__attribute__((section("tc"))) int f(void *s) {{ return 1; }}\n{LICENCE}'
    source = source.replace('SEC("license")', '__attribute__((section("license")))')
    done = proc.run(argv, stdin=source.encode())
    assert f"is an object of {other}-endian byte order" in refusal(done.output).message


def test_stripped_object_is_refused() -> None:
    content = bpf_object(SOUND)
    assert content.count(b".symtab\0") == 1
    assert "has no symbol table" in refusal(content.replace(b".symtab\0", b".nothin\0")).message


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"MZ", b"\x7fELF" + bytes(60), b"\0" * 4096])
def test_what_is_no_elf_file_is_refused(content: bytes) -> None:
    refusal(content)


@given(st.binary(max_size=4096))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    refusal(b"\x7fELF" + content)


@given(st.floats(0, 1, exclude_max=True))
def test_truncated_object_is_refused(part: float) -> None:
    content = shipped("bandwidth")
    refusal(content[: int(len(content) * part)])


def test_relocation_that_libbpf_does_not_resolve_is_refused() -> None:
    content = bytearray(shipped("bandwidth"))
    section = ELFFile(io.BytesIO(content)).get_section_by_name(".relcgroup_skb/ingress")
    assert section is not None
    struct.pack_into("<I", content, section["sh_offset"] + 8, 99)
    assert "has an unknown relocation of type 99" in refusal(bytes(content)).message


def test_damaged_btf_is_refused() -> None:
    content = shipped("bandwidth")
    damaged = content.replace(struct.pack("<H", 0xEB9F) + b"\1", struct.pack("<H", 0x9FEB) + b"\1")
    assert damaged != content
    assert "not little-endian BTF" in refusal(damaged).message
