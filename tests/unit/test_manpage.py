"""podmgr(1) is made, has all that --help has, and roff has nothing to complain of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from podmgr import __version__
from podmgr.cli.main import make_app
from podmgr.rules.keys import KEYS

ROOT = Path(__file__).parents[2]
COMMANDS: list[str] = sorted(typer.main.get_command(make_app()).commands)  # type: ignore[attr-defined]
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "RULES", "COMMANDS"]
SECTIONS += ["EXIT STATUS", "FILES", "ENVIRONMENT", "SEE ALSO"]
_REQUESTS = {"TH", "SH", "SS", "PP", "TP", "nh", "ad"}
_ESCAPES = re.compile(r"\\(?:f[BIR]|-|&|\((?:rs|aq|ga|ha|ti)|\[u[0-9A-F]{4}\])")


def run(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def page() -> str:
    return run(".ci/make-man")


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next, as a reader has it."""
    _, _, rest = page.partition(f"\n{heading}\n")
    below = re.split(r"^\.S[HS] ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"\\f[BIR]", "", below).replace("\\-", "-").replace("\\(aq", "'").replace("\\(ti", "~")


def options_of(*command: str) -> set[str]:
    """The options that --help lists, each spelling of them."""
    listed = run("-m", "podmgr", *command, "--help").partition("\nOptions:\n")[2]
    return _options(re.findall(r"^  (-.*)", listed, re.MULTILINE))


def options_in(text: str) -> set[str]:
    """The options that a section lists."""
    return _options(re.findall(r"^\.TP\n(-.*)", text, re.MULTILINE))


def _options(heads: list[str]) -> set[str]:
    found = (re.match(r"(-[\w-]+)(?:, (--[\w-]+))?", head) for head in heads)
    return {option for match in found if match for option in match.groups() if option}


def test_its_sections_are_those_that_readers_look_for(page: str) -> None:
    assert re.findall(r"^\.SH (.*)$", page, re.MULTILINE) == SECTIONS
    assert page.startswith(f'.TH PODMGR 1 "" "podmgr {__version__}" "User Commands"\n')


def test_it_has_each_command_and_its_own_options_are_those_of_help(page: str) -> None:
    assert sorted(re.findall(r"^\.SS (.*)$", page, re.MULTILINE)) == COMMANDS
    options = options_of()
    assert {"--version", "-h", "--help"} <= options
    assert options_in(section(page, ".SH OPTIONS")) == options


@pytest.mark.parametrize("command", COMMANDS)
def test_it_has_all_that_the_help_of_a_command_has(page: str, command: str) -> None:
    text, told = run("-m", "podmgr", command, "--help"), section(page, f".SS {command}")
    options = options_of(command)
    assert len(options) >= 4
    assert options_in(told) == options
    words = re.findall(r"[\w/$=.-]+", text.partition("\n")[2])  # behind the line of usage
    assert set(words) - {"Arguments", "Options"} <= set(re.findall(r"[\w/$=.-]+", told))


def test_it_tells_rules_files_variables_and_codes(page: str) -> None:
    rules = section(page, ".SH RULES")
    assert all(re.search(rf"^{key} ", rules, re.MULTILINE) for key in KEYS)
    assert re.findall(r"^\d$", section(page, ".SH EXIT STATUS"), re.MULTILINE) == ["0", "1", "2", "3"]
    files, variables = section(page, ".SH FILES"), section(page, ".SH ENVIRONMENT")
    assert {"/run/podmgr", "/sys/fs/bpf/podmgr", "/etc/podmgr/programs"} <= set(files.splitlines())
    named = {
        name for command in COMMANDS for name in re.findall(r"PODMGR_\w+", section(page, f".SS {command}"))
    }
    assert named and named <= set(variables.splitlines())


def test_roff_means_nothing_else_by_it(page: str) -> None:
    """Every request and every escape is one of those that are meant."""
    assert page.isascii()
    for line in page.splitlines():
        assert line == line.strip() != ""
        request = re.match(r"[.'](\w*)", line)
        assert request is None or request[1] in _REQUESTS, line
        assert "\\" not in _ESCAPES.sub("", line), line


def test_groff_has_nothing_to_complain_of(page: str) -> None:
    tool = shutil.which("groff")
    assert tool, "groff is not installed; it is in the package groff-base, or groff"
    done = subprocess.run(
        [tool, "-man", "-Tutf8", "-ww"], input=page, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "podmgr apply [OPTIONS] [TARGET]" in re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)


def test_make_man_makes_it() -> None:
    assert "\t@.venv/bin/python .ci/make-man > dist/podmgr.1\n" in (ROOT / "Makefile").read_text()
