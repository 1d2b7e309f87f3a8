"""`python -m tests.bench.report`: REPORT.md and its charts, from the latest results of each benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.bench import charts
from tests.bench.__main__ import BENCHMARKS, RESULTS
from tests.bench.findings import Report, Table
from tests.vm import kernel

FOLDER = Path(__file__).parent
CHARTS = FOLDER / "charts"

HEAD = """# Benchmarks

Made by `make bench-report` from what was measured last. Each part begins with the command that measures it,
as root in the environment that `make` prepares; `-vm` in its name is the virtual machine of the tests, with
another kernel than its default if one is named.
Absolute figures are of one machine, with its moods: what is judged is a share of what was asked for, or a
ratio to what was measured in the same run.
"""


def main() -> int:
    found = _results()
    if not found:
        print("error: there are no results yet\ntip: make bench", file=sys.stderr)
        return 1
    parts = [HEAD, _summary(found)]
    for stem, report in found:
        paths = charts.draw(report, CHARTS, stem)
        parts.append(_part(stem, report, paths))
    (FOLDER / "REPORT.md").write_text("\n".join(parts))
    return 0


def _results() -> list[tuple[str, Report]]:
    """In the order of the benchmarks: this machine's, the virtual one's, and those of its other kernels."""
    places = ["", "-vm", *(f"-vm-{name}" for name in kernel.SUITES)]
    stems = [name + place for name in BENCHMARKS for place in places]
    paths = [(stem, RESULTS / f"{stem}.json") for stem in stems]
    return [(stem, Report.from_json(json.loads(path.read_text()))) for stem, path in paths if path.exists()]


def _summary(found: list[tuple[str, Report]]) -> str:
    lines = ["## What is claimed", "", "| | claim | measured | limit |", "|---|---|---|---|"]
    for stem, report in found:
        for claim in report.findings.claims:
            sign, word = ("✓" if claim.is_met else "✗"), ("≥" if claim.is_least else "≤")
            anchor = stem.replace(".", "")  # as GitHub makes it of the heading
            lines.append(
                f"| {sign} | {claim.text} ([{stem}](#{anchor})) | {claim.value:.4g}{claim.unit} "
                f"| {word} {claim.limit:g}{claim.unit} |"
            )
    return "\n".join(lines) + "\n"


def _part(stem: str, report: Report, paths: list[Path]) -> str:
    machine = "; ".join(f"{label}: {text}" for label, text in report.machine)
    lines = [f"## {stem}", "", f"```sh\n{report.command}\n```", ""]
    lines += [f"{report.date}, {report.seconds / 60:.0f} min. {machine}.", ""]
    for path, chart in zip(paths, report.findings.charts, strict=True):
        lines += [f"![{chart.title}]({path.relative_to(FOLDER)})", ""]
    for table in report.findings.tables:
        lines += [*_markdown(table), ""]
    for note in report.findings.notes:
        lines += [note, ""]
    return "\n".join(lines)


def _markdown(table: Table) -> list[str]:
    lines = [
        f"**{table.title}**",
        "",
        f"| {' | '.join(table.headings)} |",
        f"|{'|'.join('---:' if number else '---' for number in table.are_numbers())}|",
    ]
    lines += [f"| {' | '.join(texts)} |" for texts in table.texts()]
    return [*lines, *(["", table.note] if table.note else [])]


if __name__ == "__main__":
    sys.exit(main())
