"""The gate before a custom program: it sees its rule's packets alone, and while the rule is in force.

What podmgr's own programs ask in `is_exempt()`, those of others may not ask, or may not know. So the function
of the program becomes one that is called, and bpf/podmgr_gate.h, put behind its source, has what is entered.

Apart from `build`, which alone uses it: it changes text that a preprocessor made, and starts no compiler.
"""

from __future__ import annotations

import re

from podmgr.errors import PodmgrError
from podmgr.programs.elf import ObjectInfo

_FUNCTION = "podmgr_gate"  # of bpf/podmgr_gate.h
_STRING = rb'"(?:\\.|[^"\\\n])*"'
_LINE_OF_PREPROCESSOR = rb"^#[^\n]*"
# A piece of text that may hold anything, or an attribute with its strings, which C joins.
_TOKENS = re.compile(
    rb"%s|'(?:\\.|[^'\\\n])*'|%s|(?P<attribute>\b__attribute(?:__)?(?=\s*\())"
    rb"|\b(?:section|__section__)\s*\((?P<names>(?:\s|%s|%s)+)\)"
    % (_LINE_OF_PREPROCESSOR, _STRING, _LINE_OF_PREPROCESSOR, _STRING),
    re.MULTILINE,
)
_LOCK = re.compile(rb"\bstruct\s+bpf_spin_lock\s*\{")
_ITS_LOCK = b"struct bpf_spin_lock { unsigned int val; };\n"


def before(text: bytes, gate: bytes, info: ObjectInfo, *, name: str) -> bytes:
    """Both as one text: of the source and of the gate as they came out of the preprocessor.

    `info` is of the program without a gate. Its function becomes static, so that the verifier knows what it
    returns, and stands in .text, where called ones are. Raises PodmgrError if its SEC() is not to be found.
    """
    parts: list[bytes] = []
    attribute = end = 0
    for token in _TOKENS.finditer(text):
        if token["attribute"]:
            attribute = token.start()
        elif token["names"] and _joined(token["names"]) == info.section.encode() and attribute >= end:
            parts += [text[end:attribute], b"static ", text[attribute : token.start("names")], b'".text"']
            end = token.end("names")
    if not parts:
        raise _refused(name, info.section)
    lock = b"" if _LOCK.search(text) else _ITS_LOCK
    return b"".join([*parts, text[end:], b"\n", lock, gate])


def require(info: ObjectInfo, *, name: str) -> None:
    """Raise PodmgrError if what is entered is not the gate. `info` is of both together."""
    if info.function != _FUNCTION:
        raise _refused(name, info.section)


def _joined(names: bytes) -> bytes:
    """The string that C makes of several."""
    lines = (line for line in names.splitlines() if not line.startswith(b"#"))
    return b"".join(string[1:-1] for line in lines for string in re.findall(_STRING, line))


def _refused(name: str, section: str) -> PodmgrError:
    return PodmgrError(
        f'program {name}: its function in SEC("{section}") cannot be put behind a match or a time',
        tip=f'write SEC("{section}") before the function, and no #pragma for it',
    )
