"""The life of a network namespace: it is held, entered, and gone with its holder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.errors import PermissionDeniedError
from podmgr.kernel import netns_life
from tests.unit.samples import eventually


@pytest.fixture
def holder() -> Iterator[proc.Process]:
    made = netns_life.hold_namespace()
    yield made
    netns_life.release(made)


def number(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def test_it_is_another_namespace_from_the_first_moment(holder: proc.Process) -> None:
    assert number(holder.pid) != number("self")
    assert os.getsid(holder.pid) == holder.pid


def test_child_enters_it_and_we_do_not(holder: proc.Process) -> None:
    before = number("self")
    fd = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
    script = "import os; print(os.stat('/proc/self/ns/net').st_ino)"
    done = proc.run([sys.executable, "-c", script], prepare=lambda: netns_life.enter(fd))
    os.close(fd)
    assert int(done.stdout) == number(holder.pid)
    assert number("self") == before


def test_users_may_do_there_what_they_may_here(holder: proc.Process) -> None:
    for name in ("ping_group_range", "ip_unprivileged_port_start"):
        path = f"/proc/sys/net/ipv4/{name}"
        argv = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "cat", path]
        there = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert there == Path(path).read_text()


def test_it_ends_with_us() -> None:
    script = (
        "from podmgr.kernel.netns_life import hold_namespace; import os\n"
        "print(hold_namespace().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root
    )
    path = Path(f"/proc/{done.stdout.strip()}/status")
    eventually(lambda: not path.exists() or "State:\tZ" in path.read_text())


def test_without_the_right_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns_life, "_CLONE_NEWNET", -1)
    with pytest.raises(PermissionDeniedError, match="not allowed to make a network namespace"):
        netns_life.hold_namespace()
