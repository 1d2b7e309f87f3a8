"""Finding a program's source by name: the built-ins, then the program folder, if it can be trusted.

A tenant who may annotate pods names programs; only root (or, for a folder named on the command
line, the invoking user) may have written them.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from podmgr.errors import PermissionDeniedError, PodmgrError, printable
from podmgr.programs import csource, vetting
from podmgr.programs.spec import ProgramSource
from podmgr.rules import distributions
from podmgr.rules.kinds import BUILT_IN_PROGRAMS
from podmgr.rules.programs import is_program_name
from podmgr.settings import Settings

MOST_BYTES = 8 << 20  # of a source, a header or a ready object

_PACKAGE = Path(__file__).parents[1]
_ROOT = frozenset({0})
_SYSTEM = (Path("/usr"), Path("/opt"))
_SUFFIXES = (".bpf.c", ".bpf.o")
_VMLINUX = "vmlinux.h"
_INCLUDES = "put the header beside the program; of the system's, those below /usr are for programs"


def shipped_folder(name: str) -> Path:
    """`bpf` or `examples`: inside the installed package, or at the top of the checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def find_source(
    name: str, settings: Settings, *, vmlinux: Callable[[], bytes] | None = None
) -> ProgramSource:
    """The program `name`: a built-in, or NAME.bpf.c or NAME.bpf.o of the program folder.

    `vmlinux` makes the kernel's types, should the program include vmlinux.h and not bring it.

    Raises PodmgrError if there is none, if one hides a built-in, or if others could have
    written it.
    """
    folder = settings.program_dir
    if name in BUILT_IN_PROGRAMS:
        if hiding := _hiding(folder, name):
            raise PodmgrError(f"{hiding} hides podmgr's own program {name}", tip="give it another name")
        return _own_source(name)
    trusted = vetting.trusted_users(settings)
    for path in _candidates(folder, name):
        content = _read(path, trusted, f"program {name}")
        if content is None:
            continue
        if path.suffix == ".o":
            return ProgramSource(name, content, is_object=True)
        return _source(name, csource.plain(content), _headers(path, trusted, vmlinux))
    own = sorted(own for own in BUILT_IN_PROGRAMS if not _hiding(folder, own))
    known = ", ".join(own + _usable(folder, trusted))
    problem = vetting.why_no_folder(folder)
    raise PodmgrError(
        f"there is no program {name}" + (f": {problem}" if problem else ""),
        tip=f"put {name}.bpf.c into {folder}, or name another folder with --program-dir; known: {known}",
    )


@functools.cache
def _own_source(name: str) -> ProgramSource:
    """A program of podmgr's own, put together once: `watch` asks in each transaction, and it takes 7 ms."""
    return _source(name, (shipped_folder("bpf") / f"{name}.bpf.c").read_bytes(), _own_header)


@functools.cache
def find_gate() -> bytes:
    """The source of what stands before a custom program that is about some packets, or not always."""
    name = "podmgr_gate.h"
    text = csource.expand(name, (shipped_folder("bpf") / name).read_bytes(), _own_header)
    return f'#line 1 "{name}"\n'.encode() + text


def find_table(name: str, settings: Settings) -> tuple[int, ...]:
    """The distribution in NAME.dist of the program folder.

    Raises PodmgrError if there is none, if others could have written it, or if it is malformed.
    """
    path = settings.program_dir / f"{name}.dist"
    content = _read(path, vetting.trusted_users(settings), f"distribution {name}")
    if content is None:
        names = ("uniform", *distributions.BUILT_IN)
        guess = next(iter(difflib.get_close_matches(name.lower(), names, n=1)), None)
        known = (f"did you mean {guess}? " if guess else "") + ", ".join(names)
        why = vetting.why_no_folder(settings.program_dir) or f"no {path}"
        raise PodmgrError(
            f"there is no distribution {name}: {why}",
            tip=f"put a table in netem's format there, or use one of podmgr's: {known}",
        )
    try:
        return distributions.read_table(content.decode("utf-8", "replace"))
    except ValueError as error:
        raise PodmgrError(
            f"{path} is no distribution: {error}",
            tip="netem's format: whole numbers, in 8192ths of the standard deviation, # for comments",
        ) from error


def _candidates(folder: Path, name: str) -> list[Path]:
    """What a program's file may be: the first that is there counts."""
    return [folder / f"{name}{suffix}" for suffix in _SUFFIXES]


def _hiding(folder: Path, name: str) -> Path | None:
    return next((path for path in _candidates(folder, name) if path.exists()), None)


def _usable(folder: Path, trusted: Collection[int]) -> list[str]:
    """The programs of the folder, by name: those that a rule could name and `find` would take."""
    try:
        files = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    names = {file.removesuffix(suffix) for file in files for suffix in _SUFFIXES if file.endswith(suffix)}
    return sorted(
        name
        for name in names - BUILT_IN_PROGRAMS
        if is_program_name(name) and _is_usable(_candidates(folder, name), trusted)
    )


def _is_usable(candidates: Iterable[Path], trusted: Collection[int]) -> bool:
    try:
        return any(vetting.read(path, trusted, most_bytes=MOST_BYTES) is not None for path in candidates)
    except PodmgrError:
        return False


def _read(path: Path, trusted: Collection[int], what: str) -> bytes | None:
    try:
        return vetting.read(path, trusted, most_bytes=MOST_BYTES)
    except PodmgrError as error:
        raise type(error)(f"{what}: {error.message}", tip=error.tip) from error


def _own_header(header: str) -> bytes | None:
    path = shipped_folder("bpf") / header
    return path.read_bytes() if path.is_file() else None


def _headers(
    program: Path, trusted: Collection[int], vmlinux: Callable[[], bytes] | None
) -> Callable[[str], bytes | None]:
    """What a program may include: podmgr's header, those beside it, and the kernel's types."""

    @functools.cache  # one that is included twice is the same both times
    def read(header: str) -> bytes | None:
        own = _own_header(header)
        if own is not None:
            return own
        what = f"{program.name} includes {printable(header)}"
        text = _read(program.parent / header, trusted, what)
        if text is None:
            return vmlinux() if vmlinux and header == _VMLINUX else None
        return csource.plain(text)

    return read


def _source(name: str, content: bytes, read: Callable[[str], bytes | None]) -> ProgramSource:
    file = f"{name}.bpf.c"
    expanded = csource.expand(file, content, read)
    named = f'#line 1 "{file}"\n'.encode() + expanded  # for the lines of clang and of the verifier
    return ProgramSource(name, named, macros=csource.offered_macros(content))


def require_system(files: Iterable[str], name: str) -> None:
    """Raise PodmgrError if the compiler has read anything but the system's headers, which are root's."""
    for file in files:
        what = f"{name} includes {printable(file)}"
        try:
            real = vetting.require(Path("/", file), _ROOT)  # the compiler stands in /
        except OSError as error:
            raise PodmgrError(f"{what}: {error.strerror}", tip=_INCLUDES) from error
        except PermissionDeniedError as error:
            raise PermissionDeniedError(f"{what}: {error.message}", tip=_INCLUDES) from error
        if not any(real.is_relative_to(folder) for folder in _SYSTEM):
            raise PodmgrError(f"{what}, which is no header of the system", tip=_INCLUDES)
