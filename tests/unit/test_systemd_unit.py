"""examples/podmgr.service, as systemd itself reads it. That it works was tried in a booted machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from podmgr import proc
from podmgr.cli.main import make_app
from podmgr.reconcile import ledger
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "examples/podmgr.service"
MAX_EXPOSURE = 33  # in tenths; SYS_ADMIN and SYS_PTRACE weigh most


def settings() -> dict[str, list[str]]:
    """All that is set, by name; sections have no name in common."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is not installed; it is in the package systemd"
    return subprocess.run([tool, *words], capture_output=True, text=True, check=False)


def verify(folder: Path, text: str) -> str:
    """What systemd complains of. The command is replaced by one that is there."""
    command = settings()["ExecStart"][0].split()[0]
    unit = folder / UNIT.name
    unit.write_text(text.replace(command, "/bin/true"))
    done = analyze("verify", "--man=no", str(unit))
    complaints = (line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line)
    return "\n".join(complaints)


def test_systemd_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    assert verify(tmp_path, UNIT.read_text()) == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ProtectSystem=strict", "ProtectSystems=strict", "Unknown key"),
        ("WatchdogSec=3min", "WatchdogSec=3 mimutes", "Failed to parse"),
        ("=bpf open_by_handle_at", "=bfp open_by_handle_at", "bfp"),
    ],
)
def test_systemd_notices_a_slip(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    text = UNIT.read_text()
    assert old in text
    assert complaint in verify(tmp_path, text.replace(old, new))


def test_the_service_is_not_exposed_more_than_it_must_be() -> None:
    words = ["security", "--offline=yes", "--no-pager", f"--threshold={MAX_EXPOSURE}", str(UNIT)]
    done = analyze(*words)
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_it_has_the_capabilities_that_the_daemon_set_has() -> None:
    documents = yaml.safe_load_all((ROOT / "k3s/podmgr.yaml").read_text())
    (daemon_set,) = (item for item in documents if item["kind"] == "DaemonSet")
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    wanted = {f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]}
    (bounding,) = settings()["CapabilityBoundingSet"]
    assert set(bounding.split()) == wanted


def test_the_command_line_knows_its_arguments() -> None:
    (command,) = settings()["ExecStart"]
    _, verb, *words = command.split()
    group: Any = typer.main.get_command(make_app())
    assert group.commands[verb].make_context(verb, words).params["keep"] is True


def test_the_watchdog_is_more_patient_than_a_transaction() -> None:
    assert settings()["WatchdogSec"] == ["3min"]
    assert ledger.LOCK_TIMEOUT_SECONDS + proc.TIMEOUT_SECONDS <= 180


def test_state_and_pins_can_be_written_and_outlive_the_process() -> None:
    found = settings()
    assert found["RuntimeDirectory"] == [DEFAULT_STATE_DIR.name]
    assert DEFAULT_STATE_DIR.parent == Path("/run")
    assert found["RuntimeDirectoryMode"] == ["0700"]
    assert found["RuntimeDirectoryPreserve"] == ["yes"]
    assert found["ReadWritePaths"] == [str(DEFAULT_BPFFS.parent)]
    # These would take bpffs and the kernel's boot_id away, whatever else is said.
    assert "ProtectKernelTunables" not in found
    assert "ProcSubset" not in found
