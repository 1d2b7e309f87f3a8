"""The command line: reads arguments, calls the modules that do the work, prints what they say.

The one error boundary is `main`. Holds no logic that a library user would miss.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperOption
from typer.exceptions import TyperException

from podmgr import __version__
from podmgr.cli.render import (
    Format,
    attachments_document,
    attachments_table,
    document,
    error_text,
    outcomes_document,
    outcomes_text,
)
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_PARTLY, PodmgrError, UsageError, printable, unexpected
from podmgr.settings import (
    DEFAULT_BPFFS,
    DEFAULT_MAX_MAP_BYTES,
    DEFAULT_PROGRAM_DIR,
    DEFAULT_STATE_DIR,
    LogFormat,
    Settings,
)

if TYPE_CHECKING:  # a command imports what it needs: --help shall start at once
    from podmgr.attachment import Attachment, Selection
    from podmgr.cluster.api import Api
    from podmgr.reconcile.outcome import Outcome
    from podmgr.rules.rule import Rule
    from podmgr.targets.names import Scope

_LAST_LINES_SECONDS = 2.0
_EPILOG = "Exit codes: 0 done; 1 it failed; 2 usage, or an unreadable rule; 3 some targets done, some not."

app = typer.Typer(
    name="podmgr",
    help="Make the network of a pod, a cgroup or a command as slow or lossy as its rules say, with eBPF.",
    epilog=_EPILOG,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """A command that refuses an option of one value when it is given twice: one of them would be lost."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            is_single = isinstance(option, TyperOption) and not option.multiple and not option.is_flag
            if is_single and order.count(option) > 1:
                raise UsageError(f"{option.opts[-1]} is given twice", tip="it takes one value: leave one out")
        return super().parse_args(ctx, args)


StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="PODMGR_STATE_DIR", help="Ledger and compiled objects.")
]
Bpffs = Annotated[
    Path, typer.Option("--bpffs", envvar="PODMGR_BPFFS", help="Where programs and maps are pinned.")
]
CgroupRoot = Annotated[
    Path | None,
    typer.Option(
        "--cgroup-root", envvar="PODMGR_CGROUP_ROOT", help="The cgroup2 mount.  [default: the mount table's]"
    ),
]
ProgramDir = Annotated[
    Path,
    typer.Option("--program-dir", envvar="PODMGR_PROGRAM_DIR", help="Where custom programs are looked for."),
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
        "--rule", metavar="KEY=VALUE", help="A rule, such as 'loss=uniform egress 2%'. May be repeated."
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
    typer.Option("--node-name", help="This node.  [default: $NODE_NAME, the host's name, the only node]"),
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
Settle = Annotated[
    str,
    typer.Option(
        "--settle",
        metavar="DURATION",
        help="Look again after so long, for rules that are attached while packets pass them by.",
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the result.")]


def _report(line: str) -> None:
    print(f"podmgr: {printable(line)}", file=sys.stderr)


def _settings(
    context: typer.Context,
    state_dir: Path = DEFAULT_STATE_DIR,
    bpffs: Path = DEFAULT_BPFFS,
    cgroup_root: Path | None = None,
    program_dir: Path = DEFAULT_PROGRAM_DIR,
    max_map_bytes: int = DEFAULT_MAX_MAP_BYTES,
) -> Settings:
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
        from podmgr.programs.find import require_folder

        require_folder(settings)
    return settings


@app.command("apply", cls=_Command)
def apply(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="pod/NAME, svc/NAME, deploy/NAME, ns/NAME and their like, or cgroup/PATH, "
            "PATH absolute or relative to the cgroup2 mount.",
            show_default=False,
        ),
    ] = None,
    filename: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--filename",
            metavar="FILE",
            help="A manifest, or - for standard input. May be repeated; TARGET says which of its pods.",
        ),
    ] = None,
    cgroup: Annotated[
        str | None,
        typer.Option(
            "--cgroup",
            metavar="PATH",
            help="The cgroup that stands for the pod of -f.  [default: found by the pod's UID]",
        ),
    ] = None,
    rule: Rules = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing.")] = False,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    standard_annotations: StandardAnnotations = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="How long to wait for pods to start.")
    ] = "30s",
    settle: Settle = "0s",
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    node_name: NodeName = None,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Give each target exactly its rules, and prove that they are attached.

    A pod's rules are those of its annotations, its services' and its namespace's, but for what
    --rule overrides. Rules that a target had before and that are not named again are removed.
    Applying the same twice changes nothing. A target is done whole, or put back as it was.
    """
    from podmgr import proc
    from podmgr.cli.doctor import require_sockets_with_cgroups
    from podmgr.reconcile import transaction
    from podmgr.reconcile.observe import bypassed
    from podmgr.reconcile.outcome import exit_code, remarks
    from podmgr.targets import wishes
    from podmgr.targets.names import Scope, read

    settings = _settings(context, state_dir, bpffs, cgroup_root, program_dir, max_map_bytes)
    settle_seconds = _seconds(settle)
    cli_rules = _parse_rules(rule)
    names, scope = read(targets or [], Scope(namespace, all_namespaces, selector))
    if filename:
        if scope.names_pods:
            raise UsageError("-f names the pod; -A and -l would select others", tip="leave them out")
        _refuse_cluster("-f reads no cluster", kubeconfig, kube_context, node_name)
        made = wishes.from_manifests(
            filename,
            cgroup,
            names,
            cli_rules,
            settings,
            namespace=namespace or None,
            reads_standard=standard_annotations,
            report=_report,
        )
    elif cgroup is not None:
        raise UsageError("--cgroup needs -f FILE", tip="podmgr apply cgroup/PATH --rule 'KEY=VALUE'")
    elif scope.names_pods or any(not name.startswith("cgroup/") for name in names):
        from podmgr.cluster.api import Api, find_access
        from podmgr.targets.in_cluster import ClusterWishes

        if any(name.startswith("cgroup/") for name in names):
            raise UsageError("cgroups and pods at once", tip="podmgr apply them one after the other")
        api = Api(find_access(kubeconfig, kube_context))
        asked = ClusterWishes(
            api, scope, settings, _seconds(timeout), _report, node_name, reads_standard=standard_annotations
        )
        made = asked.make(names, cli_rules)
    else:
        made = wishes.from_targets(names, cli_rules, settings)
        _refuse_cluster("a cgroup is in no cluster", kubeconfig, kube_context, node_name)
    wished, failed = made
    if wished and not dry_run:
        require_sockets_with_cgroups(settings, runner=proc.run)
    if dry_run:
        outcomes = failed + transaction.preview(wished, settings)
    else:
        outcomes = failed + (
            transaction.apply(wished, settings, runner=proc.run, report=_report) if wished else []
        )
        for line in remarks(outcomes):
            _report(f"note: {line}")
        if settle_seconds:
            for line in bypassed(outcomes, settings, settle_seconds):
                _report(f"warning: {line}")
    _print_outcomes(outcomes, output, dry_run=dry_run)
    return exit_code(outcomes)


@app.command("list", cls=_Command)
def list_(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="As with apply.  [default: all]", show_default=False),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    output: Output = Format.TABLE,
    settle: Settle = "0s",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on, with rates, until Ctrl-C.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Show what podmgr has attached, read back from the kernel at this moment."""
    from podmgr.reconcile.observe import settled
    from podmgr.targets.names import Scope

    settings = _settings(context, state_dir, bpffs, cgroup_root)
    scope = Scope(namespace, all_namespaces, selector)
    if watch:
        from podmgr.cli import live

        _goes_on()
        if targets or scope != Scope():
            raise UsageError("--watch shows all attachments", tip="podmgr list --watch")
        live.watch(settings, output)
        return EXIT_DONE
    observed, unknown = settled(settings, _seconds(settle))
    rows = [item.attachment for item in observed]
    selection, failed = _select(targets, scope, rows, settings, kubeconfig, kube_context)
    if selection is not None:
        observed = [item for item in observed if selection.covers(item.attachment)]
    if output in (Format.JSON, Format.YAML):
        print(document(attachments_document(observed), output), end="")
    elif observed:
        print(attachments_table(observed, wide=output is Format.WIDE), end="")
    elif not failed:
        _report("nothing is attached")
    if unknown:
        _report(f"{unknown} pins are not in the ledger, left by a crash; podmgr clean removes them")
    _print_errors(failed)
    return EXIT_DONE if not failed else EXIT_PARTLY if observed else EXIT_FAILED


