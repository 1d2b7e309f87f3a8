"""Whether a watch is well: its loop turns, and the rules are in force.

Owns the answers; systemd is told of each change, probes ask (`server`). The loop says how it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from podmgr.proc import Completed, Limits, Runner
from podmgr.watch import systemd

STUCK_SECONDS = 180.0  # a loop that has not turned for so long is not alive


class Health:
    """Written by the loop, read by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turned_at = clock()
        self._has_begun = False

    def turned(self) -> None:
        """The loop goes on."""
        self._turned_at = self._clock()
        systemd.notify("WATCHDOG=1")

    def begun(self) -> None:
        """The whole cluster was seen, and its rules were brought in order once."""
        self._has_begun = True
        systemd.notify("READY=1")

    def ending(self) -> None:
        systemd.notify("STOPPING=1")

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    def is_alive(self) -> bool:
        return self._clock() - self._turned_at < STUCK_SECONDS

    def is_ready(self) -> bool:
        return self._has_begun and self.is_alive()

    def turning(self, runner: Runner) -> Runner:
        """A transaction may run many tools, each of which may take long: that is being alive."""

        def run(
            argv: Sequence[str],
            *,
            stdin: bytes = b"",
            pass_fds: Sequence[int] = (),
            limits: Limits | None = None,
            env: Mapping[str, str] | None = None,
        ) -> Completed:
            done = runner(argv, stdin=stdin, pass_fds=pass_fds, limits=limits, env=env)
            self.turned()
            return done

        return run
