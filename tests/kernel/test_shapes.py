"""Programs as people write them: the kernel takes each, and two of one program are two rules."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.kernel import bpftool
from podmgr.programs import build
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import EXAMPLES, Cli
from tests.unit.programs.test_shapes import SHAPES, TAKEN

ALL = [
    (name, direction)
    for name, directions in {**TAKEN, "policy": ("egress",)}.items()
    for direction in directions
]


def test_the_kernel_takes_each_shape(tmp_path: Path) -> None:
    settings = Settings(program_dir=SHAPES, max_map_bytes=4 << 20)
    maker = build.SpecMaker(settings)
    commands = []
    pins = Path(f"/sys/fs/bpf/podmgr-shapes-{os.getpid()}")
    pins.mkdir(mode=0o700)
    try:
        for name, direction in ALL:
            (rule,) = parse_rule_option(f"ebpf-limit={name} {direction}")
            spec = maker.spec(rule, counts_loopback=True)
            compiled = build.compile_spec(spec, runner=proc.run, max_map_bytes=settings.max_map_bytes)
            path = tmp_path / f"{name}-{direction}.o"
            path.write_bytes(compiled.content)
            pin = str(pins / f"{name}-{direction}")
            way = Direction(direction)
            commands.append(bpftool.load(str(path), pin, f"{pin}-maps", compiled.info.hook, way))
        results = bpftool.batch(commands, runner=proc.run)
        assert {ALL[number]: failure for number, failure in enumerate(results) if failure} == {}
        assert sum(not path.is_dir() for path in pins.iterdir()) == len(ALL)
    finally:
        for folder, _, files in os.walk(pins, topdown=False):
            for file in files:
                os.unlink(os.path.join(folder, file))
            os.rmdir(folder)


WHERE = ("--program-dir", str(EXAMPLES))


def test_one_program_with_different_macros_is_two_rules(podmgr: Cli, cgroup: Cgroup) -> None:
    target = f"cgroup/{cgroup.path}"
    both = "ebpf-limit=dropper egress -DPORT=5805; dropper egress -DPORT=5806"
    podmgr("apply", target, "--rule", both, *WHERE)
    assert len(podmgr.listed()) == 2
    assert podmgr("apply", target, "--rule", both, *WHERE).stdout.count("unchanged") == 2
    done = podmgr("apply", target, "--rule", both.replace("5806", "5807"), *WHERE)
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()) == ["replaced", "unchanged"]
    assert {row["rule"].split("=")[-1] for row in podmgr.listed()} == {"5805", "5807"}
    again = f"{both}; dropper egress -DPORT=5805"
    assert "collides" in podmgr("apply", target, "--rule", again, *WHERE, code=2).stderr
    assert len(podmgr.listed()) == 2


SENDER = """
import socket
taker = {}
for port in (5805, 5806, 5807):
    taker[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taker[port].bind(("127.0.0.1", port))
    taker[port].settimeout(0.3)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))
for port, taken in taker.items():
    try:
        print(port, taken.recv(9).decode())
    except TimeoutError:
        print(port, "-")
"""


def test_both_rules_of_one_program_act(podmgr: Cli) -> None:
    rules = ("--rule", "ebpf-limit=dropper egress -DPORT=5805; dropper egress -DPORT=5806")
    done = podmgr("run", "-q", *rules, *WHERE, "--", sys.executable, "-c", SENDER)
    assert done.stdout.split() == ["5805", "-", "5806", "-", "5807", "x"]


def test_an_address_as_a_macro_drops_what_goes_there_alone(podmgr: Cli) -> None:
    rule = ("--rule", "ebpf-limit=one_peer egress -DDST=127.0.0.2", "--program-dir", str(SHAPES))
    there = SENDER.replace("127.0.0.1", "127.0.0.2")
    for source, taken in ((SENDER, "x"), (there, "-")):
        done = podmgr("run", "-q", *rule, "--", sys.executable, "-c", source)
        assert done.stdout.split()[1::2] == [taken] * 3
