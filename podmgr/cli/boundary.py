"""The one error boundary, also of `kubectl podmgr`: what is raised becomes a line, a tip and a code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperOption
from typer.exceptions import TyperException

from podmgr import __version__
from podmgr.cli import this_process
from podmgr.cli.render import error_text, say
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, PodmgrError, UsageError, printable

EPILOG = "Exit codes: 0 done; 1 it failed; 2 usage, or an unreadable rule; 3 some targets done, some not."


WITHOUT_VALUE = "yes"  # the value of an option that stands without one


class Interrupted(Exception):
    """Ctrl-C while a command was at work, which has undone it: typer would turn it into a bare exit code."""


class Command(TyperCommand):
    """A command that refuses an option of one value when it is given twice: one of them would be lost.

    An option whose metavar begins with `[=` may stand without its value.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        alone = [name for item in self.params if (item.metavar or "").startswith("[=") for name in item.opts]
        args = [f"{word}={WITHOUT_VALUE}" if word in alone else word for word in args]
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            is_single = isinstance(option, TyperOption) and not option.multiple and not option.is_flag
            if is_single and order.count(option) > 1:
                raise UsageError(f"{option.opts[-1]} is given twice", tip="it takes one value: leave one out")
        return super().parse_args(ctx, args)


def version(wanted: bool) -> None:
    """What --version does."""
    if wanted:
        print(f"podmgr {__version__}")
        raise typer.Exit


def run(
    make_app: Callable[[Sequence[str]], typer.Typer],
    commands: Sequence[str],
    *,
    name: str = "podmgr",
    failed: int | None = None,
    tip: str | None = None,
) -> NoReturn:
    """Run the command line and exit. Every expected failure is one line and a tip.

    `failed` is the code of whatever fails, in place of its own; `tip` is what to do where a system call
    fails of which nobody has thought.
    """
    this_process.repair_streams()
    this_process.end_on_signals()
    words = sys.argv[1:]
    try:
        code = make_app(words)(words or ["--help"], prog_name=name, standalone_mode=False)
    except PodmgrError as error:
        sys.stderr.write(error_text(error))
        code = failed or error.exit_code
    except TyperException as error:
        command = next((word for word in words[:1] if word in commands), "")
        usage = UsageError(
            printable(error.format_message()), tip=f"{name} {command} --help".replace("  ", " ")
        )
        sys.stderr.write(error_text(usage))
        code = failed or usage.exit_code
    except (KeyboardInterrupt, Interrupted):
        say("interrupted")
        code = EXIT_INTERRUPTED
    except OSError as error:
        sys.stderr.write(error_text(PodmgrError(str(error), tip=tip)))
        code = failed or EXIT_FAILED
    except Exception as error:
        if os.environ.get("PODMGR_DEBUG"):
            raise
        say(f"unexpected {type(error).__name__}: {error}")
        say("this is a bug; PODMGR_DEBUG=1 shows where it happens")
        code = failed or EXIT_FAILED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)
