"""What a kind of rule says of itself, for what reads and explains rules of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from podmgr.rules.policy.text import Text
from podmgr.rules.rule import Rule, Template
from podmgr.rules.words import Words


class Kind(NamedTuple):
    """A key of annotations, and what reads its value.

    `form` shows how the value is written, `meaning` says what for, `example` is a whole `KEY=VALUE`.
    `parse` reads the words of one rule: it raises RuleError, and returns a rule for each direction.
    `templates` are its programs in bpf/. `standard` are annotations of others that mean such a
    rule; their readers raise ValueError. Without `is_bare` the annotation is read with the prefix
    alone, as the bare key may be anybody's. `text` is how its rules are written, for the policy that the
    API server holds; without it, any value will do there. `stands_for`
    are the keys of the rules that its own are, where these are others.
    """

    key: str
    form: str
    meaning: str
    example: str
    parse: Callable[[Words], tuple[Rule, ...]]
    templates: tuple[Template, ...] = ()
    standard: Mapping[str, Callable[[str], Rule]] = {}
    is_bare: bool = True
    text: Callable[[], Text] | None = None
    stands_for: tuple[str, ...] = ()
