"""What stands before a custom program with a match or a time: it alone is entered."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.errors import PodmgrError
from podmgr.programs import clang, elf
from podmgr.programs.build import Compiled, SpecMaker, compile_spec
from podmgr.programs.find import find_gate
from podmgr.rules.grammar import parse_rule_option
from podmgr.settings import Settings
from tests.unit.samples import HEADERS, LICENCE, bpf_object

BODY = "(struct __sk_buff *skb) { return skb->len > 100; }\n"
FUNCTION = f'SEC("tc") int prog{BODY}'
SOURCE = HEADERS + FUNCTION + LICENCE
NAMES = """
static int is_matched(int packed) { return packed; }
typedef int rule; enum { TERM_IS_TIMED = 5, first };
#define misfit(number) is_matched(number)
#define port 7
struct ethhdr { int read_plain; };
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "programs"
    made.mkdir()
    made.chmod(0o755)
    yield made


def built(folder: Path, source: str, options: str, *, is_matched: bool = False) -> Compiled:
    path = folder / "mine.bpf.c"
    path.write_text(source)
    path.chmod(0o644)
    (rule,) = parse_rule_option(f"ebpf-limit=mine {options}")
    spec = SpecMaker(Settings(program_dir=folder)).spec(rule, counts_loopback=True, is_matched=is_matched)
    return compile_spec(spec, runner=proc.run)


@pytest.mark.parametrize(
    "function",
    [
        FUNCTION,
        f'SEC("t" "c") int prog{BODY}',
        f'#define MINE SEC("tc") int\nMINE\nprog{BODY}',
        f'int __attribute__((used, section("tc"))) prog{BODY}',
        f'__attribute__((used)) __attribute__((__section__("tc"))) unsigned int prog{BODY}',
        f'static const char shown[] = "section(\\"tc\\")";\nSEC("tc") int prog{BODY}',
        f'SEC("tc") int prog(struct __sk_buff *);\nSEC("tc") int prog{BODY}',
        'SEC("tc") long prog(const void *skb) { return skb ? 2 : 0; }',
        f'{NAMES}SEC("tc") int prog{BODY}',
    ],
)
def test_the_gate_alone_is_entered(folder: Path, function: str) -> None:
    compiled = built(folder, HEADERS + function + LICENCE, "egress port=80 for=3s", is_matched=True)
    assert (compiled.info.section, compiled.info.function) == ("tc", "podmgr_gate")
    maps = {item.name for item in compiled.info.maps}
    assert maps >= {"podmgr_peers", "podmgr_terms", "podmgr_windows"}
    assert elf.uses_map(compiled.content, "podmgr_windows")


def test_a_program_may_include_nothing(folder: Path) -> None:
    source = (
        "struct __sk_buff { unsigned int len; };\n"
        '__attribute__((section("tc"), used)) int prog(struct __sk_buff *skb) { return skb->len > 100; }\n'
        'char mine[] __attribute__((section("license"), used)) = "GPL";\n'
    )
    compiled = built(folder, source, "egress port=80", is_matched=True)
    assert compiled.info.function == "podmgr_gate"


def test_a_time_alone_looks_at_no_packet(folder: Path) -> None:
    compiled = built(folder, SOURCE, "ingress for=3s")
    assert [item.name for item in compiled.info.maps] == ["podmgr_windows"]


def test_of_two_directions_the_gate_stands_before_the_rules(folder: Path) -> None:
    both = f'SEC("tc/egress") int out{BODY}SEC("tc/ingress") int in{BODY}'
    compiled = built(folder, HEADERS + both + LICENCE, "ingress for=3s")
    assert (compiled.info.section, compiled.info.function) == ("tc/ingress", "podmgr_gate")


def test_without_a_match_or_a_time_nothing_stands_before_a_program(folder: Path) -> None:
    plain = built(folder, SOURCE, "egress")
    assert plain.info.function == "prog"
    assert not plain.info.maps


def test_the_header_asks_nothing_behind_the_gate(folder: Path) -> None:
    asking = 'SEC("tc") int prog(struct __sk_buff *skb) { return is_exempt(skb) ? -1 : 2; }\n'
    source = f'#define PODMGR_TC 1\n#include "podmgr.h"\n{asking}{LICENCE}'
    compiled = built(folder, source, "egress port=80 for=3s", is_matched=True)
    assert compiled.info.function == "podmgr_gate"


@pytest.mark.parametrize(
    "function",
    [
        f'#pragma clang section text="tc"\nint prog{BODY}#pragma clang section text=""\n',
        f'__attribute__((section(("tc")))) int prog{BODY}',
    ],
)
def test_what_cannot_be_put_behind_a_gate_is_refused(folder: Path, function: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        built(folder, HEADERS + function + LICENCE, "egress for=3s")
    assert 'SEC("tc")' in (caught.value.message + (caught.value.tip or ""))


@pytest.mark.parametrize("options", ["port=80", "for=3s"])
def test_a_ready_object_has_no_match_and_no_time(folder: Path, options: str) -> None:
    (folder / "ready.bpf.o").write_bytes(bpf_object(SOURCE))
    (rule,) = parse_rule_option(f"ebpf-limit=ready egress {options}")
    maker = SpecMaker(Settings(program_dir=folder))
    with pytest.raises(PodmgrError, match="ready is a ready object") as caught:
        maker.spec(rule, counts_loopback=True, is_matched=any(rule.match))
    assert "ready.bpf.c" in (caught.value.tip or "")


@pytest.mark.parametrize("is_tc", ["0", "1"])
def test_no_name_of_the_gate_can_meet_one_of_a_program(is_tc: str) -> None:
    macros = {"DIRECTION_EGRESS": "1", "PODMGR_TC": is_tc, "PODMGR_MATCH": "1", "PODMGR_TIMED": "1"}
    gated = {"PODMGR_GATED": "podmgr_gated", "PODMGR_GATED_SECTION": '"tc"'}
    text, files = clang.preprocess(
        find_gate(), name="gate", macros=list((macros | gated).items()), runner=proc.run
    )
    assert files == ()  # nothing of the system's
    before = (
        b"struct __sk_buff { unsigned protocol, data, data_end; };\nint podmgr_gated(struct __sk_buff *);\n"
        b"struct bpf_spin_lock { unsigned val; };\n"
    )
    argv = ["clang", *clang.FLAGS, "-fsyntax-only", "-Xclang", "-ast-dump=json", "-x", "cpp-output", "-"]
    done = subprocess.run(argv, input=before + text, capture_output=True, check=True)
    declared = json.loads(done.stdout)["inner"]
    inner = [item for outer in declared if outer["kind"] == "EnumDecl" for item in outer["inner"]]
    names = {item["name"] for item in [*declared, *inner] if not item.get("isImplicit") and item.get("name")}
    assert {name for name in names if not name.startswith("podmgr_")} == {"__sk_buff", "bpf_spin_lock"}
    assert len(names) > 20
