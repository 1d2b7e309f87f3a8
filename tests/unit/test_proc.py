"""The one module that starts processes: results, input, descriptors, and what cannot be started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.errors import MissingToolError, PodmgrError, ToolTimeoutError
from podmgr.proc import Completed


def test_command_ends_with_its_output() -> None:
    done = proc.run(["cat"], stdin=b"text")
    assert done == Completed(("cat",), 0, b"text", "")
    assert (done.succeeded, done.stdout) == (True, "text")


def test_failing_command_is_a_result_and_no_error() -> None:
    done = proc.run(["sh", "-c", "echo no >&2; exit 3"])
    assert (done.code, done.stderr, done.succeeded) == (3, "no\n", False)


def test_killed_command_has_a_negative_code() -> None:
    assert proc.run(["sh", "-c", "kill -9 $$"]).code == -signal.SIGKILL


def test_output_that_is_not_utf8_is_still_text() -> None:
    assert proc.run(["cat"], stdin=b"a\xffb").stdout == "a\ufffdb"


def test_words_are_not_read_by_a_shell() -> None:
    assert proc.run(["printf", "%s", "$HOME; `id` *"]).stdout == "$HOME; `id` *"


def test_passed_descriptor_keeps_its_number(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        command = ["readlink", f"/proc/self/fd/{fd}"]
        assert proc.run(command, pass_fds=[fd]).stdout == f"{tmp_path}\n"
        assert not proc.run(command).succeeded
    finally:
        os.close(fd)


def test_child_is_prepared_before_the_command(tmp_path: Path) -> None:
    assert proc.run(["pwd"], prepare=lambda: os.chdir(tmp_path)).stdout == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("name", "package"),
    [("ip", "iproute2"), ("nsenter", "util-linux"), ("bpftool", "bpftool"), ("sh", "sh")],
)
def test_missing_command_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=f"^{name} is not installed$") as caught:
        proc.run([name])
    assert (caught.value.tip or "").startswith(f"install {package}")


def test_command_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PodmgrError, match=r"Permission denied$"):
        proc.run([str(tmp_path)])


def test_command_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "TIMEOUT_SECONDS", 0.01)
    with pytest.raises(ToolTimeoutError, match="did not end"):
        proc.run(["sleep", "60"])


@pytest.mark.parametrize("script", ["sleep 20 & wait", "sleep 20 & exit 0", "sleep 20 >&2 & wait"])
def test_what_a_command_has_started_and_left_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(proc, "TIMEOUT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(ToolTimeoutError, match=r"^sh did not end"):
        proc.run(["sh", "-c", script])
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("script", ["yes", "yes >&2"])
def test_command_that_prints_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(proc, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(PodmgrError, match=r"^sh prints more than 1 MiB"):
        proc.run(["sh", "-c", script])


def test_input_and_output_larger_than_a_pipe_pass_at_once() -> None:
    text = bytes(range(256)) * 16_384
    assert proc.run(["cat"], stdin=text).output == text
    assert proc.run(["true"], stdin=text).succeeded


def test_no_pipe_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    proc.run(["cat"], stdin=b"text")
    assert len(os.listdir("/proc/self/fd")) == before


def test_started_command_runs_on_and_is_prepared(tmp_path: Path) -> None:
    child = proc.start(
        ["sh", "-c", "read line; echo $line $NAME $(pwd)"],
        prepare=lambda: os.chdir(tmp_path),
        env={"NAME": "value", "PATH": os.environ["PATH"]},
        streams=subprocess.PIPE,
    )
    assert child.poll() is None
    output, _ = child.communicate(b"hello\n")
    assert output.decode() == f"hello value {tmp_path}\n"


@pytest.mark.parametrize(("name", "kind"), [("no-such", FileNotFoundError), (".", PermissionError)])
def test_command_that_cannot_be_started_raises_as_subprocess_does(
    tmp_path: Path, name: str, kind: type[OSError]
) -> None:
    with pytest.raises(kind):
        proc.start([str(tmp_path / name)])


def test_tools_are_also_looked_for_in_the_sbin_beside_a_bin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("bin", "sbin"):
        (tmp_path / folder).mkdir()
    tool = tmp_path / "sbin" / "tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin")
    assert proc.find("tool") == str(tool)
    assert proc.run(["tool"]).stdout == "found\n"
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert proc.find("tool") is None


def test_each_gives_results_in_order() -> None:
    assert proc.each(lambda number: proc.run(["echo", str(number)]).stdout, range(20)) == [
        f"{number}\n" for number in range(20)
    ]


def test_each_that_is_interrupted_twice_goes_on_when_what_was_begun_has_ended(tmp_path: Path) -> None:
    """What is left running would make pins after all have been removed."""

    def work(name: str) -> None:
        if name == "interrupt":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
        else:
            proc.run(["sh", "-c", f"sleep 0.5; touch {tmp_path}/{name}"])

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            proc.each(work, ["slow", "interrupt", *map(str, range(500))])
        made = sorted(path.name for path in tmp_path.iterdir())
        assert "slow" in made
        time.sleep(0.6)
        assert sorted(path.name for path in tmp_path.iterdir()) == made
        assert len(made) < 100
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_works_on_strangers_text_runs_as_nobody() -> None:
    """With no group of root's, in a folder where nothing of anybody lies."""
    if os.geteuid() != 0:
        pytest.fail("this test needs root")
    limits = proc.Limits(cpu_seconds=5, memory_bytes=1 << 30, output_bytes=1 << 20)
    words = ["sh", "-c", "id -u; id -G; pwd; cat /etc/shadow || echo closed"]
    done = proc.run(words, limits=limits)
    assert done.stdout == "65534\n65534\n/\nclosed\n"
    assert proc.run(["id", "-u"]).stdout == "0\n"


def test_command_is_not_begun_for_a_parent_that_has_ended(tmp_path: Path) -> None:
    """It may end between its fork and the moment when its child asks to end with it.

    Both hold the pipe, so both have ended once it is read.
    """
    script = (
        "import os, signal; from podmgr import proc\n"
        "def prepare():\n"
        "    parent = os.getppid()\n"
        "    os.kill(parent, signal.SIGKILL)\n"
        "    while os.getppid() == parent: pass\n"
        "    proc.die_with_parent()\n"
        f"proc.start(['touch', {str(tmp_path / 'begun')!r}], prepare=prepare)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=root, stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "begun").exists()
