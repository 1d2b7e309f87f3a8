"""ip and tc in a network namespace, asked for JSON: interfaces, qdiscs, filters; and changing them.

The host's own programs, in a namespace given by an open descriptor. What may be changed is the
caller's business; whether it was done is read back by the caller.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from podmgr import mounts
from podmgr.errors import PodmgrError
from podmgr.proc import Completed, Runner
from podmgr.rules import Direction

HOOKS = ("clsact", "ingress")  # listed as qdiscs, but they queue nothing

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", re.ASCII)
_FAILED_LINE = re.compile(r"^Command failed -:(\d+)$", re.MULTILINE)

Command = tuple[str, ...]


class Interface(NamedTuple):
    """An interface. `peer_index` and `peer_namespace_id` are a veth's other end, or what lies below.

    `peer_namespace_id` is None if that is in the same namespace, or nothing.
    """

    index: int  # type: ignore[assignment]  # a tuple's method of that name is not missed
    name: str
    kind: str
    is_up: bool
    is_loopback: bool
    is_port: bool  # of a bridge or a bond, which the packet passes too
    peer_index: int | None
    peer_namespace_id: int | None


class Qdisc(NamedTuple):
    """`handle` "0:" is the kernel's own default."""

    kind: str
    handle: str
    parent: str | None
    is_root: bool


class Filter(NamedTuple):
    """A filter of clsact; `program_id` None if it runs no BPF program."""

    priority: int
    handle: int
    program_id: int | None


def interfaces(namespace_fd: int, *, runner: Runner) -> list[Interface]:
    """All interfaces of the namespace."""
    rows = _ask(namespace_fd, runner, "ip", "-j", "-d", "link", "show")
    return [_interface(row) for row in rows if row]


def is_plain(name: str) -> bool:
    """Whether a batch file can hold the name of an interface. A pod may choose others, which cannot."""
    return _PLAIN_NAME.fullmatch(name) is not None


def default_devices(namespace_fd: int, *, runner: Runner) -> set[str]:
    """The names of the interfaces that default routes lead through."""
    rows = _ask(namespace_fd, runner, "ip", "-j", "route", "show", "default")
    return {row["dev"] for row in rows if row.get("dev")}


def qdiscs(namespace_fd: int, *, runner: Runner) -> dict[str, list[Qdisc]]:
    """The qdiscs of each interface, by its name."""
    found: dict[str, list[Qdisc]] = {}
    for row in _ask(namespace_fd, runner, "tc", "-j", "qdisc", "show"):
        qdisc = Qdisc(row["kind"], row.get("handle", "0:"), row.get("parent"), bool(row.get("root")))
        found.setdefault(row["dev"], []).append(qdisc)
    return found


def filters(
    namespace_fd: int, sides: Sequence[tuple[str, Direction]], *, runner: Runner
) -> dict[tuple[str, Direction], list[Filter]]:
    """The filters of clsact on each side of interfaces, which are given by their plain names.

    An interface that is not there, or has no clsact, has none.
    """
    if not sides:
        return {}
    lines = "".join(f"filter show dev {name} {side}\n" for name, side in sides)
    done = _run(namespace_fd, runner, ["tc", "-force", "-j", "-batch", "-"], lines)
    failed = {int(number) for number in _FAILED_LINE.findall(done.stderr)}
    asked = [side for number, side in enumerate(sides, start=1) if number not in failed]
    answers = [line for line in done.stdout.split("\n") if line.strip()]
    if len(answers) != len(asked):
        raise PodmgrError("tc does not say what filters there are", detail=done.stderr, tip="podmgr doctor")
    return {side: _filters(_parsed("tc", line, done)) for side, line in zip(asked, answers, strict=True)}


def batch(
    namespace_fd: int, commands: Sequence[Command], *, runner: Runner, pass_fds: Sequence[int] = ()
) -> dict[int, str]:
    """Run tc commands, in order; one that fails stops no other. What tc says of those that failed."""
    if not commands:
        return {}
    lines = "".join(" ".join(command) + "\n" for command in commands)
    done = _run(namespace_fd, runner, ["tc", "-force", "-batch", "-"], lines, pass_fds)
    said: dict[int, str] = {}
    start = 0
    for match in _FAILED_LINE.finditer(done.stderr):
        said[int(match[1]) - 1] = _reason(done.stderr[start : match.start()])
        start = match.end()
    if not done.succeeded and not said:
        raise PodmgrError("tc did not do its work", detail=done.stderr[-1000:], tip="podmgr doctor")
    return said


@contextmanager
def without_folders() -> Iterator[None]:
    """Remove what iproute2 makes beside our pins when it takes its first BPF program: it never uses it.

    Those that were there before stay, and so do those that somebody has put something into.
    """
    before = _folders()
    try:
        yield
    finally:
        for folder in _folders() - before:
            with suppress(OSError):
                (folder / "globals").rmdir()
                folder.rmdir()
                for name in ("ip", "xdp"):
                    if Path(os.readlink(folder.parent / name)) == folder:
                        (folder.parent / name).unlink()


