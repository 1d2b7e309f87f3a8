"""`podmgr demo`: a throw-away pod, the manifests of examples/, and declared against measured.

Apart from the command, which alone uses it: --help shall load nothing that attaches programs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from podmgr import proc
from podmgr.attachment import Target
from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import (
    Pod,
    checked,
    send_datagrams,
    throughput,
    throw_away_pod,
    time_datagrams,
)
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroups, pins, tc
from podmgr.programs.find import shipped_folder
from podmgr.reconcile.observe import observe
from podmgr.reconcile.outcome import Outcome, Report
from podmgr.reconcile.transaction import apply, clean
from podmgr.rules.chance import DRAWS
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.bandwidth import Bandwidth
from podmgr.rules.kinds.delay import Delay, least_ns, most_ns
from podmgr.rules.kinds.loss import ExponentialLoss, UniformLoss
from podmgr.rules.kinds.loss_bursts import BurstLoss
from podmgr.rules.rule import Rule
from podmgr.rules.units import format_rate
from podmgr.settings import Settings
from podmgr.targets.wishes import from_manifests

BANDWIDTH_SECONDS = 10
BANDWIDTH_TOLERANCE = 0.03
DATAGRAMS = 100_000
TIMED, TIMED_GAP_MS = 2_500, 2
DELAY_TOLERANCE_MS = 1.0
FAIR_DEVIATIONS = 4.0  # of a mean: 99.99 % of fair ones lie no farther off
_UDP_PORT, _DROPPED_PORT = 4444, 5353
_FREED_SECONDS = 5.0  # the kernel frees programs some time after they are let go


class Row(NamedTuple):
    """One line of the demo's table."""

    rule: str
    declared: str
    measured: str
    counters: str
    is_right: bool


def demonstrate(settings: Settings, *, show: Callable[[Row], None], report: Report) -> bool:
    """Measure every example, one row each; whether all were right and nothing is left."""
    root = cgroups.find_root(settings.cgroup_root)
    examples = shipped_folder("examples")
    settings = Settings(settings.state_dir, settings.bpffs, settings.cgroup_root, examples, True)
    rows: list[Row] = []
    program_ids: set[int] = set()

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    with throw_away_pod(root) as pod:
        target = Target("", pod.cgroup)

        @contextmanager
        def under(example: str, *rules: str) -> Iterator[Rule]:
            overriding = [rule for text in rules for rule in parse_rule_option(text)]
            paths = [str(examples / f"{example}.yaml")]
            made, failed = from_manifests(
                paths, str(pod.cgroup.path), [], overriding, settings, report=report
            )
            outcomes: list[Outcome] = failed + apply(made, settings, runner=proc.run, report=report)
            for outcome in outcomes:
                if outcome.error:
                    raise outcome.error
                program_ids.add(outcome.program_id or 0)
            try:
                yield made[0].rules[0].rule
            finally:
                clean(target.selection, settings, runner=proc.run, report=report)

        report("without a rule")
        add(Row("none", "-", f"{throughput(pod, 2) / 1e6:,.0f} mbps", "-", True))
        for limit in ("", "bandwidth=100 mbps egress", "bandwidth=1 gbps egress"):
            with under("bandwidth", *([limit] if limit else [])) as rule:
                report(f"{rule}: iperf3 for {BANDWIDTH_SECONDS} s")
                add(_bandwidth_row(rule, pod, settings))
        for example in ("loss-uniform", "loss-exponential"):
            with under(example) as rule:
                report(f"{rule}: {DATAGRAMS:,} UDP packets")
                add(_loss_row(rule, pod, settings))
        with under("burst-loss") as rule:
            report(f"{rule}: {DATAGRAMS:,} UDP packets")
            add(_burst_row(rule, pod, settings))
        if _has_fq():
            for example in ("delay", "jitter"):
                with under(example) as rule:
                    report(f"{rule}: {TIMED:,} UDP packets")
                    add(_delay_row(rule, pod, settings))
        else:
            report("delay and jitter are left out: this kernel has no qdisc fq (modprobe sch_fq)")
        with under("dropper") as rule:
            report(f"{rule}: 1,000 UDP packets to the port, 1,000 to another")
            add(_dropper_row(rule, pod, settings))
    left = leftovers(settings, target, program_ids)
    nothing = "nothing" if not left else "; ".join(left)
    add(Row("after clean", "nothing left", nothing, "-", not left))
    return all(row.is_right for row in rows)


def leftovers(settings: Settings, target: Target, program_ids: set[int]) -> list[str]:
    """What the kernel still holds of these programs and this cgroup; the kernel frees with a delay."""
    deadline = time.monotonic() + _FREED_SECONDS
    while True:
        left = [f"pin {pin.program}" for pin in pins.pinned(settings.bpffs) if pin.owner == target.owner]
        shown = json.loads(checked(proc.run(["bpftool", "-j", "prog", "show"])) or "[]")
        left += [f"program {item['id']}" for item in shown if item.get("id") in program_ids]
        left += [f"cgroup {target.cgroup.path}"] if target.cgroup.path.exists() else []
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _bandwidth_row(rule: Rule, pod: Pod, settings: Settings) -> Row:
    assert isinstance(rule, Bandwidth)
    limit = rule.rate_bits_per_second
    measured = throughput(pod, BANDWIDTH_SECONDS)
    error = measured / limit - 1
    passed, dropped = _counters(pod, settings)
    return Row(
        str(rule),
        f"{format_rate(limit)} ±{BANDWIDTH_TOLERANCE:.0%}",
        f"{measured / 1e6:,.2f} mbps ({error:+.1%})",
        f"{passed:,} passed, {dropped:,} dropped",
        abs(error) <= BANDWIDTH_TOLERANCE,
    )


