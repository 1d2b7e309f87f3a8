"""The only module that starts processes. Everything that runs commands takes a `Runner`.

Commands are argument lists, never a shell. A missing binary is an ordinary failure.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import select
import selectors
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from podmgr.errors import MissingToolError, PodmgrError, ToolTimeoutError, printable

TIMEOUT_SECONDS = 120.0
MAX_OUTPUT_BYTES = 32 << 20  # of any command: the longest, a kernel's vmlinux.h, has 3 MiB

_CHUNK_BYTES = 64 << 10
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_NOBODY = 65_534
_UNSEEN = 0  # the number of a parent that lives in another PID namespace
_libc = ctypes.CDLL(None)

Process = subprocess.Popen[bytes]
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL  # a process's `streams`
NotPreparedError = subprocess.SubprocessError  # what `prepare` raised in the child

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# What installs a tool, by its name.
_PACKAGES = {
    "clang": "clang",
    "bpftool": "bpftool (on older Ubuntu: linux-tools-common and linux-tools-$(uname -r))",
    "ip": "iproute2",
    "iperf3": "iperf3",
    "nft": "nftables",
    "nsenter": "util-linux",
    "prlimit": "util-linux",
}


class Completed(NamedTuple):
    """A command that has ended. `code` is negative for a signal; `output` is what it printed."""

    argv: tuple[str, ...]
    code: int
    output: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def succeeded(self) -> bool:
        return self.code == 0


class Limits(NamedTuple):
    """What a command may use that works on what strangers wrote.

    Root runs it as the user nobody, who can read nothing but what all can; where that cannot be, without
    capabilities.
    """

    cpu_seconds: int
    memory_bytes: int
    output_bytes: int


class Runner(Protocol):
    """How podmgr runs a command to its end."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed: ...


class Each(Protocol):
    """How podmgr does a work for each of several items; the results in order."""

    def __call__(self, work: Callable[[_Item], _Result], items: Sequence[_Item], /) -> list[_Result]: ...


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    pass_fds: Sequence[int] = (),
    prepare: Callable[[], None] | None = None,
    limits: Limits | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run `argv` to its end. `pass_fds` stay open in the child, under the same numbers; `env` are variables
    beside our own.

    `prepare` runs in the child before the command: to join a cgroup, to change the user. A command
    that goes beyond its `limits` is ended by the kernel: `code` is the signal's, or its own.
    Raises MissingToolError if there is no such program, PodmgrError if it cannot be started or prints
    more than MAX_OUTPUT_BYTES, ToolTimeoutError if it takes longer than two minutes, or what it has
    started keeps its output open so long. A non-zero exit is a result, no error.
    """
    process: Process | None = None
    with ExitStack() as stack:
        # A pipe has no size that can be limited.
        output = stack.enter_context(open(os.memfd_create("podmgr"), "w+b")) if limits else None
        try:
            if limits and find(argv[0]) is None:
                raise missing_tool(argv[0])
            with uninterrupted():  # a child that was started is always known, and so waited for
                variables = {**os.environ, "PATH": search_path(), **(env or {})}
                process = _started(argv, limits, pass_fds, prepare, output or PIPE, variables)
            printed, errors = _exchange(process, argv[0], stdin)
        except FileNotFoundError as error:
            raise missing_tool(argv[0]) from error
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise ToolTimeoutError(
                f"{printable(argv[0])} did not end within {TIMEOUT_SECONDS:.0f} s",
                tip="podmgr doctor shows whether it works",
            ) from error
        except OSError as error:
            raise PodmgrError(
                f"{printable(argv[0])}: {error.strerror or error}", tip="podmgr doctor shows what is missing"
            ) from error
        finally:
            if process is not None:
                with process:  # closes the pipes as they are: what it has started may hold them for ever
                    if process.returncode is None:
                        process.kill()
        if output is not None:
            output.seek(0)
            printed = output.read()
    return Completed(tuple(argv), process.returncode, printed, errors.decode(errors="replace"))


def _exchange(process: Process, name: str, stdin: bytes) -> tuple[bytes, bytes]:
    """Give it its input and take what it prints, as communicate() does, but no more than it may print."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    printed, errors = bytearray(), bytearray()
    rest = memoryview(stdin)
    with selectors.PollSelector() as pipes:
        for pipe, taken in ((process.stdin, None), (process.stdout, printed), (process.stderr, errors)):
            if pipe is not None:
                pipes.register(pipe, selectors.EVENT_WRITE if taken is None else selectors.EVENT_READ, taken)
        while pipes.get_map():
            for key, _ in pipes.select(_left(deadline)):
                if key.data is None:
                    rest = _written(key.fd, rest)
                    is_over = not rest
                else:
                    chunk = os.read(key.fd, _CHUNK_BYTES)
                    key.data.extend(chunk)
                    is_over = not chunk
                if is_over:
                    pipes.unregister(key.fileobj)
                if is_over and key.data is None and process.stdin:
                    process.stdin.close()
            if len(printed) + len(errors) > MAX_OUTPUT_BYTES:
                raise PodmgrError(
                    f"{printable(name)} prints more than {MAX_OUTPUT_BYTES >> 20} MiB",
                    tip="podmgr doctor shows whether it works",
                )
    process.wait(_left(deadline))
    return bytes(printed), bytes(errors)


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _written(fd: int, text: memoryview) -> memoryview:
    """What of the text is still to be written; nothing if nobody reads it."""
    try:
        return text[os.write(fd, text[: select.PIPE_BUF]) :]  # as much never blocks where select() says so
    except BrokenPipeError:
        return text[:0]


