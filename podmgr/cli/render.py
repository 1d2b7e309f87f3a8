"""Results as text: kubectl's plain columns, JSON, YAML. Colour only on terminals.

Plain columns rather than boxes: they survive pipes, `grep` and narrow terminals. Results go to
stdout, all else to stderr. What one command alone prints stands with that command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

from podmgr.errors import PodmgrError, printable

if TYPE_CHECKING:  # `podmgr --help` shall not load what attaches programs
    from podmgr.attachment import PodRef
    from podmgr.reconcile.observe import Observed
    from podmgr.reconcile.outcome import Outcome
    from podmgr.rules.rule import Figure


RED, GREEN, YELLOW, CYAN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"


class Format(StrEnum):
    """The values of -o."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def document(content: Any, form: Format) -> str:
    """`content` as JSON or YAML, with a newline at the end."""
    import json  # 2 ms: `podmgr --help` needs none

    if form is Format.YAML:
        import yaml  # 45 ms: only for -o yaml

        plain = json.loads(json.dumps(content))  # enumerations as text
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=False))  # no text acts on a terminal
    return json.dumps(content, indent=2) + "\n"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a heading, as kubectl prints them: columns three blanks apart."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def attachments_table(observed: Sequence[Observed], *, wide: bool) -> str:
    """What `podmgr list` prints."""
    in_cluster = any(item.attachment.pod and item.attachment.pod.uid for item in observed)
    heading = ["TARGET", "RULE", "HOOK", "SOURCE", "STATE", "PASSED", "DROPPED"]
    if in_cluster:
        heading.insert(0, "NAMESPACE")
    if wide:
        heading += ["PASSED-BYTES", "DROPPED-BYTES", "PROGRAM", "POD-UID", "CGROUP", "INTERFACES", "FIGURES"]
    rows = [heading]
    for item in observed:
        row, counters = item.attachment, item.counters
        counts = (
            [counters.passed_packets, counters.dropped_packets, counters.passed_bytes, counters.dropped_bytes]
            if counters
            else ["-"] * 4
        )
        cells = [row.target, row.rule, row.hook, row.source, item.state, *counts[:2]]
        if in_cluster:
            cells.insert(0, row.pod.namespace if row.pod else "-")
        if wide:
            pod_uid = (row.pod.uid if row.pod else "") or "-"
            names = ",".join(dict.fromkeys(printable(link.name) for link in row.links)) or "-"
            cells += [*counts[2:], row.program_id, pod_uid, row.cgroup_path, names]
            cells.append(", ".join(map(figure_text, item.figures)) or "-")
        rows.append([printable(str(cell)) for cell in cells])
    return columns(rows)


def figure_text(figure: Figure) -> str:
    """A number that a program keeps, with its name."""
    from fractions import Fraction  # only where figures are told

    from podmgr.rules.units import format_count, format_duration

    if figure.unit == "seconds":
        return f"{figure.name} {format_duration(Fraction(figure.value))}"
    return f"{figure.name} {format_count(Fraction(figure.value))}" + (
        f" {figure.unit}" if figure.unit else ""
    )


def attachments_document(observed: Sequence[Observed]) -> dict[str, Any]:
    """What `podmgr list -o json` prints; its form is a promise to scripts."""
    return {"version": 1, "attachments": [_attachment(item) for item in observed]}


def _attachment(item: Observed) -> dict[str, Any]:
    row, counters = item.attachment, item.counters
    return {
        "pod": _pod(row.pod),
        "target": row.target,
        "kind": row.kind,
        "rule": str(row.rule),
        "source": str(row.source),
        "direction": row.direction.value,
        "hook": row.hook,
        "program_id": row.program_id,
        "state": item.state,
        "counters": counters
        and {
            "passed_packets": counters.passed_packets,
            "passed_bytes": counters.passed_bytes,
            "dropped_packets": counters.dropped_packets,
            "dropped_bytes": counters.dropped_bytes,
        },
    }


def _pod(pod: PodRef | None) -> dict[str, str] | None:
    return None if pod is None else {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid}


def outcomes_text(outcomes: Sequence[Outcome], *, dry_run: bool = False) -> str:
    """A line for each rule that was done; failures are for stderr. Pods of a cluster: a table."""
    suffix = " (dry run)" if dry_run else ""
    if any(outcome.pod and outcome.pod.uid for outcome in outcomes):
        return _pods_table([outcome for outcome in outcomes if outcome.error is None], suffix)
    return "".join(
        f"{printable(outcome.target)} {printable(outcome.subject)} {outcome.action}{suffix}\n"
        for outcome in outcomes
        if outcome.error is None
    )


def _pods_table(outcomes: Sequence[Outcome], suffix: str) -> str:
    rows = [["NAMESPACE", "TARGET", "RULE", "SOURCE", "RESULT"]]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.place):
        namespace = outcome.pod.namespace if outcome.pod else "-"
        cells = [namespace, outcome.target, outcome.subject or "-", str(outcome.source or "-")]
        rows.append([*map(printable, cells), f"{outcome.action}{suffix}"])
    return columns(rows) if outcomes else ""


def outcomes_document(outcomes: Sequence[Outcome], *, dry_run: bool = False) -> dict[str, Any]:
    """The outcomes for -o json and -o yaml."""
    return {
        "version": 1,
        "dry_run": dry_run,
        "results": [
            {
                "pod": _pod(outcome.pod),
                "target": outcome.target,
                "rule": outcome.subject,
                "source": str(outcome.source or ""),
                "action": outcome.action.value,
                "hook": outcome.hook or "",
                "program_id": outcome.program_id,
                "error": outcome.error and outcome.error.message,
            }
            for outcome in outcomes
        ],
    }


def print_outcomes(outcomes: Sequence[Outcome], output: Format, *, dry_run: bool = False) -> None:
    """Results to stdout, then errors to stderr."""
    if output in (Format.JSON, Format.YAML):
        print(document(outcomes_document(outcomes, dry_run=dry_run), output), end="")
    else:
        print(outcomes_text(outcomes, dry_run=dry_run), end="")
    sys.stdout.flush()
    print_errors(outcomes)


def print_errors(outcomes: Sequence[Outcome]) -> None:
    """What failed, to stderr."""
    for outcome in outcomes:
        if outcome.error is not None:
            sys.stderr.write(error_text(outcome.error, where=_where(outcome)))


def _where(outcome: Outcome) -> str:
    """What an error is about; its own text may say so already."""
    namespace = f" in {outcome.pod.namespace}" if outcome.pod and outcome.pod.uid else ""
    says_so = outcome.error is not None and outcome.target in outcome.error.message
    return "" if says_so else f"{printable(outcome.target + namespace)}: "


def say(line: str) -> None:
    """All that is neither result nor error: a line on stderr."""
    print(f"podmgr: {printable(line)}", file=sys.stderr)


def error_text(error: PodmgrError, *, where: str = "", stream: TextIO | None = None) -> str:
    """An error as the user sees it: one line, what it is about, and a tip."""
    stream = sys.stderr if stream is None else stream
    text = f"{painted('error:', RED, stream)} {printable(where + error.message)}\n"
    if error.detail:
        text += "".join(f"  {printable(line.expandtabs())}\n" for line in error.detail.splitlines())
    if error.tip:
        text += f"{painted('tip:', CYAN, stream)} {printable(error.tip)}\n"
    return text


def painted(text: str, colour: str, stream: TextIO | None = None) -> str:
    """In colour on a terminal whose user wants any."""
    stream = sys.stdout if stream is None else stream
    is_plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain else f"{colour}{text}\x1b[0m"
