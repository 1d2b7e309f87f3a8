"""What a command costs, with all that it starts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from podmgr.demo.throwaway import inside


@dataclass(frozen=True, slots=True)
class Cost:
    """What one command took, with all that it started.

    The peak is of the largest process among them, as the kernel counts it.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


# A process of its own, so that its child's peak is not that of a large benchmark it was forked from.
# It lives through Ctrl-C, which reaches the child itself.
_STOPWATCH = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
started = time.monotonic()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, setsigdef=[signal.SIGINT])
_, status, used = os.wait4(child, 0)
seconds = time.monotonic() - started
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, file=sys.stderr)
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""


def timed(argv: Sequence[str], environment: Mapping[str, str], network: int | None = None) -> Cost:
    """Run a command, in the network of a process if one is given. It must succeed."""
    watched = [sys.executable, "-I", "-S", "-c", _STOPWATCH, *argv]
    if network is not None:
        watched = inside(network, watched)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(watched, stdout=output, stderr=errors, env=dict(environment))
        try:
            process.wait()
        finally:
            process.wait()  # also on Ctrl-C: what it puts in order must have ended before we do
        output.seek(0)
        errors.seek(0)
        said = errors.read()
        assert process.returncode == 0, (argv[:6], said[-1000:])
        seconds, cpu_seconds, peak_mib = map(float, said.splitlines()[-1].split())
        return Cost(seconds, cpu_seconds, peak_mib, output.read())
