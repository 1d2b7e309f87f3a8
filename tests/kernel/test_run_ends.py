"""Nothing of `podmgr run` outlives it: signals, and what is left when podmgr itself is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life
from tests.kernel.conftest import Cli, assert_nothing_left
from tests.kernel.network import programs, tc_state, waits_until

RULE = "loss=uniform egress 50%"
NOT_FORWARDED = {
    signal.SIGKILL,
    signal.SIGSTOP,  # cannot be caught
    signal.SIGCHLD,  # is about podmgr's own child
    signal.SIGCONT,  # is handed on, but a command cannot tell it from one that woke it
}
CATCHABLE = sorted(signal.valid_signals() - NOT_FORWARDED)

Started = tuple["subprocess.Popen[bytes]", Cgroup]
Start = Callable[..., Started]


@pytest.fixture(autouse=True)
def no_scratch_cgroup_and_no_qdisc_is_left(cgroup_root: Path) -> Iterator[None]:
    yield
    assert [path for path in cgroup_root.iterdir() if path.is_dir()] == []
    assert "clsact" not in tc_state(None)


@pytest.fixture
def start(cgroup_root: Path) -> Iterator[Start]:
    """Starts a run with these options, and returns once its command has printed a line."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: Sequence[str], *options: str) -> Started:
        before = set(cgroup_root.glob("podmgr-run-*"))
        argv = [sys.executable, "-m", "podmgr", "run", "-q", "--rule", RULE, *options, "--", *command]
        process = subprocess.Popen(
            argv, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (path,) = set(cgroup_root.glob("podmgr-run-*")) - before
        return process, Cgroup(path, path.stat().st_ino)

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


_TELLS = """
import os, signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, _: os.write(1, b"%d\\n" % number))
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


def test_every_signal_that_can_be_caught_reaches_the_command(podmgr: Cli, start: Start) -> None:
    process, _ = start([sys.executable, "-I", "-S", "-c", _TELLS])
    assert process.stdout is not None
    for number in CATCHABLE:
        process.send_signal(number)
        assert process.stdout.readline() == b"%d\n" % number
        assert process.poll() is None
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == b"%d\n" % signal.SIGCONT
    os.kill(_pid_of(process), signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGQUIT, signal.SIGALRM, signal.SIGSEGV, 40])
def test_a_signal_that_ends_the_command_ends_the_run_in_good_order(
    podmgr: Cli, start: Start, number: int
) -> None:
    process, _ = start(["sh", "-c", "ulimit -c 0; echo ready; exec sleep 1000"])
    assert waits_until(lambda: _name_of(_pid_of(process)) == "sleep")
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert_nothing_left(podmgr.settings)


def test_what_was_ignored_stays_ignored(podmgr: Cli, start: Start) -> None:
    """As under nohup, for podmgr and for the command."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process, cgroup = start(["sh", "-c", "echo ready; exec sleep 1000"])
    finally:
        signal.signal(signal.SIGHUP, before)
    (pid,) = cgroup_life.processes(cgroup)
    ignored = _status(pid, "SigIgn")
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1
    assert int(_status(pid, "SigBlk"), 16) == 0
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert_nothing_left(podmgr.settings)


def test_a_command_that_signals_its_own_group_is_not_hit_twice(podmgr: Cli, tmp_path: Path) -> None:
    """podmgr is in that group, too."""
    told = tmp_path / "told"
    script = f"trap 'echo x >> {told}' TERM; kill -TERM 0; sleep 0.3; kill -TERM 0; sleep 0.3; exit 3"
    argv = [sys.executable, "-m", "podmgr", "run", "-q", "--rule", RULE, "sh", "-c", script]
    with subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        assert process.wait(120) == 3  # an emulated machine is slow
    assert told.read_text() == "x\nx\n"
    assert_nothing_left(podmgr.settings)


LEAVES_CHILDREN = ["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo ready; wait"]


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["doctor"],
        ["profiles"],
        ["compile", "loss=uniform egress 1%", "--explain"],
        ["apply", "cgroup/nowhere", "--rule", RULE],
        ["run", "-q", "--rule", RULE, "true"],
        ["clean"],
    ],
    ids=lambda words: words[0],
)
def test_any_command_ends_what_a_killed_run_has_left(podmgr: Cli, start: Start, command: list[str]) -> None:
    """Until then what its command has started stays under its rules."""
    process, cgroup = start(LEAVES_CHILDREN)
    process.kill()
    process.wait()
    assert waits_until(lambda: len(cgroup_life.processes(cgroup)) == 2)  # sh itself ends with podmgr
    assert len(programs(None, "lo")) == 1
    left = cgroup_life.processes(cgroup)
    done = podmgr(*command, code=None)
    assert f"removed {cgroup.path}, left by a crash" in done.stderr
    assert not any(_is_alive(pid) for pid in left)
    assert not cgroup.path.exists()
    assert_nothing_left(podmgr.settings)
    assert "crash" not in podmgr("list").stderr


