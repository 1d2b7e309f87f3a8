"""From rules to checked objects: looked up once, compiled once, refusals kept apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr import proc
from podmgr.errors import MissingToolError, PodmgrError
from podmgr.programs import clang, elf
from podmgr.programs.build import NotCompiledError, SpecMaker, compile_all, compile_spec, store_all
from podmgr.programs.find import find_source
from podmgr.programs.spec import ProgramSpec
from podmgr.programs.store import ObjectStore, StoredObject
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Hook, Rule
from podmgr.settings import Settings
from tests.unit.samples import EGRESS, HEADERS, INGRESS, LICENCE, Script, bpf_object, said

LOSS = "loss=uniform egress 1%"
FOLLOWING = (
    HEADERS + 'SEC("cgroup_skb/" INTERFACE) int program(struct __sk_buff *skb) { return 1; }\n' + LICENCE
)
FIXED = FOLLOWING.replace('"cgroup_skb/" INTERFACE', '"cgroup_skb/egress"')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program folder: one program that follows the rule, one for egress, one broken, one ready object."""
    made = tmp_path / "programs"
    made.mkdir()
    (made / "following.bpf.c").write_text(FOLLOWING)
    (made / "fixed.bpf.c").write_text(FIXED)
    (made / "broken.bpf.c").write_text("int f(void) { return y; }")
    (made / "unlicensed.bpf.c").write_text(FIXED.replace(LICENCE, ""))
    (made / "ready.bpf.o").write_bytes(bpf_object(FIXED))
    for path in (made, *made.iterdir()):
        path.chmod(0o755)
    return made


@pytest.fixture
def spec(folder: Path) -> Callable[[str], ProgramSpec]:
    maker = SpecMaker(Settings(program_dir=folder))
    return lambda option: maker.spec(rule(option), counts_loopback=False)


@pytest.fixture
def compiler() -> Script:
    """The real compiler, counted."""
    return Script(lambda argv, stdin: proc.run(argv, stdin=stdin))


def rule(option: str) -> Rule:
    (found,) = parse_rule_option(option)
    return found


def test_program_and_compiler_are_looked_up_once(folder: Path, mocker: MockerFixture) -> None:
    finder = mocker.patch("podmgr.programs.build.find_source", side_effect=find_source)
    identity = mocker.patch("podmgr.programs.build.clang.identity", side_effect=clang.identity)
    maker = SpecMaker(Settings(program_dir=folder))
    for option in (LOSS, "loss=uniform ingress 2%", "ebpf-limit=fixed egress", LOSS):
        maker.spec(rule(option), counts_loopback=True)
    assert [call.args[0] for call in finder.call_args_list] == ["loss", "fixed"]
    assert identity.call_count == 1


def test_ready_object_needs_no_compiler(folder: Path, mocker: MockerFixture, compiler: Script) -> None:
    mocker.patch(
        "podmgr.programs.build.clang.identity", side_effect=MissingToolError("clang is not installed")
    )
    maker = SpecMaker(Settings(program_dir=folder))
    compiled = compile_spec(
        maker.spec(rule("ebpf-limit=ready egress"), counts_loopback=False), runner=compiler
    )
    assert compiled.content == bpf_object(FIXED)
    assert compiler.calls == []
    with pytest.raises(MissingToolError):
        maker.spec(rule(LOSS), counts_loopback=False)


@pytest.mark.parametrize("direction", [EGRESS, INGRESS])
def test_program_follows_the_rules_direction(spec: Callable[[str], ProgramSpec], direction: str) -> None:
    compiled = compile_spec(spec(f"ebpf-limit=following {direction}"), runner=proc.run)
    assert compiled.info.section == f"cgroup_skb/{direction}"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ebpf-limit=fixed ingress", "program fixed is for egress, the rule says ingress"),
        ("ebpf-limit=ready ingress", "program ready is for egress, the rule says ingress"),
        ("ebpf-limit=broken egress", "broken.bpf.c does not compile"),
        ("ebpf-limit=unlicensed egress", "program unlicensed has no licence"),
    ],
)
def test_object_that_does_not_pass_the_check_is_refused(
    spec: Callable[[str], ProgramSpec], option: str, message: str
) -> None:
    with pytest.raises(PodmgrError, match=message):
        compile_spec(spec(option), runner=proc.run)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ebpf-limit=gone egress", "there is no program gone"),
        ("ebpf-limit=fixed egress -DX=1", "program fixed has no macro X to set"),
        ("ebpf-limit=ready egress -DX=1", "program ready has no macro X to set"),
    ],
)
def test_program_that_cannot_be_had_is_refused(
    spec: Callable[[str], ProgramSpec], option: str, message: str
) -> None:
    with pytest.raises(PodmgrError, match=message):
        spec(option)


