"""A long day of a node: pods come and go, rules change, the API server fails, podmgr is killed now and then.

All the while guards send datagrams of which their rules, which change too, let none pass: one that passes
is a gap. Every few seconds each pod that has had time must have exactly its rules, and when all is quiet
nothing may be there that belongs to nobody: no program, pin, row, or descriptor, and no more memory than
before.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from podmgr.kernel import cgroup_life, cgroups, pins
from podmgr.reconcile import ledger
from podmgr.settings import Settings
from tests.bench.effort import Effort, tell
from tests.bench.findings import Findings
from tests.bench.node import Result, findings, memory_mib
from tests.kube.cluster import RunningPod, Simulated, eventually
from tests.kube.watching import Watching, podmgr

EFFORT = Effort(seconds=3_600)

GUARDS, MOST_PODS = 3, 12
PAUSE_SECONDS = 0.1  # between two things that happen
SETTLING_SECONDS = 10.0  # a pod that nothing has happened to for so long must be right
CHECK_SECONDS, QUIET_SECONDS = 3.0, 60.0
QUIET_AT_MOST_SECONDS = 60.0  # until all is in order
MOST_GROWTH_MIB = 8.0  # of watch, from one quiet moment to the last, in one life
CONTAINER_SECONDS = 400.0  # a guard's container is started again before its process ends

# An annotation, and the rules that it is.
_RULES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "loss": {
        "uniform egress 1%": ("loss=uniform egress 1%",),
        "2% ingress": ("loss=uniform ingress 2%",),
        "burst egress 1% length=5": ("loss=burst egress 1% length=5",),
        "1% egress port=80; 2% egress peer=10.0.0.0/8": (
            "loss=uniform egress 1% port=80",
            "loss=uniform egress 2% peer=10.0.0.0/8",
        ),
    },
    "bandwidth": {
        f"{rate} mbps egress{hook}": (f"bandwidth={rate} mbps egress{hook}",)
        for rate in (1, 5, 20)
        for hook in ("", " hook=cgroup")
    },
    "podmgr.io/duplicate": {"1% egress": ("duplicate=1% egress",)},
    "podmgr.io/corrupt": {"1% ingress": ("corrupt=1% ingress",)},
    "podmgr.io/block": {"ingress port=22": ("block=ingress port=22",)},
}
_SERVICE_RULES = {"": (), "10 mbps ingress": ("bandwidth=10 mbps ingress",)}
_ALL_LOST = (
    "uniform egress 100%",
    "uniform egress 100% hook=cgroup",
    "uniform egress 100%; uniform egress 100% port=1-60000",
)

_SENDING = """
import os, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
told, count = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 0
while True:
    try:
        sock.sendto(b"x", ("10.9.0.2", 9))
    except OSError:
        pass
    count += 1
    os.pwrite(told, b"%d" % count, 0)
    time.sleep(0.001)
