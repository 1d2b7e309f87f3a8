"""Which annotations are podmgr's: the keys of the kinds, bare or with the prefix."""

from __future__ import annotations

from collections.abc import Mapping

from podmgr.rules.kinds import BY_KEY, KINDS

PREFIX = "podmgr.io/"
ENFORCE = PREFIX + "enforce"

KEYS = tuple(BY_KEY)
_BARE_KEYS = frozenset(kind.key for kind in KINDS if kind.is_bare)
# Annotations of others that mean rules, such as those that the bandwidth plugin of CNI reads.
STANDARD_KEYS = {key: read for kind in KINDS for key, read in kind.standard.items()}


def bare_key(key: str) -> str | None:
    """`bandwidth` for `bandwidth` and `podmgr.io/bandwidth`; None for keys that are not ours."""
    bare = key.removeprefix(PREFIX)
    return bare if bare in BY_KEY else None


def is_own_key(key: str) -> bool:
    """Whether an annotation is podmgr's business: a known key, or anything that is prefixed."""
    return key in _BARE_KEYS or key.startswith(PREFIX)


def annotation_values(annotations: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (key, value) pairs that hold rules; the prefixed key replaces the bare key whole.

    Keys that are not podmgr's are left out.
    """
    found = []
    for bare in KEYS:
        key = PREFIX + bare if PREFIX + bare in annotations else bare
        if key in annotations and is_own_key(key):
            found.append((key, annotations[key]))
    return found
