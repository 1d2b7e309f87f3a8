"""Whether a watch is well: what probes are answered, and what systemd is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from podmgr.watch.health import STUCK_SECONDS, Health
from tests.unit.samples import Script, said


@dataclass
class Watch:
    """A health with a clock that is set, and what systemd heard of it."""

    now: float = 1000.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.health = Health(lambda: self.now)

    def answers(self) -> tuple[bool, bool]:
        return self.health.is_alive(), self.health.is_ready()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr("podmgr.watch.systemd.notify", made.told.append)
    return made


def test_it_is_alive_from_the_start_and_ready_once_all_is_in_order(watch: Watch) -> None:
    assert watch.answers() == (True, False)
    watch.health.begun()
    assert watch.answers() == (True, True)
    assert watch.told == ["READY=1"]


def test_loop_that_has_not_turned_for_long_is_neither(watch: Watch) -> None:
    watch.health.begun()
    watch.now += STUCK_SECONDS - 1
    assert watch.answers() == (True, True)
    watch.now += 1
    assert watch.answers() == (False, False)
    watch.health.turned()
    assert watch.answers() == (True, True)


def test_each_turn_is_a_sign_of_life_and_the_end_is_told(watch: Watch) -> None:
    watch.health.turned()
    watch.health.turned()
    watch.health.ending()
    assert watch.told == ["WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


def test_tool_that_has_ended_is_a_sign_of_life(watch: Watch) -> None:
    tool = Script(said("done"))
    run = watch.health.turning(tool)
    watch.now += STUCK_SECONDS
    assert run(["bpftool", "batch"], stdin=b"x", pass_fds=[3], env={"A": "b"}) == said("done")
    assert watch.answers() == (True, False)
    assert (tool.calls, tool.inputs, tool.fds, tool.variables) == (
        [("bpftool", "batch")],
        [b"x"],
        [(3,)],
        [{"A": "b"}],
    )
