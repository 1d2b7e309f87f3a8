"""A rule made concrete: which macros are defined, which may be set, and what a digest depends on."""

from __future__ import annotations

import pytest
from hypothesis import given

from podmgr.errors import PodmgrError
from podmgr.programs.spec import ProgramSource, ProgramSpec, make_spec
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.custom import Custom
from podmgr.rules.rule import Hook, Rule
from tests.unit.samples import EGRESS, INGRESS, rules

SOURCE = ProgramSource(
    "dropper", b"#ifndef PORT\n#define PORT 53\n#endif\n", frozenset({"PORT", "INTERFACE"})
)
READY = ProgramSource("dropper", b"\x7fELF", is_object=True)


def rule(option: str) -> Rule:
    (found,) = parse_rule_option(option)
    return found


def spec(
    option: str = "ebpf-limit=dropper egress",
    source: ProgramSource = SOURCE,
    *,
    compiler: str = "clang 1",
    counts_loopback: bool = False,
    hook: Hook | None = None,
    is_scoped: bool = False,
) -> ProgramSpec:
    return make_spec(
        [rule(option)], source, compiler, counts_loopback=counts_loopback, hook=hook, is_scoped=is_scoped
    )


@pytest.mark.parametrize(
    ("direction", "interface", "is_egress"), [("egress", '"egress"', "1"), ("ingress", '"ingress"', "0")]
)
def test_podmgr_tells_the_program_its_direction(direction: str, interface: str, is_egress: str) -> None:
    macros = dict(spec(f"ebpf-limit=dropper {direction}").macros)
    assert (macros["INTERFACE"], macros["DIRECTION_EGRESS"]) == (interface, is_egress)


@pytest.mark.parametrize(("counts_loopback", "macro"), [(True, "1"), (False, "0")])
def test_podmgr_tells_the_program_whether_loopback_counts(counts_loopback: bool, macro: str) -> None:
    assert dict(spec(counts_loopback=counts_loopback).macros)["PODMGR_LOOPBACK"] == macro


@pytest.mark.parametrize(("is_scoped", "macro"), [(True, "1"), (False, "0")])
def test_podmgr_tells_the_program_whether_others_use_its_interfaces(is_scoped: bool, macro: str) -> None:
    assert dict(spec(is_scoped=is_scoped).macros)["PODMGR_SCOPED"] == macro


@pytest.mark.parametrize(("hook", "macro"), [(Hook.TC, "1"), (Hook.CGROUP, "0"), (None, "0")])
@pytest.mark.parametrize(
    ("option", "program"),
    [
        ("loss=uniform egress 1%", "loss"),
        ("bandwidth=1 mbps egress", "bandwidth"),
        ("ebpf-limit=edt egress", "edt"),
    ],
)
def test_built_in_program_is_told_its_hook(option: str, program: str, hook: Hook | None, macro: str) -> None:
    made = spec(option, SOURCE._replace(name=program), hook=hook)
    assert dict(made.macros)["PODMGR_TC"] == macro


def test_other_programs_are_not_told_their_hook() -> None:
    assert "PODMGR_TC" not in dict(spec(hook=Hook.TC).macros)


def test_macros_of_the_rule_follow_podmgrs_own() -> None:
    assert spec("ebpf-limit=dropper egress -DPORT=80").macros[4:] == (("PORT", "80"),)
    loss = spec("loss=uniform egress 50%", SOURCE._replace(name="loss"), hook=Hook.TC)
    assert loss.macros[4:] == (("PODMGR_TC", "1"), ("THRESHOLD", "2147483648ULL"))


@pytest.mark.parametrize(
    ("source", "tip"),
    [
        (SOURCE, "its source tests with #ifndef: PORT"),
        (SOURCE._replace(macros=frozenset()), "its source tests with #ifndef: none"),
        (READY, "a ready object takes no macros"),
    ],
)
def test_macro_that_the_source_does_not_offer_is_refused(source: ProgramSource, tip: str) -> None:
    with pytest.raises(PodmgrError, match="program dropper has no macro RATE to set") as caught:
        spec("ebpf-limit=dropper egress -DRATE=1", source)
    assert tip in (caught.value.tip or "")


