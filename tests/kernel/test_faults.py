"""Bad input and broken machines: one line and a tip, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup, Target, Wish
from podmgr.errors import ToolTimeoutError
from podmgr.kernel import cgroup_life, cgroups
from podmgr.proc import Completed
from podmgr.reconcile.transaction import apply
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings
from tests.kernel.conftest import (
    PASS_PROGRAM,
    Cli,
    assert_nothing_left,
    attached,
    compile_by_hand,
    run,
)

BANDWIDTH = "bandwidth=10 mbps egress"
HEAD = '#include "podmgr.h"\n'
LICENCE = 'char LICENSE[] SEC("license") = "GPL";\n'
PASS = 'SEC("cgroup_skb/" INTERFACE) int f(struct __sk_buff *skb) { return 1; }\n'

MakeCgroup = Callable[..., Cgroup]


def complains(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One error, a tip, and these words."""
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, done.stderr
    assert len([line for line in lines if line.startswith("tip: ")]) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    "rule",
    [
        "speed=10 mbps egress",
        "bandwidth=10 mbit egress",
        "bandwidth=10 mbps outwards",
        "bandwidth=0 mbps egress",
        "bandwidth=-1 mbps egress",
        "bandwidth=nan mbps egress",
        "bandwidth=1000000000 gbps egress",
        "loss=uniform egress 101%",
        "loss=uniform egress -1%",
        "loss=exponential egress 1001",
        "ebpf-limit=dropper egress -include /etc/passwd",
        "ebpf-limit=dropper egress -o /tmp/x",
        "ebpf-limit=dropper egress @file",
        "ebpf-limit=dropper egress '-DPORT=1'",
        "ebpf-limit=dropper egress -DPORT=1;rm",
        "ebpf-limit=dropper egress -DPORT=$(id)",
        "ebpf-limit=dropper egress -DINTERFACE=x",
        "ebpf-limit=dropper egress -DPODMGR_LOOPBACK=1",
        "ebpf-limit=dropper egress -DPORT=1 -DPORT=2",
        "ebpf-limit=../dropper egress",
        "ebpf-limit=a/b egress",
        "ebpf-limit=.. egress",
    ],
)
def test_an_unreadable_rule_is_a_usage_error(podmgr: Cli, cgroup: Cgroup, rule: str) -> None:
    complains(podmgr("apply", f"cgroup/{cgroup.path}", "--rule", rule, code=2))
    assert attached(cgroup) == ()
    assert not podmgr.settings.state_dir.exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (HEAD + PASS + "nonsense\n" + LICENCE, ["does not compile", "bad.bpf.c:3:"]),
        (HEAD + PASS, ["licence"]),
        (HEAD + PASS.replace('"cgroup_skb/" INTERFACE', '"xdp"') + LICENCE, ["unknown section"]),
        (HEAD + PASS.replace('"cgroup_skb/" INTERFACE', '"cgroup_skb/ingress"') + LICENCE, ["ingress"]),
        (HEAD + PASS.replace('"cgroup_skb/" INTERFACE', '"tc"') + LICENCE, ["before a process lives there"]),
        (HEAD + PASS.replace("return 1", "for (;;) ;") + LICENCE, ["the kernel refuses"]),
        (
            HEAD + "extern int g(void);\n" + PASS.replace("return 1", "return g()") + LICENCE,
            ["does not define"],
        ),
        (HEAD + PASS + PASS.replace("int f", "int g") + LICENCE, ["functions"]),
    ],
)
def test_a_program_that_is_not_sound_is_refused(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path, source: str, words: list[str]
) -> None:
    done = _apply_program(podmgr, cgroup, tmp_path, source, "ebpf-limit=bad egress")
    complains(done, *words)
    assert attached(cgroup) == ()
    assert_nothing_left(podmgr.settings)


