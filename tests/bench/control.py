"""What control costs: apply, change, list and clean of 1 to 500 pods with three rules each, and start-up.

Commands run as a user's would: as processes of their own. Beside podmgr, in the same rounds, a
full node of 110 pods is done by shell loops of `bpftool` and of `tc qdisc`. The pods are empty
cgroups, where every rule is at the cgroup hook, but for those that stand beside `tc qdisc`:
these have a process and a veth, and their loss is at the tc hook.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from json import loads
from pathlib import Path
from statistics import median

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import inside
from podmgr.kernel import bpf_syscall, cgroup_life, cgroups
from podmgr.kernel.netns_life import hold_namespace
from podmgr.rules.rule import Direction
from tests.bench.control_findings import (
    CHANGED,
    CHANGED_RATES,
    FULL_NODE,
    RATES,
    ROUND_TRIP,
    RULES,
    SIZES,
    Round,
    compile_table,
    growth_chart,
    growth_table,
    memory_table,
    seconds_of,
    slope_table,
    start_table,
    sums,
    ways_chart,
    ways_table,
)
from tests.bench.effort import Effort
from tests.bench.findings import Claim, Findings, ratio
from tests.bench.stopwatch import Cost, timed

LEAST_ADVANTAGE = 5.0  # over a shell loop of bpftool

# What the work must take at most, in seconds.
LIMITS = {"apply 110, warm": 1.0, "list 110": 0.4, "--help": 0.25}

EFFORT = Effort(rounds=3)

_BPFTOOL_LOOP, _TC_LOOP = (str(Path(__file__).with_name(f"{tool}_loop.sh")) for tool in ("bpftool", "tc"))


def measure(effort: Effort) -> Findings:
    """All findings. Leaves nothing behind."""
    rounds = effort.rounds or 1
    growth: dict[int, list[Round]] = {size: [] for size in SIZES}
    ways: dict[str, list[Round]] = {}
    with _node() as node, _networked(node, FULL_NODE) as networked, _objects(node) as objects:
        pods = _pods(node, max(SIZES))
        starts = [_starts(node) for _ in range(rounds)]
        compilations = [_compilations(node, pods) for _ in range(rounds)]
        for _ in range(rounds):
            for size in SIZES:
                growth[size].append(_cycle(pods.first(size)))
            for way, work in _peers(pods.first(FULL_NODE), networked, objects).items():
                ways.setdefault(way, []).append(work())
    ways = {"podmgr": growth[FULL_NODE], **ways}
    return Findings(
        tables=(
            growth_table(growth),
            slope_table(growth),
            ways_table(ways),
            compile_table(compilations),
            start_table(starts),
            memory_table(growth),
        ),
        charts=(growth_chart(growth), ways_chart(ways)),
        claims=(
            *(
                Claim(name, median(seconds), LIMITS[name], " s")
                for name, seconds in _limited(starts, growth[FULL_NODE]).items()
            ),
            Claim(
                f"{FULL_NODE} pods applied, changed and cleaned: shell loop of bpftool / podmgr",
                ratio(sums(ways["bpftool loop"], ROUND_TRIP), sums(ways["podmgr"], ROUND_TRIP)).value,
                LEAST_ADVANTAGE,
                "×",
                is_least=True,
            ),
            Claim(
                f"{FULL_NODE} pods applied, changed and cleaned: shell loop that looks, too / podmgr",
                ratio(
                    sums(ways["bpftool loop that looks"], ROUND_TRIP), sums(ways["podmgr"], ROUND_TRIP)
                ).value,
                LEAST_ADVANTAGE,
                "×",
                is_least=True,
            ),
        ),
    )


def measure_limited(rounds: int) -> dict[str, list[float]]:
    """The seconds of each round of what is limited, and of little else."""
    with _node() as node:
        pods = _pods(node, FULL_NODE)
        starts = [{"--help": node.podmgr("--help")} for _ in range(rounds)]
        return _limited(starts, [_cycle(pods) for _ in range(rounds)])


def _limited(starts: Sequence[Round], full_node: Sequence[Round]) -> dict[str, list[float]]:
    return {
        f"apply {FULL_NODE}, warm": seconds_of(full_node, "apply"),
        f"list {FULL_NODE}": seconds_of(full_node, "list"),
        "--help": seconds_of(starts, "--help"),
    }


# Commands

# What the installed `podmgr` does, which need not be installed in the virtual machine.
_SCRIPT = "from podmgr.__main__ import main; main()"


@dataclass(frozen=True)
class Node:
    """The cgroup in which all pods are, and a podmgr with a state folder and pins of its own."""

    root: Cgroup
    folder: Path
    environment: Mapping[str, str]

    def podmgr(self, *words: str, network: int | None = None) -> Cost:
        return timed([sys.executable, "-c", _SCRIPT, *words], self.environment, network)


@dataclass(frozen=True)
class Pods:
    """Some pods; one more, that keeps programs known; and the podmgr that is in charge of them."""

    places: Sequence[Cgroup]
    keeper: Cgroup
    podmgr: Callable[..., Cost]

    def first(self, count: int) -> Pods:
        return Pods(self.places[:count], self.keeper, self.podmgr)


@dataclass(frozen=True)
class Networked:
    """Pods with a process each, in whose network is one end of a veth; the other is in the host's."""

    pods: Pods
    pids: Sequence[int]
    host_pid: int


