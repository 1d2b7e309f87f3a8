"""podmgr killed at random moments: after the next command, whichever it is, kernel and ledger agree.

`make kills` does it some hundred times for each command, PODMGR_TEST_KILLS says how often; watch is killed in
`tests/kube/test_kills_of_watch.py`. Commands run in a fork of this process, in which podmgr is loaded
already: so what a kill meets is their work, and not their start. `test_crash` kills at each step in turn.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest

import podmgr as package
from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.cli import main
from podmgr.kernel import cgroup_life
from tests.how_often import KILLS, seeded
from tests.kernel.agreement import disagreements, left_of_runs
from tests.kernel.conftest import Cli, MakeCgroup, assert_nothing_left
from tests.kernel.network import programs, waits_until

RULES = ("bandwidth=10 mbps egress", "loss=uniform egress 1%", "loss=burst ingress 1% length=5")
LEAVES = ("--", "sh", "-c", "setsid sleep 1000 & sleep 1000 & sleep 0.05")

pytestmark = pytest.mark.timeout(300 + 20 * KILLS)


def rules(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--rule", text)]


APPLY = ["apply", "cgroup/one", *rules(*RULES)]
CHANGE = ["apply", "cgroup/one", *rules(*RULES[1:], "bandwidth=20 mbps egress")]
VICTIMS = {
    "apply": APPLY,
    "change": CHANGE,
    "clean": ["clean"],
    "run": ["run", "-q", *rules(*RULES), *LEAVES],
    "run --net": ["run", "-q", "--net", *rules("loss=uniform both 1%"), *LEAVES],
}
BEFORE = {"change": APPLY, "clean": APPLY}  # what is done before, undisturbed
NEXT = [
    APPLY,
    CHANGE,
    ["apply", "cgroup/two", *rules(RULES[0])],
    ["clean"],
    ["list"],
    ["run", "-q", *rules(RULES[0]), "true"],
]


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """All of podmgr, so that a fork of this process loads nothing."""
    for module in pkgutil.walk_packages(package.__path__, "podmgr."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


@pytest.fixture
def cgroups(make_cgroup: MakeCgroup) -> Iterator[list[Cgroup]]:
    """Two, in each of which a process lives."""
    made = [make_cgroup(name) for name in ("one", "two")]
    processes = [
        proc.start(["sleep", "infinity"], prepare=lambda made=made: cgroup_life.join(made))  # type: ignore[misc]
        for made in made
    ]
    yield made
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.usefixtures("cgroups")
def test_after_a_kill_and_another_command_kernel_and_ledger_agree(podmgr: Cli, victim: str) -> None:
    settings = podmgr.settings
    chance = seeded(victim)
    finished(*BEFORE.get(victim, ["list"]))
    begun = time.monotonic()
    finished(*VICTIMS[victim])
    killed, seconds = 0, time.monotonic() - begun
    while killed < KILLS:
        finished(*BEFORE.get(victim, ["list"]))
        pid = started(VICTIMS[victim])
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        is_killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        killed += is_killed
        seconds *= 1.05 if is_killed else 0.9  # as the machine is busy; its last moments come up as well
        command = chance.choice(NEXT)
        finished(*command)
        assert disagreements(settings, _on_interfaces()) == [], command
        assert left_of_runs(settings) == []
    finished("clean")
    assert_nothing_left(settings)
    assert waits_until(lambda: not list(Path("/sys/class/net").glob("podmgr-*")))


def started(command: Sequence[str]) -> int:
    """podmgr at work, in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        sys.argv = ["podmgr", *command]
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in enumerate("rww"))
        main.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def finished(*command: str) -> None:
    """podmgr to its end, which must be good."""
    _, status = os.waitpid(started(command), 0)
    assert os.waitstatus_to_exitcode(status) == 0, command


def _on_interfaces() -> set[int]:
    return {id for side in ("egress", "ingress") for id in programs(None, "lo", side)}
