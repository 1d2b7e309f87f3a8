"""`podmgr run`: its options; `running` does it."""

from __future__ import annotations

from typing import Annotated

import typer

from podmgr.cli.options import (
    Bpffs,
    CgroupRoot,
    MaxMapBytes,
    ProgramDir,
    Rules,
    StateDir,
    ending,
    parse_rules,
    settings_of,
)
from podmgr.cli.render import say
from podmgr.errors import UsageError
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_MAX_MAP_BYTES, DEFAULT_PROGRAM_DIR, DEFAULT_STATE_DIR


def command(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The command.")],
    rule: Rules = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="USER[:GROUP]",
            help="Whom to run as.  [default: under sudo who called it, else who you are]",
        ),
    ] = None,
    net: Annotated[
        bool,
        typer.Option(
            "--net",
            help="In a network of its own, where rules act on both directions; there this machine is "
            "$PODMGR_NET_HOST.",
        ),
    ] = False,
    for_: Annotated[
        str,
        typer.Option(
            "--for", metavar="TIME", help="The rules end after so long, such as 30s; the command runs on."
        ),
    ] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No summary at the end.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Run a command under rules, in a cgroup of its own, and remove everything afterwards.

    With --net the command has an interface of its own, eth0, as a pod has, which leads to this
    machine, and beyond it where the machine forwards and has nft.

    Signals go to the command, and Ctrl-Z stops both. When podmgr is killed (SIGKILL) the command ends with
    it; what that has started, and setuid commands such as sudo, stay under the rules until the next podmgr
    command, of any kind, ends them and removes all.

    The exit code is the command's; 125 if podmgr fails, 126 if the command cannot be executed,
    127 if there is no such command.
    """
    from podmgr import proc
    from podmgr.cli import running
    from podmgr.cli.doctor import require_sockets_with_cgroups
    from podmgr.rules.peers import require_no_names

    settings = settings_of(context, state_dir, bpffs, cgroup_root, program_dir, max_map_bytes)
    parsed = ending(parse_rules(rule, settings), for_) if for_ else parse_rules(rule, settings)
    if not parsed:
        raise UsageError("no rule", tip="podmgr run --rule 'loss=uniform egress 2%' -- COMMAND")
    for one in parsed:
        require_no_names(one.match)
    require_sockets_with_cgroups(settings, runner=proc.run)
    whom = running.user_named(user) if user else running.invoking_user()
    return running.run(
        parsed,
        command,
        settings,
        runner=proc.run,
        report=say,
        user=whom,
        is_quiet=quiet,
        has_own_network=net,
    )