def test_equal_specs_are_compiled_once(
    tmp_path: Path, spec: Callable[[str], ProgramSpec], compiler: Script
) -> None:
    store = ObjectStore(tmp_path)
    specs = [spec(LOSS), spec("loss=uniform egress 1.0%"), spec("loss=uniform ingress 1%")]
    first = store_all(specs, store, compile_all(specs, store, runner=compiler))
    assert set(first) == {specs[0].digest, specs[2].digest}
    assert len(compiler.calls) == 2
    assert store_all(specs, store, compile_all(specs, store, runner=compiler)) == first
    assert len(compiler.calls) == 2


def test_object_that_is_refused_stops_no_other_and_is_not_kept(
    tmp_path: Path, spec: Callable[[str], ProgramSpec]
) -> None:
    store = ObjectStore(tmp_path)
    good, bad = spec(LOSS), spec("ebpf-limit=unlicensed egress")
    results = store_all([bad, good], store, compile_all([bad, good], store, runner=proc.run))
    assert isinstance(results[bad.digest], PodmgrError)
    assert results[good.digest] == store.find(good.digest)
    assert store.find(bad.digest) is None
    assert [path.name for path in store.folder.iterdir()] == [f"{good.digest}.cgroup.bpf.o"]


def test_stored_object_is_what_was_compiled(tmp_path: Path, spec: Callable[[str], ProgramSpec]) -> None:
    wanted = spec("ebpf-limit=following egress")
    store = ObjectStore(tmp_path)
    (stored,) = store_all([wanted], store, compile_all([wanted], store, runner=proc.run)).values()
    assert isinstance(stored, StoredObject)
    assert stored.path.read_bytes() == compile_spec(wanted, runner=proc.run).content


def test_no_specs_need_no_store(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "gone")
    assert store_all([], store, compile_all([], store, runner=proc.run)) == {}


def test_what_nobody_compiled_is_said_so(tmp_path: Path, spec: Callable[[str], ProgramSpec]) -> None:
    wanted = spec(LOSS)
    (found,) = store_all([wanted], ObjectStore(tmp_path), {}).values()
    assert isinstance(found, NotCompiledError)


def test_a_custom_program_goes_through_no_preprocessor_unasked(folder: Path) -> None:
    (rule,) = parse_rule_option("ebpf-limit=following egress")
    maker = SpecMaker(Settings(program_dir=folder), runner=Script(said("")))
    with pytest.raises(NotCompiledError):
        maker.spec(rule, counts_loopback=True, may_compile=False)
    other = SpecMaker(Settings(program_dir=folder))
    made = other.spec(rule, counts_loopback=True)
    known = SpecMaker(Settings(program_dir=folder), known=other.known)
    assert known.spec(rule, counts_loopback=True, may_compile=False) is made


@pytest.mark.parametrize("define", ["", "#define PODMGR_TC 1\n"])
def test_verdicts_of_the_header_are_those_of_the_programs_hook(folder: Path, define: str) -> None:
    """Drop is another number at each: said by nobody, by the section alone."""
    source = (
        f'{define}#include "podmgr.h"\n'
        '_Static_assert(VERDICT_DROP == TC_ACT_STOLEN || !PODMGR_TC, "of the other hook");\n'
        'SEC("tc") int p(struct __sk_buff *skb) { return count(wire_of(skb), VERDICT_DROP); }\n'
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    (folder / "p.bpf.c").write_text(source)
    (wanted,) = parse_rule_option("ebpf-limit=p egress")
    spec = SpecMaker(Settings(program_dir=folder)).spec(wanted, counts_loopback=True, is_scoped=True)
    compiled = compile_spec(spec, runner=proc.run)
    assert "podmgr_scope" in {item.name for item in compiled.info.maps}  # as at the tc hook alone
    assert not elf.uses_map(compiled.content, "podmgr_scope")  # it is there, and asked by nobody


def test_a_program_that_asks_whose_packets_it_may_touch_is_told_from_others() -> None:
    (wanted,) = parse_rule_option("loss=uniform egress 1%")
    spec = SpecMaker(Settings()).spec(wanted, counts_loopback=True, hook=Hook.TC, is_scoped=True)
    assert elf.uses_map(compile_spec(spec, runner=proc.run).content, "podmgr_scope")
