"""Every program compiles without a warning, in both directions, by podmgr and by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from podmgr import clang, elf
from podmgr.rules import Direction

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("bpf/*.bpf.c"), *ROOT.glob("examples/*.bpf.c")])
INCLUDES = (f"-I{ROOT / 'bpf'}", f"-I/usr/include/{os.uname().machine}-linux-gnu")
EXTREMES = {
    "bandwidth": (
        {"RATE": "8000ULL", "BURST": "1514ULL", "INITIAL": "1514ULL"},
        {"RATE": "400000000000ULL", "BURST": "12500000000ULL", "INITIAL": "16000ULL"},
    ),
    "loss": ({"THRESHOLD": "4294967296ULL"},),
    "edt": ({"RATE": "8000ULL"}, {"RATE": "400000000000ULL"}),
    "dropper": ({"PROTOCOL": "IPPROTO_UDP", "PORT": "53", "DROP": "0"},),
}
CASES = [(source, macros) for source in SOURCES for macros in ({}, *EXTREMES[source.name.split(".")[0]])]


def _compile(source: Path, *words: str) -> bytes:
    argv = [
        "clang",
        *clang.FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        *INCLUDES,
        *words,
        "-c",
        str(source),
        "-o",
        "-",
    ]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(
    ("source", "macros"),
    CASES,
    ids=[f"{source.name}-{'-'.join(macros.values())}" for source, macros in CASES],
)
def test_programs_compile_without_a_warning(
    source: Path, macros: dict[str, str], direction: Direction
) -> None:
    own = {
        "INTERFACE": f'"{direction}"',
        "DIRECTION_EGRESS": str(int(direction is Direction.EGRESS)),
        "PODMGR_LOOPBACK": "0",
    }
    content = _compile(source, *(f"-D{name}={value}" for name, value in (own | macros).items()))
    info = elf.inspect(content, name=source.name)
    assert (info.hook, info.direction, info.licence) == ("cgroup", direction, "GPL")
    assert "podmgr_counters" in {item.name for item in info.maps}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.name))
def test_programs_compile_by_hand(source: Path) -> None:
    assert elf.inspect(_compile(source), name=source.name).direction is Direction.EGRESS


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.name))
def test_programs_carry_their_licence_and_say_what_they_do(source: Path) -> None:
    text = source.read_text()
    name = source.name.split(".")[0]
    assert text.startswith("// SPDX-License-Identifier: GPL-2.0\n/*\n")
    assert f"/*\n * {name}: " in text
    assert text.count("SEC(") - text.count('SEC(".maps")') - text.count('SEC("license")') == 1
