"""The command line: the typer application of all commands, and the one error boundary, `main`.

Each command is a module of `commands`. Holds no logic that a library user would miss.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperOption
from typer.exceptions import TyperException

from podmgr import __version__
from podmgr.cli import this_process
from podmgr.cli.render import error_text, say
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, PodmgrError, UsageError, printable

# As --help lists them; each is a module of `commands`.
_COMMANDS = ("apply", "list", "clean", "watch", "compile", "policy", "run", "demo", "doctor")
_CONTEXTS = {"run": {"allow_interspersed_args": False}}  # options behind COMMAND are the command's own
_EPILOG = "Exit codes: 0 done; 1 it failed; 2 usage, or an unreadable rule; 3 some targets done, some not."


class _Interrupted(Exception):
    """Ctrl-C while a command was at work, which has undone it: typer would turn it into a bare exit code."""


class _Command(TyperCommand):
    """A command that refuses an option of one value when it is given twice: one of them would be lost."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            is_single = isinstance(option, TyperOption) and not option.multiple and not option.is_flag
            if is_single and order.count(option) > 1:
                raise UsageError(f"{option.opts[-1]} is given twice", tip="it takes one value: leave one out")
        return super().parse_args(ctx, args)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"podmgr {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """The command line; if `words` begin with a command, of that alone: all take 17 ms to make ready."""
    app = typer.Typer(
        name="podmgr",
        help="Make the network of a pod, a cgroup or a command slow, late or lossy by its rules, with eBPF.",
        epilog=_EPILOG,
        callback=_main,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in [name for name in _COMMANDS if name in words[:1]] or _COMMANDS:
        command = import_module(f"podmgr.cli.commands.{name}").command
        app.command(name, cls=_Command, context_settings=_CONTEXTS.get(name))(command)
    return app


def main() -> NoReturn:
    """Run the command line and exit. Every expected failure is one line and a tip."""
    this_process.repair_streams()
    is_run = sys.argv[1:2] == ["run"]
    this_process.end_on_signals()
    try:
        code = make_app(sys.argv[1:])(sys.argv[1:] or ["--help"], standalone_mode=False)
    except PodmgrError as error:
        sys.stderr.write(error_text(error))
        code = 125 if is_run else error.exit_code
    except TyperException as error:
        command = next((word for word in sys.argv[1:2] if word in _COMMANDS), "")
        usage = UsageError(
            printable(error.format_message()), tip=f"podmgr {command} --help".replace("  ", " ")
        )
        sys.stderr.write(error_text(usage))
        code = 125 if is_run else usage.exit_code
    except (KeyboardInterrupt, _Interrupted):
        say("interrupted")
        code = EXIT_INTERRUPTED
    except OSError as error:
        sys.stderr.write(error_text(PodmgrError(str(error), tip="podmgr doctor")))
        code = 125 if is_run else EXIT_FAILED
    except Exception as error:
        if os.environ.get("PODMGR_DEBUG"):
            raise
        say(f"unexpected {type(error).__name__}: {error}")
        say("this is a bug; PODMGR_DEBUG=1 shows where it happens")
        code = 125 if is_run else EXIT_FAILED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)
