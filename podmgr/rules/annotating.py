"""What `kubectl podmgr annotate` is to write: words of a command line become changes of annotations. Pure.

Everything is read by the grammar, and looked at beside what stands there already, before it is sent.

Apart from `kubectl podmgr annotate`, which alone uses it: no cluster is needed to know what is written amiss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from podmgr.errors import Fail, PodmgrError, RuleError, UsageError, printable
from podmgr.rules.annotations import unknown_keys
from podmgr.rules.grammar import parse_value
from podmgr.rules.keys import ENFORCE, PREFIX, bare_key, is_own_key
from podmgr.rules.precedence import AnnotatedNamespace
from podmgr.rules.profiles import rules_of_built_in
from podmgr.rules.timing import ALWAYS, with_option
from podmgr.rules.words import Profiles

Changes = Mapping[str, str | None]  # by key; None removes


class Change(NamedTuple):
    """One annotation to write, under its prefixed `key`; `value` None removes it.

    `is_bare`: it was asked for without the prefix, so a bare one goes, too.
    """

    key: str
    value: str | None
    is_bare: bool = False

    def __str__(self) -> str:
        return f"{self.key}-" if self.value is None else f"{self.key}={self.value}"


def is_change(word: str) -> bool:
    """Whether a word says what to write (KEY=VALUE, KEY-), and not where: no object is called so."""
    return "=" in word or word.endswith("-")


def read(
    words: Sequence[str],
    *,
    lasts: str | None = None,
    for_namespaces: bool = False,
    profiles: Profiles = rules_of_built_in,
) -> list[Change]:
    """The changes that words say, each rule of them with `for=` if it `lasts` so long.

    Raises UsageError, and RuleError for what the grammar cannot read.
    """
    if not words:
        raise UsageError("nothing to write", tip="KEY=VALUE, such as 'delay=80ms rtt', or KEY- to remove one")
    for word in words:
        if not is_change(word):
            raise UsageError(
                f"{printable(word)[:60]!r} is neither KEY=VALUE nor KEY-",
                tip="a value with blanks is one word for the shell: put it into quotes, 'delay=50ms egress'",
            )
    if lasts is not None:
        with_option(ALWAYS, "for", lasts, _fail_of_for(lasts))
    changes: dict[str, Change] = {}
    for word in words:
        change = _change(word, lasts, for_namespaces, profiles)
        if change.key in changes:
            raise UsageError(f"{change.key} is given twice", tip="each key once; several rules of one with ;")
        changes[change.key] = change
    if lasts is not None and all(
        change.value is None or change.key == ENFORCE for change in changes.values()
    ):
        raise UsageError("--for is for rules, and there is none", tip="KEY=VALUE, such as 'loss=2% egress'")
    return list(changes.values())


def _fail_of_for(lasts: str) -> Fail:
    def fail(problem: str, expected: str) -> RuleError:
        return RuleError(problem, key="--for", value=lasts, column=1, expected=expected)

    return fail


def _change(word: str, lasts: str | None, for_namespaces: bool, profiles: Profiles) -> Change:
    key, equals, value = word.partition("=")
    key = (key if equals else word[:-1]).strip().lower()
    prefixed = key if key.startswith(PREFIX) else PREFIX + key
    for error in unknown_keys([prefixed], is_pods=not for_namespaces):
        raise error
    if not equals:
        return Change(prefixed, None, is_bare=key != prefixed)
    value = value.strip()
    if prefixed == ENFORCE:
        AnnotatedNamespace("", {ENFORCE: value}).check()
        return Change(prefixed, value.lower())
    parse_value(key, value, profiles)  # first as it was written, so that an error shows its own columns
    if lasts is not None:
        value = lasting(value, lasts)
        parse_value(key, value, profiles)
    return Change(prefixed, value)


def lasting(value: str, lasts: str) -> str:
    """A value whose rules all end after so long."""
    return "; ".join(f"{piece.strip()} for={lasts}" for piece in value.split(";") if piece.strip())


def applied(
    changes: Iterable[Change], there: Mapping[str, str], *, overwrites: bool
) -> dict[str, str | None]:
    """What changes of an object's annotations: nothing where it is so already.

    Raises PodmgrError where something else is written there already, in either spelling of the key, and
    is not to be overwritten.
    """
    found: dict[str, str | None] = {}
    for change in changes:
        bare = bare_key(change.key)
        other = bare if bare is not None and is_own_key(bare) and bare in there else None
        if change.value is None:
            gone = [change.key, *([other] if other and change.is_bare else [])]
            found |= dict.fromkeys((key for key in gone if key in there), None)
            continue
        before = there.get(change.key)
        if before == change.value:
            continue
        taken = change.key if before is not None else other
        if taken is not None and not overwrites:
            whole = "" if taken == change.key else f", which {change.key} would replace whole"
            raise PodmgrError(
                f"it has {taken} already{whole}: {printable(there[taken])[:100]!r}",
                tip="--overwrite, or several rules in one value with ;",
            )
        found[change.key] = change.value
    return found


def left_unread(
    annotations: Mapping[str, str], *, is_pods: bool, profiles: Profiles = rules_of_built_in
) -> list[RuleError]:
    """What of an object's annotations podmgr cannot read as they would stand then."""
    errors: list[RuleError] = list(unknown_keys(annotations, is_pods=is_pods))
    for key, value in annotations.items():
        if is_own_key(key) and bare_key(key) is not None:
            try:
                parse_value(key, value, profiles)
            except RuleError as error:
                errors.append(error)
    return errors
