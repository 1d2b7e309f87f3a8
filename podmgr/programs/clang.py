"""clang: which compiler this is, and one compilation. Knows nothing of rules.

Apart from `build`, which alone uses it: it runs a compiler, and knows nothing of rules.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

from podmgr import proc
from podmgr.errors import PodmgrError
from podmgr.proc import Completed, Limits, Runner

# v3: 32-bit arithmetic and jumps, understood by every kernel since 5.1. -g: BTF, which map
# definitions need, and spin locks of programs of one's own.
FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g")

# What is compiled has its macros expanded: of a line of source, clang would show pages.
_QUIET = "-fno-caret-diagnostics"
_SHOWN_ERRORS = 12
_SHOWN_CHARACTERS = 240
_COLUMN = re.compile(r"(?<=\d):\d+:")  # in expanded text it tells nothing
_PLACE = re.compile(r"[^\s:]+:\d+:")
# Of one compilation of what others wrote. podmgr's own programs take 50 ms and 100 MB, and a hundred times as
# long on an emulated machine whose host is busy: what is trusted has only to end before the runner gives up.
_LIMITS = Limits(cpu_seconds=20, memory_bytes=2 << 30, output_bytes=16 << 20)
_OWN_LIMITS = _LIMITS._replace(cpu_seconds=100)
_ENTERED = re.compile(r'^# \d+ "((?:[^"\\]|\\.)*)" 1(?: \d)*$', re.MULTILINE)


def identity() -> str:
    """Which clang this is: the resolved binary with its size and time of change, and the flags.

    Finer than a version, and it starts no process. Raises MissingToolError without clang.
    """
    found = proc.find("clang")
    if found is None:
        raise proc.missing_tool("clang")
    path = Path(found).resolve()
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns} {' '.join(FLAGS)}"


def preprocess(
    source: bytes, *, name: str, macros: Sequence[tuple[str, str | None]], runner: Runner
) -> tuple[bytes, tuple[str, ...]]:
    """The source with all that it includes, and the files that this was read from.

    Raises PodmgrError with clang's own lines, but with none of any file.
    """
    argv = ["clang", *FLAGS, "-x", "c", "-E", _QUIET, *_defined(macros), *_includes(), "-"]
    done = runner(argv, stdin=source, limits=_LIMITS)
    if not done.succeeded:
        raise _failed(done, name, _LIMITS)
    text = done.output.decode(errors="surrogateescape")
    files = [re.sub(r"\\(.)", r"\1", path) for path in _ENTERED.findall(text)]
    return done.output, tuple(dict.fromkeys(path for path in files if not path.startswith("<")))


def compile_c(
    source: bytes,
    *,
    name: str,
    macros: Sequence[tuple[str, str | None]] = (),
    is_preprocessed: bool = False,
    runner: Runner,
) -> bytes:
    """Compile `source` to an object. Raises PodmgrError with clang's first errors, each with its file.

    Source and object go through pipes: a crash leaves no file, and only the system's headers are
    read from the disk; none if the source `is_preprocessed`, as all is that others wrote.
    """
    limits = _LIMITS if is_preprocessed else _OWN_LIMITS
    language = ["cpp-output"] if is_preprocessed else ["c", *_defined(macros), *_includes()]
    argv = ["clang", *FLAGS, _QUIET, "-x", *language, "-c", "-", "-o", "-"]
    done = runner(argv, stdin=source, limits=limits)
    if not done.succeeded:
        raise _failed(done, name, limits)
    return done.output


def _failed(done: Completed, name: str, limits: Limits) -> PodmgrError:
    lines = done.stderr.replace("<stdin>", f"{name}.bpf.c").splitlines()
    if (
        done.code < 0
        or done.code > 128
        or "std::bad_alloc" in done.stderr
        or "LLVM ERROR: out of memory" in done.stderr
    ):
        return PodmgrError(
            f"{name}.bpf.c takes too much to compile",
            tip=f"clang may use {limits.cpu_seconds} s, {limits.memory_bytes >> 30} GiB of memory, and "
            f"make {limits.output_bytes >> 20} MiB",
        )
    found = [line for line in lines if "error: " in line] or lines
    errors: dict[str, str] = {}
    for line in found:
        errors.setdefault(_COLUMN.sub(":", line, count=1), line)
    missing_header = any("'bpf/bpf_helpers.h' file not found" in line for line in lines)
    return PodmgrError(
        f"{name}.bpf.c does not compile",
        detail="\n".join(_shown(line, name) for line in list(errors.values())[:_SHOWN_ERRORS]),
        tip="install the libbpf headers (libbpf-dev, libbpf-devel or libbpf)"
        if missing_header
        else "the lines above are clang's",
    )


def _shown(line: str, name: str) -> str:
    """An error with its file; the middle of a long one goes, since what it says stands at both ends."""
    line = line if _PLACE.match(line) else f"{name}.bpf.c: {line}"
    if len(line) <= _SHOWN_CHARACTERS:
        return line
    half = _SHOWN_CHARACTERS // 2
    return f"{line[:half]} … {line[-half:]}"


def _defined(macros: Sequence[tuple[str, str | None]]) -> list[str]:
    return [f"-D{macro}" if value is None else f"-D{macro}={value}" for macro, value in macros]


def _includes() -> list[str]:
    """Debian keeps <asm/types.h> in a folder per machine, where `-target bpf` does not look.

    There libc's headers look for those of 32 bits, unless they are told which machine this is.
    """
    machine = platform.machine()
    folder = Path(f"/usr/include/{machine}-linux-gnu")
    return [f"-D__{machine}__", f"-I{folder}"] if folder.is_dir() else []