def _loss_row(rule: Rule, pod: Pod, settings: Settings) -> Row:
    assert isinstance(rule, UniformLoss | ExponentialLoss)
    probability = rule.drop_threshold / DRAWS
    low, high = binomial_interval(DATAGRAMS, probability)
    sent, errors, received = send_datagrams(pod, _UDP_PORT, DATAGRAMS)
    lost = sent - received
    passed, dropped = _counters(pod, settings)
    measured = f"{lost:,} lost ({lost / DATAGRAMS:.3%})" + (f", {errors} refused" if errors else "")
    return Row(
        str(rule),
        f"{probability:.3%}: {low:,} to {high:,}",
        measured,
        f"{passed:,} passed, {dropped:,} dropped",
        low <= lost <= high and dropped >= lost and not errors,
    )


def _burst_row(rule: Rule, pod: Pod, settings: Settings) -> Row:
    """Packets, and how many in a row: both come of the runs, of which there are few."""
    assert isinstance(rule, BurstLoss)
    probability, length = float(rule.percent) / 100, float(rule.length)
    runs = DATAGRAMS * probability / length
    # A run's length is geometric, of variance N (N - 1), and what runs lose together has that of their sum.
    stray = FAIR_DEVIATIONS * (length * (length - 1) / runs) ** 0.5
    lost_stray = FAIR_DEVIATIONS * (runs * (2 * length - 1) * length) ** 0.5
    numbers = sorted(number for number, _ in time_datagrams(pod, _UDP_PORT, DATAGRAMS, 0))
    lengths = [later - earlier - 1 for earlier, later in pairwise([-1, *numbers, DATAGRAMS])]
    found = [gap for gap in lengths if gap]
    lost, mean = sum(found), fmean(found) if found else 0.0
    passed, dropped = _counters(pod, settings)
    expected = DATAGRAMS * probability
    return Row(
        str(rule),
        f"{expected - lost_stray:,.0f} to {expected + lost_stray:,.0f}, {length:g} ±{stray:.2g} in a row",
        f"{lost:,} lost, {mean:.2f} in a row",
        f"{passed:,} passed, {dropped:,} dropped",
        abs(lost - expected) <= lost_stray and abs(mean - length) <= stray and dropped >= lost,
    )


def _has_fq() -> bool:
    try:
        tc.require_qdisc("fq")
    except PodmgrError:
        return False
    return True


def _delay_row(rule: Rule, pod: Pod, settings: Settings) -> Row:
    """The median, and where 98 % lie: a busy machine holds single packets up."""
    assert isinstance(rule, Delay)
    low, middle, high = (delay_ns / 1e6 for delay_ns in (least_ns(rule), rule.time_ns, most_ns(rule)))
    arrivals = time_datagrams(pod, _UDP_PORT, TIMED, TIMED_GAP_MS)
    delays = sorted(delay_ms for _, delay_ms in arrivals)
    found = [delays[len(delays) * percent // 100] for percent in (1, 50, 99)] if delays else [0.0] * 3
    spread = "" if low == high else f", {found[0]:.1f} to {found[2]:.1f} ms"
    overtaken = sum(earlier > later for (earlier, _), (later, _) in pairwise(arrivals))
    passed, dropped = _counters(pod, settings)
    is_right = low <= found[0] and found[2] <= high + DELAY_TOLERANCE_MS and len(arrivals) == TIMED
    return Row(
        str(rule),
        f"{middle:g} ms" if low == high else f"{low:g} to {high:g} ms, in order",
        f"{found[1]:.2f} ms{spread}" + (f", {overtaken} overtaken" if overtaken else ""),
        f"{passed:,} passed, {dropped:,} dropped",
        is_right and overtaken <= TIMED // 100,
    )


def _dropper_row(rule: Rule, pod: Pod, settings: Settings) -> Row:
    _, _, at_port = send_datagrams(pod, _DROPPED_PORT, 1_000)
    _, _, elsewhere = send_datagrams(pod, _UDP_PORT, 1_000)
    passed, dropped = _counters(pod, settings)
    return Row(
        str(rule),
        "0 and 1,000 arrive",
        f"{at_port:,} and {elsewhere:,}",
        f"{passed:,} passed, {dropped:,} dropped",
        (at_port, elsewhere, dropped) == (0, 1_000, 1_000),
    )


def _counters(pod: Pod, settings: Settings) -> tuple[int, int]:
    """Passed and dropped packets, as `podmgr list` shows them."""
    for item in observe(settings)[0]:
        if item.attachment.cgroup_id == pod.cgroup.id and item.counters:
            return item.counters.passed_packets, item.counters.dropped_packets
    return 0, 0