@app.command("clean", cls=_Command)
def clean(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="As with apply, or as list names it.", show_default=False),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Take everything away again: of these targets, or all; also what a crash left.

    Programs of others stay.
    """
    from podmgr import proc
    from podmgr.kernel import cgroups, scratch
    from podmgr.reconcile import transaction
    from podmgr.reconcile.observe import recorded
    from podmgr.reconcile.outcome import exit_code
    from podmgr.targets.names import Scope

    settings = _settings(context, state_dir, bpffs, cgroup_root)
    scope = Scope(namespace, all_namespaces, selector)
    selection: Selection | None = None
    failed: list[Outcome] = []
    if targets or scope != Scope():
        rows = recorded(settings)
        selection, failed = _select(targets, scope, rows, settings, kubeconfig, kube_context)
    outcomes = list(failed)
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        _report(line)

    if selection is None or selection.cgroup_ids:
        outcomes += transaction.clean(selection, settings, runner=proc.run, report=report)
    if selection is None:
        for cgroup in scratch.sweep(cgroups.find_root(settings.cgroup_root)):
            report(f"removed {cgroup.path}, left by a crash")
    if not outcomes and not said:
        _report("nothing of podmgr's is attached" + (" there" if selection else ""))
    _print_outcomes(outcomes, output)
    return exit_code(outcomes)


@app.command("watch", cls=_Command)
def watch(
    context: typer.Context,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    node_name: NodeName = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the rules in force when it stops.")] = False,
    resync: Annotated[
        str,
        typer.Option("--resync", metavar="DURATION", help="How often the kernel is read back and repaired."),
    ] = "3m",
    standard_annotations: StandardAnnotations = False,
    no_events: Annotated[bool, typer.Option("--no-events", help="Post no Kubernetes Events.")] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="How to log, to stderr.")
    ] = LogFormat.TEXT,
    metrics_address: Annotated[
        str | None,
        typer.Option(
            "--metrics-address",
            metavar="HOST:PORT",
            help="Serve /metrics, /healthz and /readyz there.  [default: nowhere]",
        ),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Keep the rules of this node's pods as their annotations say, until Ctrl-C.

    Annotations of pods, of services that select them and of namespaces are followed as they
    change. When it stops, all limits are removed (but see --keep). A second Ctrl-C stops at once.
    """
    from podmgr import proc
    from podmgr.cli.doctor import require_sockets_with_cgroups
    from podmgr.cluster.api import find_access
    from podmgr.watch.journal import Journal
    from podmgr.watch.loop import Options
    from podmgr.watch.loop import watch as watch_pods
    from podmgr.watch.server import parse_address

    _goes_on()
    settings = _settings(context, state_dir, bpffs, cgroup_root, program_dir, max_map_bytes)
    if _seconds(resync) < 1:
        raise UsageError("--resync is at least 1s", tip="a change is seen at once; this is for repairs")
    options = Options(
        node=node_name,
        keeps_rules=keep,
        resync_seconds=_seconds(resync),
        posts_events=not no_events,
        reads_standard=standard_annotations,
        metrics_address=parse_address(metrics_address) if metrics_address else None,
    )
    journal = Journal(log_format)
    try:
        access = find_access(kubeconfig, kube_context)
        require_sockets_with_cgroups(settings, runner=proc.run)
        return watch_pods(access, options, settings, journal, runner=proc.run)
    except Exception as problem:
        if log_format is not LogFormat.JSON:
            raise
        error = problem if isinstance(problem, PodmgrError) else unexpected(problem)
        journal.error(error.message, tip=error.tip, detail=error.detail)
        journal.flush(_LAST_LINES_SECONDS)
        return error.exit_code


