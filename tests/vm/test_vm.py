"""One machine runs the tests that need its kernel; each of their files is one test here."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from tests.vm import kernel
from tests.vm.image import CHECKOUT
from tests.vm.machine import QEMU, Machine, run

GUEST = sorted(path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("tests/vm/guest/test_*.py"))
FILES = (*GUEST, "tests/kernel/test_lifecycle.py", "tests/kernel/test_traffic.py")
"""What runs in the machine: its own tests, and a choice of those that also run on the host's kernel."""

TIMEOUT_SECONDS = 600
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
    argv = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=/results/junit.xml", *FILES]
    results = tmp_path_factory.mktemp("machine")
    with (results / "printed").open("wb") as output:
        run(argv, Machine(kernel.DEFAULT), output=output, timeout_seconds=TIMEOUT_SECONDS, results=results)
    printed = (results / "printed").read_text(errors="replace")
    assert (results / "junit.xml").exists(), printed
    return Report(printed, ElementTree.parse(results / "junit.xml").getroot())


@pytest.mark.parametrize("file", FILES)
def test_the_tests_of_a_file_pass_in_the_machine(report: Report, file: str) -> None:
    cases = report.of(file)
    assert cases, report.printed
    wrong = [what for case in cases for what in case if what.tag in ("failure", "error", "skipped")]
    if wrong:
        pytest.fail(
            "\n\n".join(what.text or what.get("message") or what.tag for what in wrong), pytrace=False
        )