def test_a_macro_that_blows_up_a_map_is_refused(podmgr: Cli, cgroup: Cgroup, tmp_path: Path) -> None:
    source = (
        HEAD
        + "#ifndef N\n#define N 1\n#endif\n"
        + "struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, N); __type(key, __u32);"
        + ' __type(value, __u64); } big SEC(".maps");\n'
        + PASS.replace("return 1", "__u32 k = 0; return bpf_map_lookup_elem(&big, &k) ? 1 : 0")
        + LICENCE
    )
    done = _apply_program(podmgr, cgroup, tmp_path, source, "ebpf-limit=bad egress -DN=13000000", code=1)
    complains(done, "bytes of maps")
    assert_nothing_left(podmgr.settings)
    _apply_program(podmgr, cgroup, tmp_path, source, "ebpf-limit=bad egress -DN=100", code=0)


def test_only_macros_that_the_source_offers_can_be_set(podmgr: Cli, cgroup: Cgroup, tmp_path: Path) -> None:
    source = HEAD + "#ifdef OTHER\n#endif\n" + PASS + LICENCE
    for macro in ("OTHER", "PODMGR_H", "NOSUCH"):
        done = _apply_program(podmgr, cgroup, tmp_path, source, f"ebpf-limit=bad egress -D{macro}=1")
        complains(done, macro)


def test_a_ready_object_is_checked_and_used(podmgr: Cli, cgroup: Cgroup, tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir(mode=0o755)
    shutil.copy(compile_by_hand(tmp_path, PASS_PROGRAM), folder / "ready.bpf.o")
    where = ("--program-dir", str(folder))
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", "ebpf-limit=ready egress", *where)
    assert len(attached(cgroup)) == 1
    assert podmgr.listed()[0]["counters"] is None
    done = podmgr("apply", f"cgroup/{cgroup.path}", "--rule", "ebpf-limit=ready ingress", *where, code=1)
    complains(done, "is for egress")
    done = podmgr("apply", f"cgroup/{cgroup.path}", "--rule", "ebpf-limit=ready egress -DX", *where, code=1)
    complains(done, "takes no macros")
    (folder / "ready.bpf.o").write_bytes((folder / "ready.bpf.o").read_bytes()[:300])
    done = podmgr("apply", f"cgroup/{cgroup.path}", "--rule", "ebpf-limit=ready egress", *where, code=1)
    complains(done, "not a readable ELF object")
    assert len(attached(cgroup)) == 1


def test_a_name_that_hides_a_built_in_is_refused(podmgr: Cli, cgroup: Cgroup, tmp_path: Path) -> None:
    done = _apply_program(podmgr, cgroup, tmp_path, HEAD + PASS + LICENCE, BANDWIDTH, name="bandwidth")
    complains(done, "hides")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_program_that_others_can_write_is_refused(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path, what: str
) -> None:
    folder = _program_folder(tmp_path, HEAD + PASS + LICENCE)
    (folder if what == "folder" else folder / "bad.bpf.c").chmod(0o777)
    rule = ("--rule", "ebpf-limit=bad egress", "--program-dir", str(folder))
    complains(podmgr("apply", f"cgroup/{cgroup.path}", *rule, code=1), "can write")


@pytest.mark.parametrize("tool", ["clang", "bpftool"])
def test_a_missing_tool_is_named(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    for name in {"clang", "bpftool", "mount"} - {tool}:
        (tmp_path / name).symlink_to(shutil.which(name) or "/nonexistent")
    with monkeypatch.context() as context:
        context.setenv("PATH", str(tmp_path))
        complains(podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH, code=1), tool, "doctor")
    assert attached(cgroup) == ()
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["clean"],
        ["apply", "CGROUP", "--rule", BANDWIDTH],
        ["apply", "CGROUP", "--rule", BANDWIDTH, "--dry-run"],
    ],
)
def test_without_the_right_nothing_is_taken_for_empty(podmgr: Cli, cgroup: Cgroup, words: list[str]) -> None:
    """As root without any capability: files can be read, the kernel refuses BPF."""
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    before = attached(cgroup)
    command = [word.replace("CGROUP", f"cgroup/{cgroup.path}") for word in words]
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "podmgr", *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    complains(done, "not allowed", "root")
    assert attached(cgroup) == before


@pytest.mark.usefixtures("podmgr")
def test_a_machine_with_cgroup_v1_only_is_told_so() -> None:
    """In a mount namespace of its own, where the cgroup2 mount is covered up."""
    done = _in_own_mounts(
        f"unset PODMGR_CGROUP_ROOT; umount {cgroups.find_root(None)}",
        "apply",
        "cgroup/x",
        "--rule",
        BANDWIDTH,
    )
    assert done.returncode == 1
    complains(done, "cgroup v2")


