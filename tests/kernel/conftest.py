"""Real cgroups, real programs. Every test ends with a look at what it left in the kernel."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup, Target, Wish
from podmgr.demo.throwaway import Pod, throw_away_pod
from podmgr.errors import PodmgrError
from podmgr.kernel import bpf_syscall, cgroup_life, cgroups, pins, scratch
from podmgr.reconcile.observe import Observed, observe
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Direction
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"

MakeCgroup = Callable[..., Cgroup]


def why_not_here() -> str | None:
    """Why kernel tests cannot run, found out by looking at what hangs on the cgroup root."""
    try:
        root = cgroups.find_root(None)
        fd = os.open(root, os.O_RDONLY)
        try:
            bpf_syscall.attached_programs(fd, Direction.EGRESS)
        finally:
            os.close(fd)
    except PodmgrError as error:
        return f"{error.message}; {error.tip}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = why_not_here()
    if why is not None:
        for item in items:
            if "tests/kernel" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=why))


_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def network_of_ones_own() -> Iterator[None]:
    """This process in a new network namespace, which has a loopback interface alone."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        run("ip", "link", "set", "lo", "up")
        yield
    finally:
        assert _libc.setns(before, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


@pytest.fixture(scope="package", autouse=True)
def own_network() -> Iterator[None]:
    """Where podmgr acts on the machine's interfaces, it acts on these, and leaves the machine's alone."""
    with network_of_ones_own():
        yield


@dataclass(frozen=True)
class Cli:
    """podmgr as a process of its own, on the test's state folder and pins."""

    settings: Settings

    def __call__(
        self, *words: str, code: int | None = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it; `code` is the exit code it must have (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "podmgr", *words], capture_output=True, text=True, input=stdin, check=False
        )
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def listed(self) -> list[dict[str, Any]]:
        """The attachments of `list -o json`."""
        rows: list[dict[str, Any]] = json.loads(self("list", "-o", "json").stdout)["attachments"]
        return rows


@pytest.fixture(scope="session")
def cgroup_root() -> Iterator[Path]:
    """A cgroup that stands for the mount, so that test runs do not see each other.

    It is named as a scratch cgroup, so the next run removes it should this one be killed.
    """
    mount = cgroups.find_root(None)
    scratch.sweep(mount)
    root = scratch.create(mount, "pytest")
    yield root.path
    cgroup_life.kill(root)
    cgroup_life.remove(root)


@pytest.fixture
def state_below_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder that all users see from outside, as podmgr's own; asked for before `settings`.

    pytest closes the folders of tests, also again and again while another pytest starts.
    """
    folder = Path(f"/run/podmgr-test-{os.getpid()}")
    monkeypatch.setenv("PODMGR_STATE_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, cgroup_root: Path) -> Settings:
    """Where the test's podmgr keeps things; also in the environment, for processes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PODMGR_CGROUP_ROOT", str(cgroup_root))
    return Settings(
        Path(os.environ["PODMGR_STATE_DIR"]),
        Path(os.environ["PODMGR_BPFFS"]),
        cgroup_root=cgroup_root,
        program_dir=EXAMPLES,
        trusts_invoker=True,
    )


@pytest.fixture
def podmgr(settings: Settings) -> Iterator[Cli]:
    cli = Cli(settings)
    yield cli
    cli("clean")
    assert_nothing_left(settings)


def assert_nothing_left(settings: Settings) -> None:
    """No pin, no ledger, no object."""
    assert list(pins.pinned(settings.bpffs)) == []
    assert not settings.bpffs.exists()
    assert not (settings.state_dir / "ledger.json").exists()
    assert not (settings.state_dir / "objects").exists()


@pytest.fixture
def make_cgroup(cgroup_root: Path) -> Iterator[Callable[..., Cgroup]]:
    """Makes cgroups that are removed, with all that lives in them, at the end of the test."""
    made: list[Cgroup] = []

    def make(name: str = "pod") -> Cgroup:
        cgroup = cgroup_life.create(cgroup_root, name)
        made.append(cgroup)
        return cgroup

    yield make
    for cgroup in made:
        cgroup_life.kill(cgroup)
        cgroup_life.remove(cgroup)


@pytest.fixture
def cgroup(make_cgroup: Callable[..., Cgroup]) -> Cgroup:
    return make_cgroup()


def attached(cgroup: Cgroup, direction: Direction = Direction.EGRESS) -> tuple[int, ...]:
    """The ids of the programs on a cgroup, as the kernel has them."""
    with cgroups.opened(cgroup) as fd:
        assert fd is not None
        return bpf_syscall.attached_programs(fd, direction).program_ids


@pytest.fixture
def pod(cgroup_root: Path) -> Iterator[Pod]:
    """A pod with a network of its own, behind which is a world; a new one for each test."""
    with throw_away_pod(cgroup_root) as pod:
        yield pod


def applied(settings: Settings, cgroup: Cgroup, *rules: str, counts_loopback: bool = False) -> list[Outcome]:
    """Apply rules to a cgroup: a pod's that has a network of its own, unless loopback counts."""
    sourced = tuple(SourcedRule(rule, CLI) for text in rules for rule in parse_rule_option(text))
    target = Target("x", cgroup, counts_loopback=counts_loopback)
    return apply([Wish(target, sourced)], settings, runner=proc.run)


@contextmanager
def under(
    settings: Settings, cgroup: Cgroup, *rules: str, counts_loopback: bool = False
) -> Iterator[Callable[[], dict[str, Observed]]]:
    """The rules on the cgroup while the block runs; gives what `list` shows, by rule.

    A second apply must find nothing to do.
    """
    outcomes = applied(settings, cgroup, *rules, counts_loopback=counts_loopback)
    try:
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        again = applied(settings, cgroup, *rules, counts_loopback=counts_loopback)
        assert {outcome.action for outcome in again} == {Action.UNCHANGED}
        assert {outcome.program_id for outcome in again} == {outcome.program_id for outcome in outcomes}
        yield lambda: {str(item.attachment.rule): item for item in observe(settings)[0]}
    finally:
        clean(Target("x", cgroup).selection, settings, runner=proc.run)


def counters(observed: dict[str, Observed], rule: str) -> tuple[int, int, int, int]:
    """Packets and bytes that passed, packets and bytes that were dropped."""
    found = observed[rule].counters
    assert found is not None
    return found.passed_packets, found.passed_bytes, found.dropped_packets, found.dropped_bytes


def loaded_program_ids() -> set[int]:
    """All programs in the kernel."""
    return {row["id"] for row in json.loads(run("bpftool", "-j", "prog", "show") or "[]")}


def assert_unloaded(program_ids: Sequence[int], seconds: float = 5) -> None:
    """The kernel frees programs a little later than they are let go."""
    deadline = time.monotonic() + seconds
    while loaded_program_ids() & set(program_ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not loaded_program_ids() & set(program_ids)


def run(*argv: str) -> str:
    """A command that must succeed; what it printed."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def interrupt_on_terminal(pid: int, terminal: int) -> tuple[bytes, int]:
    """Type Ctrl-C to a process of `pty.fork`; what it still printed, and its exit code."""
    os.write(terminal, b"\x03")
    output = b""
    while True:
        try:
            output += os.read(terminal, 1000)
        except OSError:  # the other end is closed
            break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return output, os.waitstatus_to_exitcode(status)


def compile_by_hand(folder: Path, body: str, *macros: str) -> Path:
    """An object compiled without podmgr, for programs of others."""
    output = folder / "other.o"
    argv = ["clang", "-target", "bpf", "-O2", "-g", "-x", "c", "-", "-c", "-o", str(output), *macros]
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run([*argv, f"-I{include}"], input=body, text=True, check=True)
    return output


PASS_PROGRAM = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("cgroup_skb/egress") int other(struct __sk_buff *skb) { return 1; }
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def other_program(tmp_path: Path, settings: Settings) -> Iterator[Path]:
    """A pinned program that is not podmgr's."""
    pins.ensure_bpffs(settings.bpffs, runner=proc.run)
    pins.remove_empty_folders(settings.bpffs)
    pin = Path(f"/sys/fs/bpf/other-{os.getpid()}")
    run("bpftool", "prog", "load", str(compile_by_hand(tmp_path, PASS_PROGRAM)), str(pin))
    yield pin
    pin.unlink()
