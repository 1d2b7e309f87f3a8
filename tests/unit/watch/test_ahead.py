"""What is compiled ahead, when, and how often; that it is what a transaction needs, `tests/kube` shows."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup, PodRef, Target, Wish
from podmgr.errors import PodmgrError
from podmgr.rules.source import POD, SourcedRule
from podmgr.settings import LogFormat, Settings
from podmgr.watch.ahead import MOST_PODS, Ahead
from podmgr.watch.journal import Journal
from tests.unit.samples import Script, eventually, parsed, said

LOSS, MORE = "loss=uniform egress 1%", "loss=uniform egress 2%"
CUSTOM = "ebpf-limit=dropper egress"


@dataclass
class Compiler:
    """What was asked for; `lets` holds it up."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    lets: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def __call__(self, wish: Wish, *_: object, **__: object) -> int:
        self.began.set()
        self.lets.wait(10)
        self.asked.append((wish.target.owner, str(wish.rules[0].rule)))
        if self.error is not None:
            raise self.error
        return 1


@dataclass
class Made:
    ahead: Ahead
    compiler: Compiler
    log: io.StringIO


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    compiler, stopping, log = Compiler(), threading.Event(), io.StringIO()
    monkeypatch.setattr("podmgr.watch.ahead.compile_ahead", compiler)
    settings = Settings(tmp_path / "state", tmp_path / "bpffs")
    yield Made(
        Ahead(settings, Journal(LogFormat.JSON, log), stopping, runner=Script(said(""))), compiler, log
    )
    stopping.set()
    compiler.lets.set()


def wish(uid: str, rule: str = LOSS) -> Wish:
    target = Target(f"pod/{uid}", Cgroup(Path("/x"), 0), PodRef("shop", uid, uid), counts_loopback=False)
    return Wish(target, (SourcedRule(parsed(rule), POD),))


def test_same_rules_of_a_pod_are_compiled_once(made: Made) -> None:
    made.compiler.lets.set()
    for _ in range(3):
        made.ahead.ask([wish("a")])
        eventually(lambda: made.compiler.asked == [("a", LOSS)])
    made.ahead.ask([wish("a", MORE)])
    eventually(lambda: made.compiler.asked == [("a", LOSS), ("a", MORE)])


def test_pod_that_is_forgotten_is_compiled_for_again(made: Made) -> None:
    made.compiler.lets.set()
    made.ahead.ask([wish("a")])
    eventually(lambda: len(made.compiler.asked) == 1)
    made.ahead.forget(["a", "b"])
    made.ahead.ask([wish("a")])
    eventually(lambda: len(made.compiler.asked) == 2)


def test_custom_programs_come_after_the_others(made: Made) -> None:
    made.ahead.ask([wish("a")])
    eventually(made.compiler.began.is_set)
    made.ahead.ask([wish("b", CUSTOM), wish("c"), wish("d")])
    made.compiler.lets.set()
    eventually(lambda: len(made.compiler.asked) == 4)
    assert [uid for uid, _ in made.compiler.asked] == ["a", "c", "d", "b"]


@pytest.mark.parametrize("error", [PodmgrError("no clang"), OSError("disk full")])
def test_failure_is_said_and_the_next_is_compiled(made: Made, error: Exception) -> None:
    made.compiler.error = error
    made.compiler.lets.set()
    made.ahead.ask([wish("a"), wish("b")])
    eventually(lambda: len(made.compiler.asked) == 2)
    eventually(lambda: len(made.log.getvalue().splitlines()) == 2)


def test_nothing_to_compile_starts_no_thread(made: Made) -> None:
    before = threading.active_count()
    made.ahead.ask([])
    assert threading.active_count() == before


def test_what_is_remembered_is_bounded(made: Made) -> None:
    made.compiler.lets.set()
    uids = [f"u-{number}" for number in range(MOST_PODS + 1)]
    made.ahead.ask([wish(uid) for uid in uids])
    eventually(lambda: len(made.compiler.asked) == len(uids))
    made.ahead.ask([wish(uids[-1]), wish(uids[0])])
    eventually(lambda: len(made.compiler.asked) == len(uids) + 1)
    assert made.compiler.asked[-1][0] == uids[0]
