"""Who may log in to the node and is not root: sees what can be seen, is told the rest, changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.kernel import bpf_syscall
from podmgr.settings import Settings
from tests.kernel.conftest import Cli, attached

STRANGER = 54_321
RULE = "bandwidth=10 mbps egress"

# The interpreter, its libraries and the checkout may be where root alone can read: all is loaded before.
AS_STRANGER = f"""
import importlib, os, pkgutil, sys
import yaml
import podmgr
for module in pkgutil.walk_packages(podmgr.__path__, "podmgr."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([])
os.setgid({STRANGER})
os.setuid({STRANGER})
os.chdir("/")
from podmgr.cli.main import main
main()
"""


@pytest.fixture(autouse=True)
def in_sight(state_below_run: Path) -> Path:
    """Before any other fixture asks where the state folder is."""
    return state_below_run


@pytest.fixture
def stranger(podmgr: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """podmgr as a user that nobody has heard of; `podmgr`, which is root's, tidies at the end."""
    monkeypatch.setenv("HOME", "/nonexistent")
    return Stranger(podmgr.settings)


class Stranger(Cli):
    def __call__(
        self, *words: str, code: int | None = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-B", "-c", AS_STRANGER, *words],
            capture_output=True,
            text=True,
            input=stdin,
            check=False,
        )
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done


@pytest.fixture
def ruled(podmgr: Cli, cgroup: Cgroup) -> Cgroup:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", RULE)
    return cgroup


def open_to_all(folder: Path) -> None:
    """As an operator may do it, so that users see the rules: all may read, none may write."""
    folder.chmod(0o755)
    (folder / "ledger.json").chmod(0o644)


@pytest.mark.usefixtures("ruled")
@pytest.mark.parametrize("words", [["list"], ["list", "-o", "json"], ["clean"]])
def test_what_podmgr_keeps_is_shown_to_nobody_else(stranger: Cli, words: list[str]) -> None:
    done = stranger(*words, code=1)
    assert done.stdout == ""
    assert "not allowed" in done.stderr and "run as root" in done.stderr
    assert "Traceback" not in done.stderr


def test_who_may_read_the_ledger_sees_it_and_that_nothing_was_looked_at(
    stranger: Cli, podmgr: Cli, ruled: Cgroup
) -> None:
    open_to_all(podmgr.settings.state_dir)
    done = stranger("list", "-o", "json", code=3)
    (row,) = json.loads(done.stdout)["attachments"]
    assert (row["rule"], row["state"], row["counters"]) == (RULE, "unknown", None)
    assert "not allowed to look at a cgroup's programs" in done.stderr
    assert "run as root" in done.stderr
    for form in ("table", "wide", "yaml"):
        assert "unknown" in stranger("list", "-o", form, code=3).stdout
    assert podmgr.listed()[0]["state"] == "active"
    assert len(attached(ruled)) == 1


def test_an_open_folder_without_a_ledger_is_not_taken_for_empty(stranger: Cli, podmgr: Cli) -> None:
    folder = podmgr.settings.state_dir
    folder.mkdir()
    (folder / "ledger.json").touch()
    open_to_all(folder)
    (folder / "ledger.json").unlink()
    done = stranger("list", code=1)
    assert done.stdout == "" and "not allowed" in done.stderr


@pytest.mark.usefixtures("ruled")
def test_doctor_says_what_it_sees_and_what_it_may_not(stranger: Cli) -> None:
    done = stranger("doctor", "-o", "json", code=1)
    found = {row["name"]: row for row in json.loads(done.stdout)["findings"]}
    for name in ("kernel", "bpf(2)", "cgroup v2", "bpffs", "clang", "bpftool"):
        assert found[name]["status"] == "ok", name
    assert found["privileges"]["status"] == "missing"
    assert found["privileges"]["found"] == f"user {STRANGER} may not use BPF"
    assert found["self-test"]["status"] == "missing"
    for name in ("qdisc fq", "qdisc netem"):  # the kernel may well have it
        assert found[name]["status"] == "unknown", name
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["apply", "CGROUP", "--rule", RULE],
        ["apply", "CGROUP", "--rule", RULE, "--dry-run"],
        ["clean", "CGROUP"],
        ["run", "--net", "--rule", RULE, "--", "true"],
        ["demo"],
    ],
)
def test_no_command_changes_a_thing(stranger: Cli, podmgr: Cli, ruled: Cgroup, words: list[str]) -> None:
    before = attached(ruled)
    done = stranger(*(word.replace("CGROUP", f"cgroup/{ruled.path}") for word in words), code=None)
    assert done.returncode in (1, 125)
    assert "not allowed" in done.stderr or "ermission" in done.stderr or "root" in done.stderr
    assert attached(ruled) == before
    assert [row["state"] for row in podmgr.listed()] == ["active"]


def test_pins_and_state_can_be_reached_by_nobody_else(ruled: Cgroup, settings: Settings) -> None:
    made = settings.bpffs / str(ruled.id)
    for folder in (settings.state_dir, settings.bpffs, made):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    (pin,) = [path for path in made.iterdir() if not path.is_dir()]
    assert bpf_syscall.pinned_program_id(pin) in attached(ruled)
    reach = f"import os, sys; os.setuid({STRANGER}); os.stat(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", reach, str(pin)], capture_output=True, check=False)
    assert done.returncode == 1 and b"PermissionError" in done.stderr