@app.command("compile", cls=_Command)
def compile_(
    context: typer.Context,
    rules: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Rules, such as 'bandwidth=10 mbps egress'.")
    ],
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

    settings = _settings(context, program_dir=program_dir, max_map_bytes=max_map_bytes)
    folder = output_dir if output_dir or explain else Path()
    results = compiling.compile_rules(_parse_rules(rules), settings, output_dir=folder, runner=proc.run)
    if output in (Format.JSON, Format.YAML):
        print(document(compiling.as_document(results), output), end="")
    else:
        print(compiling.as_text(results, explain=explain), end="")
    return EXIT_DONE


@app.command("run", cls=_Command, context_settings={"allow_interspersed_args": False})
def run(
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
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No summary at the end.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
    max_map_bytes: MaxMapBytes = DEFAULT_MAX_MAP_BYTES,
) -> int:
    """Run a command under rules, in a cgroup of its own, and remove everything afterwards.

    The exit code is the command's; 125 if podmgr fails, 126 if the command cannot be executed,
    127 if there is no such command.
    """
    from podmgr import proc
    from podmgr.cli import running
    from podmgr.cli.doctor import require_sockets_with_cgroups

    settings = _settings(context, state_dir, bpffs, cgroup_root, program_dir, max_map_bytes)
    parsed = _parse_rules(rule)
    if not parsed:
        raise UsageError("no rule", tip="podmgr run --rule 'loss=uniform egress 2%' -- COMMAND")
    require_sockets_with_cgroups(settings, runner=proc.run)
    whom = running.user_named(user) if user else running.invoking_user()
    return running.run(parsed, command, settings, runner=proc.run, report=_report, user=whom, is_quiet=quiet)


