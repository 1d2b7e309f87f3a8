"""The kernel's verifier takes every program at the ends of its range, and what they compute there."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.kernel import bpf_syscall, pins
from podmgr.programs.build import SpecMaker, compile_spec
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.bandwidth import Bandwidth
from podmgr.settings import Settings
from tests.kernel.conftest import run

GSO_SIZE_AT = 176  # in struct __sk_buff, linux/bpf.h


@dataclass(frozen=True)
class Loaded:
    """A program that hangs nowhere, to be run on packets of our making."""

    pin: str

    def test(self, packet: bytes, folder: Path, *, repeat: int = 1, gso_size: int = 0) -> int:
        """The verdict on a packet, the last of `repeat` runs."""
        data = folder / "packet"
        data.write_bytes(packet)
        argv = ["bpftool", "-j", "prog", "run", "pinned", self.pin, "data_in", str(data)]
        if gso_size:
            context = folder / "context"
            context.write_bytes(bytes(GSO_SIZE_AT) + struct.pack("=I", gso_size))
            argv += ["ctx_in", str(context)]
        return int(json.loads(run(*argv, "repeat", str(repeat)))["retval"])

    def counters(self) -> bpf_syscall.Counters:
        found = bpf_syscall.pinned_counters(f"{self.pin}-maps/podmgr_counters")
        assert found is not None
        return found


@pytest.fixture
def load(settings: Settings, tmp_path: Path) -> Iterator[Load]:
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    loaded: list[pins.Pin] = []

    def load(text: str) -> Loaded:
        (rule,) = parse_rule_option(text)
        spec = SpecMaker(settings).spec(rule, counts_loopback=True)
        path = tmp_path / "object.o"
        path.write_bytes(compile_spec(spec, runner=proc.run).content)
        pins.make_owner(settings.bpffs, "test")
        pin = pins.Pin(settings.bpffs, "test", str(len(loaded)))
        loaded.append(pin)
        run("bpftool", "prog", "load", str(path), pin.program, "pinmaps", pin.maps)
        return Loaded(pin.program)

    yield load
    for pin in loaded:
        pins.remove(pin)
    pins.remove_empty_folders(settings.bpffs)


Load = Callable[[str], Loaded]

ETHERNET = bytes(12) + b"\x08\x00"
UDP = ETHERNET + struct.pack("!BBHHHBBH4s4s", 0x45, 0, 48, 0, 0, 64, 17, 0, bytes(4), bytes(4)) + bytes(28)


@pytest.mark.parametrize("direction", ["egress", "ingress"])
@pytest.mark.parametrize(
    "text",
    [
        "bandwidth=8 kbps {}",
        "bandwidth=400 gbps {}",
        "bandwidth=8 kbps {} burst=1514b",
        "bandwidth=4.294967296 gbps {} burst=1000mb",
        "bandwidth=10 mbps {} algorithm=edt",
        "bandwidth=400 gbps {} algorithm=edt",
        "loss=uniform {} 100%",
        "loss=uniform {} 0%",
        "loss=exponential {} 1000",
        "loss=burst {} 50% length=1",
        "loss=burst {} 0% length=1000000",
        "loss=gilbert {} p=100% r=0%",
        "loss=gilbert {} p=50% r=50% bad=50% good=50%",
        "loss=markov {} p13=25% p31=25% p32=25% p23=25% p14=25%",
        "ebpf-limit=dropper {}",
        "ebpf-limit=edt {} -DRATE=1000000 -DHORIZON=20000000",
    ],
)
def test_the_verifier_takes_every_program(load: Load, text: str, direction: str, tmp_path: Path) -> None:
    program = load(text.format(direction))
    drop = 2 if direction == "egress" else 0
    verdicts = {"loss=uniform {} 100%": {drop}, "ebpf-limit=dropper {}": {drop}}
    verdicts["loss=exponential {} 1000"] = {drop, 1}  # one in fifty
    verdicts["loss=burst {} 50% length=1"] = verdicts["loss=gilbert {} p=100% r=0%"] = {drop}
    verdicts["loss=gilbert {} p=50% r=50% bad=50% good=50%"] = {drop, 1}
    verdicts["loss=markov {} p13=25% p31=25% p32=25% p23=25% p14=25%"] = {drop, 1}
    assert program.test(UDP, tmp_path) in verdicts.get(text, {1})
    counters = program.counters()
    assert counters.passed_packets + counters.dropped_packets == 1
    assert counters.passed_bytes + counters.dropped_bytes == len(UDP)


def test_a_bucket_passes_what_it_starts_with_and_then_the_rate(load: Load, tmp_path: Path) -> None:
    """8 kbps starts with one frame of 1514 bytes: 24 packets of 62, before a byte comes in."""
    program = load("bandwidth=8 kbps egress")
    program.test(UDP, tmp_path, repeat=1000)
    assert program.counters().passed_packets in (1514 // len(UDP), 1514 // len(UDP) + 1)


def test_a_packet_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_for_afterwards(
    load: Load, tmp_path: Path
) -> None:
    program = load("bandwidth=100 kbps egress burst=1514b")
    large = UDP + bytes(3000 - len(UDP))  # 0.24 s of the rate, 0.12 of them saved up
    assert program.test(large, tmp_path) == 1
    assert program.test(UDP, tmp_path) == 2
    time.sleep(0.3)
    assert program.test(UDP, tmp_path) == 1


def test_a_gso_packet_that_does_not_say_how_many_it_is_counts_as_its_segments(
    load: Load, tmp_path: Path
) -> None:
    """As a virtual machine sends it: gso_segs 0, and the size of a segment's payload."""
    program = load("loss=uniform egress 0% hook=cgroup")
    ip = b"\x45" + bytes(7) + b"\x40\x06" + bytes(10)
    tcp = bytes(12) + b"\x50" + bytes(7)
    header = UDP[:14] + ip + tcp
    program.test(header + bytes(2000), tmp_path, gso_size=900)
    counters = program.counters()
    assert (counters.passed_packets, counters.passed_bytes) == (3, len(header) + 2000 + 2 * (14 + 40))


