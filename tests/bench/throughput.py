"""What a rule costs that limits nothing: TCP out of a pod, and CPU time of the whole machine for it.

Each arm is a pod of its own, a veth pair away from a world of its own, so that arms take turns
within seconds. What is judged is the median over turns of an arm's throughput as a share of that of
the pod without a rule in the same turn. A second pod without a rule shows how much of a difference
is chance. One rule is judged, not two together; edt works through the kernel's fq and is judged by
what it adds to that. CPU time is the machine's: in the network, most of it is not the process's own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from podmgr import proc
from podmgr.demo.throwaway import WORLD_ADDRESS, Pod, checked, inside, wait_for_listener
from podmgr.errors import PodmgrError
from podmgr.reconcile.observe import observe
from podmgr.settings import Settings
from tests.bench.effort import Effort
from tests.bench.findings import Chart, Claim, Findings, Ratio, Series, Table, Value, ratio
from tests.bench.pods import own_settings, pods, put_under

EFFORT = Effort(seconds=1, rounds=6)
FLOWS_IN_A_ROUND = (1, 2, 1, 4)  # claims are about one
LEAST_SHARE = 0.97  # of the throughput without a rule

_PORT = 5201
_GB = 1e9


@dataclass(frozen=True)
class Arm:
    """What lies on a pod: rules of podmgr, or commands in its network."""

    name: str
    rules: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


NO_RULE = Arm("no rule")
BANDWIDTH = Arm("bandwidth, cgroup", ("bandwidth=400 gbps egress",))
EDT = Arm("edt, tc", ("bandwidth=400 gbps egress algorithm=edt",))
LOSS = Arm("loss, tc", ("loss=uniform egress 0%",))
TBF = Arm("kernel tbf", commands=("tc qdisc add dev eth0 root tbf rate 300gbit burst 64mb limit 512mb",))
FQ = Arm("kernel fq", commands=("tc qdisc add dev eth0 root fq",))
NETEM = Arm("kernel netem", commands=("tc qdisc add dev eth0 root netem loss 0% limit 100000",))
ARMS = (
    NO_RULE,
    Arm("no rule, again"),
    BANDWIDTH,
    Arm("bandwidth, tc", ("bandwidth=400 gbps egress hook=tc",)),
    EDT,
    FQ,
    Arm("loss, cgroup", ("loss=uniform egress 0% hook=cgroup",)),
    LOSS,
    Arm("bandwidth and loss", (*BANDWIDTH.rules, *LOSS.rules)),
    TBF,
    Arm(
        "kernel htb",
        commands=(
            "tc qdisc add dev eth0 root handle 1: htb default 1",
            "tc class add dev eth0 parent 1: classid 1:1 htb"
            " rate 300gbit burst 64mb cburst 64mb quantum 200000",
        ),
    ),
    NETEM,
    Arm(
        "kernel iptables",
        commands=("iptables -A OUTPUT -m statistic --mode random --probability 0 -j DROP",),
    ),
)


@dataclass(frozen=True)
class Transfer:
    """One run of iperf3."""

    arm: str
    flows: int
    turn: int
    gbit_per_second: float
    cpu_seconds_per_gb: float


@dataclass(frozen=True)
class Share:
    """What an arm reaches with so many flows, beside what another reached in the same turns."""

    arm: str
    flows: int
    gbit_per_second: float
    throughput: Ratio
    cpu_seconds_per_gb: float
    cpu: Ratio


def measure(effort: Effort) -> Findings:
    """All arms in turn. Leaves nothing behind."""
    seconds, rounds = max(1, round(effort.seconds or 1)), effort.rounds or 1
    with (
        pods([arm.name.replace(", ", "-").replace(" ", "-") for arm in ARMS]) as made,
        own_settings() as settings,
    ):
        lacking = {
            arm.name: why for arm, pod in zip(ARMS, made, strict=True) if (why := _lay(arm, pod, settings))
        }
        there = [(arm, pod) for arm, pod in zip(ARMS, made, strict=True) if arm.name not in lacking]
        with _servers([pod for _, pod in there]):
            for arm, pod in there:
                _transfer(arm, pod, 1, 0, seconds)  # a pod's first one is slower
            transfers = [
                _transfer(arm, pod, flows, turn, seconds)
                for turn, flows in enumerate(FLOWS_IN_A_ROUND * rounds)
                for arm, pod in _rotated(there, turn)
            ]
        counted = _counted(settings, dict(there))
    shares = [
        share(transfers, arm.name, flows) for flows in sorted(set(FLOWS_IN_A_ROUND)) for arm, _ in there
    ]
    return Findings(
        tables=(*_tables(shares, lacking), counted),
        charts=(_chart(shares),),
        claims=_claims(transfers, [arm for arm, _ in there]),
        notes=tuple(f"{name} is missing here: {why}" for name, why in lacking.items()),
    )


def _lay(arm: Arm, pod: Pod, settings: Settings) -> str | None:
    """Put on the pod what the arm says; or why this machine cannot."""
    try:
        if arm.rules:
            put_under(pod, arm.rules, settings)
        for command in arm.commands:
            checked(proc.run(inside(pod.pid, command.split())))
    except PodmgrError as error:
        return " ".join((error.detail or error.message).split())
    return None


# Transfers


@contextmanager
def _servers(there: Sequence[Pod]) -> Iterator[None]:
    """An iperf3 in each pod's world."""
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for pod in there:
            servers.append(pod.start_outside(["iperf3", "-s"], streams=subprocess.DEVNULL))
        for server in servers:
            wait_for_listener(server.pid, _PORT)
        yield
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _transfer(arm: Arm, pod: Pod, flows: int, turn: int, seconds: int) -> Transfer:
    before = _busy_seconds()
    output = pod.run(["iperf3", "-c", WORLD_ADDRESS, "-P", str(flows), "-t", str(seconds), "-J"])
    busy = _busy_seconds() - before
    received = json.loads(output)["end"]["sum_received"]
    return Transfer(
        arm.name, flows, turn, received["bits_per_second"] / 1e9, busy / (received["bytes"] / _GB)
    )


