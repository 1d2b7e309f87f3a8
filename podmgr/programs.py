"""Finding a program's source by name: the built-ins, then the program folder, if it can be trusted.

A tenant who may annotate pods names programs; only root (or, for a folder named on the command
line, the invoking user) may have written them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from podmgr import csource, vetting
from podmgr.catalog import BUILT_IN_PROGRAMS
from podmgr.errors import PodmgrError, printable
from podmgr.settings import Settings
from podmgr.spec import ProgramSource

MOST_BYTES = 8 << 20  # of a source, a header or a ready object

_PACKAGE = Path(__file__).parent
_ROOT = frozenset({0})
_SYSTEM = (Path("/usr"), Path("/opt"))
_VMLINUX = "vmlinux.h"
_INCLUDES = "put the header beside the program; of the system's, those below /usr are for programs"


def shipped_folder(name: str) -> Path:
    """`bpf` or `examples`: inside the installed package, or at the top of the checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def find(name: str, settings: Settings, *, vmlinux: Callable[[], bytes] | None = None) -> ProgramSource:
    """The program `name`: a built-in, or NAME.bpf.c or NAME.bpf.o of the program folder.

    `vmlinux` makes the kernel's types, should the program include vmlinux.h and not bring it.

    Raises PodmgrError if there is none, if one hides a built-in, or if others could have
    written it.
    """
    built_in = shipped_folder("bpf")
    folder = settings.program_dir
    candidates = [folder / f"{name}.bpf.c", folder / f"{name}.bpf.o"]
    headers = _headers(built_in)
    if name in BUILT_IN_PROGRAMS:
        hiding = next((path for path in candidates if path.exists()), None)
        if hiding is not None:
            raise PodmgrError(f"{hiding} hides podmgr's own program {name}", tip="give it another name")
        return _source(name, (built_in / f"{name}.bpf.c").read_bytes(), headers)
    trusted = _trusted_users(settings)
    for path in candidates:
        content = vetting.read(path, trusted, most_bytes=MOST_BYTES)
        if content is None:
            continue
        if path.suffix == ".o":
            return ProgramSource(name, content, is_object=True)
        for header in folder.glob("*.h"):
            text = csource.plain(vetting.read(header, trusted, most_bytes=MOST_BYTES) or b"")
            headers.setdefault(header.name, text)
        content = csource.plain(content)
        if vmlinux and _VMLINUX not in headers and csource.includes(_VMLINUX, content):
            headers[_VMLINUX] = vmlinux()
        return _source(name, content, headers)
    there = sorted(path.name.removesuffix(".bpf.c") for path in folder.glob("*.bpf.c"))
    raise PodmgrError(
        f"there is no program {name}",
        tip=f"put {name}.bpf.c into {folder}, or name another folder with --program-dir; "
        f"known: {', '.join(sorted(BUILT_IN_PROGRAMS) + there)}",
    )


def _headers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.h")}


def _source(name: str, content: bytes, headers: Mapping[str, bytes]) -> ProgramSource:
    file = f"{name}.bpf.c"
    expanded = csource.expand(file, content, headers)
    named = f'#line 1 "{file}"\n'.encode() + expanded  # for the lines of clang and of the verifier
    return ProgramSource(name, named, macros=csource.offered_macros(content))


def _trusted_users(settings: Settings) -> frozenset[int]:
    users = {0}
    if settings.trusts_invoker:
        sudo_uid = os.environ.get("SUDO_UID", "")
        is_sudo = os.getuid() == 0 and sudo_uid.isascii() and sudo_uid.isdigit()
        users.add(int(sudo_uid) if is_sudo else os.getuid())
    return frozenset(users)


def require_system(files: Iterable[str], name: str) -> None:
    """Raise PodmgrError if the compiler has read anything but the system's headers, which are root's."""
    for file in files:
        what = f"{name} includes {printable(file)}"
        try:
            real = vetting.require(Path("/", file), _ROOT)  # the compiler stands in /
        except OSError as error:
            raise PodmgrError(f"{what}: {error.strerror}", tip=_INCLUDES) from error
        if not any(real.is_relative_to(folder) for folder in _SYSTEM):
            raise PodmgrError(f"{what}, which is no header of the system", tip=_INCLUDES)
