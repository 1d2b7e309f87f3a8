"""One machine runs the tests that need its kernel; each of their files is one test here."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import pytest

from tests.kernel.test_paths import IN_THE_MACHINE
from tests.vm import errors, kernel
from tests.vm.errors import MachineError
from tests.vm.image import CHECKOUT
from tests.vm.machine import QEMU, Machine, run

LONG = {
    f"tests/vm/guest/test_{name}.py"
    for name in ("containers", "live_delay", "profiles", "reorder", "run_net", "stamps")
}
"""Ten minutes more, together, and half an hour for the profiles; so they are run by hand:
python -m tests.vm --icount --cpus 1 --timeout 5000 -- python3 -m pytest tests/vm/guest."""

GUEST = sorted(
    {path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("tests/vm/guest/test_*.py")} - LONG
)
CHOSEN = {
    "tests/kernel/test_paths.py": tuple(
        f"test_each_packet_meets_a_rule_once[{kind}]" for kind in IN_THE_MACHINE
    ),
    "tests/kernel/test_lifecycle.py": (
        "test_an_applied_rule_hangs_on_the_cgroup_and_is_listed",
        "test_clean_unloads_all_of_ours_and_nothing_of_others",
    ),
    "tests/kernel/test_traffic.py": (
        "test_loss_on_the_way_in",
        "test_counters_count_every_segment_and_its_headers",
        "test_loopback_counts_for_a_plain_cgroup",
        "test_rules_on_one_cgroup_add_up",
    ),
}
"""Of what also runs on the host's kernel, a few. An emulated processor is ten to a hundred times slower: none
that takes processes to start at once or a rate above some 100 Mbit/s to be reachable."""

TESTS = [*GUEST, *(f"{file}::{test}" for file, tests in CHOSEN.items() for test in tests)]

JUNIT = "--junitxml=/results/junit.xml"
TIMEOUT_SECONDS = 2400  # three times what it takes on a quiet host
IMAGE_SECONDS = 900

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS + IMAGE_SECONDS)


@dataclass(frozen=True)
class Report:
    """What the machine's pytest printed, and its report in JUnit's format."""

    printed: str
    junit: ElementTree.Element

    def of(self, file: str) -> list[ElementTree.Element]:
        """The tests of a file; if it could not be collected, that error."""
        module = file.removesuffix(".py").replace("/", ".")
        cases = self.junit.iter("testcase")
        return [case for case in cases if module in (case.get("classname"), case.get("name"))]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    if shutil.which(QEMU) is None and not os.environ.get("CI"):
        pytest.skip(f"no {QEMU}: sudo make tools-vm")
    argv = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "--durations=10", JUNIT, *TESTS]
    results = tmp_path_factory.mktemp("machine")
    with (results / "printed").open("wb") as output:
        error = _run(argv, output, results)
    printed = (results / "printed").read_text(errors="replace")
    if not (results / "junit.xml").exists():
        pytest.fail(f"{printed}\n{error}", pytrace=False)
    return Report(printed, ElementTree.parse(results / "junit.xml").getroot())


def _run(argv: Sequence[str], output: BinaryIO, results: Path) -> str:
    """What went wrong with the machine itself; what was printed until then tells more."""
    try:
        run(argv, Machine(kernel.DEFAULT), output=output, timeout_seconds=TIMEOUT_SECONDS, results=results)
    except MachineError as error:
        return errors.report(error)
    return ""


@pytest.mark.parametrize("file", [*GUEST, *CHOSEN])
def test_the_tests_of_a_file_pass_in_the_machine(report: Report, file: str) -> None:
    cases = report.of(file)
    assert cases, report.printed
    wrong = [what for case in cases for what in case if what.tag in ("failure", "error", "skipped")]
    if wrong:
        pytest.fail(
            "\n\n".join(what.text or what.get("message") or what.tag for what in wrong), pytrace=False
        )


def test_a_machine_that_counts_instructions_leaps_over_idle_time(tmp_path: Path) -> None:
    """What it measures is what it computes: the host's seconds are not in it."""
    if shutil.which(QEMU) is None and not os.environ.get("CI"):
        pytest.skip(f"no {QEMU}: sudo make tools-vm")
    script = "import time; start = time.monotonic(); time.sleep(1000); print(time.monotonic() - start)"
    machine = Machine(kernel.DEFAULT, cpus=1, counts_instructions=True)
    start = time.monotonic()
    with (tmp_path / "printed").open("wb") as output:
        assert run(["python3", "-c", script], machine, output=output, timeout_seconds=500) == 0
    assert float((tmp_path / "printed").read_text()) == pytest.approx(1000, abs=0.1)
    assert time.monotonic() - start < 500
