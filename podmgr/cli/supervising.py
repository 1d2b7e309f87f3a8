"""A command until its end: signals that reach podmgr reach it, and podmgr stops and goes on as it does.

Apart from `cli.running`, which alone uses it and has enough to do with what the command runs in.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from podmgr.cli.terminal import Terminal
from podmgr.proc import Process

_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}
_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}  # before there is a command
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_LIMITS = {signal.SIGXCPU, signal.SIGXFSZ}  # of tools that podmgr starts
_FROM_KERNEL = 0x80  # SI_KERNEL of asm-generic/siginfo.h: as a terminal sends to all of a group


class Supervision:
    """Signals are held back while it lasts; see `supervising`."""

    def __init__(self, before: set[signal.Signals | int]) -> None:
        ignored = {number for number in signal.valid_signals() if _is_ignored(number)}
        self._awaited = signal.valid_signals() - _UNCATCHABLE - ignored
        self._before = before

    @contextmanager
    def unhurt(self) -> Iterator[None]:
        """In the block no signal ends or stops podmgr; what comes and no command gets is dropped."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        try:
            yield
        finally:
            self._drained()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def let_through(self) -> None:
        """Called in the command's process, at the last: signals are to it what they were to podmgr."""
        for number in self._awaited:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def run(self, start: Callable[[], Process], is_inside: Callable[[int], bool]) -> int:
        """Start the command and see it to its end; its code, negative for a signal. Called while `unhurt`.

        `is_inside` says whether a process is one of the command's.
        """
        terminal = Terminal()
        early = self._drained()  # before there was a command: not even the terminal's have reached it
        try:
            process = start()
            for number in early:
                _send(process, number)
            while (code := self._ended(process, terminal)) is None:
                self._hand_on(signal.sigwaitinfo(self._awaited), process, terminal, is_inside)
            terminal.take_back()
            if code < 0:
                terminal.mend()
            return code
        finally:
            terminal.close()

    def _ended(self, process: Process, terminal: Terminal) -> int | None:
        """Its code, if it has ended. If it has stopped, so do we."""
        ways = os.WEXITED | os.WSTOPPED | os.WNOHANG
        state = os.waitid(os.P_PID, process.pid, ways | os.WNOWAIT)
        if state is None:
            return None
        if state.si_code != os.CLD_STOPPED:
            return process.wait()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG)
        terminal.take_back()
        if terminal.exists:  # else nobody knows that it is podmgr who must be continued
            _stop(state.si_status if state.si_status in _STOPS else signal.SIGTSTP)
        return None

    def _hand_on(
        self,
        info: signal.struct_siginfo,
        process: Process,
        terminal: Terminal,
        is_inside: Callable[[int], bool],
    ) -> None:
        number = info.si_signo
        if number == signal.SIGCHLD:
            return
        if number == signal.SIGCONT:
            self._continue(process, terminal)
            return
        is_for_the_group = info.si_code == _FROM_KERNEL or is_inside(info.si_pid)
        if is_for_the_group and _group_of(process) == os.getpgrp():
            return  # the command has it as we have, as Ctrl-C, or itself has sent it with `kill 0`
        if info.si_pid != os.getpid():  # such as SIGPIPE, which is about what we ourselves write
            _send(process, number)

    def _continue(self, process: Process, terminal: Terminal) -> None:
        """podmgr has been continued, perhaps alone; whom it has stopped with goes on with it."""
        if os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
            return  # the command went on, and has stopped again since
        if group := terminal.lend_again():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGCONT)
        _send(process, signal.SIGCONT)

    def _drained(self) -> list[int]:
        """Those that wait, but for what tells nothing to a command."""
        found = []
        while (info := signal.sigtimedwait(self._awaited, 0)) is not None:
            if info.si_signo not in (signal.SIGCHLD, signal.SIGCONT) and info.si_pid != os.getpid():
                found.append(info.si_signo)
        return found


@contextmanager
def supervising() -> Iterator[Supervision]:
    """While the block lasts, podmgr is not stopped in the midst of what others wait for.

    Before there is a command, what ends programs ends this as an exception does; what else can be held
    back waits for the command.
    """
    waiting = signal.valid_signals() - _UNCATCHABLE - _ENDS - _FAULTS - _LIMITS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    quitting = signal.getsignal(signal.SIGQUIT)
    ended_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, their codes would be lost
    if quitting is not signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, _quit)
    supervision = Supervision(before)
    try:
        yield supervision
    finally:
        signal.signal(signal.SIGQUIT, quitting)
        signal.signal(signal.SIGCHLD, ended_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quit(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _is_ignored(number: int) -> bool:
    """Whether who started podmgr ignores it, as nohup does. Python itself ignores two, for its own sake."""
    of_python = number in (signal.SIGPIPE, signal.SIGXFSZ)
    return signal.getsignal(number) is signal.SIG_IGN and not of_python


def _group_of(process: Process) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid)
    return 0


def _send(process: Process, number: int) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _stop(number: int) -> None:
    """Stop this process, until it is continued. In a group that no shell looks after, nothing happens."""
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
