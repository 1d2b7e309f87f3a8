"""list --watch, doctor, and the command line as a whole."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.reconcile import ledger
from tests.kernel.conftest import Cli, assert_nothing_left, interrupt_on_terminal

RULE = "loss=uniform egress 0%"


def test_watching_a_list_in_a_pipe_prints_one_json_line_a_second(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", RULE)
    argv = [sys.executable, "-m", "podmgr", "list", "--watch", "-o", "json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["attachments"][0]["rule"] == RULE
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=5)[1] == ""
        assert process.returncode == 130


def test_interrupted_command_says_so(podmgr: Cli, cgroup: Cgroup) -> None:
    """It waits for the lock, which another holds."""
    argv = [sys.executable, "-m", "podmgr", "apply", f"cgroup/{cgroup.path}", "--rule", RULE]
    with (
        ledger.locked(podmgr.settings.state_dir),
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        assert "another podmgr is at work" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "podmgr: interrupted\n")
        assert process.returncode == 130
    assert podmgr.listed() == []


def test_watching_a_list_on_a_terminal_shows_rates(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", RULE)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["COLUMNS"] = "200"
        os.execv(sys.executable, [sys.executable, "-m", "podmgr", "list", "--watch"])
    output = b""
    deadline = time.monotonic() + 10
    while b"DROPPED/s" not in output and time.monotonic() < deadline:
        output += os.read(terminal, 1000)
    rest, code = interrupt_on_terminal(pid, terminal)
    output += rest
    assert b"DROPPED/s" in output
    assert code == 130


def test_doctor_finds_this_machine_fit_and_leaves_nothing(podmgr: Cli) -> None:
    findings = {row["name"]: row for row in json.loads(podmgr("doctor", "-o", "json").stdout)["findings"]}
    for name in ("kernel", "bpf(2)", "privileges", "cgroup v2", "bpffs", "clang", "bpftool", "self-test"):
        assert findings[name]["status"] == "ok", findings[name]
    assert {"qdisc fq", "qdisc netem", "net_cls, net_prio", "kubeconfig", "BTF"} <= findings.keys()
    assert_nothing_left(podmgr.settings)


def test_doctor_in_yaml(podmgr: Cli) -> None:
    assert "status: ok" in podmgr("doctor", "-o", "yaml").stdout


def test_doctor_without_bpftool_says_what_to_install(
    podmgr: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setenv("PATH", str(tmp_path))
        lines = podmgr("doctor", code=1).stdout.splitlines()
    (line,) = [line for line in lines if line.split()[1] == "bpftool"]
    assert line.startswith("missing")
    assert "install bpftool" in line


def test_doctor_without_the_right_fails(podmgr: Cli) -> None:
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "podmgr", "doctor"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "missing   privileges" in done.stdout
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        ([], 0),
        (["nosuch"], 2),
        (["apply", "--bogus"], 2),
        (["apply"], 2),
        (["apply", "cgroup/x"], 2),
        (["apply", "--rule", RULE], 2),
        (["apply", "cgroup/x", "--cgroup", "y", "--rule", RULE], 2),
        (["apply", "cgroup/x", "--rule", RULE, "--rule", "loss=uniform egress 1%"], 2),
        (["apply", "cgroup/x", "-o", "xml", "--rule", RULE], 2),
        (["apply", "-f", "nosuch.yaml", "--cgroup", "x"], 1),
        (["apply", "-f", "nosuch.yaml", "--context", "x"], 2),
        (["apply", "-f", "nosuch.yaml", "--kubeconfig", "x"], 2),
        (["apply", "-f", "nosuch.yaml", "--node-name", "x"], 2),
        (["apply", "cgroup/x", "--rule", RULE, "--context", "x"], 2),
        (["compile"], 2),
        (["clean", "cgroup/nosuch"], 1),
        (["clean", "pod/nosuch"], 1),
    ],
)
def test_usage_errors_are_2_and_failures_1(podmgr: Cli, words: list[str], code: int) -> None:
    done = podmgr(*words, code=code)
    assert (code == 0) == (done.stdout != "")
    assert (code != 0) == (done.stderr.count("error: ") == 1 and done.stderr.count("tip: ") == 1)


def test_errors_have_no_colour_in_a_pipe(podmgr: Cli) -> None:
    assert "\x1b" not in podmgr("compile", "bandwidth=x", code=2).stderr


def test_compile_needs_neither_root_nor_folders_and_writes_one_object(podmgr: Cli, tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    done = podmgr("compile", "bandwidth=10 mbps egress", "--output-dir", str(output))
    (path,) = output.iterdir()
    assert done.stdout == f"{path}\n"
    assert path.read_bytes().startswith(b"\x7fELF")
    assert not podmgr.settings.state_dir.exists()


def test_a_closed_pipe_is_a_quiet_failure(podmgr: Cli) -> None:
    script = f"{sys.executable} -m podmgr doctor | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert_nothing_left(podmgr.settings)
