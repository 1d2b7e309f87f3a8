"""`kubectl podmgr annotate`: writes rules into annotations, once they have been read and looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podmgr.cli.options import Kubeconfig, KubeContext, Namespace, Output
from podmgr.cli.render import Format, columns, document, error_text, say
from podmgr.cli.workstation import OwnProfiles, RequestTimeout, connect, profiles
from podmgr.cluster.dryrun import DryRun
from podmgr.errors import EXIT_DONE, EXIT_FAILED, EXIT_PARTLY, EXIT_USAGE, UsageError, printable
from podmgr.settings import DEFAULT_PROGRAM_DIR

if TYPE_CHECKING:
    from podmgr.cluster.annotate import Meant, Place, Result
    from podmgr.rules.annotating import Change
    from podmgr.rules.words import Profiles

_SHOWN = {DryRun.NONE: "", DryRun.CLIENT: " (dry run)", DryRun.SERVER: " (server dry run)"}
_FORM = "annotate pod/NAME 'delay=80ms rtt', or annotate pods -l app=web 'loss=2% egress'"


def command(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET... KEY=VALUE... KEY-...",
            help="TARGET: pod/NAME, svc/NAME, ns/NAME, or deploy, rs, sts, ds, job, cronjob with a name; or "
            "a kind and names, or a kind with -l or --all. KEY is as in a rule, and podmgr.io/KEY is what is "
            "written. KEY- removes it, in both spellings; podmgr.io/KEY- that one alone.",
        ),
    ],
    namespace: Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("-A", "--all-namespaces", help="With -l or --all: of all namespaces.")
    ] = False,
    selector: Annotated[
        str,
        typer.Option(
            "-l", "--selector", metavar="LABELS", help="Objects with these labels.  [default kind: pods]"
        ),
    ] = "",
    select_all: Annotated[bool, typer.Option("--all", help="All objects of the kind.")] = False,
    lasts: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            help="Adds for=DURATION to each rule: it ends by itself so long after it was attached.",
        ),
    ] = None,
    template: Annotated[
        bool,
        typer.Option(
            "--template",
            help="Write into the pod template of a workload, which makes its pods anew. Without it, the pods "
            "that it has now are annotated, and keep running; those made later are not.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also where another value stands already.")
    ] = False,
    dry_run: Annotated[
        DryRun,
        typer.Option(
            "--dry-run", help="client: send nothing. server: have the server check, and keep nothing."
        ),
    ] = DryRun.NONE,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    request_timeout: RequestTimeout = "0",
    program_dir: OwnProfiles = DEFAULT_PROGRAM_DIR,
    output: Output = Format.TABLE,
) -> int:
    """Write rules as annotations. All is read by podmgr's grammar first: if one is wrong, nothing is sent.

    A workload's own annotations mean nothing to podmgr, so a workload stands for the pods that it has now,
    or with --template for its pod template. Of a namespace, enforce=true makes its rules hold beside all
    others. Nothing that stands there already is overwritten without --overwrite.
    """
    from podmgr.cluster import annotate
    from podmgr.rules import annotating

    meant, change_words = _meant(words, selector, select_all, namespace, all_namespaces, template)
    known = profiles(context, program_dir)
    changes = annotating.read(
        change_words,
        lasts=lasts,
        for_namespaces=all(wish.kind == "namespace" for wish in meant),
        profiles=known,
    )
    api = connect(kubeconfig, kube_context, request_timeout)
    meant = [
        wish if all_namespaces else wish._replace(namespace=wish.namespace or api.namespace) for wish in meant
    ]
    found, failed = annotate.find(api, meant)
    results = annotate.write(
        api, found, lambda there: annotating.applied(changes, there, overwrites=overwrite), dry_run
    )
    if not found and not failed:
        raise UsageError("nothing is selected", tip="kubectl get shows what there is; see -n, -A and -l")
    results += failed
    _print(results, output, dry_run)
    _tell(found, changes, meant, results, known)
    return _code(results)


def _meant(
    words: Sequence[str],
    labels: str,
    select_all: bool,
    namespace: str | None,
    all_namespaces: bool,
    template: bool,
) -> tuple[list[Meant], list[str]]:
    """The objects, and the words that say what to write. Raises UsageError for what cannot be meant."""
    from podmgr.cluster.annotate import Meant, require_template
    from podmgr.rules.annotating import is_change
    from podmgr.targets.names import KUBERNETES_KINDS, Scope, read

    at = next((at for at, word in enumerate(words) if is_change(word)), len(words))
    targets, change_words = list(words[:at]), list(words[at:])
    is_many = bool(labels) or select_all
    if labels and select_all:
        raise UsageError("--all means all, -l some", tip="leave one of them out")
    if namespace and all_namespaces:
        raise UsageError("-A is all namespaces, -n is one", tip="leave one of them out")
    if all_namespaces and not is_many:
        raise UsageError("-A needs -l or --all", tip=_FORM)
    if is_many:
        if targets and (len(targets) > 1 or targets[0] not in KUBERNETES_KINDS):
            raise UsageError(
                f"{'-l' if labels else '--all'} selects objects, and targets name them: one of the two",
                tip=_FORM,
            )
        if not targets and select_all:
            raise UsageError("--all of which kind?", tip=_FORM)
        kind = KUBERNETES_KINDS[targets[0]] if targets else "pod"
        meant = [Meant(kind, (), labels, None if all_namespaces else namespace, template)]
    else:
        if not targets or (len(targets) == 1 and targets[0] in KUBERNETES_KINDS):
            raise UsageError("which objects? TARGET comes first", tip=_FORM)
        by_kind: dict[str, list[str]] = {}
        for target in read(targets, Scope(namespace))[0]:
            kind, _, name = target.partition("/")
            if kind == "cgroup":
                raise UsageError(
                    f"{printable(target)} is on a node, not in a cluster", tip="podmgr apply --rule, there"
                )
            by_kind.setdefault(kind, []).append(name)
        meant = [Meant(kind, tuple(names), "", namespace, template) for kind, names in by_kind.items()]
    for wish in meant:
        if template:
            require_template(wish.kind)
    return meant, change_words


def _print(results: Sequence[Result], output: Format, dry_run: DryRun) -> None:
    if output in (Format.JSON, Format.YAML):
        rows = [_row(result) for result in results]
        print(document({"version": 1, "dry_run": dry_run.value, "results": rows}, output), end="")
    else:
        table = [["NAMESPACE", "TARGET", "ANNOTATION", "RESULT"]]
        for result in results:
            if result.error is None:
                place, value = result.place, result.value
                shown = f"{result.key}={value}" if value is not None else result.key
                cells = [place.namespace or "-", place.shown, shown or "-", f"{result.done}{_SHOWN[dry_run]}"]
                table.append([printable(cell) for cell in cells])
        print(columns(table) if len(table) > 1 else "", end="", flush=True)
    for result in results:
        if result.error is not None:
            where = f" in {result.place.namespace}" if result.place.namespace else ""
            typer.echo(
                error_text(result.error, where=printable(f"{result.place.shown}{where}: ")),
                err=True,
                nl=False,
            )


def _row(result: Result) -> dict[str, Any]:
    return {
        "namespace": result.place.namespace,
        "target": result.place.target,
        "template": result.place.is_template,
        "annotation": result.key,
        "value": result.value,
        "result": result.done.value,
        "error": result.error and result.error.message,
    }


def _tell(
    found: Mapping[Place, Mapping[str, Any]],
    changes: Sequence[Change],
    meant: Sequence[Meant],
    results: Sequence[Result],
    known: Profiles,
) -> None:
    """What is to be known besides: pods to come, and what is written amiss there already."""
    from podmgr.cluster.annotate import annotations_of
    from podmgr.cluster.workloads import is_workload
    from podmgr.rules.annotating import left_unread

    if any(result.error is not None for result in results) and not any(
        result.error is None for result in results
    ):
        say("nothing was changed")
        return
    for kind in dict.fromkeys(wish.kind for wish in meant if is_workload(wish.kind)):
        if any(wish.is_template for wish in meant):
            continue
        say(f"note: pods that the {kind} makes later are not annotated; --template is for them")
    written = {change.key for change in changes}
    for place, item in found.items():
        for error in left_unread(
            annotations_of(place, item), is_pods=place.kind != "namespace", profiles=known
        ):
            if error.key not in written:
                say(f"hint: {place.shown}: {error.message}; it stood there already")


def _code(results: Sequence[Result]) -> int:
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return EXIT_DONE
    if len(errors) < len(results):
        return EXIT_PARTLY
    return EXIT_USAGE if all(error.exit_code == EXIT_USAGE for error in errors) else EXIT_FAILED