def _busy_seconds() -> float:
    """Of all CPUs since boot: all that is not idle, waiting or stolen (proc_stat(5))."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _rotated(there: list[tuple[Arm, Pod]], turn: int) -> list[tuple[Arm, Pod]]:
    """Nobody comes always first, or always after the same time."""
    start = turn % len(there)
    return there[start:] + there[:start]


# Findings


def share(transfers: Sequence[Transfer], arm: str, flows: int, of: str = NO_RULE.name) -> Share:
    """Of an arm beside another; the ratios are medians over the turns' own ratios."""
    ours, theirs = (
        {item.turn: item for item in transfers if (item.arm, item.flows) == (name, flows)}
        for name in (arm, of)
    )
    return Share(
        arm,
        flows,
        median(item.gbit_per_second for item in ours.values()),
        ratio([item.gbit_per_second / theirs[turn].gbit_per_second for turn, item in ours.items()], [1.0]),
        median(item.cpu_seconds_per_gb for item in ours.values()),
        ratio(
            [item.cpu_seconds_per_gb / theirs[turn].cpu_seconds_per_gb for turn, item in ours.items()], [1.0]
        ),
    )


def _tables(shares: Sequence[Share], lacking: Collection[str]) -> Iterator[Table]:
    for flows in sorted(set(FLOWS_IN_A_ROUND)):
        rows: dict[str, tuple[Value, ...]] = {item.arm: _row(item) for item in shares if item.flows == flows}
        rows |= {name: (name, None, None, None, None) for name in lacking}
        yield Table(
            f"TCP, {flows} flow{'s' * (flows > 1)}",
            ("on the pod", "Gbit/s", "of no rule", "CPU s/GB", "of no rule"),
            tuple(rows[arm.name] for arm in ARMS),
        )


def _row(item: Share) -> tuple[Value, ...]:
    return item.arm, item.gbit_per_second, str(item.throughput), item.cpu_seconds_per_gb, str(item.cpu)


def _counted(settings: Settings, there: Mapping[Arm, Pod]) -> Table:
    """What the rules saw: that they were in the way, and that they did not bind."""
    names = {pod.cgroup.id: arm.name for arm, pod in there.items()}
    rows = [
        (
            names[item.attachment.cgroup_id],
            str(item.attachment.rule),
            item.counters.passed_packets / 1e6,
            item.counters.dropped_packets,
        )
        for item in observe(settings)[0]
        if item.counters
    ]
    order = list(names.values())
    rows.sort(key=lambda row: order.index(row[0]))
    return Table(
        "What the rules saw", ("on the pod", "rule", "million packets passed", "packets dropped"), tuple(rows)
    )


def _chart(shares: Sequence[Share]) -> Chart:
    series = []
    for flows in sorted(set(FLOWS_IN_A_ROUND)):
        found = [item for item in shares if item.flows == flows and item.arm != NO_RULE.name]
        series.append(
            Series(
                f"{flows} flow{'s' * (flows > 1)}",
                tuple(item.arm.replace(",", "").replace(" ", "\n") for item in found),
                tuple(item.throughput.value for item in found),
                tuple(item.throughput.low for item in found),
                tuple(item.throughput.high for item in found),
            )
        )
    title = "Throughput of a pod under a limit that does not bind"
    return Chart("shares", title, "", "share of no rule", tuple(series), goals=(LEAST_SHARE,))


def _claims(transfers: Sequence[Transfer], there: Collection[Arm]) -> tuple[Claim, ...]:
    judged = [
        *((arm, NO_RULE, LEAST_SHARE) for arm in there if len(arm.rules) == 1 and arm is not EDT),
        (EDT, FQ, LEAST_SHARE),
        (BANDWIDTH, TBF, 1.0),
        (LOSS, NETEM, 1.0),
    ]
    return tuple(
        Claim(
            f"{ours.name}: share of {theirs.name}, one flow",
            share(transfers, ours.name, 1, of=theirs.name).throughput.value,
            least,
            is_least=True,
        )
        for ours, theirs, least in judged
        if ours in there and theirs in there
    )