@pytest.mark.parametrize(
    ("options", "is_aside"), [("egress hook=cgroup", True), ("ingress hook=cgroup", False)]
)
def test_a_packet_that_interrupts_the_counting_of_another_is_counted_too(
    load: Load, tmp_path: Path, options: str, is_aside: bool
) -> None:
    """As on the way out by a softirq: `is_busy` of struct podmgr_row is what it finds."""
    program = load(f"loss=uniform {options.replace(' ', ' 0% ', 1)}")
    own, busy, aside = bytes(32), b"\1" + bytes(7), bytes(32)
    words = ["key", "hex", *["00"] * 4, "value", "hex", *(f"{byte:02x}" for byte in own + busy + aside)]
    pin = f"{program.pin}-maps/podmgr_counters"
    run("bpftool", "map", "update", "pinned", pin, *words)
    program.test(UDP, tmp_path, repeat=5)
    assert program.counters()[:2] == (5, 5 * len(UDP))
    (entry,) = json.loads(run("bpftool", "-j", "map", "dump", "pinned", pin))
    rows = [bytes(int(byte, 16) for byte in row["value"]) for row in entry["values"]]
    assert sum(int.from_bytes(row[:8], "little") for row in rows) == (0 if is_aside else 5)


@pytest.mark.parametrize("rate", ["3 mbps", "7 mbps", "11 mbps", "4.29 gbps", "5 gbps", "400 gbps"])
def test_a_packet_as_large_as_the_bucket_passes(load: Load, tmp_path: Path, rate: str) -> None:
    """However the rate divides: nothing is rounded to the packet's disadvantage."""
    program = load(f"bandwidth={rate} egress burst=1514b")
    frame = UDP + bytes(1514 - len(UDP))
    program.test(frame, tmp_path)
    time.sleep(0.02)
    assert program.test(frame, tmp_path) == 1


@pytest.mark.parametrize("rate", ["1 mbps", "4.2 gbps", "4.3 gbps", "100 gbps"])
def test_a_full_bucket_holds_its_burst(load: Load, tmp_path: Path, rate: str) -> None:
    """After a long pause the whole burst passes and no more, on both sides of 2^32 bits/s."""
    packet = UDP + bytes(1438)
    program = load(f"bandwidth={rate} egress burst=150kb")
    program.test(packet, tmp_path)
    time.sleep(1.3 if rate == "1 mbps" else 0.01)
    before = program.counters()
    program.test(packet, tmp_path, repeat=120)
    passed = program.counters().passed_bytes - before.passed_bytes
    assert passed >= 148_500
    if rate == "1 mbps":
        assert passed <= 150_000


@pytest.mark.parametrize(
    "text",
    [
        "bandwidth=100 mbps egress",
        "bandwidth=4.3 gbps egress",
        "bandwidth=1 gbps egress burst=1514b",
        "bandwidth=100 mbps egress algorithm=edt",
    ],
)
def test_no_packet_is_forgotten_when_all_cpus_send_at_once(load: Load, tmp_path: Path, text: str) -> None:
    """Each CPU sends as fast as it can, and the rate is kept: no charge is lost."""
    program = load(text)
    (rule,) = parse_rule_option(text)
    assert isinstance(rule, Bandwidth)
    data = tmp_path / "packet"
    data.write_bytes(UDP + bytes(1438))  # large ones: a CPU that is shared still offers more than the limit
    argv = ["bpftool", "prog", "run", "pinned", str(program.pin), "data_in", str(data), "repeat", str(10**9)]
    senders = [subprocess.Popen(argv, stdout=subprocess.DEVNULL) for _ in range(os.cpu_count() or 2)]
    try:
        time.sleep(1)  # until the bucket is empty, or the link taken up to the horizon
        assert program.counters().dropped_packets
        begun = [time.monotonic_ns()]
        before = program.counters()
        begun.append(time.monotonic_ns())
        time.sleep(1)
        ended = [time.monotonic_ns()]
        after = program.counters()
        ended.append(time.monotonic_ns())
        assert all(sender.poll() is None for sender in senders)
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()
    passed = after.passed_bytes - before.passed_bytes
    bytes_per_ns = rule.rate_bits_per_second / 8 / 1e9
    # We may have had to wait for a CPU between reading the clock and the counters.
    # A charge that is lost shows by tens of percent.
    assert passed <= 1.05 * bytes_per_ns * (ended[1] - begun[0])
    # A bucket forgets what is not used at once, and a CPU may be away for longer than that.
    assert passed >= 0.5 * bytes_per_ns * (ended[0] - begun[1])
