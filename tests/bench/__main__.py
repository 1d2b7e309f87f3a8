"""Benchmarks: each prints its tables and claims, and keeps them for the report.

Without NAME all that any kernel can run, or, with --vm, all that there is more of where fq and netem are.
Needs root. Progress goes to standard error. Exit code 1 if a claim is not met, or a benchmark fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from tests.bench import machine
from tests.bench.effort import Effort
from tests.bench.findings import Findings, Report
from tests.bench.text import as_text
from tests.vm import kernel
from tests.vm.__main__ import main as run_in_vm

RESULTS = Path(__file__).parent / "results"
VM_SECONDS = 4 * 3600

_Number = TypeVar("_Number", int, float)


class Benchmark(Protocol):
    """A module of this folder."""

    EFFORT: Effort

    @staticmethod
    def measure(effort: Effort) -> Findings: ...


@dataclass(frozen=True)
class Entry:
    """`runs_here`: on any kernel; `runs_in_vm`: there is more to see where fq and netem are."""

    module: str
    summary: str
    runs_here: bool = True
    runs_in_vm: bool = False


def _of_link(module: str, summary: str) -> Entry:
    return Entry(module, summary, runs_here=False, runs_in_vm=True)


BENCHMARKS = {
    "bandwidth": Entry("bandwidth", "limits on the wire, beside tc's and the CNI plugin's", runs_in_vm=True),
    "bursts": Entry("bursts", "200 pairs of rate and burst, beside kernel tbf"),
    "loss": Entry("loss", "packets lost of 100,000, beside iptables and netem", runs_in_vm=True),
    "tcp-loss": Entry("tcploss", "what TCP makes of loss, beside netem", runs_here=False, runs_in_vm=True),
    "packet": Entry("packet", "nanoseconds of a packet in each program"),
    "throughput": Entry("throughput", "what a limit costs that does not bind, beside tc's", runs_in_vm=True),
    "link-delay": _of_link("link_delay", "how exact a delay is, one way and the other, beside netem"),
    "link-tcp": _of_link("link_tcp", "what TCP carries over a delay, beside netem"),
    "link-jitter": _of_link("link_jitter", "how delays vary, in order or not, beside target and netem"),
    "link-cost": _of_link("link_cost", "instructions of a delayed datagram, beside netem's"),
    "link-chance": _of_link("link_chance", "losses in runs, copies, what is late: how many, beside netem"),
    "link-pairs": _of_link("link_pairs", "every pair of kinds on one pod: what each does adds up"),
    "control": Entry("control", "apply, change, list and clean of 1 to 500 pods, beside shell loops"),
    "watch": Entry("watching", "from an event to the program in force, on 110 pods of 1,000"),
    "first": Entry("first", "the first datagrams of a pod: with poll, inotify and NRI"),
    "fairness": Entry("fairness", "a pod's change beside pods that are patched ten times a second"),
    "soak": Entry("soak", "an hour in which pods, rules, the API server and podmgr come and go"),
    "peers": Entry("peers", "from an endpoint's event to the maps, on 110 pods with ten named peers each"),
}


GROUPS = {"link": tuple(name for name in BENCHMARKS if name.startswith("link-"))}


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    asked = parser.parse_args(words)
    asked.names = [part for name in asked.names for part in GROUPS.get(name, (name,))]
    for name in asked.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name}: choose from {', '.join((*BENCHMARKS, *GROUPS))}")
    if asked.kernel != kernel.DEFAULT and not asked.vm:
        parser.error("--kernel is of the virtual machine: it needs --vm")
    if os.geteuid() != 0:
        print("error: benchmarks need root\ntip: sudo", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # what is open is put in order
    fitting = [
        name for name, entry in BENCHMARKS.items() if (entry.runs_in_vm if asked.vm else entry.runs_here)
    ]
    effort = Effort(asked.seconds, asked.rounds)
    are_met = [_is_met(name, effort, asked) for name in asked.names or fitting]
    return 0 if all(are_met) else 1


def _parser() -> argparse.ArgumentParser:
    lines = {name: entry.summary for name, entry in BENCHMARKS.items()}
    lines |= {name: f"all of {', '.join(parts)}" for name, parts in GROUPS.items()}
    summaries = "\n".join(f"  {name:12}{summary}" for name, summary in lines.items())
    made = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"{__doc__}\nNAME is one of\n{summaries}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", metavar="NAME")
    made.add_argument("--seconds", type=_positive(float), help="of one measurement")
    made.add_argument("--rounds", type=_positive(int), help="how often each is measured")
    made.add_argument("--vm", action="store_true", help="in the virtual machine of the tests")
    made.add_argument("--kernel", choices=sorted(kernel.SUITES), default=kernel.DEFAULT, help="of --vm")
    made.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    return made


def _positive(kind: Callable[[str], _Number]) -> Callable[[str], _Number]:
    def parse(text: str) -> _Number:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return parse


def _is_met(name: str, effort: Effort, asked: argparse.Namespace) -> bool:
    """Run one. What fails is told, and does not keep the others from running."""
    options = [
        word
        for option, value in (("--seconds", effort.seconds), ("--rounds", effort.rounds))
        if value is not None
        for word in (option, f"{value:g}")
    ]
    is_other = asked.kernel != kernel.DEFAULT
    machine_options = [*(["--vm"] * asked.vm), *(["--kernel", asked.kernel] * is_other)]
    command = shlex.join(["python", "-m", "tests.bench", *options, *machine_options, name])
    try:
        report = _in_vm(name, options, command, asked.kernel) if asked.vm else _here(name, effort, command)
    except Exception:
        traceback.print_exc()
        return False
    asked.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    stem = f"{name}{'-vm' * asked.vm}{f'-{asked.kernel}' * is_other}"
    (asked.results / f"{stem}.json").write_text(text + "\n")
    return all(claim.is_met for claim in report.findings.claims)


def _here(name: str, asked: Effort, command: str) -> Report:
    module: Benchmark = importlib.import_module(f"tests.bench.{BENCHMARKS[name].module}")  # type: ignore[assignment]
    date, started, described = datetime.now(UTC), time.monotonic(), machine.describe()
    findings = module.measure(asked.filled(module.EFFORT))
    report = Report(name, command, f"{date:%Y-%m-%d}", described, time.monotonic() - started, findings)
    print(as_text(report), flush=True)
    return report


def _in_vm(name: str, options: Sequence[str], command: str, kernel_name: str) -> Report:
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as folder:
        inside = ["python3", "-u", "-m", "tests.bench", *options, "--results", "/results", name]
        machine_options = ["--kernel", kernel_name, "--icount", "--cpus", "1"]
        machine_options += ["--timeout", str(VM_SECONDS), "--results", folder]
        run_in_vm([*machine_options, "--", *inside])
        report = Report.from_json(json.loads((Path(folder) / f"{name}.json").read_text()))
    emulated = ("emulated", "by qemu's tcg; its clock counts instructions, a nanosecond each (icount)")
    return replace(report, command=command, machine=(*report.machine, emulated))


if __name__ == "__main__":
    sys.exit(main())
