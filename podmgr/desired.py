"""What is wished, made concrete: targets and their rules as rows and specs, and who failed so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from podmgr import tc
from podmgr.actuator import Failures
from podmgr.annotations import SourcedRule
from podmgr.build import SpecMaker
from podmgr.catalog import recipe
from podmgr.cgroups import Cgroup
from podmgr.errors import PodmgrError
from podmgr.plan import Attachment, PodRef
from podmgr.proc import Runner
from podmgr.rules import Direction, Rule
from podmgr.settings import Settings
from podmgr.spec import ProgramSpec


@dataclass(frozen=True, slots=True)
class Target:
    """A cgroup as the user named it. A pod with a network namespace of its own keeps its loopback."""

    name: str
    cgroup: Cgroup
    pod: PodRef | None = None
    counts_loopback: bool = True

    @property
    def owner(self) -> str:
        """Names the folder of its pins."""
        return self.pod.uid if self.pod and self.pod.uid else str(self.cgroup.id)


@dataclass(frozen=True, slots=True)
class Wish:
    """All the rules that one target shall have, and no others."""

    target: Target
    rules: tuple[SourcedRule, ...]


class Desired:
    """The wishes as rows and specs, and the targets that failed so far: at most once each."""

    def __init__(self, wishes: Sequence[Wish], settings: Settings) -> None:
        self.wishes = {wish.target.cgroup.id: wish for wish in wishes}
        self.specs: dict[str, ProgramSpec] = {}
        self._rows: dict[int, list[Attachment]] = {}
        self._failed: dict[int, tuple[str, PodmgrError]] = {}
        maker = SpecMaker(settings)
        for cgroup_id, wish in self.wishes.items():
            self._rows[cgroup_id] = []
            for sourced in sorted(wish.rules, key=lambda sourced: recipe(sourced.rule).order):
                try:
                    spec = maker.spec(sourced.rule, counts_loopback=wish.target.counts_loopback)
                except PodmgrError as error:
                    self.fail(cgroup_id, str(sourced.rule), error)
                    break
                self.specs[spec.digest] = spec
                self._rows[cgroup_id].append(_wanted_row(wish.target, sourced, spec))

    @property
    def cgroup_ids(self) -> Collection[int]:
        """The targets that have not failed."""
        return self.wishes.keys() - self._failed.keys()

    @property
    def rows(self) -> list[Attachment]:
        """The rows of the targets that have not failed."""
        return [row for cgroup_id in self.wishes if self.is_alive(cgroup_id) for row in self._rows[cgroup_id]]

    def is_alive(self, cgroup_id: int) -> bool:
        return cgroup_id not in self._failed

    def all_failed(self) -> bool:
        return not self.cgroup_ids

    def fail(self, cgroup_id: int, rule: str, error: PodmgrError) -> None:
        self._failed.setdefault(cgroup_id, (rule, error))

    def fail_all(self, failures: Failures) -> None:
        for row, error in failures:
            self.fail(row.cgroup_id, row.rule, error)

    def failures(self) -> list[tuple[Target, str, PodmgrError]]:
        """The targets that failed, with the rule and the reason."""
        return [
            (self.wishes[cgroup_id].target, rule, error) for cgroup_id, (rule, error) in self._failed.items()
        ]

    def require_one_cgroup_each(self, rows: Collection[Attachment]) -> None:
        """A pod's UID names the folder of its pins, so it can stand for one living cgroup only."""
        for cgroup_id in list(self.cgroup_ids):
            target = self.wishes[cgroup_id].target
            for row in rows:
                if row.owner == target.owner and row.cgroup_id != cgroup_id:
                    error = PodmgrError(
                        f"the pod {target.owner} is already on {row.cgroup_path}",
                        tip=f"podmgr clean cgroup/{row.cgroup_path} first, or leave metadata.uid out",
                    )
                    self.fail(cgroup_id, "", error)

    def require_fq(self, runner: Runner) -> None:
        """A program that stamps departure times does nothing without fq: fail instead."""
        for cgroup_id, wish in self.wishes.items():
            for rule in (sourced.rule for sourced in wish.rules if recipe(sourced.rule).needs_fq):
                try:
                    _require_fq(wish.target.cgroup, rule, runner)
                except PodmgrError as error:
                    self.fail(cgroup_id, str(rule), error)


def _require_fq(cgroup: Cgroup, rule: Rule, runner: Runner) -> None:
    if rule.direction is Direction.INGRESS:
        raise PodmgrError(
            f"'{rule}' cannot delay what arrives: the cgroup hook has no departure times on ingress",
            tip="limit ingress with algorithm=tbf, such as bandwidth=10 mbps ingress",
        )
    lacking = tc.interfaces_without_fq(cgroup, runner=runner)
    if lacking:
        listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(lacking.items()))
        raise PodmgrError(
            f"'{rule}' delays packets through the fq qdisc, which is not the root qdisc of {listed}",
            tip="tc qdisc replace dev DEV root fq (kernel module sch_fq), or use algorithm=tbf",
        )


def _wanted_row(target: Target, sourced: SourcedRule, spec: ProgramSpec) -> Attachment:
    return Attachment(
        target=target.name,
        owner=target.owner,
        cgroup_path=str(target.cgroup.path),
        cgroup_id=target.cgroup.id,
        rule=str(sourced.rule),
        kind=sourced.rule.kind,
        direction=sourced.rule.direction,
        hook="cgroup",
        source=sourced.source,
        digest=spec.rule_digest,
        object_digest=spec.digest,
        pod=target.pod,
    )
