"""A report as plain text, for a terminal."""

from __future__ import annotations

from tests.bench.findings import Report, Table


def as_text(report: Report) -> str:
    blocks = [f"{report.benchmark}: {report.command}"]
    blocks += [_table(table) for table in report.findings.tables]
    claims = [f"{'met   ' if claim.is_met else 'MISSED'} {claim}" for claim in report.findings.claims]
    if claims:
        blocks.append("\n".join(claims))
    blocks += report.findings.notes
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    rows = [list(table.headings), *table.texts()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.headings))]
    lines = [
        "  ".join(
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(row, widths, table.are_numbers(), strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([table.title, *lines, *([table.note] if table.note else [])])
