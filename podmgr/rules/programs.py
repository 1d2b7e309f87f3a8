"""How rules name programs, and the macros that are set for them. Pure."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)

# What podmgr itself tells a program, and how it is said in a rule; "" if it is none of a rule's business.
RESERVED_MACROS = {
    "INTERFACE": "the direction is the second word of the rule",
    "DIRECTION_EGRESS": "the direction is the second word of the rule",
    "PODMGR_LOOPBACK": "it follows from the target",
    "PODMGR_SCOPED": "it follows from the target",
    "PODMGR_TC": "the program's section says it",
}


def is_program_name(text: str) -> bool:
    """Whether a rule can name such a program."""
    return bool(NAME.fullmatch(text))
