"""The options that commands have in common, and what is made of them: settings, rules, a selection.

An option of one command alone stands in the command's own module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podmgr.cli.render import Format
from podmgr.errors import UsageError, printable
from podmgr.settings import (
    DEFAULT_BPFFS,
    DEFAULT_MAX_MAP_BYTES,
    DEFAULT_PROGRAM_DIR,
    DEFAULT_STATE_DIR,
    Settings,
)

if TYPE_CHECKING:  # a command imports what it needs: --help shall start at once
    from podmgr.attachment import Attachment, Selection
    from podmgr.cluster.api import Api
    from podmgr.reconcile.outcome import Outcome
    from podmgr.rules.rule import Rule
    from podmgr.targets.names import Scope

# Whether a folder may be read is found out by what reads it, and told with its reason: an ordinary user's
# doctor has much to say without. The parser would end each command, whatever it needs, as a slip in writing.
_LATER = False

StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir", envvar="PODMGR_STATE_DIR", readable=_LATER, help="Ledger and compiled objects."
    ),
]
Bpffs = Annotated[
    Path,
    typer.Option(
        "--bpffs", envvar="PODMGR_BPFFS", readable=_LATER, help="Where programs and maps are pinned."
    ),
]
CgroupRoot = Annotated[
    Path | None,
    typer.Option(
        "--cgroup-root",
        envvar="PODMGR_CGROUP_ROOT",
        readable=_LATER,
        help="The cgroup2 mount.  [default: the mount table's]",
    ),
]
ProgramDir = Annotated[
    Path,
    typer.Option(
        "--program-dir",
        envvar="PODMGR_PROGRAM_DIR",
        readable=_LATER,
        help="Where custom programs and profiles are looked for.",
    ),
]
MaxMapBytes = Annotated[
    int,
    typer.Option(
        "--max-map-bytes",
        metavar="BYTES",
        envvar="PODMGR_MAX_MAP_BYTES",
        min=1,
        max=1 << 30,
        help="What all maps of a custom program together may take.",
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="KEY=VALUE",
        help="A rule, such as 'loss=uniform egress 2%'. May be repeated. Keys: bandwidth, delay, loss, "
        "duplicate, corrupt, reorder, block, profile, and that of programs of your own; 'podmgr compile "
        "--explain' says what a rule means.",
    ),
]
Kubeconfig = Annotated[
    str | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="How to reach the cluster.  [default: $KUBECONFIG, the pod it runs in, ~/.kube/config, k3s]",
    ),
]
KubeContext = Annotated[str | None, typer.Option("--context", help="The kubeconfig's context to use.")]
NodeName = Annotated[
    str | None,
    typer.Option("--node-name", help="This node.  [default: $NODE_NAME, the node that is this machine]"),
]
Namespace = Annotated[
    str | None,
    typer.Option("-n", "--namespace", metavar="NAME", help="As in kubectl.  [default: the context's]"),
]
AllNamespaces = Annotated[bool, typer.Option("-A", "--all-namespaces", help="Pods of all namespaces.")]
Labels = Annotated[
    str,
    typer.Option("-l", "--selector", metavar="LABELS", help="Pods with these labels, such as app=web."),
]
StandardAnnotations = Annotated[
    bool,
    typer.Option(
        "--standard-annotations",
        help="Also read kubernetes.io/ingress-bandwidth and egress-bandwidth of pods; all else beats them.",
    ),
]
PeerNamespaces = Annotated[
    str,
    typer.Option(
        "--peer-namespaces",
        metavar="NS[,NS]...",
        envvar="PODMGR_PEER_NAMESPACES",
        help="Namespaces that rules of any other may name as peers, such as svc/NS/NAME; * is all.  "
        "[default: none]",
        show_default=False,
    ),
]
Settle = Annotated[
    str,
    typer.Option(
        "--settle",
        metavar="DURATION",
        help="Look again after so long, for rules that are attached while packets pass them by.",
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the result.")]


def settings_of(
    context: typer.Context,
    state_dir: Path = DEFAULT_STATE_DIR,
    bpffs: Path = DEFAULT_BPFFS,
    cgroup_root: Path | None = None,
    program_dir: Path = DEFAULT_PROGRAM_DIR,
    max_map_bytes: int = DEFAULT_MAX_MAP_BYTES,
) -> Settings:
    """What the options say of where things are. A folder of programs on the command line must be there."""
    source = context.get_parameter_source("program_dir")
    settings = Settings(
        state_dir=state_dir.absolute(),
        bpffs=bpffs.absolute(),
        cgroup_root=cgroup_root.absolute() if cgroup_root else None,
        program_dir=program_dir.absolute(),
        trusts_invoker=source is not None and source.name == "COMMANDLINE",
        max_map_bytes=max_map_bytes,
    )
    if settings.trusts_invoker:
        from podmgr.programs.vetting import require_folder

        require_folder(settings)
    return settings


def namespaces(text: str) -> frozenset[str]:
    """The names of `NS[,NS]...`, of which * is one. Raises UsageError."""
    from podmgr.cluster.objects import is_name
    from podmgr.rules.peers import ANY_NAMESPACE

    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for name in names:
        if name != ANY_NAMESPACE and not is_name(name):
            raise UsageError(
                f"--peer-namespaces: {printable(name)[:80]!r} names no namespace",
                tip="NAME or NAME,NAME, or * for all",
            )
    return frozenset(names)


def seconds(text: str) -> float:
    """A duration; 0 is one. Raises UsageError."""
    from podmgr.rules.units import parse_duration_seconds

    if text.strip() in ("0", "0s"):
        return 0.0
    try:
        return parse_duration_seconds(text)
    except ValueError as error:
        raise UsageError(printable(str(error))) from error


def parse_rules(texts: list[str] | None, settings: Settings) -> list[Rule]:
    """The rules of the command line, no two of which may collide. Raises UsageError."""
    from podmgr.programs.profiles import finder
    from podmgr.rules.grammar import parse_rule_option
    from podmgr.rules.profiles import is_replaced, rival_of, rivalry

    written: list[Rule] = []
    parts: list[Rule] = []  # of a profile, which what is written beside it beats
    for text in texts or []:
        read = parse_rule_option(text, finder(settings))
        for rule in read:
            if other := rival_of(rule, parts if rule.of_profile else written):
                problem, expected = rivalry(rule, other, str)
                raise UsageError(problem, tip=expected)
        written += [rule for rule in read if not rule.of_profile]
        parts += [rule for rule in read if rule.of_profile]
    return [*written, *(part for part in parts if not is_replaced(part, written))]


def ending(rules: Iterable[Rule], text: str) -> list[Rule]:
    """The rules, each of which ends after a time such as 30s. Raises UsageError if one says when itself."""
    from dataclasses import replace

    from podmgr.rules.timing import ALWAYS, with_option

    def fail(problem: str, expected: str) -> UsageError:
        return UsageError(f"--for: {problem}", tip=expected)

    for_ns = with_option(ALWAYS, "for", text, fail).for_ns
    found = []
    for rule in rules:
        if rule.timing.for_ns:
            raise UsageError(f"--for beside '{rule}', which says it itself", tip="leave --for out, or for=")
        found.append(replace(rule, timing=rule.timing._replace(for_ns=for_ns)))
    return found


def selected(
    targets: list[str] | None,
    scope: Scope,
    rows: Sequence[Attachment],
    settings: Settings,
    kubeconfig: str | None,
    kube_context: str | None,
) -> tuple[Selection | None, list[Outcome]]:
    """What list and clean are for (None: everything), and an outcome for each target with nothing on it.

    A cluster is asked only if it must be. Raises UsageError.
    """
    from podmgr.targets.names import Scope, read

    if not targets and scope == Scope():
        return None, []
    from podmgr.targets.selection import select

    def connect() -> Api:
        from podmgr.cluster.access import find_access
        from podmgr.cluster.api import Api

        return Api(find_access(kubeconfig, kube_context))

    names, scope = read(targets or [], scope)
    return select(names, scope, rows, settings, connect)
