"""bpftool batches: each command is judged by its own output, and one that fails stops no other."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PodmgrError
from podmgr.kernel import bpftool
from podmgr.kernel.bpftool import Command, Failure
from podmgr.proc import Completed
from tests.unit.samples import EGRESS, INGRESS, Script, said

COMMANDS: list[Command] = [("prog", "load", "a", "b"), ("prog", "load", "c", "d"), ("prog", "load", "e", "f")]


def like_bpftool(*bad: str, code: int = 0) -> Script:
    """Answers as bpftool does: stops at the first error, which commands naming `bad` are."""

    def answer(argv: Sequence[str], stdin: bytes) -> Completed:
        assert list(argv) == ["bpftool", "-j", "batch", "file", "-"]
        entries: list[dict[str, object]] = []
        for line in stdin.decode().splitlines():
            failed = bool(set(line.split()) & set(bad))
            output = {"error": f"cannot {line}"} if failed else None
            entries.append({"command": line.split(), "output": output})
            if failed:
                return said(json.dumps(entries), code=255, stderr=f"log of {line}")
        return said(json.dumps(entries), code=code)

    return Script(answer)


def test_all_commands_go_into_one_process() -> None:
    runner = like_bpftool()
    assert bpftool.batch(COMMANDS, runner=runner) == [None, None, None]
    assert runner.inputs == [b"prog load a b\nprog load c d\nprog load e f\n"]


def test_no_commands_start_no_process() -> None:
    runner = like_bpftool()
    assert bpftool.batch([], runner=runner) == []
    assert runner.calls == []


@pytest.mark.parametrize("bad", ["a", "c", "e"])
def test_failure_stops_no_other_command(bad: str) -> None:
    runner = like_bpftool(bad)
    results = bpftool.batch(COMMANDS, runner=runner)
    assert [result is not None for result in results] == [bad in command for command in COMMANDS]
    asked = [line for text in runner.inputs for line in text.decode().splitlines()]
    assert set(asked) == {" ".join(command) for command in COMMANDS}


def test_failure_keeps_bpftools_words_and_its_log() -> None:
    results = bpftool.batch(COMMANDS, runner=like_bpftool("c"))
    assert results[1] == Failure("cannot prog load c d", "log of prog load c d")


def test_every_command_may_fail() -> None:
    results = bpftool.batch(COMMANDS, runner=like_bpftool("a", "c", "e"))
    assert [result.error for result in results if result] == [
        "cannot prog load a b",
        "cannot prog load c d",
        "cannot prog load e f",
    ]


@pytest.mark.parametrize(("count", "cpus", "processes"), [(16, 4, 1), (17, 4, 2), (330, 2, 2), (330, 64, 21)])
def test_many_commands_are_shared_among_as_many_processes_as_are_worth_it(
    mocker: MockerFixture, count: int, cpus: int, processes: int
) -> None:
    mocker.patch("podmgr.kernel.bpftool.os.cpu_count", return_value=cpus)
    runner = like_bpftool()
    commands: list[Command] = [("prog", "load", str(number)) for number in range(count)]
    assert bpftool.batches(commands, runner=runner) == [None] * count
    asked = [text.decode().splitlines() for text in runner.inputs]
    assert len(asked) == processes
    assert sorted(line for lines in asked for line in lines) == sorted(map(" ".join, commands))


def test_what_fails_in_one_of_many_processes_is_told_at_its_place() -> None:
    commands: list[Command] = [("prog", "load", str(number)) for number in range(50)]
    results = bpftool.batches(commands, runner=like_bpftool("7", "16", "49"))
    assert [number for number, result in enumerate(results) if result] == [7, 16, 49]


def test_code_255_after_all_went_well_is_no_failure() -> None:
    assert bpftool.batch(COMMANDS, runner=like_bpftool(code=255)) == [None, None, None]


def test_error_about_the_batch_itself_is_not_taken_for_a_commands() -> None:
    entries = [{"command": ["prog"], "output": None}, {"error": "reading batch file failed"}]
    runner = Script(said(json.dumps(entries), code=255))
    assert bpftool.batch([("prog", "show")], runner=runner) == [None]


def test_commands_that_were_not_answered_are_sent_again() -> None:
    runner = Script(said('[{"command": ["prog"], "output": null}]'))
    assert bpftool.batch(COMMANDS, runner=runner) == [None, None, None]
    assert [text.count(b"\n") for text in runner.inputs] == [3, 2, 1]


def test_descriptors_are_handed_on() -> None:
    runner = like_bpftool()
    bpftool.batch([("prog", "show")], runner=runner, pass_fds=[5, 7])
    assert runner.fds == [(5, 7)]


@pytest.mark.parametrize("stdout", ["", "Error: no such file", "[{", "5", '[{"command": []}]', "[5]"])
def test_answer_that_is_not_the_json_of_a_batch_is_an_error(stdout: str) -> None:
    runner = Script(said(stdout, code=1, stderr="libbpf: broken"))
    with pytest.raises(PodmgrError, match="bpftool answered what is not JSON") as caught:
        bpftool.batch(COMMANDS, runner=runner)
    assert caught.value.detail == "libbpf: broken"


@pytest.mark.parametrize("stdout", ["[]", "{}", '[{"error": "reading batch file failed"}]'])
def test_no_answer_is_an_error_and_not_asked_for_ever(stdout: str) -> None:
    runner = Script(said(stdout))
    with pytest.raises(PodmgrError, match="bpftool did not answer"):
        bpftool.batch(COMMANDS, runner=runner)
    assert len(runner.calls) == 1


@pytest.mark.parametrize(
    "word", ["a b", "", "a\nprog", "#a", "'a'", '"a"', "a\\b", "a\tb", "é", "$(id)", "*"]
)
def test_word_that_a_batch_would_misread_is_refused_before_anything_runs(word: str) -> None:
    runner = like_bpftool()
    with pytest.raises(PodmgrError, match="cannot be given to bpftool"):
        bpftool.batch([("prog", "load", word, "pin")], runner=runner)
    assert runner.calls == []


def test_commands_are_spelled_as_bpftool_wants_them() -> None:
    of_cgroup = ("prog", "load", "o", "p", "type", "cgroup_skb/egress", "pinmaps", "m")
    assert bpftool.load("o", "p", "m", "cgroup", EGRESS) == of_cgroup
    classifier = ("prog", "load", "o", "p", "type", "classifier", "pinmaps", "m")
    assert bpftool.load("o", "p", "m", "tc", INGRESS) == classifier
    assert bpftool.attach("c", EGRESS, "p") == ("cgroup", "attach", "c", "egress", "pinned", "p", "multi")
    assert bpftool.detach("c", INGRESS, "p") == ("cgroup", "detach", "c", "ingress", "pinned", "p")
    assert bpftool.detach("c", INGRESS, 5) == ("cgroup", "detach", "c", "ingress", "id", "5")


def test_scope_is_written_as_two_numbers_of_64_bits() -> None:
    command = bpftool.set_scope("p", 2**40 + 3, 2)
    head = ("map", "update", "pinned", "p", "key", "0", "0", "0", "0", "value")
    assert command[: len(head)] == head
    value = bytes(map(int, command[len(head) :]))
    assert struct.unpack("=QQ", value) == (2**40 + 3, 2)
