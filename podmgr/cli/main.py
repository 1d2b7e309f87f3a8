"""The command line of `podmgr`: the typer application of all commands.

Each command is a module of `commands`. Holds no logic that a library user would miss.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from podmgr.cli import boundary
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR, Settings

# As --help lists them; each is a module of `commands`.
_COMMANDS = ("apply", "list", "clean", "watch", "compile", "policy", "profiles", "run", "demo", "doctor")
_CONTEXTS = {"run": {"allow_interspersed_args": False}}  # options behind COMMAND are the command's own


class _Command(boundary.Command):
    """A command of the machine: what a podmgr has left that was killed is put in order first."""

    def invoke(self, ctx: Any) -> Any:
        settings = _settings(ctx.params)
        if _may_be_left(settings.state_dir):
            _finish_abandoned(settings)
        return super().invoke(ctx)


def _settings(options: dict[str, Any]) -> Settings:
    """Where podmgr keeps things, also for commands that take no options for it."""

    def place(name: str, default: Path | None) -> Path | None:
        found = options.get(name) or os.environ.get(f"PODMGR_{name.upper()}") or default
        return Path(found).absolute() if found else None

    state_dir, bpffs = place("state_dir", DEFAULT_STATE_DIR), place("bpffs", DEFAULT_BPFFS)
    assert state_dir and bpffs
    return Settings(state_dir, bpffs, cgroup_root=place("cgroup_root", None))


def _may_be_left(state_dir: Path) -> bool:
    """Whether there is a run, or somebody in a transaction, if only now: two looks, and no module."""
    with suppress(OSError):
        return os.path.lexists(state_dir / "runs") or os.stat(state_dir / "lock").st_size > 0
    return False


def _finish_abandoned(settings: Settings) -> None:
    from podmgr import proc
    from podmgr.cli.render import say
    from podmgr.errors import PodmgrError
    from podmgr.reconcile import abandoned

    try:
        abandoned.finish(settings, runner=proc.run, report=say)
    except PodmgrError as error:  # what the command is for may go well all the same
        say(f"warning: of a podmgr that was killed something is left: {error.message}")


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
        app.command(name, cls=_Command, context_settings=_CONTEXTS.get(name))(command)
    return app


def main() -> NoReturn:
    """Run the command line and exit."""
    is_run = sys.argv[1:2] == ["run"]
    boundary.run(make_app, _COMMANDS, failed=125 if is_run else None, tip="podmgr doctor")