def _started(
    argv: Sequence[str],
    limits: Limits | None,
    pass_fds: Sequence[int],
    prepare: Callable[[], None] | None,
    output: BinaryIO | int,
    env: Mapping[str, str],
) -> Process:
    def begin(user: int | None, before: Sequence[str] = ()) -> Process:
        return subprocess.Popen(
            [*before, *_limited(limits), *argv] if limits else argv,
            stdin=PIPE,
            stdout=output,
            stderr=PIPE,
            pass_fds=pass_fds,
            preexec_fn=prepare,  # noqa: PLW1509  the demo and doctor use it, and have one thread then
            env=env,
            cwd="/",  # where only root writes: a compiler also looks for headers there
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )

    if limits is None or os.geteuid() != 0:
        return begin(None)
    tool = find(argv[0])
    if tool is None or not _may_be_run_by_all(tool):
        return begin(None, _without_capabilities())
    try:
        return begin(_NOBODY)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        # No capability to change the user, or no such user here.
        return begin(None, _without_capabilities())


@functools.cache
def _without_capabilities() -> tuple[str, ...]:
    """The words before a command of root's that leave it no capability, if the kernel lets us."""
    words = (find("unshare") or "", "--user", "--")
    can = words[0] and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if can else ()


def _limited(limits: Limits) -> list[str]:
    """The words before a command that limit it, where there is the tool for them."""
    tool = find("prlimit")
    if tool is None:
        return []
    return [
        tool,
        f"--cpu={limits.cpu_seconds}",
        f"--as={limits.memory_bytes}",
        f"--fsize={limits.output_bytes}",
        "--core=0",
    ]


def _may_be_run_by_all(tool: str) -> bool:
    """Whether the user nobody can reach it: some have a compiler, or a link to one, in /root."""
    real = Path(tool).resolve()
    places = {real, *real.parents, *Path(tool).absolute().parents}
    return all(place.stat().st_mode & stat.S_IXOTH for place in places)


def each(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Do a work that runs commands for each item, several at a time; the results in order."""
    if len(items) < 2:
        return [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor  # 3 ms, and few commands need it

    pool = ThreadPoolExecutor(os.cpu_count(), initializer=_hold_back_interrupts)
    try:
        return list(pool.map(work, items))
    finally:
        with uninterrupted():  # also after Ctrl-C: what was begun has ended before we go on
            pool.shutdown(cancel_futures=True)


def find(name: str) -> str | None:
    """Where a tool is, as `run` finds it."""
    return shutil.which(name, path=search_path())


def search_path() -> str:
    """PATH, and beside each bin its sbin: there Debian keeps bpftool, ip and tc, out of users' PATH."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    beside = [folder[:-4] + "/sbin" for folder in folders if folder.endswith("/bin")]
    return os.pathsep.join(dict.fromkeys(folders + beside))


def missing_tool(name: str) -> MissingToolError:
    """The error for a tool that is not on the PATH."""
    package = _PACKAGES.get(name, name)
    return MissingToolError(
        f"{name} is not installed", tip=f"install {package}; podmgr doctor shows all that is needed"
    )


def start(
    argv: Sequence[str],
    *,
    prepare: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
    streams: int | None = None,
) -> Process:
    """Start a long-running command. `streams`: None for our own, PIPE or DEVNULL.

    Raises FileNotFoundError and PermissionError as `subprocess` does.
    """
    parent = os.getpid()

    def begin() -> None:
        if prepare:
            prepare()
        if os.getppid() not in (parent, _UNSEEN):  # it has ended before we asked to end with it
            os._exit(1)

    return subprocess.Popen(
        argv,
        preexec_fn=begin,  # noqa: PLW1509  the parent has one thread
        env=dict(os.environ if env is None else env),
        stdin=streams,
        stdout=streams,
        stderr=None if streams is None else DEVNULL,
    )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and its like, from us and our children, until the block has ended."""
    before = _hold_back_interrupts()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hold_back_interrupts() -> set[signal.Signals | int]:  # from this thread; the mask before
    return signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)


def die_with_parent() -> None:
    """Called in a child: the kernel kills it when podmgr ends, however that ends.

    Changing the user clears this, so it comes last in a `prepare`. So does a command that has rights of
    its own, such as sudo: that lives on.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
