"""C source as text: line ends, comments, the macros a source offers, and includes made part of it.

Pure. A program's own headers become part of the text that is compiled, so that what was read
and vetted is what the compiler sees, whoever may change files meanwhile.

Apart from `find`, which alone uses it: C as text is pure, and tested without files that must be trusted.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

from podmgr.errors import PodmgrError, printable

_MAX_BYTES = 16 << 20  # vmlinux.h has 3 MiB
_MAX_DEPTH = 32

_TOKENS = re.compile(rb'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_INCLUDE = re.compile(rb"^[ \t]*#[ \t]*(?:include|include_next|import|embed)\b[ \t]*([^\n]*)$", re.MULTILINE)
_HEADER = re.compile(r"[^/\0]+\.h")
_QUOTED = re.compile(rb'"([^"\n]+)"[ \t]*')
_SYSTEM = re.compile(rb"<[^>\n]+>[ \t]*")
_IFNDEF = re.compile(rb"^[ \t]*#[ \t]*ifndef[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
_ONCE = re.compile(rb"^[ \t]*#[ \t]*pragma[ \t]+once\b[^\n]*$", re.MULTILINE)

_Read = Callable[[str], bytes | None]


def plain(source: bytes) -> bytes:
    """The source as if written here: what other systems begin a text and end a line with is gone."""
    return re.sub(rb"\r\n?", b"\n", source.removeprefix(codecs.BOM_UTF8))


def without_comments(source: bytes) -> bytes:
    """The source with each comment blotted out, every line and column where it was."""

    def blot(match: re.Match[bytes]) -> bytes:
        token = match.group()
        return token if token[:1] in b"\"'" else re.sub(rb"[^\n]", b" ", token)

    return _TOKENS.sub(blot, source)


def offered_macros(source: bytes) -> frozenset[str]:
    """The macros that the source itself tests with #ifndef."""
    return frozenset(name.decode() for name in _IFNDEF.findall(without_comments(source)))


def expand(name: str, source: bytes, read: _Read) -> bytes:
    """The source with its `#include "..."` replaced by the headers' text, and lines that say so.

    `read` gives a header of that plain name, None if there is none; it is asked for what is
    included, and for nothing else. System headers, in <>, stay for the compiler. Raises PodmgrError
    for any other include that is written plainly; what hides from this the compiler reports, see
    `find.require_system`.
    """
    return _expand(name, source, read, (), set())


def _expand(name: str, source: bytes, read: _Read, above: tuple[str, ...], once: set[str]) -> bytes:
    if len(above) > _MAX_DEPTH:
        raise PodmgrError(f"{above[0]} includes too deeply: {name}", tip="at most 32 levels")
    clean = without_comments(source)
    parts: list[bytes] = []
    end = 0
    for match in _INCLUDE.finditer(clean):
        if _SYSTEM.fullmatch(match[1]):
            continue
        parts += [source[end : match.start()], _included(name, match[1], read, above, once)]
        line = source.count(b"\n", 0, match.end()) + 2
        parts.append(f'\n#line {line} "{name}"'.encode())
        end = match.end()
    expanded = b"".join([*parts, source[end:]])
    if len(expanded) > _MAX_BYTES:
        raise PodmgrError(
            f"{name} is larger than {_MAX_BYTES >> 20} MiB with its headers", tip="include less"
        )
    return expanded


def _included(name: str, argument: bytes, read: _Read, above: tuple[str, ...], once: set[str]) -> bytes:
    match = _QUOTED.fullmatch(argument)
    header = match[1].decode(errors="replace") if match else ""
    text = read(header) if _HEADER.fullmatch(header) else None
    if text is None:
        shown = printable(argument.decode(errors="replace"))[:80]
        raise PodmgrError(
            f"{name} includes {shown}, which is no .h file of its folder and not podmgr.h",
            tip="put the header beside the program; write the system's headers in <>",
        )
    if header in once or header in above:  # guarded by a pragma, or by the #ifndef that it must have
        return b""
    if _ONCE.search(without_comments(text)):
        once.add(header)
        text = _ONCE.sub(b"", text)
    return f'#line 1 "{header}"\n'.encode() + _expand(header, text, read, (*above, name, header), once)
