"""`python -m tests.vm [options] -- COMMAND…`: run it in a virtual machine, in a copy of the checkout."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.vm import kernel
from tests.vm.errors import MachineError, MachineTimeoutError, report
from tests.vm.machine import Machine, run

FAILED = 125  # as in `docker run`
TIMED_OUT = 124  # as in timeout(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    made.add_argument("--kernel", choices=sorted(kernel.SUITES), default=kernel.DEFAULT)
    made.add_argument("--cpus", type=int, default=Machine.cpus)
    made.add_argument("--accel", default=Machine.accelerator, help="qemu's -accel (default: %(default)s)")
    made.add_argument(
        "--icount",
        action="store_true",
        help="its clock counts instructions, a nanosecond each: what else the host does is not measured",
    )
    made.add_argument("--timeout", type=float, default=900, metavar="SECONDS")
    made.add_argument("--results", type=Path, metavar="DIR", help="receives what the guest has in /results")
    made.add_argument("command", nargs="+")
    return made


def main(words: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(words)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    machine = Machine(
        asked.kernel, cpus=asked.cpus, accelerator=asked.accel, counts_instructions=asked.icount
    )
    try:
        return run(
            asked.command,
            machine,
            output=sys.stdout.buffer,
            timeout_seconds=asked.timeout,
            results=asked.results,
        )
    except BrokenPipeError:  # as of `| head`: nobody wants more, also not what is still to be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MachineError as error:
        print(report(error), file=sys.stderr)
        return TIMED_OUT if isinstance(error, MachineTimeoutError) else FAILED


def _interrupted(number: int, _: object) -> NoReturn:
    print(f"error: ended by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
