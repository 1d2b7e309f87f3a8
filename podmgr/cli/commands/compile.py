"""`podmgr compile`: its options; `compiling` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podmgr.cli.options import MaxMapBytes, Output, ProgramDir, Rules, parse_rules, settings_of
from podmgr.cli.render import Format, document
from podmgr.errors import EXIT_DONE, UsageError
from podmgr.settings import DEFAULT_MAX_MAP_BYTES, DEFAULT_PROGRAM_DIR


def command(
    context: typer.Context,
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Rules, such as 'bandwidth=10 mbps egress'; --rule takes them as well.",
            show_default=False,
        ),
    ] = None,
    rule: Rules = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", metavar="DIR", help="Write the objects there.  [default: the current one]"
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say what the rules mean in numbers; write only with --output-dir."),
    ] = False,
    output: Output = Format.TABLE,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Compile rules to eBPF objects, check them, and write or explain them. Needs no root."""
    from podmgr import proc
    from podmgr.cli import compiling

    settings = settings_of(context, program_dir=program_dir, max_map_bytes=max_map_bytes)
    folder = output_dir if output_dir or explain else Path()
    parsed = parse_rules([*(rules or []), *(rule or [])], settings)
    if not parsed:
        raise UsageError("no rule", tip="podmgr compile --explain 'bandwidth=10 mbps egress'")
    results = compiling.compile_rules(parsed, settings, output_dir=folder, runner=proc.run)
    if output in (Format.JSON, Format.YAML):
        print(document(compiling.as_document(results), output), end="")
    else:
        print(compiling.as_text(results, explain=explain), end="")
    return EXIT_DONE
