"""`podmgr demo`: its options, and its table; the show itself is the wing `demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from podmgr.cli.options import Bpffs, CgroupRoot, Output, StateDir, settings_of
from podmgr.cli.render import GREEN, RED, Format, document, painted, say
from podmgr.errors import EXIT_DONE, EXIT_FAILED
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from podmgr.demo.demonstrate import Row


def command(
    context: typer.Context,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Make a throw-away pod, put the examples on it, and show declared against measured.

    Takes about a minute and ends by proving that nothing is left. Exit code 1 if a value is off.
    """
    from podmgr.demo.demonstrate import demonstrate

    settings = settings_of(context, state_dir, bpffs, cgroup_root)
    table = _Table(output)
    is_right = demonstrate(settings, show=table.add, report=say)
    table.end()
    return EXIT_DONE if is_right else EXIT_FAILED


class _Table:
    """The demo's table, a row as soon as it is measured; with -o json, all of it at the end."""

    _WIDTHS = (38, 30, 24, 31)

    def __init__(self, form: Format) -> None:
        self._form = form
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        if not self._rows and not self._is_document:
            print(self._line("RULE", "DECLARED", "MEASURED", "COUNTERS", "VERDICT"))
        self._rows.append(row)
        if not self._is_document:
            verdict = painted("right", GREEN) if row.is_right else painted("WRONG", RED)
            print(self._line(row.rule, row.declared, row.measured, row.counters, verdict), flush=True)

    def end(self) -> None:
        if self._is_document:
            rows = [row._asdict() for row in self._rows]
            print(document({"version": 1, "rows": rows}, self._form), end="")

    @property
    def _is_document(self) -> bool:
        return self._form in (Format.JSON, Format.YAML)

    def _line(self, *cells: str) -> str:
        return "   ".join(
            [cell.ljust(width) for cell, width in zip(cells, self._WIDTHS, strict=False)] + [cells[-1]]
        )
