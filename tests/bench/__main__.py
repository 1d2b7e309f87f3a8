"""Benchmarks: each prints its tables and claims, and keeps them for the report.

    python -m tests.bench [--seconds S] [--rounds N] [--vm] [NAME…]

Without NAME all that this kernel can run. --vm runs them in the virtual machine of the tests,
whose kernel has fq and netem. Exit code 1 if a claim is not met.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tests.bench import machine
from tests.bench.effort import Effort
from tests.bench.findings import Findings, Report
from tests.bench.text import as_text
from tests.vm.__main__ import main as run_in_vm

RESULTS = Path(__file__).parent / "results"
IN_GUEST = Path("/results")  # of the virtual machine: what is put there reaches the host
VM_SECONDS = 4 * 3600


class Benchmark(Protocol):
    """A module of this folder."""

    EFFORT: Effort

    @staticmethod
    def measure(effort: Effort) -> Findings: ...


@dataclass(frozen=True)
class Entry:
    """`runs_here`: on any kernel; `runs_in_vm`: there is more to see where fq and netem are."""

    module: str
    runs_here: bool = True
    runs_in_vm: bool = False


BENCHMARKS = {
    "bandwidth": Entry("bandwidth", runs_in_vm=True),
    "loss": Entry("loss", runs_in_vm=True),
    "tcp-loss": Entry("tcploss", runs_here=False, runs_in_vm=True),
    "packet": Entry("packet"),
    "throughput": Entry("throughput", runs_in_vm=True),
    "control": Entry("control"),
    "watch": Entry("watching"),
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--seconds", type=float, help="of one measurement")
    parser.add_argument("--rounds", type=int, help="how often each is measured, in alternation")
    parser.add_argument("--vm", action="store_true", help="in the virtual machine of the tests")
    asked = parser.parse_args(words)
    for name in asked.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name}: choose from {', '.join(BENCHMARKS)}")
    fitting = [
        name for name, entry in BENCHMARKS.items() if (entry.runs_in_vm if asked.vm else entry.runs_here)
    ]
    options = [
        word
        for name in ("seconds", "rounds")
        if (value := getattr(asked, name)) is not None
        for word in (f"--{name}", f"{value:g}")
    ]
    is_met = True
    for name in asked.names or fitting:
        command = shlex.join(["python", "-m", "tests.bench", *options, *(["--vm"] * asked.vm), name])
        if asked.vm:
            report = _in_vm(name, options, command)
        else:
            report = _here(name, Effort(asked.seconds, asked.rounds), command)
        is_met &= all(claim.is_met for claim in report.findings.claims)
    return 0 if is_met else 1


def _here(name: str, asked: Effort, command: str) -> Report:
    module: Benchmark = importlib.import_module(f"tests.bench.{BENCHMARKS[name].module}")  # type: ignore[assignment]
    date, started = datetime.now(UTC), time.monotonic()
    findings = module.measure(asked.filled(module.EFFORT))
    report = Report(
        name, command, f"{date:%Y-%m-%d}", machine.describe(), time.monotonic() - started, findings
    )
    print(as_text(report), flush=True)
    _keep(report, IN_GUEST if IN_GUEST.is_dir() else RESULTS, name)
    return report


def _in_vm(name: str, options: Sequence[str], command: str) -> Report:
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as folder:
        inside = ["python3", "-u", "-m", "tests.bench", *options, name]
        words = ["--timeout", str(VM_SECONDS), "--results", folder, "--", *inside]
        run_in_vm(words)
        report = Report.from_json(json.loads((Path(folder) / f"{name}.json").read_text()))
    emulated = ("emulated", f"by qemu's tcg, on {machine.processor()}")
    report = replace(report, command=command, machine=(*report.machine, emulated))
    _keep(report, RESULTS, f"{name}-vm")
    return report


def _keep(report: Report, folder: Path, stem: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
