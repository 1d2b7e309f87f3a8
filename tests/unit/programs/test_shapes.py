"""Programs as people write them: taken as they are, or refused with the edit that each needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.programs import build, elf
from podmgr.programs.elf import ObjectInfo
from podmgr.programs.spec import ProgramSpec
from podmgr.rules.grammar import parse_rule_option
from podmgr.settings import Settings

SHAPES = Path(__file__).parents[2] / "programs"
TAKEN = {
    "both": ("egress", "ingress"),
    "sections_tc": ("egress", "ingress"),
    "sections_tcx": ("egress", "ingress"),
    "classifier": ("egress", "ingress"),
    "cgroup_skb_old": ("egress", "ingress"),
    "stdint": ("egress",),
    "libc_net": ("egress", "ingress"),
    "icmp": ("egress", "ingress"),
    "core": ("egress",),
    "lpm": ("egress",),
    "conntrack": ("ingress",),
    "subprograms": ("egress",),
    "rate_lock": ("egress",),
    "one_peer": ("egress",),
    "printk": ("ingress",),
}
REFUSED = {
    "policy": "--max-map-bytes",
    "old_maps": 'SEC(".maps")',
    "xdp": 'SEC("tc")',
    "conntrack": "INTERFACE",
}


def spec_of(value: str, settings: Settings) -> ProgramSpec:
    (rule,) = parse_rule_option(f"ebpf-limit={value}")
    return build.SpecMaker(settings).spec(rule, counts_loopback=True)


def info_of(value: str, settings: Settings | None = None) -> ObjectInfo:
    found = settings or Settings(program_dir=SHAPES)
    spec = spec_of(value, found)
    return build.compile_spec(spec, runner=proc.run, max_map_bytes=found.max_map_bytes).info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "programs"
    made.mkdir(mode=0o755)
    return made


def written(folder: Path, text: str, name: str = "mine") -> Settings:
    path = folder / f"{name}.bpf.c"
    path.write_text(text)
    path.chmod(0o644)
    return Settings(program_dir=folder)


def test_the_list_of_shapes_is_whole() -> None:
    there = {path.name.removesuffix(".bpf.c") for path in SHAPES.glob("*.bpf.c")}
    assert there == TAKEN.keys() | REFUSED.keys()


@pytest.mark.parametrize(("name", "direction"), [(name, way) for name, ways in TAKEN.items() for way in ways])
def test_a_program_is_taken_as_it_is(name: str, direction: str) -> None:
    info = info_of(f"{name} {direction}")
    assert info.direction in (None, direction)
    assert info.hook == ("tc" if info.section.startswith(("tc", "classifier")) else "cgroup")


@pytest.mark.parametrize(("name", "edit"), REFUSED.items())
def test_a_refusal_names_the_edit(name: str, edit: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        info_of(f"{name} egress")
    assert edit in (caught.value.tip or "")


def test_the_operator_may_allow_larger_maps() -> None:
    info = info_of("policy egress", Settings(program_dir=SHAPES, max_map_bytes=4 << 20))
    assert sum(item.size_bytes for item in info.maps) > 1 << 20


def test_of_a_program_for_each_direction_the_other_one_is_taken_out() -> None:
    spec = spec_of("both egress", Settings(program_dir=SHAPES))
    compiled = build.compile_spec(spec, runner=proc.run)
    assert compiled.info.function == "count_out"
    assert elf.inspect(compiled.content, name="both").function == "count_out"


SECTIONS = ["tc/egress", "tc/ingress", "tcx/egress", "tcx/ingress", "classifier", "classifier/egress"]
NAMED = ["classifier/main", "classifier/ingress/drop-all", "tc/egress/drop", "tc_main"]


@pytest.mark.parametrize("section", [*SECTIONS, *NAMED, "cgroup/skb", "cgroup_skb"])
def test_libbpfs_names_of_sections_are_known(folder: Path, section: str) -> None:
    direction = "ingress" if "/ingress" in section else "egress"
    settings = written(
        folder,
        f'#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nSEC("{section}") int f(struct __sk_buff *s) '
        '{ return 1; }\nchar L[] SEC("license") = "GPL";\n',
    )
    assert info_of(f"mine {direction}", settings).section == section


@pytest.mark.parametrize("begin", ["", "\ufeff"], ids=["", "byte order mark"])
def test_a_program_written_on_windows_is_the_same_program(folder: Path, begin: str) -> None:
    header = "#ifndef VERDICT\n#define VERDICT \\\n\t1\n#endif\n"
    source = (
        '#include "podmgr.h"\n#include "mine.h"\n#ifndef PORT\n#define PORT 1\n#endif\n'
        'SEC("cgroup_skb/" INTERFACE) int f(struct __sk_buff *s) { return VERDICT + PORT - PORT; }\n'
        'char L[] SEC("license") = "GPL";\n'
    )
    (folder / "mine.h").write_text(header)
    digest = spec_of("mine egress -DPORT=2", written(folder, source)).digest
    (folder / "mine.h").write_text(begin + header, newline="\r\n")
    (folder / "mine.bpf.c").write_text(begin + source, newline="\r\n")
    settings = Settings(program_dir=folder)
    assert spec_of("mine egress -DPORT=2", settings).digest == digest
    assert info_of("mine egress -DPORT=2", settings).section == "cgroup_skb/egress"


# What was vetted is what is compiled


BODY = "int f(void) { return 0; }\n"


@pytest.mark.parametrize(
    "line",
    [
        "#include <{there}>",
        "#include <../{there}>",
        "%:include <{there}>",
        "#inc\\\nlude <{there}>",
        "#define X <{there}>\n#include X",
        "/* */ # /* */ include <{there}>",
        '#define X "{there}"\n%:include X',
        '%:include "{there}"',
        "#include_next <{there}>",
    ],
)
def test_what_is_included_by_a_way_around_is_refused(folder: Path, tmp_path: Path, line: str) -> None:
    secret = tmp_path / "secret.h"
    secret.write_text("# not for others\nint secret;\n")
    settings = written(folder, line.format(there=secret) + "\n" + BODY)
    with pytest.raises(PodmgrError) as caught:
        spec_of("mine egress", settings)
    shown = f"{caught.value.message} {caught.value.detail} {caught.value.tip}"
    assert "not for others" not in shown and "int secret" not in shown


def test_a_file_that_only_root_may_read_is_not_read(folder: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("this test needs root")
    secret = tmp_path / "shadow"
    secret.write_text("# root:$6$x\n")
    secret.chmod(0o600)
    with pytest.raises(PodmgrError) as caught:
        spec_of("mine egress", written(folder, f"%:include <{secret}>\n{BODY}"))
    assert "$6$" not in f"{caught.value.message} {caught.value.detail}"


def test_a_link_in_the_middle_that_somebody_else_owns_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o755)
    written(real, BODY)
    link = tmp_path / "link"
    link.symlink_to(real)
    os.lchown(link, 54_321, 54_321)
    with pytest.raises(PermissionDeniedError, match="user 54321 can write"):
        spec_of("mine egress", Settings(program_dir=link))


def test_a_header_that_changes_makes_another_object(folder: Path) -> None:
    (folder / "size.h").write_text("#define SIZE 1\n")
    settings = written(folder, '#include "size.h"\nchar x[SIZE];\n')
    before = spec_of("mine egress", settings).digest
    (folder / "size.h").write_text("#define SIZE 2\n")
    assert spec_of("mine egress", settings).digest != before


def test_errors_name_the_file_and_its_line(folder: Path) -> None:
    spec = spec_of("mine egress", written(folder, "#include <stdint.h>\nint f(void)\n{ return nosuch; }\n"))
    with pytest.raises(PodmgrError) as caught:
        build.compile_spec(spec, runner=proc.run)
    assert "mine.bpf.c:3:" in (caught.value.detail or "")
    assert "<stdin>" not in (caught.value.detail or "")


# Bounds


def test_a_source_that_takes_too_much_is_stopped(folder: Path) -> None:
    settings = written(folder, "#ifndef N\n#define N 1\n#endif\nconst char t[N] = { 1 };\n")
    with pytest.raises(PodmgrError, match="takes too much to compile"):
        build.compile_spec(spec_of("mine egress -DN=3000000000", settings), runner=proc.run)


def test_a_sparse_object_is_not_read(folder: Path) -> None:
    path = folder / "huge.bpf.o"
    with path.open("wb") as file:
        file.truncate(6 << 30)
    path.chmod(0o644)
    with pytest.raises(PodmgrError, match="larger than 8 MiB"):
        spec_of("huge egress", Settings(program_dir=folder))


# Addresses


FOUR = """\
#ifndef DST
#define DST 0
#endif
_Static_assert(DST == __builtin_bswap32(0xC6120102U), "");
"""
SIX = """\
#ifndef DST
#define DST 0, 0, 0, 0
#endif
unsigned dst[4] = { DST };
"""


def test_an_address_is_what_stands_in_a_packet(folder: Path) -> None:
    spec = spec_of("mine egress -DDST=198.18.1.2", written(folder, FOUR))
    assert str(spec.rules[0]) == "ebpf-limit=mine egress -DDST=198.18.1.2"
    with pytest.raises(PodmgrError, match="holds 0 programs"):  # it compiles: the assertion holds
        build.compile_spec(spec, runner=proc.run)
    text = spec_of("mine egress -DDST=2001:db8::1", written(folder, SIX)).text
    assert b"{ 0xb80d0120U, 0x00000000U, 0x00000000U, 0x01000000U }" in text


@pytest.mark.parametrize("value", ["10.0.0.1/8", "10.0.0", "1.2.3.4.5", "::1%eth0", "10.0.0.1;x", "a.b", ":"])
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(PodmgrError):
        parse_rule_option(f"ebpf-limit=one_peer egress -DDST={value}")
