"""A program that looks up thousands of peers remembers the last ones (bpf/recent.h): never wrongly."""

from __future__ import annotations

import ctypes
import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.kernel import bpf_syscall, bpftool, map_contents, pins, program_tables
from podmgr.kernel.pins import Pin
from podmgr.programs.build import SpecMaker, compile_spec
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.match import Ports
from podmgr.rules.peers import MOST_BITS, Prefix, prefix_of
from podmgr.rules.rule import Direction, Hook
from podmgr.rules.tables import Term
from podmgr.settings import Settings

PREFIXES, PEERS, PACKETS, CHANGES = 1_500, 120, 1_000, 30

ALL_PORTS = Ports(0, 65_535)
IT, ANOTHER = (Term(None, ALL_PORTS, ALL_PORTS, rule) for rule in (0, 1))
ALL_HIT, NONE_HIT, NOBODYS = (IT,), (ANOTHER, IT), ()
_PROG_TEST_RUN = 10

Lists = dict[Prefix, tuple[Term, ...]]
IsHit = Callable[[str], bool]


@pytest.fixture
def loaded(settings: Settings, tmp_path: Path) -> Iterator[Pin]:
    """A rule's program that hangs nowhere, and loses what its table says is its own."""
    (rule,) = parse_rule_option("loss=100% egress")
    spec = SpecMaker(settings).spec(rule, counts_loopback=True, hook=Hook.CGROUP, is_matched=True)
    path, pin = tmp_path / "object", Pin(settings.bpffs, "test", "0")
    path.write_bytes(compile_spec(spec, runner=proc.run).content)
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    pins.make_owner(settings.bpffs, "test")
    try:
        load = bpftool.load(str(path), pin.program, pin.maps, Hook.CGROUP, Direction.EGRESS)
        assert bpftool.batch([load], runner=proc.run) == [None]
        yield pin
    finally:
        pins.remove(pin)
        pins.remove_empty_folders(settings.bpffs)


@pytest.fixture
def is_hit(loaded: Pin) -> Iterator[IsHit]:
    """Whether the program loses a datagram to an address."""
    fd = bpf_syscall.open_pin(loaded.program)

    def run(peer: str) -> bool:
        frame = ctypes.create_string_buffer(_frame(peer))
        attr = bytearray(bpf_syscall.ATTR_BYTES + 32)
        struct.pack_into("=IIIIQ", attr, 0, fd, 0, len(frame.raw), 0, ctypes.addressof(frame))
        bpf_syscall.call(_PROG_TEST_RUN, attr, "run the program")
        (verdict,) = struct.unpack_from("=I", attr, 4)
        return not verdict & 1  # of a cgroup; the other bit slows its sender down

    yield run
    os.close(fd)


def _frame(peer: str) -> bytes:
    """A datagram to an address, from the same."""
    address = ip_address(peer)
    udp = struct.pack("!HHHH", 40_000, 9, 8, 0)
    if address.version == 4:
        kind, ip = 0x0800, struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
    else:
        kind, ip = 0x86DD, struct.pack("!IHBB", 6 << 28, 8, 17, 64)
    return struct.pack("!12xH", kind) + ip + address.packed * 2 + udp + bytes(32)


def _should_be_hit(lists: Mapping[Prefix, tuple[Term, ...]], peer: str) -> bool:
    whole = prefix_of(peer)
    for bits in range(MOST_BITS, -1, -1):
        found = lists.get(Prefix(whole.start(bits).ljust(17, b"\0"), bits)) if bits <= whole.bits else None
        if found is not None:
            return found == ALL_HIT
    return False


def _peer(draw: random.Random) -> str:
    """Few networks, so that peers lie in each other's, and share a place in the program's memory."""
    if draw.random() < 0.3:
        return f"fd00::{draw.randrange(4):x}:{draw.randrange(256):x}"
    return f"10.{draw.randrange(2)}.{draw.randrange(4)}.{draw.randrange(256)}"


def _network(draw: random.Random) -> Prefix:
    whole = prefix_of(_peer(draw))
    bits = whole.bits - draw.choice((0, 0, 0, 3, 8, 10))
    return Prefix(whole.start(bits).ljust(17, b"\0"), bits)


def test_what_is_remembered_is_what_is_in_the_table(loaded: Pin, is_hit: IsHit) -> None:
    draw = random.Random(15)
    peers = [_peer(draw) for _ in range(PEERS)]
    lists: Lists = {_network(draw): draw.choice((ALL_HIT, NONE_HIT, NOBODYS)) for _ in range(PREFIXES)}
    for change in range(CHANGES):
        for _ in range(draw.choice((1, 20))):
            lists[_network(draw)] = draw.choice((ALL_HIT, NONE_HIT))
            del lists[draw.choice(list(lists))]
        program_tables.write_lists(loaded, lists)
        wanted = {peer: _should_be_hit(lists, peer) for peer in peers}
        assert len(set(wanted.values())) == 2
        for _ in range(PACKETS):
            peer = draw.choice(peers)
            assert is_hit(peer) is wanted[peer], (change, peer)


def test_nothing_is_remembered_once_a_change_was_cut_off(
    loaded: Pin, is_hit: IsHit, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = {Prefix(prefix_of(f"172.16.{n >> 8}.{n & 255}").address, 40): ALL_HIT for n in range(PREFIXES)}
    first, second = prefix_of("10.0.0.1"), prefix_of("10.0.0.2")
    program_tables.write_lists(loaded, around | {first: ALL_HIT, second: ALL_HIT})
    assert is_hit("10.0.0.1")
    assert is_hit("10.0.0.2")

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(map_contents.PinnedMap, "__delitem__", kill)
        program_tables.write_lists(loaded, around | {first: NONE_HIT})
    assert not is_hit("10.0.0.1")
    program_tables.write_lists(loaded, around | {first: NONE_HIT})
    for _ in range(2):
        assert not is_hit("10.0.0.1")
        assert not is_hit("10.0.0.2")
