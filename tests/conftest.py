"""For all tests: no skip goes unnoticed in CI, and nothing touches the machine's own podmgr."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell without job control starts background jobs with these ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # likewise under nohup, and a handler is not inherited
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test is a failure: a kernel test that did not run proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and CI=true allows no skip", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def paths_of_the_machine_are_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Commands that tests start find a state folder and pins of their own."""
    folder = tmp_path_factory.mktemp("podmgr")
    folder.chmod(0o700)
    monkeypatch.setenv("PODMGR_STATE_DIR", str(folder / "state"))
    monkeypatch.setenv("PODMGR_BPFFS", f"/sys/fs/bpf/podmgr-test-{os.getpid()}")
    monkeypatch.delenv("PODMGR_CGROUP_ROOT", raising=False)
    monkeypatch.delenv("PODMGR_PROGRAM_DIR", raising=False)
    yield folder
