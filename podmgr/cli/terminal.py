"""The terminal that a command and podmgr share, and whose it is at a moment: its foreground process group.

Apart from `cli.supervising`, which alone uses it and knows of no terminal but by this. Where there is none,
nothing happens. The terminal's own signals must be held back meanwhile: it may be another group's.
"""

from __future__ import annotations

import os
import termios
from contextlib import suppress

_NONE = -1
_Modes = list[int | list[bytes | int]]  # as termios has them


class Terminal:
    """The controlling terminal of this process, if it has one.

    A command lives in podmgr's process group, as without podmgr: so the shell, a script or `make`, and the
    other end of a pipe see of Ctrl-C, Ctrl-Z and `fg` what they would see. A command that makes groups
    of its own, as an interactive shell does, puts one of them into the foreground.
    """

    def __init__(self) -> None:
        self._fd = _NONE
        self._is_ours = False  # the foreground is our group's, or one's that the command has put there
        self._lent_to = 0  # the group of the command's that had it when it was taken back
        with suppress(OSError):
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        self._modes = self._modes_now()
        self.look()

    @property
    def exists(self) -> bool:
        return self._fd != _NONE

    def look(self) -> None:
        """Called while the command has not changed it: at its start, and when podmgr has been continued."""
        self._is_ours = self._foreground() == os.getpgrp()

    def take_back(self) -> None:
        """The command has stopped, or ended: who comes next finds us in the foreground, if we were there."""
        group = self._foreground()
        if self._is_ours and group != os.getpgrp():
            self._lent_to = group
            self._hand_to(os.getpgrp())

    def lend_again(self) -> int:
        """To the group that it was taken back from, if it is ours again; that group, or 0."""
        self.look()
        group, self._lent_to = self._lent_to, 0
        if group and self._is_ours:
            self._hand_to(group)
            return group
        return 0

    def mend(self) -> None:
        """As it was in the beginning: a command that was killed leaves it as it needed it."""
        if self._is_ours and self._modes is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._modes)

    def close(self) -> None:
        if self.exists:
            os.close(self._fd)
            self._fd = _NONE

    def _foreground(self) -> int:
        with suppress(OSError):  # there is none, or it has been hung up
            return os.tcgetpgrp(self._fd)
        return 0

    def _hand_to(self, group: int) -> None:
        with suppress(OSError):  # the group has ended
            os.tcsetpgrp(self._fd, group)

    def _modes_now(self) -> _Modes | None:
        with suppress(termios.error):
            return termios.tcgetattr(self._fd) if self.exists else None
        return None
