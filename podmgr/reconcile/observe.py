"""The read model: every attachment of the ledger as the kernel has it now. Changes nothing.

`list` shows it, watch and the metrics ask it; whether packets reach a program is found out here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from podmgr.attachment import Attachment
from podmgr.errors import PermissionDeniedError
from podmgr.kernel import bpf_syscall, starts
from podmgr.kernel.bpf_syscall import Counters
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.tc import Traffic
from podmgr.reconcile import chain, ledger
from podmgr.reconcile.actual import Sight, pin_of, recorded, sees_all, unknown_pins
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.rules.kinds import template_of
from podmgr.rules.rule import Figure
from podmgr.rules.timing import ALWAYS
from podmgr.settings import Settings

# Of so many packets a program which counts them all must have seen one in so many; a few, such as
# neighbour discovery of a new interface, it may have seen before others came in between.
_MANY_PACKETS = _ONE_IN = 20
_SMALL_BYTES = 60


class Observed(NamedTuple):
    """An attachment as the kernel has it now; not `is_known`: as it is written, nobody could look."""

    attachment: Attachment
    is_active: bool
    counters: Counters | None
    traffic: Traffic | None = None
    is_bypassed: bool = False
    is_over: bool = False
    figures: tuple[Figure, ...] = ()
    is_known: bool = True

    @property
    def state(self) -> str:
        """As `list` calls it, in every format."""
        if not self.is_known:
            return "unknown"
        if self.is_over:
            return "over"
        return "bypassed" if self.is_bypassed else "active" if self.is_active else "missing"


def observe(settings: Settings) -> tuple[list[Observed], int]:
    """Every attachment of the ledger, read back from the kernel, and how many pins it lacks.

    While another podmgr is at work, pins come before their rows, so none is said to be lacking.

    Raises PermissionDeniedError if we may not look, DamagedLedgerError if the ledger cannot be
    read. Takes no lock, and starts no process.
    """
    rows = recorded(settings)
    observed = []
    with Namespaces() as namespaces:
        sight = Sight(settings, namespaces)
        attached = set(sight.attached(rows))
        traffic = {row: sight.traffic(row) for row in attached if sees_all(settings, row)}
    for row in sorted(rows, key=_order):
        is_active = row in attached
        pin = pin_of(settings, row)
        counters = bpf_syscall.pinned_counters(pin.counters, row.position) if is_active else None
        item = Observed(
            row, is_active, counters, traffic.get(row), is_over=is_active and _is_over(settings, row)
        )
        observed.append(item._replace(is_bypassed=_is_bypassed(item)))
    unknown = 0 if ledger.is_locked(settings.state_dir) else len(unknown_pins(settings, rows))
    return observed, unknown


def written(settings: Settings) -> list[Observed]:
    """The rows of the ledger, none of which was looked for: for users who may read it, and no more.

    None if they may not read that either. Raises DamagedLedgerError if it cannot be read as one.
    """
    rows: list[Attachment] = []
    with suppress(PermissionDeniedError):
        rows = sorted(ledger.read(settings.state_dir), key=_order)
    return [Observed(row, is_active=False, counters=None, is_known=False) for row in rows]


def _is_over(settings: Settings, row: Attachment) -> bool:
    if row.rule is None or row.rule.timing == ALWAYS:
        return False
    return starts.is_over(row.rule, starts.Starts(settings.bpffs, row.owner).of(row.rule))


def _order(row: Attachment) -> tuple[str, str, int]:
    """Those of a target together, as packets meet them; else as they were attached."""
    stage = template_of(row.rule).stage if row.rule else -1
    return (row.pod.namespace if row.pod else "", row.target, stage)


def with_figures(settings: Settings, observed: Iterable[Observed]) -> list[Observed]:
    """The same with the numbers that their programs keep: some hundred look-ups each."""
    result = []
    for item in observed:
        row = item.attachment
        if row.rule is not None and item.is_active:
            counted = bpf_syscall.pinned_figures(pin_of(settings, row).figures)
            item = item._replace(figures=tuple(row.rule.figures(counted) if counted else ()))
        result.append(item)
    return result


def since(before: Iterable[Observed], now: Iterable[Observed]) -> list[Observed]:
    """What was observed later, bypassed if between the two a program saw nothing of what passed."""
    known = {item.attachment.identity: item for item in before}
    result = []
    for item in now:
        earlier = known.get(item.attachment.identity)
        if earlier and earlier.attachment.program_id == item.attachment.program_id:
            item = item._replace(is_bypassed=item.is_bypassed or _is_bypassed(item, earlier))
        result.append(item)
    return result


def settled(settings: Settings, seconds: float) -> tuple[list[Observed], int]:
    """As `observe`, after a second look so much later; 0: one look alone."""
    before, unknown = observe(settings)
    if not seconds:
        return before, unknown
    time.sleep(seconds)
    now, unknown = observe(settings)
    return since(before, now), unknown


def bypassed(outcomes: Iterable[Outcome], settings: Settings, seconds: float) -> list[str]:
    """After so long, a line for each rule of these that is attached while packets pass it by."""
    ids = {outcome.program_id for outcome in outcomes if outcome.action is not Action.DETACHED}
    observed, _ = settled(settings, seconds)
    return [
        f"{item.attachment.target}: {bypassed_text(item)}"
        for item in observed
        if item.is_bypassed and item.attachment.program_id in ids
    ]


def bypassed_text(item: Observed) -> str:
    """What there is to say of a program that nothing reaches."""
    row = item.attachment
    link = next(link for link in row.links if not chain.is_watched(row, link))
    return (
        f"'{row.rule}' is attached, but packets pass it by: {link.name} counts them, its program does not; "
        f"a filter or a tcx program before it ends the chain (tc filter show dev {link.name} {link.side}, "
        "bpftool net)"
    )


def _is_bypassed(now: Observed, before: Observed | None = None) -> bool:
    """Whether it saw hardly a packet while its interfaces counted many, since then or since attached.

    Frames of 60 bytes and less, such as ARP's and those of bridges, are none of a rule's.
    """
    row = now.attachment
    if now.traffic is None or now.counters is None:
        return False
    then = Traffic(row.links_packets, row.links_bytes) if before is None else before.traffic
    seen = _packets(now.counters) - (_packets(before.counters) if before and before.counters else 0)
    if then is None or then.packets < 0:
        return False
    packets, size = now.traffic.packets - then.packets, now.traffic.bytes - then.bytes
    return packets >= _MANY_PACKETS and packets > _ONE_IN * seen and size > _SMALL_BYTES * packets


def _packets(counters: Counters) -> int:
    return counters.passed_packets + counters.dropped_packets
