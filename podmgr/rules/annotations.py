"""Annotations that are written amiss: unknown, in the wrong place, or one letter off. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from podmgr.errors import UnknownKeyError
from podmgr.rules.keys import ENFORCE, KEYS, PREFIX, STANDARD_KEYS, is_own_key
from podmgr.rules.words import closest


def unknown_keys(annotations: Iterable[str], *, is_pods: bool) -> list[UnknownKeyError]:
    """The annotations under podmgr.io/ that mean nothing, each with what was probably meant.

    `is_pods`: of a pod or a service, which enforce nothing.
    """
    known = [*KEYS, *(() if is_pods else [ENFORCE.removeprefix(PREFIX)])]
    found = []
    for key in sorted(annotations):
        if not key.startswith(PREFIX) or key.removeprefix(PREFIX) in known:
            continue
        if key == ENFORCE:
            expected = "annotate the namespace"
            found.append(UnknownKeyError(f"{key} holds for namespaces only", key=key, expected=expected))
            continue
        guess = closest(key.removeprefix(PREFIX).lower(), known)
        hint = f"did you mean {PREFIX}{guess}? " if guess else ""
        expected = f"{hint}keys are {', '.join(PREFIX + name for name in known)}"
        found.append(UnknownKeyError(f"unknown annotation {key[:120]}", key=key, expected=expected))
    return found


def misplaced(
    where: str, annotations: Iterable[str], of_its_jobs: Iterable[str] = ()
) -> tuple[UnknownKeyError, ...]:
    """An error for each annotation of ours on a workload itself (`where`), where nothing reads it.

    `of_its_jobs` are those that a cron job gives to its jobs, which are not the pods' either.
    """
    kind = where.partition("/")[0]
    path = "spec.jobTemplate.spec.template" if kind == "cronjob" else "spec.template"
    found = [(key, f"of the {kind} itself") for key in sorted(annotations)]
    found += [(key, f"of the {kind}'s jobs (spec.jobTemplate.metadata)") for key in sorted(of_its_jobs)]
    return tuple(
        UnknownKeyError(
            f"the annotation {key[:120]} {whose} is not read",
            key=key,
            expected=f"rules are annotations of its pods: write it into {path}.metadata.annotations",
            where=where,
        )
        for key, whose in found
        if is_own_key(key)
    )


def hints(where: str, annotations: Iterable[str], *, reads_standard: bool = False) -> list[str]:
    """Annotations that may be anybody's and are not read, but may have been meant for podmgr."""
    lines = []
    for key in sorted(annotations):
        if key in STANDARD_KEYS and not reads_standard:
            lines.append(f"{where}: {key} is not read; --standard-annotations reads it")
        elif guess := _slip_of(key):
            lines.append(f"{where}: the annotation {key} is not read; did you mean {guess}?")
    return lines


def _slip_of(key: str) -> str | None:
    """The key of which this is one letter more, less, other or exchanged; or its capitals differ."""
    if key in KEYS or "/" in key:
        return None
    return next((known for known in KEYS if _is_one_edit(key.lower(), known)), None)


def _is_one_edit(text: str, other: str) -> bool:
    if abs(len(text) - len(other)) > 1:
        return False
    start = next((at for at, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), None)
    if start is None:
        return True
    rest, tail = text[start:], other[start:]
    swapped = rest[1:2] + rest[:1] + rest[2:]
    return rest[1:] == tail or rest == tail[1:] or rest[1:] == tail[1:] or swapped == tail
