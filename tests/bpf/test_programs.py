"""Every program compiles without a warning, in both directions, by podmgr and by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from podmgr.programs import clang, elf
from podmgr.rules.distributions import quantiles
from podmgr.rules.kinds import BUILT_IN_PROGRAMS
from podmgr.rules.rule import Direction

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("bpf/*.bpf.c"), *ROOT.glob("examples/*.bpf.c")])
INCLUDES = (f"-I{ROOT / 'bpf'}", f"-I/usr/include/{os.uname().machine}-linux-gnu")
EXTREMES = {
    "bandwidth": (
        {"RATE": "8000ULL", "BURST": "1514ULL", "INITIAL": "1514ULL"},
        {"RATE": "400000000000ULL", "BURST": "12500000000ULL", "INITIAL": "16000ULL"},
    ),
    "loss": ({"THRESHOLD": "4294967296ULL"},),
    "burst": (
        {"P13": "4294967296ULL", "P31": "4294967296ULL"},
        {
            "P13": "1ULL",
            "P14": "4294967295ULL",
            "P23": "0ULL",
            "P32": "4294967296ULL",
            "P41": "4294967296ULL",
        },
        {
            "P12": "1431655765ULL",
            "P13": "1431655765ULL",
            "P14": "1431655766ULL",
            "P21": "1431655765ULL",
            "P23": "1431655765ULL",
            "P24": "1431655766ULL",
            "P31": "1431655765ULL",
            "P32": "1431655765ULL",
            "P34": "1431655766ULL",
            "P41": "1431655765ULL",
            "P42": "1431655765ULL",
            "P43": "1431655766ULL",
        },
    ),
    "duplicate": ({"THRESHOLD": "4294967296ULL"},),
    "corrupt": (
        {"THRESHOLD": "4294967296ULL"},
        {"THRESHOLD": "4294967296ULL", "REACHES_APPLICATION": "1"},
    ),
    "reorder": (
        {"THRESHOLD": "4294967296ULL", "TIME": "1000ULL", "MOST_BYTES": "16777216ULL"},
        {"THRESHOLD": "4294967296ULL", "TIME": "10000000000ULL", "MOST_BYTES": "256000000ULL"},
    ),
    "block": (
        {"PODMGR_TC": "1", "REPLY": "1"},
        {"PODMGR_TC": "1", "REPLY": "2"},
        {"PODMGR_TC": "1", "REPLY": "1", "ONLY_NEW": "1"},
        {"PODMGR_TC": "1", "REPLY": "2", "CUTS": "1"},
    ),
    "edt": (
        {"RATE": "8000ULL", "HORIZON": "8000000000ULL"},
        {"RATE": "400000000000ULL", "HORIZON": "50000000ULL"},
    ),
    "delay": (
        {"TIME": "1000ULL", "MOST_BYTES": "16777216ULL"},
        {
            "TIME": "2000000000ULL",
            "JITTER": "2000000000ULL",
            "LEAST": "0ULL",
            "MOST": "10000000000ULL",
            "MOST_BYTES": "256000000ULL",
            "CORRELATION": "4294967295ULL",
            "SLOT_SHIFT": "35",
            "QUANTILES": ",".join(map(str, quantiles("paretonormal"))),
        },
        {"TIME": "5000000000ULL", "JITTER": "5000000000ULL", "IS_ORDERED": "0", "CORRELATION": "1ULL"},
    ),
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
    ids=[f"{source.name}-{'-'.join(value[:20] for value in macros.values())}" for source, macros in CASES],
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
    is_tc = ONLY_TC in source.read_text() or macros.get("PODMGR_TC") == "1"
    assert (info.hook, info.direction, info.licence) == (
        ("tc", None, "GPL") if is_tc else ("cgroup", direction, "GPL")
    )
    assert "podmgr_counters" in {item.name for item in info.maps}


ONLY_TC = "#define PODMGR_TC 1"
BUILT_IN = [source for source in SOURCES if source.parent.name == "bpf"]


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("is_scoped", [True, False])
@pytest.mark.parametrize(
    ("source", "is_tc"),
    [
        pytest.param(source, is_tc, id=f"{source.name}-{'tc' if is_tc else 'cgroup'}")
        for source in BUILT_IN
        for is_tc in (True, False)
        if is_tc or ONLY_TC not in source.read_text()
    ],
)
def test_built_in_programs_compile_for_either_hook(
    source: Path, is_tc: bool, is_scoped: bool, direction: Direction
) -> None:
    own = {
        "INTERFACE": f'"{direction}"',
        "DIRECTION_EGRESS": str(int(direction is Direction.EGRESS)),
        "PODMGR_LOOPBACK": "0",
        "PODMGR_SCOPED": str(int(is_scoped)),
        "PODMGR_TC": str(int(is_tc)),
    }
    info = elf.inspect(_compile(source, *(f"-D{name}={value}" for name, value in own.items())), name="x")
    assert info.hook == ("tc" if is_tc else "cgroup")
    assert info.direction == (None if is_tc else direction)
    maps = {item.name: item for item in info.maps}
    assert "podmgr_counters" in maps
    assert ("podmgr_scope" in maps) == (is_tc and is_scoped)
    if "podmgr_scope" in maps:  # what podmgr writes into it: two numbers of 64 bits
        assert maps["podmgr_scope"].value_bytes == 16


def test_built_in_programs_are_all_of_the_catalog() -> None:
    assert {source.name.removesuffix(".bpf.c") for source in BUILT_IN} == BUILT_IN_PROGRAMS


OWN_PROGRAM = """
#define PODMGR_TC 1
#include "podmgr.h"
SEC("tc") int own(struct __sk_buff *skb)
{
	return is_exempt(skb) ? VERDICT_PASS : VERDICT_DROP;
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.mark.parametrize("is_scoped", [True, False])
@pytest.mark.parametrize("direction", list(Direction))
def test_program_of_ones_own_at_tc_finds_the_header_for_it(
    tmp_path: Path, is_scoped: bool, direction: Direction
) -> None:
    source = tmp_path / "own.bpf.c"
    source.write_text(OWN_PROGRAM)
    words = [f'-DINTERFACE="{direction}"', f"-DPODMGR_SCOPED={int(is_scoped)}", "-DPODMGR_LOOPBACK=0"]
    words.append(f"-DDIRECTION_EGRESS={int(direction is Direction.EGRESS)}")
    info = elf.inspect(_compile(source, *words), name="own")
    assert (info.hook, info.direction) == ("tc", None)
    assert ("podmgr_scope" in {item.name for item in info.maps}) is is_scoped


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.name))
def test_programs_compile_by_hand(source: Path) -> None:
    direction = None if ONLY_TC in source.read_text() else Direction.EGRESS
    assert elf.inspect(_compile(source), name=source.name).direction is direction


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.name))
def test_programs_carry_their_licence_and_say_what_they_do(source: Path) -> None:
    text = source.read_text()
    name = source.name.split(".")[0]
    assert text.startswith("// SPDX-License-Identifier: GPL-2.0-only\n/*\n")
    assert f"/*\n * {name}: " in text
    assert text.count("SEC(") - text.count('SEC(".maps")') - text.count('SEC("license")') == 1
