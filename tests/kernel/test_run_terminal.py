"""`podmgr run` on a terminal, as a job of a shell: Ctrl-Z, fg, and whose the terminal is."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life
from tests.kernel.conftest import Cli, assert_nothing_left
from tests.kernel.network import waits_until

SECONDS = 20.0
RUN = f"{sys.executable} -m podmgr run -q --rule 'loss=uniform egress 50%'"
PROMPT = b"what now> "
CTRL_C, CTRL_Z = "\x03", "\x1a"


class Shell:
    """An interactive shell with job control, on a terminal of its own, and who types at it."""

    def __init__(self) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {**os.environ, "PS1": PROMPT.decode(), "TERM": "dumb", "PROMPT_COMMAND": ""}
            argv = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
            os.execvpe("bash", argv, environment)
        self._unread = b""
        self.until(PROMPT)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, wanted: bytes) -> bytes:
        """What is printed up to this, which must come."""
        deadline = time.monotonic() + SECONDS
        while wanted not in self._unread:
            assert select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))[0], (
                self._unread
            )
            self._unread += os.read(self.terminal, 4096)
        before, _, self._unread = self._unread.partition(wanted)
        return before

    def command(self, line: str) -> None:
        """Type a line, which the terminal prints as well."""
        self.type(line + "\n")
        self.until(line.encode() + b"\r\n")

    def answer(self, line: str) -> str:
        """What a command prints that ends at once."""
        self.command(line)
        return self.until(PROMPT).decode().strip()

    @property
    def foreground(self) -> int:
        return os.tcgetpgrp(self.terminal)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture
def shell(podmgr: Cli, cgroup_root: Path) -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.close()
    assert waits_until(lambda: list(cgroup_root.glob("podmgr-run-*")) == [])
    assert_nothing_left(podmgr.settings)


class Job:
    """A run and its command, found by what they are."""

    def __init__(self, cgroup_root: Path) -> None:
        (path,) = cgroup_root.glob("podmgr-run-*")
        self.podmgr = int(path.name.split("-")[2])
        self._cgroup = Cgroup(path, path.stat().st_ino)

    @property
    def states(self) -> set[str]:
        """As ps shows them: T is stopped."""
        pids = [self.podmgr, *cgroup_life.processes(self._cgroup)]
        return {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids}

    def is_stopped(self) -> bool:
        return waits_until(lambda: self.states == {"T"})

    def goes_on(self) -> bool:
        return waits_until(lambda: "T" not in self.states)


ECHOES = 'trap "echo caught; exit 9" INT; echo begun; while read line; do echo got $line; done'


def test_ctrl_z_stops_podmgr_and_its_command_and_fg_continues_both(shell: Shell, cgroup_root: Path) -> None:
    shell.command(f"{RUN} sh -c '{ECHOES}'")
    shell.until(b"begun\r\n")
    job = Job(cgroup_root)
    for word in ("one", "two"):
        shell.type(CTRL_Z)
        shell.until(PROMPT)  # the shell has the terminal again
        assert job.is_stopped()
        assert shell.answer("echo $((6 * 7))") == "42"
        shell.command("fg")
        assert job.goes_on()
        shell.command(word)
        shell.until(b"got " + word.encode())
    shell.type(CTRL_C)
    assert b"caught" in shell.until(PROMPT)
    assert shell.answer("echo $?") == "9"


def test_ctrl_c_ends_a_command_that_was_stopped_and_continued(shell: Shell, cgroup_root: Path) -> None:
    shell.command(f"{RUN} sh -c 'echo begun; exec sleep 1000'")
    shell.until(b"begun\r\n")
    job = Job(cgroup_root)
    shell.type(CTRL_Z)
    shell.until(PROMPT)
    assert job.is_stopped()
    shell.command("bg")
    shell.until(PROMPT)
    assert job.goes_on()
    shell.command("fg")
    assert waits_until(lambda: shell.foreground == os.getpgid(job.podmgr))
    shell.type(CTRL_C)
    shell.until(PROMPT)
    assert shell.answer("echo $?") == str(128 + signal.SIGINT)


def test_a_stopped_job_that_is_killed_is_tidied_up_after(shell: Shell, cgroup_root: Path) -> None:
    shell.command(f"{RUN} sh -c 'echo begun; exec sleep 1000'")
    shell.until(b"begun\r\n")
    job = Job(cgroup_root)
    shell.type(CTRL_Z)
    shell.until(PROMPT)
    assert job.is_stopped()
    shell.command("kill %1; wait %1")
    assert waits_until(lambda: not Path(f"/proc/{job.podmgr}").exists())


def test_all_of_a_pipeline_stops_and_goes_on(shell: Shell, cgroup_root: Path) -> None:
    """As without podmgr: what reads from it has the terminal, too."""
    shell.command(f"{RUN} sh -c 'echo begun; exec cat' | (read a; echo $a; read b </dev/tty; echo $b)")
    shell.until(b"begun\r\n")
    job = Job(cgroup_root)
    shell.type(CTRL_Z)
    shell.until(PROMPT)
    assert job.is_stopped()
    shell.command("fg")
    assert job.goes_on()
    shell.type(CTRL_C)
    shell.until(PROMPT)


def test_a_job_in_the_background_that_reads_is_stopped_with_podmgr(shell: Shell, cgroup_root: Path) -> None:
    shell.command(f"{RUN} sh -c 'read line; echo got $line' &")
    shell.until(PROMPT)
    assert waits_until(lambda: len(list(cgroup_root.glob("podmgr-run-*"))) == 1)
    job = Job(cgroup_root)
    assert job.is_stopped()
    shell.command("fg")
    assert job.goes_on()
    shell.command("a word")
    shell.until(b"got a word\r\n")
    shell.until(PROMPT)


def test_a_job_in_the_background_that_may_not_write_is_stopped_with_podmgr(
    shell: Shell, cgroup_root: Path
) -> None:
    shell.answer("stty tostop")
    shell.command(f"{RUN} sh -c 'echo here it is; exec sleep 1000' &")
    shell.until(PROMPT)
    assert waits_until(lambda: len(list(cgroup_root.glob("podmgr-run-*"))) == 1)
    job = Job(cgroup_root)
    assert job.is_stopped()
    shell.command("fg")
    shell.until(b"here it is\r\n")
    assert job.goes_on()
    shell.type(CTRL_C)
    shell.until(PROMPT)


def test_a_new_size_of_the_terminal_is_told_once(shell: Shell) -> None:
    script = "trap 'echo size $(stty size)' WINCH; echo begun; while :; do read line; done"
    shell.command(f'{RUN} sh -c "{script}"'.replace("$(", "\\$("))
    shell.until(b"begun\r\n")
    fcntl.ioctl(shell.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    shell.until(b"size 33 99\r\n")
    shell.type(CTRL_C)
    assert b"size" not in shell.until(PROMPT)


INNER = b"inner> "
INNER_SHELL = f"PS1='{INNER.decode()}' {RUN} bash --norc --noprofile --noediting -i"


def test_a_shell_inside_has_jobs_of_its_own(shell: Shell, cgroup_root: Path) -> None:
    shell.type(INNER_SHELL + "\n")
    shell.until(b"-i\r\n")
    shell.until(INNER)
    job = Job(cgroup_root)
    inner = shell.foreground
    assert inner != os.getpgid(job.podmgr)
    shell.type("sleep 1000\n")
    assert waits_until(lambda: shell.foreground != inner)
    shell.type(CTRL_Z)
    shell.until(INNER)
    assert shell.foreground == inner
    shell.type("suspend -f\n")
    shell.until(PROMPT)
    assert job.is_stopped()
    assert shell.answer("echo $((6 * 7))") == "42"
    shell.command("fg")
    shell.type("kill %1; echo $((7 * 8))\n")
    shell.until(b"56\r\n")
    assert shell.foreground == inner
    shell.type("exit\n")
    shell.type("exit\n")  # should it have told of a job
    shell.until(PROMPT)


def test_the_terminal_is_lent_again_to_who_had_it(shell: Shell, cgroup_root: Path) -> None:
    """What is stopped by force can neither give it back nor take it again."""
    job, inner = _in_a_shell_inside(shell, cgroup_root, INNER_SHELL)
    lent_to = shell.foreground
    os.kill(inner, signal.SIGSTOP)
    shell.until(PROMPT)
    shell.command("fg")
    assert waits_until(lambda: shell.foreground == lent_to)
    assert job.goes_on()
    shell.type(CTRL_C)
    shell.until(INNER)
    shell.type("exit\n")
    shell.until(PROMPT)


def test_the_terminal_comes_back_from_a_shell_that_is_killed(shell: Shell, cgroup_root: Path) -> None:
    """A script, unlike a shell with jobs, does not look after it itself."""
    _, inner = _in_a_shell_inside(
        shell, cgroup_root, f'dash -c "{INNER_SHELL}; echo \\$?; read line; echo got \\$line"'
    )
    os.kill(inner, signal.SIGKILL)
    shell.until(b"%d\r\n" % (128 + signal.SIGKILL))
    shell.type("a word\n")
    shell.until(b"got a word\r\n")
    shell.until(PROMPT)


def _in_a_shell_inside(shell: Shell, cgroup_root: Path, line: str) -> tuple[Job, int]:
    """A shell below podmgr of which a job is in the foreground; the run, and that shell's process."""
    shell.command(line)
    shell.until(INNER)
    inner = shell.foreground
    shell.type("sleep 1000\n")
    assert waits_until(lambda: shell.foreground != inner)
    return Job(cgroup_root), inner


def test_a_terminal_that_a_killed_command_leaves_raw_is_mended(shell: Shell) -> None:
    before = termios.tcgetattr(shell.terminal)
    shell.command(f"{RUN} sh -c 'stty raw -echo; kill -KILL $$'")
    shell.until(PROMPT)
    assert termios.tcgetattr(shell.terminal) == before
