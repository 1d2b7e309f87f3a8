"""`profile`: a network by its name, which stands for ordinary rules of other kinds, in both directions.

What a name stands for, `rules.profiles` reads. No rule is of this kind itself: what a pod has, and what is
listed, are the rules that it stands for.
"""

from __future__ import annotations

from dataclasses import replace

from podmgr.errors import PodmgrError
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.match import OPTIONS as OF_A_MATCH
from podmgr.rules.policy.text import Form, Part, Text
from podmgr.rules.programs import NAME, is_program_name
from podmgr.rules.rule import Hook, Rule
from podmgr.rules.words import Words

_EXAMPLE = "lte"


def _parse(words: Words) -> tuple[Rule, ...]:
    name = words.take("the name of a profile")
    if not is_program_name(name):
        raise words.fail(f"{name[:40]!r} names no profile", f"a name, such as {_EXAMPLE}: podmgr profiles")
    try:
        parts = words.profiles(name.lower())
    except PodmgrError as error:
        raise words.fail(error.message, error.tip or "podmgr profiles") from error
    _, common = words.options({}, hooks=(Hook.TC,), takes_match=False)
    return tuple(replace(part, **common._asdict()) for part in parts)


def _text() -> Text:
    """Which names there are, its node knows; and a name stands for both directions."""
    name = Part(NAME.pattern, "no name of a profile", f"a name, such as {_EXAMPLE}: podmgr profiles")
    return Text((Form((name,)),), hooks=(Hook.TC,), lacks=OF_A_MATCH, way=None)


KIND = Kind(
    key="profile",
    form='NAME, such as "lte"; podmgr profiles lists them',
    meaning="A network by its name: rate (algorithm=edt), delay, jitter and loss of both directions, as "
    "podmgr profiles NAME shows them. A rule that is written beside it beats what the profile has of its "
    "kind and direction.",
    example=f"profile={_EXAMPLE}",
    parse=_parse,
    is_bare=False,
    stands_for=("bandwidth", "delay", "loss"),
    text=_text,
)