def _folders() -> set[Path]:
    found = {mount.path / "tc" for mount in mounts.table() if mount.filesystem == "bpf"}
    return {folder for folder in found if folder.is_dir()}


def add_filter(name: str, side: Direction, priority: int, handle: int, pin: str) -> Command:
    """A pinned program that gives the verdict itself. Never takes the place of another filter."""
    place = ("filter", "add", "dev", name, side.value, "protocol", "all")
    return (
        *place,
        "prio",
        str(priority),
        "handle",
        hex(handle),
        "bpf",
        "direct-action",
        "object-pinned",
        pin,
    )


def delete_filter(name: str, side: Direction, priority: int, handle: int) -> Command:
    """That filter alone."""
    place = ("filter", "del", "dev", name, side.value, "protocol", "all")
    return (*place, "prio", str(priority), "handle", hex(handle), "bpf")


def add_qdisc(name: str, *words: str) -> Command:
    """Fails where one is that the kernel did not make by itself."""
    return ("qdisc", "add", "dev", name, *words)


def delete_qdisc(name: str, *words: str) -> Command:
    return ("qdisc", "del", "dev", name, *words)


def without_fq(namespace_fd: int, *, runner: Runner) -> dict[str, str]:
    """Interface to its root qdisc, for those that lead out of the namespace without fq.

    Those are the interfaces of the default routes, or all that are up.
    """
    up = [item for item in interfaces(namespace_fd, runner=runner) if item.is_up and not item.is_loopback]
    names = {item.name for item in up}
    leading = names & default_devices(namespace_fd, runner=runner) or names
    found = qdiscs(namespace_fd, runner=runner)
    roots = {name: root_kind(found.get(name, ())) for name in leading}
    return {name: kind for name, kind in roots.items() if kind != "fq"}


def root_kind(found: Iterable[Qdisc]) -> str:
    """ "fq" also for a multi-queue interface with nothing but fq."""
    kind, children = "none", set()
    for qdisc in found:
        if qdisc.is_root:
            kind = qdisc.kind
        elif qdisc.kind not in HOOKS:
            children.add(qdisc.kind)
    return "fq" if kind == "mq" and children == {"fq"} else kind


def _interface(row: dict[str, Any]) -> Interface:
    flags = row.get("flags", ())
    return Interface(
        index=row["ifindex"],
        name=row["ifname"],
        kind=row.get("linkinfo", {}).get("info_kind", ""),
        is_up="UP" in flags,
        is_loopback="LOOPBACK" in flags,
        is_port="master" in row and row.get("linkinfo", {}).get("info_slave_kind") != "vrf",
        peer_index=row.get("link_index"),
        peer_namespace_id=row.get("link_netnsid"),
    )


def _filters(rows: list[dict[str, Any]]) -> list[Filter]:
    found = []
    for row in rows:
        options = row.get("options", {})
        if "handle" in options or "fh" in options:
            number = str(options.get("handle", "0"))
            is_number = re.fullmatch(r"0x[0-9a-f]+|\d+", number)
            handle = int(number, 0) if is_number else 0
            program_id = options.get("prog", {}).get("id") if isinstance(options.get("prog"), dict) else None
            found.append(Filter(row.get("pref", 0), handle, program_id))
        elif options:
            found.append(Filter(row.get("pref", 0), 0, None))
    return found


def _ask(namespace_fd: int, runner: Runner, *argv: str) -> list[dict[str, Any]]:
    done = _run(namespace_fd, runner, argv)
    rows = _parsed(argv[0], done.stdout or "[]", done)
    if not done.succeeded:
        raise PodmgrError(f"cannot look at the pod's interfaces: {done.stderr.strip()}")
    return rows


def _run(
    namespace_fd: int, runner: Runner, argv: Sequence[str], stdin: str = "", pass_fds: Sequence[int] = ()
) -> Completed:
    command = ["nsenter", f"--net=/proc/self/fd/{namespace_fd}", *argv]
    return runner(command, stdin=stdin.encode(), pass_fds=[namespace_fd, *pass_fds])


def _parsed(tool: str, text: str, done: Completed) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text, strict=False)  # names may hold control characters, unescaped
    except ValueError as error:
        raise PodmgrError(f"{tool} answered what is not JSON", detail=done.stderr) from error
    if not isinstance(rows, list):
        raise PodmgrError(f"{tool} answered what is not a list", detail=done.stderr)
    return rows


def _reason(text: str) -> str:
    """tc's own words for a failure, without what it says each time."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("We have an error talking")]
    return "; ".join(dict.fromkeys(told)) or "no reason given"