def test_a_run_that_is_alive_is_not_disturbed(podmgr: Cli, start: Start) -> None:
    alive, its = start(LEAVES_CHILDREN)
    killed, other = start(LEAVES_CHILDREN)
    before = sorted(cgroup_life.processes(its))
    killed.kill()
    killed.wait()
    (row,) = podmgr.listed()
    assert (row["target"], row["state"]) == (f"cgroup/{its.path.name}", "active")
    assert sorted(cgroup_life.processes(its)) == before
    assert not other.path.exists()
    alive.terminate()
    alive.wait(10)


def test_a_command_that_gains_rights_stays_under_the_rules_and_is_ended_too(
    podmgr: Cli, start: Start
) -> None:
    """The kernel does not end it with podmgr, as it forgets that at a setuid program."""
    folder = Path("/var/tmp") / f"podmgr-test-{os.getpid()}"  # one that all may enter
    folder.mkdir(mode=0o755)
    try:
        program = folder / "sleep-as-root"
        shutil.copy(shutil.which("sleep") or "", program)
        program.chmod(0o4755)
        process, cgroup = start(["sh", "-c", f"echo ready; exec {program} 1000"], "--user", "nobody")
        assert waits_until(lambda: _name_of(_pid_of(process)) == program.name[:15])
        pid = _pid_of(process)
        assert _status(pid, "Uid").split()[:2] != ["0", "0"] and _status(pid, "Uid").split()[1] == "0"
        process.kill()
        process.wait()
        time.sleep(0.2)  # what shall not happen has had time to
        assert _is_alive(pid)
        assert cgroup_life.processes(cgroup) == [pid]
        assert len(programs(None, "lo")) == 1
        podmgr("list")
        assert not _is_alive(pid)
    finally:
        shutil.rmtree(folder)
    assert_nothing_left(podmgr.settings)


def test_who_asks_from_inside_a_killed_run_goes_on_under_its_rules(podmgr: Cli, start: Start) -> None:
    again = f"{sys.executable} -m podmgr list -o json"
    script = f"(while [ -d /proc/$$ ]; do sleep 0.05; done; {again} >out; echo $? >code) & echo ready; wait"
    folder = podmgr.settings.state_dir.parent
    process, cgroup = start(["sh", "-c", f"cd {folder}; {script}"])
    process.kill()
    process.wait()
    assert waits_until(lambda: (folder / "code").exists() and (folder / "code").read_text() == "0\n")
    assert '"state": "active"' in (folder / "out").read_text()
    assert cgroup.path.exists()
    podmgr("list")
    assert_nothing_left(podmgr.settings)


def test_what_is_left_of_runs_inside_a_run_goes_at_once(podmgr: Cli, start: Start) -> None:
    inner = f"{sys.executable} -m podmgr run -q --rule '{RULE}' -- sh -c 'echo ready; exec sleep 1000'"
    process, cgroup = start(["sh", "-c", f"{inner}; true"])
    assert len(list(cgroup.path.glob("podmgr-run-*"))) == 1
    process.kill()
    process.wait()
    podmgr("list")
    podmgr("list")  # the inner podmgr was alive until then
    assert_nothing_left(podmgr.settings)
    assert not cgroup.path.exists()


def _pid_of(run: subprocess.Popen[bytes]) -> int:
    """Of its command, which is podmgr's only child now."""
    (pid,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return int(pid)


def _name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def _is_alive(pid: int) -> bool:
    try:
        return _status(pid, "State")[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
