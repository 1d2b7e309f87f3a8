"""A command under rules, in a cgroup of its own, and everything removed afterwards: what `podmgr run` does.

Apart from the command, which alone uses it: --help shall load nothing that attaches programs.
Exit codes as with `docker run`: the command's own, 128 + N for a signal, 126 if it cannot be
executed, 127 if there is no such command, 125 if podmgr itself fails.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from podmgr import proc
from podmgr.attachment import Cgroup, Target, Wish
from podmgr.cli.render import figure_text
from podmgr.cli.supervising import Supervision, supervising
from podmgr.errors import UsageError, printable
from podmgr.kernel import cgroup_life, cgroups, scratch
from podmgr.kernel.private_network import HOST_VARIABLES, PrivateNetwork, private_network
from podmgr.proc import Runner
from podmgr.reconcile import lease
from podmgr.reconcile.lease import Lease
from podmgr.reconcile.observe import observe, with_figures
from podmgr.reconcile.outcome import Action, Report, remarks
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.rule import Rule
from podmgr.rules.source import CLI, SourcedRule
from podmgr.settings import Settings

EXIT_PODMGR_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

_MAX_ID = 2**32 - 2


class User(NamedTuple):
    """Whom a command runs as."""

    uid: int
    gid: int
    name: str | None
    home: str | None
    shell: str | None = None

    @property
    def groups(self) -> list[int]:
        return os.getgrouplist(self.name, self.gid) if self.name else [self.gid]

    @property
    def environment(self) -> dict[str, str]:
        known = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {name: value for name, value in known.items() if value}


def user_named(text: str) -> User:
    """`NAME`, `UID`, `NAME:GROUP` or `UID:GID`. Raises UsageError if there is no such user."""
    import grp

    name, colon, group = text.partition(":")
    try:
        if name.isascii() and name.isdigit():
            if int(name) > _MAX_ID:
                raise OverflowError
            user = _user_of_uid(int(name))
        else:
            entry = pwd.getpwnam(name)
            user = User(entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir, entry.pw_shell)
        if not colon:
            return user
        gid = int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid
    except (KeyError, OverflowError) as error:
        raise UsageError(
            f"there is no user {printable(text)!r}", tip="--user NAME, UID, NAME:GROUP or UID:GID"
        ) from error
    return User(user.uid, gid, user.name, user.home, user.shell)


def invoking_user() -> User | None:
    """Who called sudo; None where there is no one to go back to."""
    uid = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not uid.isascii() or not uid.isdigit() or uid == "0":
        return None
    user = _user_of_uid(int(uid))
    gid = os.environ.get("SUDO_GID", "")
    has_gid = gid.isascii() and gid.isdigit()
    return User(user.uid, int(gid), user.name, user.home, user.shell) if has_gid else user


def run(
    rules: Sequence[Rule],
    command: Sequence[str],
    settings: Settings,
    *,
    runner: Runner,
    report: Report,
    user: User | None,
    is_quiet: bool = False,
    has_own_network: bool = False,
) -> int:
    """Run the command to its end under the rules; its exit code.

    Raises PodmgrError if the rules cannot be applied, or there is no network for it; nothing has been
    started then. Killed itself, it leaves what `abandoned` finds.
    """
    root = cgroups.find_root(settings.cgroup_root)
    place = scratch.planned(root, "run")
    with supervising() as supervision, _leased(settings, place) as held, ExitStack() as stack:
        network: PrivateNetwork | None = None
        if has_own_network:
            network = stack.enter_context(private_network(runner=runner, report=report, note=held.note))
        cgroup = cgroup_life.create(place.parent, place.name)
        held.note("id", cgroup.id)
        # With a network of its own it is as a pod: who lives in the cgroup says which it is.
        name, is_alone = cgroups.display_name(root, cgroup), network is not None
        target = Target(name, cgroup, counts_loopback=not is_alone, starts_here=not is_alone)
        run_in = _Place(target, network, held)
        try:
            if network is not None:
                cgroup_life.join(cgroup, network.holder.pid)
            wish = Wish(target, tuple(SourcedRule(rule, CLI) for rule in rules))
            outcomes = apply([wish], settings, runner=runner, report=report)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            for line in remarks(outcomes):
                report(f"note: {line}")
            with supervision.unhurt():
                code = _run(command, run_in, user, supervision, report)
                if not is_quiet:
                    _summarise(cgroup, settings, report)
                _tidy(run_in, settings, runner, report)
            return code
        finally:
            if cgroup.path.exists():  # not after a command that ran: it was tidied up already
                with supervision.unhurt():
                    _tidy(run_in, settings, runner, report)


@contextmanager
def _leased(settings: Settings, place: Path) -> Iterator[Lease]:
    """A lease for the cgroup that is made there. It ends with the block, unless something is left."""
    held = lease.take(settings.state_dir, place.name)
    try:
        held.note("cgroup", place)
        yield held
    except BaseException:
        (held.let_go if place.exists() else held.end)()
        raise
    held.end()


class _Place(NamedTuple):
    """Where the command runs: in its cgroup, and in a network of its own if it has one."""

    target: Target
    network: PrivateNetwork | None
    lease: Lease

    def enter(self) -> None:
        """Called in the command's process, which is still podmgr's user."""
        self.lease.let_go()  # it is podmgr's alone: the kernel shall see it end with podmgr
        cgroup_life.join(self.target.cgroup)
        if self.network:
            self.network.enter()


def _run(
    command: Sequence[str], place: _Place, user: User | None, supervision: Supervision, report: Report
) -> int:
    def prepare() -> None:
        place.enter()
        if user is not None:
            os.setgroups(user.groups)
            os.setgid(user.gid)
            os.setuid(user.uid)
        proc.die_with_parent()
        supervision.let_through()

    environment = dict(os.environ) | (user.environment if user else {})
    if place.network:
        environment = {name: value for name, value in environment.items() if name not in HOST_VARIABLES}
        environment |= place.network.environment

    def start() -> proc.Process:
        return proc.start(command, prepare=prepare, env=environment)

    try:
        code = supervision.run(start, lambda pid: pid in cgroup_life.processes(place.target.cgroup))
    except FileNotFoundError:
        report(f"{printable(command[0])}: there is no such command")
        return EXIT_NOT_FOUND
    except (PermissionError, OSError) as error:
        report(f"{printable(command[0])}: {error.strerror}")
        return EXIT_NOT_EXECUTABLE
    except proc.NotPreparedError:
        report("the command could not be put into its cgroup or network, or its user cannot be had")
        return EXIT_PODMGR_FAILED
    return code if code >= 0 else 128 - code


def _summarise(cgroup: Cgroup, settings: Settings, report: Report) -> None:
    """What each rule did; also that somebody took it away meanwhile."""
    observed = with_figures(settings, observe(settings)[0])
    found = [item for item in observed if item.attachment.cgroup_id == cgroup.id]
    if not all(item.is_active for item in found) or not found:
        report("warning: rules were removed while the command ran")
    for item in found:
        if item.counters:
            rule = item.attachment.rule
            passed, dropped = item.counters.passed_packets, item.counters.dropped_packets
            told = "".join(f", {figure_text(figure)}" for figure in item.figures)
            would = "would have been " if rule is not None and rule.is_shadow else ""
            report(f"{rule}: {passed} packets passed, {dropped} {would}dropped{told}")


def _tidy(place: _Place, settings: Settings, runner: Runner, report: Report) -> None:
    target, network, _ = place
    killed = cgroup_life.kill(target.cgroup, spared=network.holder.pid if network else None)
    if killed:
        report(f"killed {killed} processes that the command left behind")
    for outcome in clean(target.selection, settings, runner=runner, report=report):
        if outcome.action is Action.FAILED and outcome.error is not None:
            raise outcome.error
    try:
        if network:
            network.close()
    finally:
        cgroup_life.remove(target.cgroup)


def _user_of_uid(uid: int) -> User:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, uid, None, None)
    return User(entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir, entry.pw_shell)
