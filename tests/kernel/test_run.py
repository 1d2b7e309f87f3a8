"""`podmgr run`: the command's exit code, its user, its rules, and nothing afterwards."""

from __future__ import annotations

import json
import os
import pty
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import PROBE
from podmgr.kernel import cgroup_life
from tests.kernel.conftest import Cli, assert_nothing_left, interrupt_on_terminal
from tests.kernel.network import programs, tc_state

RULE = "loss=uniform egress 50%"
SEND = [*PROBE, "send", "127.0.0.1", "4001", "1000"]


@pytest.fixture(autouse=True)
def no_scratch_cgroup_and_no_qdisc_is_left(cgroup_root: Path) -> Iterator[None]:
    yield
    assert [path for path in cgroup_root.iterdir() if path.is_dir()] == []
    assert "clsact" not in tc_state(None)


Start = Callable[[], tuple["subprocess.Popen[bytes]", Cgroup]]


@pytest.fixture
def start(cgroup_root: Path) -> Iterator[Start]:
    """Starts a run whose command waits, and returns once the command is there."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[subprocess.Popen[bytes], Cgroup]:
        argv = [sys.executable, "-m", "podmgr", "run", "-q", "--rule", RULE, "sleep", "1000"]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        started.append(process)
        while not (found := list(cgroup_root.glob("podmgr-run-*"))) or not _is_sleeping(_at(found[0])):
            assert process.poll() is None
            time.sleep(0.01)
        assert len(programs(None, "lo")) == 1
        return process, _at(found[0])

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_command_runs_under_the_rules_and_says_what_they_did(podmgr: Cli) -> None:
    done = podmgr("run", "--rule", RULE, "--", *SEND)
    assert '"errors": 0' in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if RULE in line]
    words = line.split()
    passed, dropped = int(words[-5]), int(words[-2])
    assert passed + dropped == 1000
    assert 400 < dropped < 600
    assert_nothing_left(podmgr.settings)


def test_loss_on_egress_at_the_cgroup_hook_says_what_tcp_makes_of_it(podmgr: Cli) -> None:
    done = podmgr("run", "--rule", f"{RULE} hook=cgroup", "true")
    notes = [line for line in done.stderr.splitlines() if "note:" in line]
    assert len(notes) == 1
    assert "TCP" in notes[0]


def test_loss_on_egress_is_at_tc_and_needs_no_note(podmgr: Cli) -> None:
    script = f"{sys.executable} -m podmgr list -o json"
    done = podmgr("run", "--rule", RULE, "sh", "-c", script)
    assert "note:" not in done.stderr
    (row,) = json.loads(done.stdout)["attachments"]
    assert (row["hook"], row["state"]) == ("tc", "active")


def test_rules_at_both_hooks_hold_for_one_command(podmgr: Cli) -> None:
    """Each sees what comes through the one before it: the cgroup hook is the first."""
    at_cgroup, at_tc = f"{RULE} hook=cgroup", "bandwidth=1 gbps egress hook=tc"
    done = podmgr("run", "--rule", at_cgroup, "--rule", at_tc, "--", *SEND)
    counts = {}
    for rule in (at_cgroup, at_tc):
        (line,) = [line for line in done.stderr.splitlines() if f"{rule}:" in line]
        counts[rule] = int(line.split()[-5]), int(line.split()[-2])
    assert sum(counts[at_cgroup]) == 1000
    assert sum(counts[at_tc]) == counts[at_cgroup][0]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 2"], 2),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["no-such-command-at-all"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_code_is_the_commands(podmgr: Cli, command: list[str], code: int) -> None:
    podmgr("run", "-q", "--rule", RULE, "--", *command, code=code)
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize(
    "words",
    [
        ["--rule", "loss=uniform egress 101%", "true"],
        ["--rule", "ebpf-limit=nosuch egress", "true"],
        ["true"],
        ["--bogus", "true"],
        ["--rule", RULE],
        ["--user", "nobody-of-this-name", "--rule", RULE, "true"],
    ],
)
def test_podmgrs_own_failures_are_125(podmgr: Cli, words: list[str]) -> None:
    done = podmgr("run", *words, code=125)
    assert done.stderr.startswith("error: ")
    assert "\ntip: " in done.stderr


def test_the_rules_of_a_run_hold_inside_a_run(podmgr: Cli) -> None:
    outer, inner = "loss=uniform egress 100%", "bandwidth=400 gbps egress"
    nested = [sys.executable, "-m", "podmgr", "run", "-q", "--rule", inner, "--", *SEND]
    done = podmgr("run", "--rule", outer, "--", *nested)
    assert f"{outer}: 0 packets passed, 1000 dropped" in done.stderr


def test_options_behind_the_command_are_the_commands(podmgr: Cli) -> None:
    assert podmgr("run", "-q", "--rule", RULE, "echo", "--rule", "-o").stdout == "--rule -o\n"


def test_standard_input_is_the_commands(podmgr: Cli) -> None:
    assert podmgr("run", "-q", "--rule", RULE, "cat", stdin="hello").stdout == "hello"


def test_under_sudo_the_command_runs_as_who_called_it(podmgr: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setenv("SUDO_UID", str(nobody.pw_uid))
    monkeypatch.setenv("SUDO_GID", str(nobody.pw_gid))
    script = 'id -u; id -g; id -G; echo "$HOME $USER"'
    expected = f"{nobody.pw_uid}\n{nobody.pw_gid}\n{nobody.pw_gid}\n{nobody.pw_dir} nobody\n"
    assert podmgr("run", "-q", "--rule", RULE, "sh", "-c", script).stdout == expected
    assert podmgr("run", "-q", "--rule", RULE, "--user", "root", "id", "-u").stdout == "0\n"


def test_another_user_can_be_named(podmgr: Cli) -> None:
    done = podmgr("run", "-q", "--rule", RULE, "--user", "12345:23456", "sh", "-c", "id -u; id -g; id -G")
    assert done.stdout == "12345\n23456\n23456\n"


def test_what_the_command_leaves_behind_is_killed(podmgr: Cli) -> None:
    done = podmgr("run", "--rule", RULE, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 &")
    assert "killed 2 processes" in done.stderr
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command_and_everything_is_removed(
    podmgr: Cli, start: Start, number: signal.Signals
) -> None:
    process, _ = start()
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert_nothing_left(podmgr.settings)


def test_a_command_that_dies_of_sigkill_is_tidied_up_after(podmgr: Cli, start: Start) -> None:
    process, cgroup = start()
    os.kill(cgroup_life.processes(cgroup)[0], signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
    assert_nothing_left(podmgr.settings)


def test_the_command_dies_with_podmgr(podmgr: Cli, start: Start) -> None:
    process, cgroup = start()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while cgroup_life.processes(cgroup) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert cgroup_life.processes(cgroup) == []
    podmgr("clean")


def test_ctrl_c_on_a_terminal_reaches_the_command_once(podmgr: Cli) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, [sys.executable, "-m", "podmgr", "run", "-q", "--rule", RULE, "sh", "-c", script]
        )
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 1000)
    rest, code = interrupt_on_terminal(pid, terminal)
    output += rest
    assert code == 9
    assert output.count(b"caught") == 1
    assert_nothing_left(podmgr.settings)


def test_rules_that_were_taken_away_meanwhile_are_reported(podmgr: Cli) -> None:
    script = f"{sys.executable} -m podmgr clean"
    done = podmgr("run", "--rule", RULE, "sh", "-c", script)
    assert "warning: rules were removed while the command ran" in done.stderr


def _at(path: Path) -> Cgroup:
    return Cgroup(path, path.stat().st_ino)


def _is_sleeping(cgroup: Cgroup) -> bool:
    pids = cgroup_life.processes(cgroup)
    return bool(pids) and Path(f"/proc/{pids[0]}/comm").read_text() == "sleep\n"