@dataclass(frozen=True)
class Objects:
    """Folders: of the objects of RULES, of those of CHANGED, and of pins."""

    rules: Path
    changed: Path
    pins: Path


@contextmanager
def _node() -> Iterator[Node]:
    name = f"podmgr-bench-control-{os.getpid()}"
    with ExitStack() as stack:
        in_memory = tempfile.TemporaryDirectory(prefix="podmgr-bench-", dir="/dev/shm")  # as a node's /run
        folder = Path(stack.enter_context(in_memory))
        own = {
            "PODMGR_STATE_DIR": str(folder / "state"),
            "PODMGR_BPFFS": f"/sys/fs/bpf/{name}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        root = cgroup_life.create(cgroups.find_root(None), name)
        stack.callback(cgroup_life.remove, root)
        stack.callback(cgroup_life.kill, root)
        environment = dict(os.environ) | own
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed podmgr is compiled
        node = Node(root, folder, environment)
        stack.callback(node.podmgr, "clean")
        yield node


def _pods(node: Node, count: int) -> Pods:
    """So many empty cgroups."""
    *places, keeper = (cgroup_life.create(node.root.path, f"pod{number}") for number in range(count + 1))
    return Pods(places, keeper, node.podmgr)


_SANDBOX = """
ip -batch - <<END
link add eth0 type veth peer name $1 netns $2
link set eth0 up
END
echo $$ > "$0"
echo ready
exec sleep infinity > /dev/null
"""


@contextmanager
def _networked(node: Node, count: int) -> Iterator[Networked]:
    holders: list[subprocess.Popen[bytes]] = []
    try:
        host = hold_namespace()
        holders.append(host)
        places = [cgroup_life.create(node.root.path, f"networked{number}") for number in range(count + 1)]
        for number, place in enumerate(places):
            words = (str(place.path / "cgroup.procs"), f"pod{number}", str(host.pid))
            argv = ["unshare", "--net", "sh", "-e", "-c", _SANDBOX, *words]
            holders.append(proc.start(argv, prepare=proc.die_with_parent, streams=subprocess.PIPE))
        for holder in holders[1:]:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
        ups = "".join(f"link set pod{number} up\n" for number in range(count + 1))
        subprocess.run(inside(host.pid, ["ip", "-batch", "-"]), input=ups, text=True, check=True)
        podmgr = partial(node.podmgr, network=host.pid)
        pids = [holder.pid for holder in holders[1:]]
        yield Networked(Pods(places[:-1], places[-1], podmgr), pids[:-1], host.pid)
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


@contextmanager
def _objects(node: Node) -> Iterator[Objects]:
    """What the loops need, made before: podmgr's own objects, all for the cgroup hook."""
    pins = Path(f"{node.environment['PODMGR_BPFFS']}-loop")
    objects = Objects(node.folder / "rules", node.folder / "changed", pins)
    for folder, rules in ((objects.rules, RULES), (objects.changed, CHANGED)):
        at_cgroup = [f"{rule} hook=cgroup" if rule.startswith("loss") else rule for rule in rules]
        node.podmgr("compile", "--output-dir", str(folder), *at_cgroup)
    pins.mkdir()
    try:
        yield objects
    finally:
        shutil.rmtree(pins)


# podmgr


def _cycle(pods: Pods) -> Round:
    """Everything once, from nothing to nothing: with programs that must be compiled, then with known ones."""
    targets, keeper = [_target(place) for place in pods.places], _target(pods.keeper)
    first, then = _options(RULES), _options(CHANGED)
    costs = {
        "apply, cold": pods.podmgr("apply", *targets, *first),
        "unchanged": pods.podmgr("apply", *targets, *first),
        "list": pods.podmgr("list", "-o", "json"),
        "list, table": pods.podmgr("list"),
        "change, cold": pods.podmgr("apply", *targets, *then),
    }
    rows = loads(costs["list"].output)["attachments"]
    assert len(rows) == len(targets) * len(RULES)
    assert all(row["state"] == "active" for row in rows)
    pods.podmgr("apply", keeper, *then)  # as long as something is attached, no program is forgotten
    pods.podmgr("clean", *targets)
    costs["apply"] = pods.podmgr("apply", *targets, *first)
    costs["change"] = pods.podmgr("apply", *targets, *then)
    costs["clean"] = pods.podmgr("clean", *targets)
    pods.podmgr("clean")
    return costs


def _compilations(node: Node, pods: Pods) -> dict[str, Round]:
    """By what is compiled: by itself, and as a part of apply on one pod."""
    target, keeper = _target(pods.places[0]), _target(pods.keeper)
    found: dict[str, Round] = {}
    for rules in (*((rule,) for rule in RULES), RULES):
        options = _options(rules)
        costs = {
            "compile": node.podmgr("compile", "--output-dir", str(node.folder / "compiled"), *rules),
            "apply, cold": node.podmgr("apply", target, *options),
        }
        node.podmgr("clean")
        node.podmgr("apply", keeper, *options)
        costs["apply"] = node.podmgr("apply", target, *options)
        node.podmgr("clean")
        found[rules[0] if len(rules) == 1 else "all three"] = costs
    return found


def _starts(node: Node) -> Round:
    """Commands that have next to nothing to do, and Python alone."""
    commands: dict[str, tuple[str, ...]] = {
        "--help": ("--help",),
        "apply --help": ("apply", "--help"),
        "watch --help": ("watch", "--help"),
        "list, nothing attached": ("list",),
        "clean, nothing attached": ("clean",),
        "run --rule 'loss=uniform egress 1%' -- true": ("run", "-q", *_options(RULES[-1:]), "--", "true"),
        "doctor": ("doctor",),
    }
    return {
        "python -c pass": timed([sys.executable, "-c", "pass"], node.environment),
        **{name: node.podmgr(*words) for name, words in commands.items()},
    }


def _target(place: Cgroup) -> str:
    return f"cgroup/{place.path.parent.name}/{place.path.name}"


def _options(rules: Sequence[str]) -> list[str]:
    return [word for rule in rules for word in ("--rule", rule)]


# Peers


def _peers(pods: Pods, networked: Networked, objects: Objects) -> dict[str, Callable[[], Round]]:
    return {
        "bpftool loop": partial(_bpftool_loop, "bpftool", "no", pods, objects),
        "bpftool loop that looks": partial(_bpftool_loop, "bpftool", "yes", pods, objects),
        "bpftool batch": partial(_bpftool_loop, "echo", "no", pods, objects),
        "podmgr, with interfaces": partial(_cycle, networked.pods),
        "tc loop": partial(_tc_loop, networked),
    }


def _bpftool_loop(tool: str, look: str, pods: Pods, objects: Objects) -> Round:
    """The same attachments by a script; if it looks, it asks the kernel for each pod's, as podmgr does."""
    folders = [str(folder) for folder in (objects.pins, objects.rules, objects.changed)]
    places = [str(place.path) for place in pods.places]
    costs = {}
    for action in ROUND_TRIP:
        argv = ["bash", _BPFTOOL_LOOP, action, tool, look, *folders, *places]
        costs[action] = timed(argv, os.environ)
        wanted = 0 if action == "clean" else len(RULES)
        assert {_attached(place) for place in pods.places} == {wanted}, (tool, action)
    return costs


def _attached(place: Cgroup) -> int:
    """How many programs hang on the cgroup itself."""
    with cgroups.opened(place) as fd:
        assert fd is not None
        return sum(len(bpf_syscall.attached_programs(fd, side).program_ids) for side in Direction)


def _tc_loop(networked: Networked) -> Round:
    """Both limits of each pod as tc has them: tbf at the pod's end, and at the host's for ingress."""
    pids = [str(pid) for pid in networked.pids]
    costs = {}
    verbs = (("add", RATES), ("replace", CHANGED_RATES), ("del", CHANGED_RATES))
    for action, (verb, rates) in zip(ROUND_TRIP, verbs, strict=True):
        argv = ["bash", _TC_LOOP, verb, *rates, *pids]
        costs[action] = timed(argv, os.environ, networked.host_pid)
    return costs