def test_bpffs_is_mounted_where_it_is_missing(podmgr: Cli, cgroup: Cgroup) -> None:
    script = "while umount /sys/fs/bpf 2>/dev/null; do :; done"
    done = _in_own_mounts(script, "apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    assert done.returncode == 0, done.stderr
    assert "mounted the bpf file system" in done.stderr
    (program_id,) = attached(cgroup)  # its pin went with the mount namespace
    assert podmgr.listed()[0]["program_id"] == program_id


def test_pins_outside_a_bpf_file_system_are_refused(podmgr: Cli, cgroup: Cgroup, tmp_path: Path) -> None:
    words = ("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH, "--bpffs", str(tmp_path / "pins"))
    complains(podmgr(*words, code=1), "not on a bpf file system")
    assert not (tmp_path / "pins").exists()


@pytest.mark.parametrize("size_kib", [4, 20])
def test_a_full_disk_leaves_nothing_attached(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path, size_kib: int
) -> None:
    """4 KiB: no object fits. 20 KiB: the object fits, the ledger does not."""
    full = tmp_path / "full"
    full.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size_kib}k,mode=0700", "tmpfs", str(full))
    try:
        words = ("--state-dir", str(full))
        done = podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH, *words, code=1)
        complains(done, "No space left")
        assert attached(cgroup) == ()
        assert [path.name for path in full.iterdir()] == ["lock"]
    finally:
        run("umount", str(full))


def test_a_cgroup_that_vanishes_during_apply_is_reported(podmgr: Cli, make_cgroup: MakeCgroup) -> None:
    stays, goes = make_cgroup("stays"), make_cgroup("goes")

    def runner(argv: list[str], **options: Any) -> Completed:
        if b"cgroup attach" in options.get("stdin", b""):
            cgroup_life.remove(goes)
        return proc.run(argv, **options)

    rules = tuple(SourcedRule(rule, CLI) for rule in parse_rule_option(BANDWIDTH))
    wishes = [Wish(Target(cgroup.path.name, cgroup), rules) for cgroup in (goes, stays)]
    outcomes = {outcome.target: outcome for outcome in apply(wishes, podmgr.settings, runner=runner)}  # type: ignore[arg-type]
    error = outcomes[goes.path.name].error
    assert error is not None and "vanished" in error.message
    assert outcomes[stays.path.name].error is None
    assert [row["target"] for row in podmgr.listed()] == [stays.path.name]


def test_a_custom_program_that_keeps_the_verifier_busy_stops_no_other_target(
    podmgr: Cli, make_cgroup: MakeCgroup
) -> None:
    """bpftool is given two minutes; the runner stands for one that needs more."""
    busy, quick = make_cgroup("busy"), make_cgroup("quick")

    def runner(argv: list[str], **options: Any) -> Completed:
        stdin = options.get("stdin", b"")
        if b"prog load" in stdin and str(busy.id).encode() in stdin:
            raise ToolTimeoutError("bpftool did not end within 120 s")
        return proc.run(argv, **options)

    custom = tuple(SourcedRule(rule, CLI) for rule in parse_rule_option("ebpf-limit=dropper egress"))
    rules = tuple(SourcedRule(rule, CLI) for rule in parse_rule_option(BANDWIDTH))
    wishes = [Wish(Target("busy", busy), custom), Wish(Target("quick", quick), rules)]
    outcomes = {outcome.target: outcome for outcome in apply(wishes, podmgr.settings, runner=runner)}  # type: ignore[arg-type]
    assert isinstance(outcomes["busy"].error, ToolTimeoutError)
    assert outcomes["quick"].error is None
    assert attached(busy) == ()
    assert len(attached(quick)) == 1


