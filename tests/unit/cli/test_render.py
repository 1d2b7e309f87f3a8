"""Results as text: plain columns, documents whose form is a promise, and errors with a tip."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podmgr.attachment import Link, PodRef
from podmgr.cli.render import (
    Format,
    attachments_document,
    attachments_table,
    columns,
    document,
    error_text,
    outcomes_document,
    outcomes_text,
)
from podmgr.errors import PodmgrError, RuleError
from podmgr.kernel.bpf_syscall import Counters
from podmgr.reconcile.observe import Observed
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.rules.rule import Figure, Hook
from podmgr.rules.source import parse_source
from tests.unit.samples import EGRESS, INGRESS, attachment, parsed

UID = "846f24d4-50e1-452e-91c0-7dfcee8503e9"
POD = attachment(
    "bandwidth=10 mbps egress", target="pod/web", pod=PodRef("default", "web", UID), program_id=12
)
LINKS = (Link(5, 2, EGRESS, "eth0"), Link(5, 2, INGRESS, "eth0"), Link(6, 1, EGRESS, "lo"))
PLAIN = attachment(program_id=13, links=LINKS)
SEEN = [Observed(POD, True, Counters(5, 600, 2, 3_000)), Observed(PLAIN, False, None)]
LOSS = parsed("loss=uniform egress 1%")
OUTCOMES = [
    Outcome("pod/web", LOSS, Action.ATTACHED, 12, hook=Hook.TC),
    Outcome("cgroup/a", LOSS, Action.FAILED, None, PodmgrError("it failed", tip="try")),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# Tables


@given(st.lists(st.tuples(st.text("ab"), st.text("ab"), st.text("a", min_size=1)), min_size=1))
def test_columns_are_three_blanks_apart(rows: list[tuple[str, ...]]) -> None:
    lines = columns(rows).splitlines()
    widths = [max(len(row[index]) for row in rows) for index in range(3)]
    starts = [0, widths[0] + 3, widths[0] + widths[1] + 6]
    for row, line in zip(rows, lines, strict=True):
        assert tuple(line[at : at + len(cell)] for at, cell in zip(starts, row, strict=True)) == row
        assert line == line.rstrip()


def test_table_shows_what_the_kernel_has() -> None:
    assert attachments_table(SEEN, wide=False) == (
        "NAMESPACE   TARGET     RULE                       HOOK     SOURCE   STATE     PASSED   DROPPED\n"
        "default     pod/web    bandwidth=10 mbps egress   cgroup   cli      active    5        2\n"
        "-           cgroup/7   loss=uniform egress 1%     tc       cli      missing   -        -\n"
    )


def test_table_without_pods_has_no_namespaces() -> None:
    assert attachments_table(SEEN[1:], wide=False).startswith("TARGET ")


def test_outcomes_of_pods_are_a_table() -> None:
    ref = PodRef("shop", "web", UID)
    pod = Outcome("pod/web", LOSS, Action.ATTACHED, 12, None, ref, parse_source("pod"))
    skipped = Outcome("pod/far", None, Action.SKIPPED, pod=PodRef("shop", "far", "u-2"))
    assert outcomes_text([pod, skipped, OUTCOMES[1]], dry_run=True) == (
        "NAMESPACE   TARGET    RULE                     SOURCE   RESULT\n"
        "shop        pod/far   -                        -        skipped (dry run)\n"
        "shop        pod/web   loss=uniform egress 1%   pod      attached (dry run)\n"
    )


def test_wide_table_shows_the_rest() -> None:
    heading, pod, plain = (line.split() for line in attachments_table(SEEN, wide=True).splitlines())
    assert heading[8:] == [
        *("PASSED-BYTES", "DROPPED-BYTES", "PROGRAM", "POD-UID", "CGROUP", "INTERFACES", "FIGURES")
    ]
    assert pod[-7:] == ["600", "3000", "12", UID, "/cgroups/7", "-", "-"]
    assert plain[-7:] == ["-", "-", "13", "-", "/cgroups/7", "eth0,lo", "-"]


def test_wide_table_tells_what_programs_count_beside_packets() -> None:
    figures = (Figure("mean delay", 0.1, "seconds"), Figure("copies", 12), Figure("mean run", 2.5, "packets"))
    (line,) = attachments_table([SEEN[0]._replace(figures=figures)], wide=True).splitlines()[1:]
    assert line.endswith("   mean delay 100 ms, copies 12, mean run 2.5 packets")


def test_unprintable_names_do_not_reach_the_screen() -> None:
    row = attachment(target="pod/\x1b[31m", links=[Link(5, 2, EGRESS, "eth\x1b")])
    table = attachments_table([Observed(row, True, None)], wide=True)
    assert "pod/·[31m" in table and "eth·" in table
    assert outcomes_text([Outcome("pod/\x1b[31m", LOSS, Action.ATTACHED)]) == f"pod/·[31m {LOSS} attached\n"


# Documents


def test_document_of_attachments_has_the_promised_form() -> None:
    assert attachments_document(SEEN) == {
        "version": 1,
        "attachments": [
            {
                "pod": {"namespace": "default", "name": "web", "uid": UID},
                "target": "pod/web",
                "kind": "bandwidth",
                "rule": "bandwidth=10 mbps egress",
                "source": "cli",
                "direction": "egress",
                "hook": "cgroup",
                "program_id": 12,
                "state": "active",
                "counters": {
                    "passed_packets": 5,
                    "passed_bytes": 600,
                    "dropped_packets": 2,
                    "dropped_bytes": 3_000,
                },
            },
            {
                "pod": None,
                "target": "cgroup/7",
                "kind": "loss",
                "rule": "loss=uniform egress 1%",
                "source": "cli",
                "direction": "egress",
                "hook": "tc",
                "program_id": 13,
                "state": "missing",
                "counters": None,
            },
        ],
    }


def test_document_of_outcomes_carries_the_errors() -> None:
    assert outcomes_document(OUTCOMES, dry_run=True) == {
        "version": 1,
        "dry_run": True,
        "results": [
            {
                "pod": None,
                "target": "pod/web",
                "rule": "loss=uniform egress 1%",
                "source": "",
                "action": "attached",
                "hook": "tc",
                "program_id": 12,
                "error": None,
            },
            {
                "pod": None,
                "target": "cgroup/a",
                "rule": "loss=uniform egress 1%",
                "source": "",
                "action": "failed",
                "hook": "",
                "program_id": None,
                "error": "it failed",
            },
        ],
    }


@pytest.mark.parametrize(
    "content", [attachments_document(SEEN), attachments_document([]), outcomes_document(OUTCOMES)]
)
def test_json_and_yaml_say_the_same(content: dict[str, Any]) -> None:
    for form in (Format.JSON, Format.YAML):
        assert document(content, form).endswith("\n")
    assert json.loads(document(content, Format.JSON)) == content
    assert yaml.safe_load(document(content, Format.YAML)) == content


# Outcomes and errors


@pytest.mark.parametrize(("dry_run", "suffix"), [(False, ""), (True, " (dry run)")])
def test_each_rule_that_was_done_has_a_line(dry_run: bool, suffix: str) -> None:
    text = outcomes_text(OUTCOMES, dry_run=dry_run)
    assert text == f"pod/web loss=uniform egress 1% attached{suffix}\n"


def test_error_is_one_line_what_it_is_about_and_a_tip() -> None:
    error = RuleError("no", key="loss", value="uniform", column=8, expected="say more")
    assert error_text(error, where="pod/web: ", stream=io.StringIO()) == (
        "error: pod/web: loss: no (column 8)\n  loss=uniform\n              ^\ntip: say more\n"
    )


def test_error_without_a_tip_is_one_line() -> None:
    assert error_text(PodmgrError("it failed"), stream=io.StringIO()) == "error: it failed\n"


def test_terminal_shows_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = error_text(PodmgrError("it failed", tip="try"), stream=Terminal())
    assert text == "\x1b[31merror:\x1b[0m it failed\n\x1b[36mtip:\x1b[0m try\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_may_be_declined(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    assert error_text(PodmgrError("it failed"), stream=Terminal()) == "error: it failed\n"
