"""The qdiscs that tc programs need on an interface: clsact for the filters, fq for what delays.

Owns which of them podmgr made, by the marks beside the pins. A qdisc of others is used where it
serves, and never replaced or removed. What is said of an fq that cannot be had is said here.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping

from podmgr.errors import PodmgrError
from podmgr.kernel import tc
from podmgr.kernel.pins import Mark
from podmgr.kernel.tc import FqLimits, Qdisc, TrafficControl
from podmgr.rules.hooks import without_fq
from podmgr.rules.rule import FqNeeds, Rule
from podmgr.rules.units import format_time

CLSACT = "clsact"
FQ = "fq"

_KERNELS_OWN = "0:"
_FQ_HANDLE = "7ab0:"
# The programs drop what is too much, or too far in the future: fq's own limits shall not come first.
_NS_PER_MS = 1_000_000
_NO_NEEDS = FqNeeds(0, 0)
OURS = FqLimits(packets=250_000, flow_packets=250_000, horizon_ns=30 * 10**9)


class NoFqError(PodmgrError):
    """Where packets would be delayed there is no fq: why, and what would bring it."""

    def __init__(self, reason: str, remedy: str, *, detail: str | None = None) -> None:
        super().__init__(f"packets are delayed through the fq qdisc, {reason}", tip=remedy, detail=detail)
        self.reason = reason
        self.remedy = remedy

    def of(self, rule: Rule) -> PodmgrError:
        """The same, said of a rule, with what does without."""
        return PodmgrError(
            f"'{rule}' delays packets through the fq qdisc, {self.reason}",
            tip=self.remedy + (f", or use {without_fq(rule)}" if rule.without_fq else ""),
            detail=self.detail,
        )


def not_root(lacking: Mapping[str, str]) -> NoFqError:
    """Of interfaces, given with their root qdiscs, that have no fq and are not ours to give one."""
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(lacking.items()))
    others = ", and so for the others" if len(lacking) > 1 else ""
    return NoFqError(
        f"which is not the root qdisc of {listed}",
        f"tc qdisc replace dev {shlex.quote(min(lacking))} root fq{others} (kernel module sch_fq)",
    )


def unknown_fq(error: PodmgrError) -> NoFqError:
    """Of a kernel without it, and what that kernel said."""
    return NoFqError("which this kernel does not have", "modprobe sch_fq", detail=error.message)


def lacking_clsact(namespace: int, index: int, name: str, there: Collection[Qdisc]) -> Mark | None:
    """The clsact to be made on an interface; None if it is there.

    Raises PodmgrError if the older ingress qdisc is in its place.
    """
    kinds = {qdisc.kind for qdisc in there}
    if CLSACT in kinds:
        return None
    if "ingress" in kinds:
        raise PodmgrError(
            f"{name} has an ingress qdisc that is not podmgr's, beside which there is no clsact",
            tip=f"its owner must use clsact instead, or use hook=cgroup; tc qdisc show dev {name}",
        )
    return Mark(namespace, index, CLSACT)


def lacking_fq(
    namespace: int,
    index: int,
    name: str,
    there: Collection[Qdisc],
    *,
    may_make: bool,
    needs: FqNeeds = _NO_NEEDS,
) -> Mark | None:
    """The fq to be made the root qdisc of an interface; None if it is there.

    Raises NoFqError if another is in its place, or none and it is not ours to make; or if it holds less
    than is needed, unless the kernel made it by itself and we may make our own.
    """
    root = next((qdisc for qdisc in there if qdisc.is_root), None)
    if tc.root_kind(there) == FQ:
        shortage = _shortage(name, there, needs)
        is_replaceable = may_make and root is not None and root.handle == _KERNELS_OWN
        if shortage is None:
            return None
        if not is_replaceable:
            raise shortage
    if root is not None and root.handle != _KERNELS_OWN:
        raise NoFqError(
            f"but {name} has the root qdisc {root.kind} {root.handle}, which is not podmgr's to replace",
            f"remove it (tc qdisc del dev {shlex.quote(name)} root)",
        )
    if not may_make:
        raise not_root({name: root.kind if root else "none"})
    return Mark(namespace, index, FQ)


def _shortage(name: str, there: Collection[Qdisc], needs: FqNeeds) -> NoFqError | None:
    """Of the fq of an interface, or one of its fqs: which of its options do not suffice."""
    for qdisc in there:
        lacking = _lacking(qdisc.limits, needs) if qdisc.kind == FQ and qdisc.limits else {}
        if lacking:
            return _too_small(name, there, lacking)
    return None


def _lacking(limits: FqLimits, needs: FqNeeds) -> dict[str, tuple[str, str]]:
    """The options that are too small: what they are, and what they must be."""
    horizon_ns = -(-needs.horizon_ns // _NS_PER_MS) * _NS_PER_MS
    lacking = {}
    if limits.packets < needs.flow_packets:
        lacking["limit"] = (str(limits.packets), str(needs.flow_packets))
    if limits.flow_packets < needs.flow_packets:
        lacking["flow_limit"] = (str(limits.flow_packets), str(needs.flow_packets))
    if limits.horizon_ns < needs.horizon_ns:
        lacking["horizon"] = (format_time(limits.horizon_ns), format_time(horizon_ns))
    return lacking


def _too_small(name: str, there: Collection[Qdisc], lacking: Mapping[str, tuple[str, str]]) -> NoFqError:
    # The kernel changes no qdisc that it made by itself, nor the children of one.
    is_made = any(qdisc.is_root and qdisc.kind == FQ and qdisc.handle != _KERNELS_OWN for qdisc in there)
    shown = " and ".join(
        f"{option} {has}, of which {needed} are needed" for option, (has, needed) in lacking.items()
    )
    options = " ".join(f"{option} {needed}" for option, (_, needed) in lacking.items())
    return NoFqError(
        f"and that of {name} has {shown}",
        f"tc qdisc {'change' if is_made else 'replace'} dev {shlex.quote(name)} root fq {options}",
    )


def enlarged(mark: Mark, there: Collection[Qdisc], control: TrafficControl) -> Collection[Qdisc]:
    """What is there, where an fq of ours that an older release made has been given the limits of this one.

    What waits in it stays. Raises RefusedError.
    """
    ours = next((qdisc for qdisc in there if _is_ours(qdisc)), None)
    if ours is None or ours.limits is None:
        return there
    limits = FqLimits(*map(max, ours.limits, OURS))
    if limits == ours.limits:
        return there
    control.change_root(mark.index, FQ, _FQ_HANDLE, tc.fq_options(limits))
    return [qdisc._replace(limits=limits) if qdisc is ours else qdisc for qdisc in there]


def _is_ours(qdisc: Qdisc) -> bool:
    return qdisc.is_root and (qdisc.kind, qdisc.handle) == (FQ, _FQ_HANDLE)


def make(mark: Mark, control: TrafficControl) -> None:
    """Make it on the interface. Raises RefusedError, also if another has taken the place."""
    if mark.kind == FQ:
        control.add_root(mark.index, FQ, _FQ_HANDLE, tc.fq_options(OURS))
    else:
        control.add_clsact(mark.index)


def unmake(mark: Mark, there: Collection[Qdisc], control: TrafficControl) -> None:
    """Remove a qdisc of ours, unless it is gone or another has taken its place. Raises RefusedError."""
    if mark.kind == CLSACT and any(qdisc.kind == CLSACT for qdisc in there):
        control.delete_clsact(mark.index)
    if mark.kind == FQ and any(_is_ours(qdisc) for qdisc in there):
        control.delete_root(mark.index)
