"""The grammar of rules: what users write, in annotations and with --rule, becomes frozen rules.

Pure. `parse_value` reads one annotation, `parse_rule_option` one `KEY=VALUE`; for every rule,
`parse_rule_option(str(rule)) == (rule,)`. What is particular to a kind is read by its file in `kinds`.
A profile's name is read as the rules that it stands for, by a function that is given: of podmgr's own
profiles, unless who calls knows of more.
"""

from __future__ import annotations

from podmgr.errors import RuleError, UsageError, printable
from podmgr.rules.keys import KEYS, PREFIX, bare_key
from podmgr.rules.kinds import BY_KEY, KINDS
from podmgr.rules.profiles import rival_of, rivalry, rules_of_built_in
from podmgr.rules.rule import Rule
from podmgr.rules.words import Profiles, Words, closest

MAX_VALUE_CHARACTERS = 4_096
MAX_RULES = 64  # of one value: a cgroup has room for as many programs


def parse_rule_option(text: str, profiles: Profiles = rules_of_built_in) -> tuple[Rule, ...]:
    """The rules in one `--rule KEY=VALUE`. Raises RuleError or UsageError."""
    key, equals, value = text.partition("=")
    key = key.strip().lower()
    bare = bare_key(key)
    if bare is None:
        shown = printable(key)[:60]
        guess = closest(key.removeprefix(PREFIX), KEYS)
        hint = f"did you mean {guess!r}? " if guess else ""
        raise UsageError(
            f"unknown rule key {shown!r}" if equals else f"{printable(text)[:60]!r} is not KEY=VALUE",
            tip=f"{hint}keys are {', '.join(KEYS)}; such as --rule '{KINDS[0].example}'",
        )
    if not equals:
        raise UsageError(
            f"{printable(key)[:80]} has no value",
            tip=f"write '{bare}=...': {BY_KEY[bare].form}",
        )
    return parse_value(key, value, profiles)


def parse_value(key: str, value: str, profiles: Profiles = rules_of_built_in) -> tuple[Rule, ...]:
    """The rules of one annotation. `key` is one of ours, bare or prefixed.

    Raises RuleError with the column of the first thing that is wrong, and for two rules of the
    value that collide.
    """
    bare = bare_key(key)
    if bare is None:
        raise ValueError(f"not a podmgr key: {key}")
    kind = BY_KEY[bare]
    if len(value) > MAX_VALUE_CHARACTERS:
        raise RuleError(
            f"a value of {len(value)} characters",
            key=key,
            value=value,
            column=MAX_VALUE_CHARACTERS + 1,
            expected=f"at most {MAX_VALUE_CHARACTERS} characters: {kind.form}",
        )
    rules: list[Rule] = []
    start = written = 0
    for piece in value.split(";"):
        words = Words(key, value, start, start + len(piece), kind.form, profiles)
        start += len(piece) + 1
        if words.done():
            continue
        column = words.column
        written += 1
        if written > MAX_RULES:
            raise words.error(f"more than {MAX_RULES} rules", expected=f"at most {MAX_RULES} in one value")
        read = kind.parse(words)
        for rule in read:
            if other := rival_of(rule, rules):
                problem, expected = rivalry(rule, other, lambda shown: shown.value)
                raise RuleError(problem, key=key, value=value, column=column, expected=expected)
        rules += read
    if not rules:
        raise RuleError("no rule", key=key, value=value, column=1, expected=kind.form)
    return tuple(rules)
