"""clang: which compiler this is, and one compilation. Knows nothing of rules."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from podmgr import proc
from podmgr.errors import PodmgrError
from podmgr.proc import Runner

# v3: 32-bit arithmetic and jumps, understood by every kernel since 5.1. -g: BTF, which map
# definitions need, and spin locks of programs of one's own.
FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g")

_SHOWN_ERROR_LINES = 12


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


def compile_c(
    source: bytes,
    *,
    name: str,
    macros: Sequence[tuple[str, str | None]],
    runner: Runner,
) -> bytes:
    """Compile `source` to an object. Raises PodmgrError with clang's own lines.

    Source and object go through pipes: a crash leaves no file, and only the system's headers are
    read from the disk.
    """
    argv = ["clang", *FLAGS, "-x", "c"]
    argv += [f"-D{macro}" if value is None else f"-D{macro}={value}" for macro, value in macros]
    argv += [f"-I{folder}" for folder in _system_include_dirs()]
    argv += ["-c", "-", "-o", "-"]
    done = runner(argv, stdin=source)
    if done.succeeded:
        return done.output
    lines = done.stderr.replace("<stdin>", f"{name}.bpf.c").splitlines()
    missing_header = any("'bpf/bpf_helpers.h' file not found" in line for line in lines)
    raise PodmgrError(
        f"{name}.bpf.c does not compile",
        detail="\n".join(lines[:_SHOWN_ERROR_LINES]),
        tip="install the libbpf headers (libbpf-dev, libbpf-devel or libbpf)"
        if missing_header
        else "the lines above are clang's",
    )


def _system_include_dirs() -> list[str]:
    """Debian keeps <asm/types.h> in a folder per machine, where `-target bpf` does not look."""
    return [str(path) for path in [Path(f"/usr/include/{platform.machine()}-linux-gnu")] if path.is_dir()]