"""
_NETWORK = """
addr add 10.9.0.1/24 dev eth0
link set peer0 up
neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0
"""


@dataclass
class _Pod:
    """A pod and the rules that it shall have: annotations as they stand in the cluster."""

    running: RunningPod
    annotations: dict[str, str] = field(default_factory=dict)
    changed_at: float = field(default_factory=time.monotonic)

    def rules(self, of_service: str) -> set[str]:
        own = {rule for key, value in self.annotations.items() for rule in _RULES[key][value]}
        is_beaten = any(rule.startswith("bandwidth=") and " ingress" in rule for rule in own)
        return own | (set() if is_beaten else set(_SERVICE_RULES[of_service]))


@dataclass
class _Guard:
    """A pod of whose datagrams none may pass."""

    running: RunningPod
    counted: Path  # where its sender says how many it has sent
    sender: subprocess.Popen[bytes] | None = None
    since: float = 0.0

    def begin(self) -> None:
        """Its rules are in force; from now on it sends."""
        inside = self.running.enter()
        subprocess.run([*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"], check=True)
        subprocess.run([*inside, "ip", "-batch", "-"], input=_NETWORK.encode(), check=True)
        joining = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(self.running.place.path / "cgroup.procs")]
        sending = [sys.executable, "-c", _SENDING, str(self.counted)]
        self.sender = subprocess.Popen([*joining, *inside, *sending])
        self.since = time.monotonic()

    def sent(self) -> int:
        return int(self.counted.read_text())

    def arrived(self) -> int:
        shown = subprocess.run(
            [*self.running.enter(), "ip", "-s", "-j", "link", "show", "dev", "peer0"],
            capture_output=True,
            check=True,
        ).stdout
        return int(json.loads(shown)[0]["stats64"]["rx"]["packets"])

    def end(self) -> None:
        if self.sender is not None:
            self.sender.kill()
            self.sender.wait()


@dataclass
class _Day:
    """What happens, and what was seen."""

    cluster: Simulated
    folder: Path
    draw: random.Random
    pods: dict[str, _Pod] = field(default_factory=dict)
    guards: list[_Guard] = field(default_factory=list)
    service: str = ""
    service_changed_at: float = 0.0
    disturbed_at: float = 0.0
    last_kill_at: float = 0.0
    happened: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    looks: int = 0
    watch: Watching | None = None
    lives: int = 0
    number: int = 0
    known: set[int | None] = field(default_factory=set)  # programs that ever were podmgr's here

    # What happens

    def start_watch(self) -> None:
        self.lives += 1
        self.watch = Watching(
            self.cluster, self.folder / f"log-{self.lives}", "--keep", "--resync", "20s", "--no-events"
        )
        self.disturbed_at = time.monotonic()

    def pod_comes(self) -> None:
        if len(self.pods) >= MOST_PODS:
            return
        self.number += 1
        name = f"web-{self.number}"
        annotations = dict(self._rule() for _ in range(self.draw.randint(0, 3)))
        running = self.cluster.pod(name, labels={"app": "web"}, annotations=annotations)
        self.pods[name] = _Pod(running, annotations)

    def pod_goes(self) -> None:
        if self.pods:
            name = self.some_pod().running.name
            self.cluster.delete("pods", name)
            del self.pods[name]

    def some_pod(self) -> _Pod:
        """Every second one is calm, and mostly left as it is."""
        pods = list(self.pods.values())
        weights = [1 if pod.running.name[-1] in "02468" else 10 for pod in pods]
        (pod,) = self.draw.choices(pods, weights)
        return pod

    def rule_changes(self) -> None:
        if self.pods:
            pod = self.some_pod()
            key, value = self._rule()
            pod.annotations[key] = value
            self._annotated(pod, {key: value})

    def rule_goes(self) -> None:
        if self.pods and (pod := self.some_pod()).annotations:
            key = self.draw.choice(list(pod.annotations))
            del pod.annotations[key]
            self._annotated(pod, {key: None})

    def service_changes(self) -> None:
        self.service = self.draw.choice(list(_SERVICE_RULES))
        self.service_changed_at = time.monotonic()
        self.cluster.annotate("services", "web", {"bandwidth": self.service or None})

    def guard_changes(self) -> None:
        guard = self.draw.choice(self.guards)
        self.cluster.annotate("pods", guard.running.name, {"loss": self.draw.choice(_ALL_LOST)})

    def streams_end(self) -> None:
        api = self.cluster.api
        ways: list[Callable[[], object]] = [
            api.cut_watches,
            api.end_watches,
            api.reset_connections,
            lambda: api.send_error(500),
            lambda: api.send_line(b"{garbage\n"),
        ]
        self.draw.choice(ways)()
        self.disturbed_at = time.monotonic()

    def server_is_away(self) -> None:
        self.cluster.api.stop()
        time.sleep(self.draw.uniform(0.1, 2))
        self.cluster.api.start()
        self.disturbed_at = time.monotonic() + 20  # a pause between two attempts is 15 s at most

    def watch_is_killed(self) -> None:
        assert self.watch is not None
        self.watch.kill()
        self.known |= self.watch.program_ids()
        self.start_watch()

    def somebody_applies(self) -> None:
        root = self.cluster.settings.cgroup_root
        assert root is not None
        place = cgroup_life.create(root, f"other-{self.number}")
        self.number += 1
        podmgr(self.cluster.settings, "apply", f"cgroup/{place.path}", "--rule", "loss=1% egress")
        podmgr(self.cluster.settings, "clean", f"cgroup/{place.path}")
        cgroup_life.remove(place)

    def happens(self) -> None:
        """One thing, some more often than others."""
        things: dict[Callable[[], None], int] = {
            self.pod_comes: 20,
            self.pod_goes: 12,
            self.rule_changes: 120,
            self.rule_goes: 40,
            self.service_changes: 2,
            self.guard_changes: 60,
            self.streams_end: 2,
            self.server_is_away: 1,
            # In the first half: what grows is seen in a life that is long.
            self.watch_is_killed: 2 if time.monotonic() < self.last_kill_at else 0,
            self.somebody_applies: 4,
        }
        (thing,) = self.draw.choices(list(things), list(things.values()))
        thing()
        self.happened[thing.__name__] = self.happened.get(thing.__name__, 0) + 1

    def _rule(self) -> tuple[str, str]:
        key = self.draw.choice(list(_RULES))
        return key, self.draw.choice(list(_RULES[key]))

    def _annotated(self, pod: _Pod, annotations: Mapping[str, str | None]) -> None:
        pod.changed_at = time.monotonic()
        self.cluster.annotate("pods", pod.running.name, annotations)

    # What is looked at

    def wanted(self, pod: _Pod) -> set[str]:
        return pod.rules(self.service)

    def look(self) -> None:
        """That each pod that has had time has its rules, and no others."""
        now = time.monotonic()
        assert self.watch is not None
        self.known |= self.watch.program_ids()
        for pod in self.pods.values():
            since = max(pod.changed_at, self.service_changed_at, self.disturbed_at)
            if now - since < SETTLING_SECONDS:
                continue
            self.looks += 1
            there = set(self.cluster.rules(pod.running))
            if there != self.wanted(pod):
                self.wrong.append(f"{pod.running.name} has {there}, not {self.wanted(pod)}")
        for guard in self.guards:
            if now - guard.since > CONTAINER_SECONDS:
                self.cluster.start_container(guard.running)
                guard.since = now

    def is_quiet(self) -> bool:
        return all(set(self.cluster.rules(pod.running)) == self.wanted(pod) for pod in self.pods.values())

    def left(self) -> dict[str, int]:
        """What belongs to nobody, now that all is in order."""
        settings = self.cluster.settings
        rows = ledger.read(settings.state_dir)
        alive = {pod.running.uid for pod in self.pods.values()} | {guard.running.uid for guard in self.guards}
        programs = {row.program_id for row in rows}
        self.known |= programs
        there = _loaded() & self.known
        pinned = [
            path for owner in pins.owners(settings.bpffs) for path in (settings.bpffs / owner).iterdir()
        ]
        return {
            "programs that no row knows": len(there - programs),
            "rows without a program": len(programs - there),
            "rows of pods that are gone": sum(row.holder not in alive for row in rows),
            "pins that no row knows": len(
                {path.name.removesuffix("-maps") for path in pinned} - {row.digest for row in rows}
            ),
            "owners that are gone": len(pins.owners(settings.bpffs) - alive),
        }

    def descriptors(self) -> int:
        assert self.watch is not None
        return len(os.listdir(f"/proc/{self.watch.process.pid}/fd"))

    def memory_mib(self) -> float:
        assert self.watch is not None
        return memory_mib(self.watch, "VmRSS")


def _loaded() -> set[int]:
    """The ids of the programs that are in the kernel: also those of others."""
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True).stdout
    return {int(item["id"]) for item in json.loads(shown)}


@contextmanager
def _day(seed: int) -> Iterator[_Day]:
    """A cluster with a service and guards; when the block ends nothing is left."""
    root = cgroup_life.create(cgroups.find_root(None), f"podmgr-soak-{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="podmgr-soak-") as place:
        folder = Path(place)
        settings = Settings(
            folder / "state", Path(f"/sys/fs/bpf/podmgr-soak-{os.getpid()}"), cgroup_root=root.path
        )
        cluster = Simulated(settings, folder)
        day = _Day(cluster, folder, random.Random(seed))
        try:
            cluster.api.start()
            cluster.service("web", {"app": "web"})
            day.start_watch()
            for number in range(GUARDS):
                running = cluster.pod(f"guard-{number}", annotations={"loss": _ALL_LOST[0]})
                guard = _Guard(running, folder / f"sent-{number}")
                cluster.settles(guard.running, {f"loss={_ALL_LOST[0]}": "pod"})
                guard.begin()
                day.guards.append(guard)
            yield day
        finally:
            for guard in day.guards:
                guard.end()
            if day.watch is not None:
                day.watch.kill()
            podmgr(settings, "clean")
            cluster.close()
            cgroup_life.kill(root)
            cgroup_life.remove(root)


def measure(effort: Effort) -> Findings:
    """All results. Leaves nothing behind."""
    seconds = effort.seconds or 0.0
    seed = int(time.time())
    tell(f"soak, {seconds:.0f} s, seed {seed}")
    left: dict[str, int] = {}
    growth_mib, growth_fds, quiet = 0.0, 0, 0
    with _day(seed) as day:
        end = time.monotonic() + seconds
        day.last_kill_at = end - seconds / 2
        apart = min(QUIET_SECONDS, seconds / 4)  # so that there are two in the last life
        quiet_at = time.monotonic() + apart
        look_at = 0.0
        life, first = 0, (0.0, 0)
        while time.monotonic() < end or quiet < 2:
            if time.monotonic() >= quiet_at or time.monotonic() >= end:
                eventually(day.is_quiet, seconds=QUIET_AT_MOST_SECONDS, pause=0.2, why=lambda: day.watch)
                day.guard_changes()  # what comes last is done with
                time.sleep(2)
                eventually(lambda: not sum(day.left().values()), seconds=5, pause=0.5, why=day.left)
                for name, count in day.left().items():
                    left[name] = left.get(name, 0) + count
                quiet += 1
                if life != day.lives:
                    life, first = day.lives, (day.memory_mib(), day.descriptors())
                growth_mib = max(growth_mib, day.memory_mib() - first[0])
                growth_fds = max(growth_fds, day.descriptors() - first[1])
                quiet_at = time.monotonic() + apart
                tell(f"quiet {quiet}: {sum(day.happened.values())} things happened, {len(day.wrong)} wrong")
            day.happens()
            if time.monotonic() >= look_at:
                day.look()
                look_at = time.monotonic() + CHECK_SECONDS
            time.sleep(PAUSE_SECONDS)
        sent = sum(guard.sent() for guard in day.guards)
        passed = sum(guard.arrived() for guard in day.guards)
        for line in day.wrong:
            tell(line)
        results = [
            Result("seconds", seconds, "s"),
            *(Result(name.replace("_", " "), float(count), "times") for name, count in day.happened.items()),
            Result("looks at a pod's rules", float(day.looks), ""),
            Result("  wrong", float(len(day.wrong)), "", 0.0),
            Result("datagrams that guards sent", float(sent), ""),
            Result("  passed: a gap", float(passed), "", 0.0),
            Result("quiet moments", float(quiet), ""),
            *(Result(f"  {name}", float(count), "", 0.0) for name, count in left.items()),
            Result("memory of watch grew by", growth_mib, "MiB", MOST_GROWTH_MIB),
            Result("descriptors of watch grew by", float(growth_fds), "", 4.0),
        ]
    results.append(Result("programs left at the end", float(len(_loaded() & day.known)), "", 0.0))
    return findings(f"A node for {seconds:.0f} s, seed {seed}", results)
