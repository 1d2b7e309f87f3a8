"""A tc program of others is led past its end: what stays as it is, what changes, what is refused."""

from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile

from podmgr.errors import PodmgrError
from podmgr.programs import elf, verdicts
from tests.unit.samples import HEADERS, LICENCE, bpf_object

ONE = HEADERS + 'SEC("tc") int one(struct __sk_buff *skb) { return skb->len > 100 ? 0 : 2; }\n' + LICENCE
TAIL_CALLS = (
    HEADERS
    + """
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __type(key, __u32);
         __type(value, __u32); } jumps SEC(".maps");
SEC("tc") int one(struct __sk_buff *skb) { bpf_tail_call(skb, &jumps, 0); return 0; }
"""
    + LICENCE
)
PACKET_LOADS = (
    HEADERS
    + """
unsigned long long load_byte(void *skb, unsigned long long offset) asm("llvm.bpf.load.byte");
SEC("tc") int one(struct __sk_buff *skb) { return load_byte(skb, 12) ? 0 : 2; }
"""
    + LICENCE
)
EXIT, JUMP = b"\x95" + bytes(7), 0x05


def long_program(instructions: int, *exits: int) -> bytes:
    """So many instructions that do nothing, some of them exits."""
    code = bytearray((b"\xb7" + bytes(7)) * instructions)
    for at in exits:
        code[at * 8 : at * 8 + 8] = EXIT
    return bytes(code)


def changed(source: str) -> tuple[bytes, bytes]:
    content = bpf_object(source)
    return content, verdicts.passing_on(content, elf.inspect(content, name="one"), name="one")


def test_object_stays_sound_and_nothing_moves_in_it() -> None:
    before, after = changed(ONE)
    old, new = (ELFFile(io.BytesIO(content)) for content in (before, after))
    for one, other in zip(old.iter_sections(), new.iter_sections(), strict=True):
        if one.name not in ("tc", ".symtab"):
            assert (one.header, one.data()) == (other.header, other.data())
    was, now = (elf.inspect(content, name="one") for content in (before, after))
    assert now == was._replace(instructions=was.instructions + 5)
    (code,) = [section.data() for section in new.iter_sections() if section.name == "tc"]
    assert EXIT not in code[: was.instructions * 8]


def test_half_of_a_wide_instruction_is_no_exit() -> None:
    wide = b"\x18" + bytes(7) + EXIT
    assert verdicts._led_to_end(wide + EXIT, "x").startswith(wide)


def test_exit_too_far_from_the_end_jumps_to_one_nearer_to_it() -> None:
    code = verdicts._led_to_end(long_program(60_000, 1_000, 30_000, 59_999), "x")
    for at, target in ((1_000, 30_000), (30_000, 60_000), (59_999, 60_000)):
        assert code[at * 8] == JUMP
        assert at + 1 + int.from_bytes(code[at * 8 + 2 : at * 8 + 4], "little", signed=True) == target


def test_program_too_long_to_be_led_is_refused() -> None:
    with pytest.raises(PodmgrError, match="program x is too long"):
        verdicts._led_to_end(long_program(60_000, 1_000, 59_999), "x")


@pytest.mark.parametrize(
    ("source", "message"),
    [(TAIL_CALLS, "program one makes tail calls"), (PACKET_LOADS, "program one loads bytes of the packet")],
)
def test_program_that_ends_by_itself_is_refused(source: str, message: str) -> None:
    with pytest.raises(PodmgrError, match=message):
        changed(source)