def test_a_full_cgroup_is_reported(podmgr: Cli, cgroup: Cgroup, tmp_path: Path) -> None:
    """64 programs are all that a cgroup takes; what had been attached of ours goes again."""
    program = compile_by_hand(tmp_path, PASS_PROGRAM)
    folder = Path(f"/sys/fs/bpf/full-{os.getpid()}")
    folder.mkdir()
    try:
        for number in range(63):
            pin = folder / str(number)
            run("bpftool", "prog", "load", str(program), str(pin))
            run("bpftool", "cgroup", "attach", str(cgroup.path), "egress", "pinned", str(pin), "multi")
        before = attached(cgroup)
        rules = ("--rule", BANDWIDTH, "--rule", "loss=uniform egress 1%")
        complains(podmgr("apply", f"cgroup/{cgroup.path}", *rules, code=1), "is full")
        assert attached(cgroup) == before
    finally:
        shutil.rmtree(folder)


def test_an_ancestor_with_an_exclusive_program_is_named(
    podmgr: Cli, cgroup: Cgroup, other_program: Path
) -> None:
    child = Cgroup(cgroup.path / "child", 0)
    child.path.mkdir()
    run("bpftool", "cgroup", "attach", str(cgroup.path), "egress", "pinned", str(other_program))
    done = podmgr("apply", f"cgroup/{child.path}", "--rule", BANDWIDTH, code=1)
    complains(done, "exclusive", str(cgroup.path))
    run("bpftool", "cgroup", "detach", str(cgroup.path), "egress", "pinned", str(other_program))


@pytest.mark.parametrize("content", ['{"version": 1, "attach', '{"version": 99}', "[]", "\x00\xff", ""])
def test_a_ledger_that_cannot_be_read_is_kept_and_clean_still_finds_all(
    podmgr: Cli, cgroup: Cgroup, content: str
) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    (podmgr.settings.state_dir / "ledger.json").write_text(content, encoding="latin-1")
    complains(podmgr("list", code=1), "ledger", "podmgr clean")
    done = podmgr("clean")
    (kept,) = podmgr.settings.state_dir.glob("ledger.json.damaged-*")
    assert str(kept) in done.stderr
    assert kept.read_text(encoding="latin-1") == content
    assert attached(cgroup) == ()
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize(
    "wrong", [{"program_id": 1}, {"program_id": None}, {"cgroup_id": 1}, {"direction": "ingress"}]
)
def test_a_ledger_that_contradicts_the_kernel_is_not_believed(
    podmgr: Cli, cgroup: Cgroup, wrong: dict[str, object]
) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    _falsify_ledger(podmgr, wrong)
    podmgr("clean")
    assert attached(cgroup) == ()
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize(
    "wrong",
    [{"owner": "elsewhere"}, {"program_id": 1}, {"digest": "0123456789abcdef"}, {"cgroup_path": "/nowhere"}],
)
def test_applying_over_a_wrong_row_ends_with_the_rule_in_force(
    podmgr: Cli, cgroup: Cgroup, wrong: dict[str, object]
) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    _falsify_ledger(podmgr, wrong)
    for _ in range(2):
        podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
        assert len(attached(cgroup)) == 1
        (row,) = podmgr.listed()
        assert (row["program_id"], row["state"]) == (attached(cgroup)[0], "active")
        assert row["counters"] is not None


def test_a_cgroup_is_found_by_its_id_where_its_path_is_hidden(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path
) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    mount = cgroups.find_root(None)
    script = f"unset PODMGR_CGROUP_ROOT; mount -t cgroup2 none {tmp_path} && umount {mount}"
    done = _in_own_mounts(script, "clean")
    assert done.returncode == 0, done.stderr
    assert attached(cgroup) == ()


