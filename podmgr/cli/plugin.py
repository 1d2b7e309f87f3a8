"""The command line of `kubectl podmgr`, for a workstation: it asks the API server, and no kernel.

It needs neither root nor Linux: what it loads must be there on macOS, too, and knows nothing of the kernel.
Each command is a module of `commands`.

Apart from all others, since the script `kubectl-podmgr` alone starts it.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from podmgr.cli import boundary

NAME = "kubectl podmgr"

# As --help lists them; each is a module of `commands`.
COMMANDS = ("annotate", "get", "profiles")


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=boundary.version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """The command line; if `words` begin with a command, of that alone."""
    app = typer.Typer(
        name=NAME,
        help="Tell podmgr how slow, late or lossy the network of pods shall be, and see what became of it.",
        epilog=boundary.EPILOG,
        callback=_main,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in [name for name in COMMANDS if name in words[:1]] or COMMANDS:
        command = import_module(f"podmgr.cli.commands.{name}").command
        app.command(name, cls=boundary.Command)(command)
    return app


def main() -> NoReturn:
    """Run the command line and exit."""
    gc.disable()  # a command ends before the collector finds anything
    boundary.run(make_app, COMMANDS, name=NAME)
