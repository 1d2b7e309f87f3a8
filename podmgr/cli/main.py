"""The command line of `podmgr`: the typer application of all commands.

Each command is a module of `commands`. Holds no logic that a library user would miss.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from podmgr.cli import boundary

# As --help lists them; each is a module of `commands`.
_COMMANDS = ("apply", "list", "clean", "watch", "compile", "policy", "profiles", "run", "demo", "doctor")
_CONTEXTS = {"run": {"allow_interspersed_args": False}}  # options behind COMMAND are the command's own


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=boundary.version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """The command line; if `words` begin with a command, of that alone: all take 17 ms to make ready."""
    app = typer.Typer(
        name="podmgr",
        help="Make the network of a pod, a cgroup or a command slow, late or lossy by its rules, with eBPF.",
        epilog=boundary.EPILOG,
        callback=_main,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in [name for name in _COMMANDS if name in words[:1]] or _COMMANDS:
        command = import_module(f"podmgr.cli.commands.{name}").command
        app.command(name, cls=boundary.Command, context_settings=_CONTEXTS.get(name))(command)
    return app


def main() -> NoReturn:
    """Run the command line and exit."""
    is_run = sys.argv[1:2] == ["run"]
    boundary.run(make_app, _COMMANDS, failed=125 if is_run else None, tip="podmgr doctor")