def test_one_pod_is_on_one_cgroup(podmgr: Cli, make_cgroup: MakeCgroup) -> None:
    one, two = make_cgroup("one"), make_cgroup("two")
    text = "kind: Pod\nmetadata: {name: web, uid: abc-1, annotations: {loss: uniform egress 1%}}"
    podmgr("apply", "-f", "-", "--cgroup", str(one.path), stdin=text)
    done = podmgr("apply", "-f", "-", "--cgroup", str(two.path), stdin=text, code=1)
    complains(done, "already on", str(one.path))
    done = podmgr("apply", "-f", "-", "--cgroup", str(two.path), "--dry-run", stdin=text, code=1)
    complains(done, "already on", str(one.path))
    assert attached(two) == ()
    cgroup_life.remove(one)
    podmgr("apply", "-f", "-", "--cgroup", str(two.path), "--dry-run", stdin=text)
    podmgr("apply", "-f", "-", "--cgroup", str(two.path), stdin=text)
    assert [row["state"] for row in podmgr.listed()] == ["active"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_do_no_harm(podmgr: Cli, cgroup: Cgroup, closed: str) -> None:
    argv = f"{sys.executable} -m podmgr apply cgroup/{cgroup.path} --rule '{BANDWIDTH}' {closed}"
    done = subprocess.run(["bash", "-c", argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(attached(cgroup)) == 1
    assert [row["state"] for row in podmgr.listed()] == ["active"]


def test_a_small_limit_of_open_files_is_enough_for_many_cgroups(podmgr: Cli, make_cgroup: MakeCgroup) -> None:
    """It holds for bpftool, too, which gets a descriptor of each cgroup."""
    targets = " ".join(f"cgroup/{make_cgroup(f'many{number}').path}" for number in range(40))
    for words in (f"apply --rule '{BANDWIDTH}' {targets}", f"clean {targets}"):
        argv = f"ulimit -n 32; {sys.executable} -m podmgr {words}"
        done = subprocess.run(["bash", "-c", argv], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 40)
        assert len(podmgr.listed()) == (40 if words.startswith("apply") else 0)


def test_a_result_that_cannot_be_written_is_an_ordinary_failure(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    argv = f"{sys.executable} -m podmgr list > /dev/full"
    done = subprocess.run(["bash", "-c", argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    complains(done, "No space left")


def test_names_that_the_terminal_cannot_show_are_escaped(
    podmgr: Cli, make_cgroup: MakeCgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = make_cgroup("ü x")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "\\xfc" in podmgr("apply", f"cgroup/{odd.path}", "--rule", BANDWIDTH).stdout
    assert "\\xfc" in podmgr("list").stdout


@pytest.mark.parametrize("text", ["[" * 200_000, "- " * 100_000, "{a: " * 100_000])
def test_yaml_that_would_overrun_the_stack_is_refused(podmgr: Cli, cgroup: Cgroup, text: str) -> None:
    # the library's own limit may come first: the words are its own then, the first ones always ours
    complains(podmgr("apply", "-f", "-", "--cgroup", str(cgroup.path), stdin=text, code=1), "error: - is n")


def test_escape_sequences_of_a_manifest_never_reach_the_screen(podmgr: Cli, cgroup: Cgroup) -> None:
    text = 'kind: Pod\nmetadata: {name: "x\\e[31m"}\n'
    done = podmgr("apply", "-f", "-", "--cgroup", str(cgroup.path), stdin=text, code=1)
    complains(done, "has no rule")
    assert "\x1b" not in done.stderr


def test_a_dry_run_refuses_what_apply_refuses(podmgr: Cli, cgroup: Cgroup) -> None:
    rule = "bandwidth=1 mbps ingress algorithm=edt"
    complains(podmgr("apply", f"cgroup/{cgroup.path}", "--rule", rule, "--dry-run", code=1), "ingress")


@pytest.mark.parametrize("command", [["apply", "CGROUP", "--rule", BANDWIDTH], ["clean"]])
def test_pins_that_another_user_could_have_made_are_not_touched(
    podmgr: Cli, cgroup: Cgroup, settings: Settings, command: list[str], tmp_path: Path
) -> None:
    """A link among them would lead `clean` anywhere."""
    (tmp_path / "precious").write_text("")
    (settings.bpffs / "7").mkdir(parents=True)
    (settings.bpffs / "7/0123456789abcdef-maps").symlink_to(tmp_path)
    os.chown(settings.bpffs, 65534, 65534)
    try:
        words = [word.replace("CGROUP", f"cgroup/{cgroup.path}") for word in command]
        complains(podmgr(*words, code=1), "others may write to the pins' folder")
        assert (tmp_path / "precious").exists()
        assert (settings.bpffs / "7/0123456789abcdef-maps").is_symlink()
    finally:
        os.chown(settings.bpffs, 0, 0)
    podmgr("clean")
    assert (tmp_path / "precious").exists()
    assert not settings.bpffs.exists()


def test_cleaning_what_is_there_and_what_is_not(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    complains(podmgr("clean", f"cgroup/{cgroup.path}", "cgroup/nosuch", code=3), "cgroup/nosuch")
    assert attached(cgroup) == ()


def test_foreign_folders_among_the_pins_do_not_stop_clean(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    owner = podmgr.settings.bpffs / str(cgroup.id)
    (owner / "junk").mkdir()
    (owner / "0123456789abcdef-maps" / "junk").mkdir(parents=True)
    podmgr("clean")
    assert attached(cgroup) == ()
    (owner / "junk").rmdir()
    podmgr("clean")


def test_one_bad_rule_leaves_the_target_as_it_was(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", BANDWIDTH)
    before = attached(cgroup)
    rules = ("--rule", "bandwidth=20 mbps egress", "--rule", "ebpf-limit=nosuch egress")
    complains(podmgr("apply", f"cgroup/{cgroup.path}", *rules, code=1), "no program nosuch")
    assert attached(cgroup) == before
    assert [row["rule"] for row in podmgr.listed()] == [BANDWIDTH]


@pytest.mark.parametrize("target", ["cgroup/", "nonsense", "node/x", ""])
def test_a_target_that_cannot_be_meant_is_a_usage_error(podmgr: Cli, target: str) -> None:
    complains(podmgr("apply", target, "--rule", BANDWIDTH, code=2))


@pytest.mark.parametrize("path", ["nosuch", "/", "/etc", "../../etc", "/sys/fs/cgroup/unified/cgroup.procs"])
def test_a_path_that_is_no_cgroup_is_refused(podmgr: Cli, path: str) -> None:
    complains(podmgr("apply", f"cgroup/{path}", "--rule", BANDWIDTH, code=1))


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        ("", 1),
        ("a: [", 1),
        ("just text", 1),
        ("kind: Pod\nmetadata: {name: web, annotations: {loss: 5}}", 2),
        ("kind: Pod\nmetadata: {name: web, annotations: [loss]}", 2),
        ("kind: Pod\nmetadata: {name: web, annotations: {loss: }}", 1),
        ("kind: Pod\nmetadata: {name: web}", 1),
        ("kind: Pod\nmetadata: {name: web, annotations: {loss: 'uniform egress 200%'}}", 2),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(
    podmgr: Cli, cgroup: Cgroup, manifest: str, code: int
) -> None:
    done = podmgr("apply", "-f", "-", "--cgroup", str(cgroup.path), stdin=manifest, code=code)
    complains(done)
    if code == 2:
        assert "pod/web" in done.stderr


@pytest.mark.usefixtures("podmgr")
def test_the_demo_of_a_wrong_value_fails() -> None:
    """The same rows, with a tolerance that nothing meets: the exit code must follow."""
    code = "from podmgr.demo import demonstrate as d; d.BANDWIDTH_TOLERANCE = 0; d.BANDWIDTH_SECONDS = 1"
    code += "; d.DATAGRAMS = 1000"
    argv = [sys.executable, "-c", f"{code}; from podmgr.cli.main import main; main()", "demo"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WRONG" in done.stdout


def _falsify_ledger(podmgr: Cli, wrong: dict[str, object]) -> None:
    """Give the ledger's first row other values than the kernel has."""
    path = podmgr.settings.state_dir / "ledger.json"
    content = json.loads(path.read_text())
    content["attachments"][0] |= wrong
    path.write_text(json.dumps(content))


def _program_folder(tmp_path: Path, source: str, name: str = "bad") -> Path:
    folder = tmp_path / "programs"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / f"{name}.bpf.c").write_text(source)
    return folder


def _apply_program(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path, source: str, rule: str, *, code: int = 1, name: str = "bad"
) -> subprocess.CompletedProcess[str]:
    folder = _program_folder(tmp_path, source, name)
    return podmgr("apply", f"cgroup/{cgroup.path}", "--rule", rule, "--program-dir", str(folder), code=code)


def _in_own_mounts(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'{script}; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "podmgr",
        *words,
    ]
    return subprocess.run(argv, capture_output=True, text=True, check=False)
