"""`podmgr doctor`: its options, and its list; `cli.doctor` examines the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from podmgr.cli.options import Bpffs, CgroupRoot, Kubeconfig, KubeContext, Output, StateDir, settings_of
from podmgr.cli.render import GREEN, RED, YELLOW, Format, document, painted
from podmgr.errors import EXIT_DONE, EXIT_FAILED, printable
from podmgr.settings import DEFAULT_BPFFS, DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from podmgr.cli.doctor import Finding


def command(
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
    from podmgr.cli.doctor import examine

    settings = settings_of(context, state_dir, bpffs, cgroup_root)
    listing = _Findings(output)
    for finding in examine(settings, runner=proc.run, named=kubeconfig, context=kube_context):
        listing.add(finding)
    listing.end()
    return EXIT_FAILED if listing.cannot_work else EXIT_DONE


class _Findings:
    """The doctor's findings, a line as soon as it is known; with -o json, all of it at the end."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._findings: list[Finding] = []

    def add(self, finding: Finding) -> None:
        self._findings.append(finding)
        if not self._is_document:
            colour = {"ok": GREEN, "missing": RED}.get(finding.status, YELLOW)
            advice = f"; {finding.advice}" if finding.advice else ""
            status = painted(finding.status.ljust(7), colour)
            print(f"{status}   {finding.name.ljust(17)}   {printable(finding.found + advice)}", flush=True)

    def end(self) -> None:
        if self._is_document:
            rows = [finding._asdict() for finding in self._findings]
            print(document({"version": 1, "findings": rows}, self._form), end="")

    @property
    def cannot_work(self) -> bool:
        return any(finding.status == "missing" for finding in self._findings)

    @property
    def _is_document(self) -> bool:
        return self._form in (Format.JSON, Format.YAML)