@app.command("demo", cls=_Command)
def demo(
    context: typer.Context,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Make a throw-away pod, put the examples on it, and show declared against measured.

    Takes about a minute and ends by proving that nothing is left. Exit code 1 if a value is off.
    """
    from podmgr.cli.render import DemoTable
    from podmgr.demo.demonstrate import demonstrate

    settings = _settings(context, state_dir, bpffs, cgroup_root)
    table = DemoTable(output)
    is_right = demonstrate(settings, show=table.add, report=_report)
    table.end()
    return EXIT_DONE if is_right else EXIT_FAILED


@app.command("doctor", cls=_Command)
def doctor(
    context: typer.Context,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    output: Output = Format.TABLE,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    bpffs: Bpffs = DEFAULT_BPFFS,
    cgroup_root: CgroupRoot = None,
) -> int:
    """Look at what this machine has of what podmgr needs, and say what to do.

    Exit code 1 if podmgr cannot work here.
    """
    from podmgr import proc
    from podmgr.cli import doctor as practice
    from podmgr.cli.render import FindingList

    settings = _settings(context, state_dir, bpffs, cgroup_root)
    listing = FindingList(output)
    for finding in practice.examine(settings, runner=proc.run, named=kubeconfig, context=kube_context):
        listing.add(finding)
    listing.end()
    return EXIT_FAILED if listing.cannot_work else EXIT_DONE


def _version(wanted: bool) -> None:
    if wanted:
        print(f"podmgr {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _seconds(text: str) -> float:
    from podmgr.rules.units import parse_duration_seconds

    if text.strip() in ("0", "0s"):
        return 0.0
    try:
        return parse_duration_seconds(text)
    except ValueError as error:
        raise UsageError(printable(str(error))) from error


def _parse_rules(texts: list[str] | None) -> list[Rule]:
    """The rules of the command line, no two of which may collide."""
    from podmgr.rules.grammar import parse_rule_option

    rules: dict[object, Rule] = {}
    for text in texts or []:
        for rule in parse_rule_option(text):
            other = rules.setdefault(rule.collision_key, rule)
            if other is not rule:
                raise UsageError(
                    f"'{rule}' collides with '{other}'",
                    tip=f"one {rule.collision_key.kind} rule per direction",
                )
    return list(rules.values())


def _refuse_cluster(
    why: str, kubeconfig: str | None, kube_context: str | None, node_name: str | None
) -> None:
    """Raise UsageError for an option that says how to ask a cluster, where none is asked."""
    given = {"--kubeconfig": kubeconfig, "--context": kube_context, "--node-name": node_name}
    for option, value in given.items():
        if value is not None:
            tip = "leave it out; the cluster is asked by podmgr apply pod/NAME, without -f"
            raise UsageError(f"{why}: {option} has no meaning there", tip=tip)


def _select(
    targets: list[str] | None,
    scope: Scope,
    rows: Sequence[Attachment],
    settings: Settings,
    kubeconfig: str | None,
    kube_context: str | None,
) -> tuple[Selection | None, list[Outcome]]:
    """What list and clean are for; a cluster is asked only if it must be."""
    from podmgr.targets.names import read
    from podmgr.targets.selection import select

    def connect() -> Api:
        from podmgr.cluster.api import Api, find_access

        return Api(find_access(kubeconfig, kube_context))

    names, scope = read(targets or [], scope)
    return select(names, scope, rows, settings, connect)


def _print_outcomes(outcomes: Sequence[Outcome], output: Format, *, dry_run: bool = False) -> None:
    if output in (Format.JSON, Format.YAML):
        print(document(outcomes_document(outcomes, dry_run=dry_run), output), end="")
    else:
        print(outcomes_text(outcomes, dry_run=dry_run), end="")
    sys.stdout.flush()
    _print_errors(outcomes)


def _print_errors(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            sys.stderr.write(error_text(outcome.error, where=_where(outcome)))


def _where(outcome: Outcome) -> str:
    """What an error is about; its own text may say so already."""
    namespace = f" in {outcome.pod.namespace}" if outcome.pod and outcome.pod.uid else ""
    says_so = outcome.error is not None and outcome.target in outcome.error.message
    return "" if says_so else f"{printable(outcome.target + namespace)}: "


def _know_only(words: Sequence[str]) -> None:
    """Typer makes all commands ready at each start, which takes 15 ms: the one that is named is enough."""
    named = [info for info in app.registered_commands if info.name in words]
    app.registered_commands = named or app.registered_commands


def _goes_on() -> None:
    """Called by commands that run until they are stopped."""
    gc.enable()
    gc.freeze()  # what is there by now stays


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _repair_streams() -> None:
    """A closed descriptor would be given to the next file that is opened; text may not be ASCII."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> NoReturn:
    """Run the command line and exit. Every expected failure is one line and a tip."""
    _repair_streams()
    is_run = sys.argv[1:2] == ["run"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _terminate)
    try:
        _know_only(sys.argv[1:2])
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except PodmgrError as error:
        sys.stderr.write(error_text(error))
        code = 125 if is_run else error.exit_code
    except TyperException as error:
        command = next(
            (word for word in sys.argv[1:2] if word in {info.name for info in app.registered_commands}), ""
        )
        usage = UsageError(
            printable(error.format_message()), tip=f"podmgr {command} --help".replace("  ", " ")
        )
        sys.stderr.write(error_text(usage))
        code = 125 if is_run else usage.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _report("interrupted")
        code = 130
    except OSError as error:
        sys.stderr.write(error_text(PodmgrError(str(error), tip="podmgr doctor")))
        code = 125 if is_run else EXIT_FAILED
    except Exception as error:
        if os.environ.get("PODMGR_DEBUG"):
            raise
        _report(f"unexpected {type(error).__name__}: {error}")
        _report("this is a bug; PODMGR_DEBUG=1 shows where it happens")
        code = 125 if is_run else EXIT_FAILED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)