@given(rules.filter(lambda rule: not isinstance(rule, Custom)))
def test_equal_specs_have_equal_digests(wish: Rule) -> None:
    one, other = (make_spec([wish], SOURCE, "clang 1", counts_loopback=False) for _ in range(2))
    assert (one.digest, one.rule_digest) == (other.digest, other.rule_digest)
    assert one.digest.isalnum() and len(one.digest) == 16


VARIANTS = {
    "the same": spec(),
    "another direction": spec("ebpf-limit=dropper ingress"),
    "a macro": spec("ebpf-limit=dropper egress -DPORT"),
    "a macro with a value": spec("ebpf-limit=dropper egress -DPORT=1"),
    "a macro with an empty value": spec("ebpf-limit=dropper egress -DPORT="),
    "another compiler": spec(compiler="clang 2"),
    "loopback": spec(counts_loopback=True),
    "scoped": spec(is_scoped=True),
    "a built-in": spec(source=SOURCE._replace(name="loss")),
    "a built-in at tc": spec(source=SOURCE._replace(name="loss"), hook=Hook.TC),
    "another source": spec(source=SOURCE._replace(content=SOURCE.content + b"\n")),
    "a ready object": spec(source=READY),
    "a ready object, another direction": spec("ebpf-limit=dropper ingress", READY),
    "another ready object": spec(source=READY._replace(content=b"\x7fELF2")),
}


def test_everything_that_decides_the_object_changes_the_digest() -> None:
    digests = {spec.digest: name for name, spec in VARIANTS.items()}
    assert sorted(digests.values()) == sorted(VARIANTS)


def test_what_does_not_reach_a_ready_object_does_not_change_its_digest() -> None:
    assert (
        spec(source=READY).digest
        == spec(source=READY, compiler="x", counts_loopback=True, is_scoped=True).digest
    )


def test_rules_that_mean_the_same_program_share_the_object_but_not_the_pin() -> None:
    one, other = spec("loss=uniform egress 2%"), spec("loss=exponential egress 1000")
    assert one.digest == other.digest
    assert one.rule_digest != other.rule_digest


def test_rule_with_another_program_has_another_pin() -> None:
    one, other = spec(), spec(compiler="clang 2")
    assert one.rules == other.rules
    assert one.rule_digest != other.rule_digest


def test_direction_is_the_rules() -> None:
    assert spec().direction is EGRESS
    assert spec("loss=uniform ingress 2%").direction is INGRESS


def numbered(value: str) -> ProgramSpec:
    source = ProgramSource("x", b"", frozenset({"PORT"}))
    (rule,) = parse_rule_option(f"ebpf-limit=x egress -DPORT={value}")
    return make_spec([rule], source, "clang", counts_loopback=False)


@pytest.mark.parametrize(("value", "meant"), [("080", "80"), ("010", "10"), ("00", "0"), ("0017U", "17U")])
def test_a_number_that_c_reads_as_octal_is_refused(value: str, meant: str) -> None:
    with pytest.raises(PodmgrError, match=f"-DPORT={value}': the leading 0 of PORT") as caught:
        numbered(value)
    assert f"write -DPORT={meant}," in (caught.value.tip or "")


@pytest.mark.parametrize(
    "value",
    ["0", "0x0F", "0XFF", "0U", "0ULL", "0b011", "100", "a01", "_00", "", "10.0.0.1", "0.0.0.0", "00::1"],
)
def test_other_numbers_names_and_addresses_are_taken(value: str) -> None:
    assert dict(numbered(value).macros)["PORT"] is not None


def test_a_macro_without_a_value_is_not_one_with_the_value_none() -> None:
    source = ProgramSource("x", b"", frozenset({"X"}))
    digests = {
        make_spec([rule], source, "clang", counts_loopback=False).digest
        for text in ("ebpf-limit=x egress -DX", "ebpf-limit=x egress -DX=None", "ebpf-limit=x egress -DX=")
        for rule in parse_rule_option(text)
    }
    assert len(digests) == 3
