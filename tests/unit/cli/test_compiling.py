"""`podmgr compile`: objects in a folder, all or none, and what they mean as text and as a document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.cli.compiling import Result, as_document, as_text, compile_rules
from podmgr.errors import PodmgrError
from podmgr.rules.grammar import parse_rule_option
from podmgr.settings import Settings
from tests.unit.samples import HEADERS, LICENCE, PROGRAM

LOSS, BANDWIDTH = "loss=uniform egress 2%", "bandwidth=10 mbps ingress burst=64kb"


def compiled(options: list[str], folder: Path | None, *, program_dir: Path | None = None) -> list[Result]:
    rules = [rule for option in options for rule in parse_rule_option(option)]
    settings = Settings() if program_dir is None else Settings(program_dir=program_dir)
    return compile_rules(rules, settings, output_dir=folder, runner=proc.run)


def test_objects_are_written_under_telling_names(tmp_path: Path) -> None:
    folder = tmp_path / "not/made/yet"
    results = compiled([LOSS, BANDWIDTH], folder)
    names = [
        f"{result.spec.source.name}-{result.spec.direction}-{result.spec.digest}.bpf.o" for result in results
    ]
    assert names[0].startswith("loss-egress-") and names[1].startswith("bandwidth-ingress-")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert as_text(results, explain=False) == "".join(f"{folder / name}\n" for name in names)
    assert all(result.path and result.path.read_bytes() == result.compiled.content for result in results)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (result,) = compiled([LOSS], None)
    assert result.path is None
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_unless_all_rules_compile(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "broken.bpf.c").write_text("int f(void) { return y; }")
    for path in (programs, programs / "broken.bpf.c"):
        path.chmod(0o755)
    with pytest.raises(PodmgrError, match="does not compile"):
        compiled([LOSS, "ebpf-limit=broken egress"], folder, program_dir=programs)
    assert not folder.exists()


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PodmgrError, match=r"cannot write .*: Not a directory"):
        compiled([LOSS], tmp_path / "file/below")


def test_explanation_has_a_block_for_each_rule() -> None:
    text = as_text(compiled([LOSS, BANDWIDTH], None), explain=True)
    loss, bandwidth = text.split("\n\n")
    assert loss.startswith(f"{LOSS}\n")
    assert "drop probability   0.02000000002 = 85899346 / 2^32, 1 in 50\n" in loss
    assert "section tc\n" in loss
    assert "why there          TCP takes a drop at the cgroup hook for congestion" in loss
    assert "note" not in loss
    assert bandwidth.startswith(f"{BANDWIDTH}\n")
    assert "section cgroup_skb/ingress" in bandwidth
    assert "why there       one bucket for all that the pod receives" in bandwidth
    assert "licence GPL" in bandwidth
    assert "podmgr_bucket (20 bytes)" in bandwidth
    assert "written" not in text


def test_explanation_tells_what_was_written(tmp_path: Path) -> None:
    (result,) = results = compiled([LOSS], tmp_path)
    assert f"written            {result.path}\n" in as_text(results, explain=True)


def test_document_says_the_same(tmp_path: Path) -> None:
    results = compiled([LOSS], tmp_path)
    content = as_document(results)
    (item,) = content["objects"]
    assert content["version"] == 1
    assert json.loads(json.dumps(content)) == content
    assert (item["rule"], item["hook"], item["section"]) == (LOSS, "tc", "tc")
    assert (item["digest"], item["path"]) == (results[0].spec.digest, str(results[0].path))
    assert item["licence"] == "GPL"
    assert item["instructions"] > 2
    assert item["maps"].keys() == {"podmgr_counters"}
    assert item["explanation"]["drop probability"].startswith("0.02000000002")


def test_rules_are_compiled_as_for_a_pod() -> None:
    (result,) = compiled([LOSS], None)
    assert ("PODMGR_LOOPBACK", "0") in result.spec.macros


@pytest.mark.parametrize(
    ("rule", "section", "why"),
    [
        (f"{LOSS} hook=cgroup", "cgroup_skb/egress", "hook= says so"),
        ("bandwidth=10 mbps ingress hook=tc", "tc", "hook= says so"),
        ("bandwidth=10 mbps ingress interface=eth0", "tc", "interface= says so"),
        ("ebpf-limit=own ingress", "tc", "the program's section says so"),
    ],
)
def test_program_is_made_for_the_hook_that_is_chosen(
    tmp_path: Path, rule: str, section: str, why: str
) -> None:
    tmp_path.chmod(0o755)
    source = tmp_path / "own.bpf.c"
    source.write_text(HEADERS + LICENCE + PROGRAM.replace("cgroup_skb/egress", "tc"))
    source.chmod(0o644)
    (item,) = as_document(compiled([rule], None, program_dir=tmp_path))["objects"]
    assert item["section"] == section
    assert item["explanation"]["why there"] == why


def test_what_apply_refuses_on_every_pod_is_not_compiled_either(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, section in (("at_cgroup", "cgroup_skb/egress"), ("at_tc", "tc")):
        source = tmp_path / f"{name}.bpf.c"
        source.write_text(HEADERS + LICENCE + PROGRAM.replace("cgroup_skb/egress", section))
        source.chmod(0o644)
    out = tmp_path / "out"
    compiled(["ebpf-limit=at_tc egress interface=eth0"], None, program_dir=tmp_path)
    for rule, said in (
        ("ebpf-limit=at_cgroup egress interface=eth0", "is for the cgroup hook, which knows no interfaces"),
        ("bandwidth=1 mbps ingress algorithm=edt hook=cgroup", "cannot delay what arrives"),
    ):
        with pytest.raises(PodmgrError, match=f"'{rule}' {said}"):
            compiled([LOSS, rule], out, program_dir=tmp_path)
    assert not out.exists()


def test_caveat_of_the_cgroup_hook_is_told_where_it_is_chosen() -> None:
    text = as_text(compiled([f"{LOSS} hook=cgroup"], None), explain=True)
    assert "note               loss egress at the cgroup hook is not loss to TCP" in text
