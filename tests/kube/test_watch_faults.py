"""`podmgr watch` when the API server, the network, the credentials or the kernel are not as they should be.

Whatever it is: rules in force stay in force, and in the end they are what the cluster says.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.kernel import cgroup_life, cgroups
from podmgr.reconcile.ledger import DamagedLedgerError
from podmgr.settings import Settings
from tests.kernel.conftest import EXAMPLES, Cli
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import RunningPod, Simulated, ending, eventually
from tests.kube.watching import Watching, end, podmgr, sampled

Watch = Callable[..., Watching]

OUTAGE_SECONDS = 30.0
RECOVERY_SECONDS = 45.0  # a pause between two attempts is 15 s at most, a connection attempt 10 s
SLOW, FAST = "bandwidth=10 mbps egress", "bandwidth=100 mbps egress"
LOSS, MORE_LOSS = "loss=uniform egress 1%", "loss=uniform egress 2%"
WEB = {"app": "web"}


# Pods that end


@pytest.mark.parametrize("tool", ["clang", "bpftool"])
def test_a_pod_that_ends_while_watch_is_at_it_has_no_event_and_no_error(
    simulated: Simulated, watching: Watch, tmp_path: Path, tool: str
) -> None:
    pod = simulated.pod(
        "brief", annotations={"loss": "uniform egress 7%", "podmgr.io/duplicate": "5% egress"}
    )
    path = f"{ending(pod, tmp_path / 'bin', tool)}:{os.environ['PATH']}"
    watch = watching(environment={"PATH": path})
    assert not pod.enter(), "the tool has ended it"
    simulated.api.patch(
        "pods", "default", "brief", {"metadata": {"deletionTimestamp": "2026-11-23T10:00:00Z"}}
    )
    other = simulated.pod("other", annotations={"loss": "uniform egress 1%"})
    simulated.settles(other, {LOSS: "pod"})
    simulated.end(pod)
    simulated.api.delete("pods", "default", "brief")
    simulated.annotate("pods", "other", {"loss": "uniform egress 2%"})
    simulated.settles(other, {MORE_LOSS: "pod"})
    assert [line for line in watch.lines if line["level"] == "error"] == []
    assert "RuleFailed" not in [reason for reason, _ in simulated.events(pod)]


# Streams that break


def forget(api: ApiServer) -> None:
    """No watch can go on where it was."""
    api.forget_history()
    api.cut_watches()


BREAKS: dict[str, tuple[Callable[[ApiServer], None], bool]] = {  # and whether a new list is needed
    "cut in the middle of a line": (ApiServer.cut_watches, False),
    "cut by a proxy": (lambda api: api.cut_watches(politely=True), False),
    "ended": (ApiServer.end_watches, False),
    "reset": (ApiServer.reset_connections, False),
    "garbage": (lambda api: api.send_line(b"{garbage\n"), True),
    "error 500": (lambda api: api.send_error(500), True),
    "error 410": (lambda api: api.send_error(410), True),
    "history forgotten": (forget, True),
}


@pytest.mark.parametrize(("break_", "is_listed_anew"), BREAKS.values(), ids=BREAKS.keys())
def test_streams_that_break_lose_no_change(
    watched: Simulated, break_: Callable[[ApiServer], None], is_listed_anew: bool
) -> None:
    watched.service("s", WEB, {"loss": "uniform egress 1%"})
    changed = watched.pod("changed", labels=WEB, annotations={"bandwidth": "10 mbps egress"})
    deleted = watched.pod("deleted", annotations={"bandwidth": "10 mbps egress"})
    same = watched.pod("same", annotations={"bandwidth": "10 mbps egress"})
    watched.settles(changed, {SLOW: "pod", LOSS: "service/s"})
    for pod in (deleted, same):
        watched.settles(pod, {SLOW: "pod"})
    lists, programs = len(watched.api.asked("list", "pods")), same.programs()
    with sampled(changed) as sampler:
        break_(watched.api)
        watched.annotate("pods", "changed", {"bandwidth": "100 mbps egress"})
        watched.delete("services", "s")
        watched.delete("pods", "deleted")
        new = watched.pod("new", annotations={"loss": "uniform egress 2%"})
        watched.settles(new, {MORE_LOSS: "pod"})
        watched.settles(changed, {FAST: "pod"})
    eventually(lambda: not watched.observed(deleted))
    assert sampler.fewest() >= 1
    assert same.programs() == programs
    eventually(lambda: watched.api.watching() == 3)
    assert (len(watched.api.asked("list", "pods")) > lists) == is_listed_anew


def test_a_version_that_is_gone_may_also_be_refused_by_status(watched: Simulated) -> None:
    pod = watched.pod(annotations={"loss": "uniform egress 1%"})
    watched.settles(pod, {LOSS: "pod"})
    watched.api.gone_as_event = False
    try:
        forget(watched.api)
        watched.annotate("pods", "web", {"loss": "uniform egress 2%"})
        watched.settles(pod, {MORE_LOSS: "pod"})
    finally:
        watched.api.gone_as_event = True


def test_a_stream_in_small_pieces_is_put_together(watched: Simulated) -> None:
    watched.api.slow_watches(size=100, pause=0.0001)
    try:
        pod = watched.pod(annotations={"loss": "uniform egress 1%"})
        watched.settles(pod, {LOSS: "pod"})
    finally:
        watched.api.heal()


# An API server that refuses


def test_errors_of_the_server_are_waited_out_without_haste(watched: Simulated, watch: Watching) -> None:
    pod, deleted = (
        watched.pod(name, annotations={"loss": "uniform egress 1%"}) for name in ("web", "deleted")
    )
    for each in (pod, deleted):
        watched.settles(each, {LOSS: "pod"})
    eventually(lambda: watched.api.watching() == 3)
    programs, found = pod.programs(), len(watch.said("answers again"))
    for verb in ("list", "watch"):
        watched.api.fail(verb, 500)
    watched.api.cut_watches()
    watched.annotate("pods", "web", {"loss": "uniform egress 2%"})
    watched.api.delete("pods", watched.namespace, "deleted")
    asked, started = len(watched.api.requests), time.monotonic()
    eventually(lambda: len(watched.api.requests) >= asked + 4)
    assert time.monotonic() - started > 0.2
    assert pod.programs() == programs
    assert len(deleted.programs()) == 1
    watched.api.heal()
    watched.settles(pod, {MORE_LOSS: "pod"}, seconds=RECOVERY_SECONDS)
    eventually(lambda: not watched.observed(deleted), seconds=RECOVERY_SECONDS)
    watch.hears("answers again", times=found + 3, seconds=RECOVERY_SECONDS)


@pytest.mark.parametrize("source", ["service", "namespace", "enforced"])
def test_what_may_not_be_read_stays_and_the_rest_is_put_in_force(
    simulated: Simulated, watching: Watch, source: str
) -> None:
    """Also with the kubelet's own rights, which see no namespaces; a watch that waited would serve nobody."""
    if source == "service":
        simulated.service("web", WEB, {"bandwidth": "10 mbps egress"})
    else:
        enforce = {"podmgr.io/enforce": "true"} if source == "enforced" else {}
        simulated.annotate("namespaces", "default", {"bandwidth": "10 mbps egress"} | enforce)
    limit = {SLOW: "service/web" if source == "service" else "namespace/default"}
    before = simulated.pod("before", labels=WEB, annotations={"loss": "uniform egress 1%"})
    first = watching("--keep")
    simulated.settles(before, {LOSS: "pod"} | limit)
    assert first.stop() == 0
    programs = before.programs()
    refused = "services" if source == "service" else "namespaces"
    simulated.api.fail("list", 403, refused)
    new = simulated.pod("new", labels=WEB, annotations={"loss": "uniform egress 1%"})
    watch = watching("--metrics-address", "127.0.0.1:0")
    (line,) = watch.said("403")
    assert line["message"].startswith(f"{refused}: the API server says 403")
    assert "have set before stays" in line["message"]
    assert f"list and watch {refused}" in line["tip"] and "k3s/podmgr.yaml" in line["tip"]
    assert watch.probe("/readyz") == 200
    assert watch.metrics()["podmgr_api_connected"][(("resource", refused),)] == 0
    simulated.settles(new, {LOSS: "pod"})
    simulated.annotate("pods", "before", {"loss": "uniform egress 2%"})
    simulated.settles(before, {"loss=uniform egress 2%": "pod"} | limit)
    assert len(set(before.programs()) & set(programs)) == 1
    simulated.api.heal()
    simulated.settles(new, {LOSS: "pod"} | limit, seconds=40)
    assert watch.said(f"{refused}: the API server answers again")


def test_a_pod_that_is_deleted_keeps_what_its_namespace_may_enforce_while_it_runs(
    simulated: Simulated, watching: Watch
) -> None:
    rules = {"bandwidth": "10 mbps egress", "podmgr.io/enforce": "true"}
    simulated.annotate("namespaces", "default", rules)
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    first = watching("--keep")
    simulated.settles(pod, {SLOW: "namespace/default", LOSS: "pod"})
    assert first.stop() == 0
    simulated.api.fail("list", 403, "namespaces")
    simulated.api.delete("pods", "default", "web")
    watch = watching()
    simulated.settles(pod, {SLOW: "namespace/default"})
    simulated.end(pod)
    eventually(lambda: not simulated.observed(pod), why=watch.tail)


def test_when_the_right_comes_what_was_kept_without_need_goes(simulated: Simulated, watching: Watch) -> None:
    """Nothing of the namespace says a rule then: no event of it touches the pod."""
    simulated.annotate("namespaces", "default", {"bandwidth": "10 mbps egress"})
    pod = simulated.pod()
    first = watching("--keep")
    simulated.settles(pod, {SLOW: "namespace/default"})
    assert first.stop() == 0
    simulated.annotate("namespaces", "default", None)
    simulated.api.fail("list", 403, "namespaces")
    watching()
    simulated.settles(pod, {SLOW: "namespace/default"})
    simulated.api.heal()
    simulated.settles(pod, {}, seconds=40)


def test_without_the_right_to_see_pods_it_says_which_and_waits(simulated: Simulated, watching: Watch) -> None:
    """The API server is not there at first: the right is told of when it is."""
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    simulated.api.stop()
    watch = watching("--metrics-address", "127.0.0.1:0", waits=False)
    watch.hears("pods: .*cannot be reached")
    simulated.api.fail("list", 403, "pods")
    simulated.api.start()
    assert "list and watch pods" in watch.hears("pods: .*403")["tip"]
    assert watch.probe("/readyz") == 503
    simulated.api.heal()
    watch.is_in_order()
    simulated.settles(pod, {LOSS: "pod"})


def test_a_token_that_is_rotated_is_read_again(simulated: Simulated, watching: Watch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    simulated.api.tokens = {"first"}
    simulated.api.write_kubeconfig(simulated.kubeconfig, token_file=token)
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    watch = watching()
    simulated.settles(pod, {LOSS: "pod"})
    programs = pod.programs()
    eventually(lambda: simulated.api.watching() == 3)
    simulated.api.tokens = {"second"}
    simulated.api.end_watches()
    watch.hears("401.*the rules stay", times=3)
    simulated.annotate("pods", "web", {"loss": "uniform egress 2%"})
    assert pod.programs() == programs
    token.write_text("second")
    simulated.settles(pod, {MORE_LOSS: "pod"}, seconds=RECOVERY_SECONDS)
    watch.hears("answers again", times=3, seconds=RECOVERY_SECONDS)
    eventually(lambda: ("RuleApplied", f"{MORE_LOSS} (tc hook)") in simulated.events(pod))


# No API server at all. This takes half a minute: it begins with the first test here, and goes on meanwhile.


@dataclass(frozen=True)
class Beside:
    """A cluster with a watch, beside those of the tests that run meanwhile."""

    cluster: Simulated
    watch: Watching
    root: Path  # a cgroup, above the node's


Story = Callable[[Beside], None]
Begin = Callable[[str, Story], Future[None]]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begin]:
    """Begins a story with a cluster of its own; at the end, nothing must be left of it."""
    besides: list[Beside] = []

    def start(name: str, story: Story) -> Future[None]:
        root = cgroup_life.create(cgroups.find_root(None), f"podmgr-kube-{name}-{os.getpid()}")
        folder = tmp_path_factory.mktemp(name)
        settings = Settings(
            folder / "state",
            Path(f"/sys/fs/bpf/podmgr-test-{os.getpid()}-{name}"),
            cgroup_root=cgroup_life.create(root.path, "node").path,
            program_dir=EXAMPLES,
        )
        cluster = Simulated(settings, folder)
        cluster.api.start()
        besides.append(Beside(cluster, Watching(cluster, folder / "log"), root.path))
        return pool.submit(story, besides[-1])

    try:
        with ThreadPoolExecutor() as pool:
            yield start
        end([beside.watch for beside in besides])
    finally:
        for beside in besides:
            beside.watch.kill()
            beside.cluster.close()
            root = Cgroup(beside.root, beside.root.stat().st_ino)
            cgroup_life.kill(root)
            cgroup_life.remove(root)


@pytest.fixture(scope="module")
def outage(begin: Begin) -> Future[None]:
    return begin("outage", live_through_an_outage)


@pytest.fixture(scope="module")
def partition(begin: Begin) -> Future[None]:
    return begin("partition", live_through_a_partition)


@pytest.fixture(scope="module", autouse=True)
def begun_early(request: pytest.FixtureRequest) -> None:
    """Only what is asked for by a test that was chosen."""
    chosen = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    for name in {"outage", "partition"} & chosen:
        request.getfixturevalue(name)


def live_through_an_outage(beside: Beside) -> None:
    cluster, watch = beside.cluster, beside.watch
    cluster.service("s", WEB, {"loss": "uniform egress 1%"})
    changed = cluster.pod("changed", labels=WEB, annotations={"bandwidth": "10 mbps egress"})
    deleted, forgotten, same = pods = [
        cluster.pod(name, annotations={"bandwidth": "10 mbps egress"})
        for name in ("deleted", "forgotten", "same")
    ]
    before = {SLOW: "pod", LOSS: "service/s"}
    cluster.settles(changed, before)
    for pod in pods:
        cluster.settles(pod, {SLOW: "pod"})
    eventually(lambda: cluster.api.watching() == 3)
    with sampled(changed, same) as sampler:
        cluster.api.stop()
        down_at = time.monotonic()
        cluster.annotate("pods", "changed", {"bandwidth": "100 mbps egress"})
        cluster.delete("pods", "deleted")
        cluster.api.delete("pods", cluster.namespace, "forgotten")  # its cgroup is still there
        cluster.delete("services", "s")
        new = cluster.pod("new", annotations={"loss": "uniform egress 2%"})
        time.sleep(OUTAGE_SECONDS - (time.monotonic() - down_at))
        assert cluster.rules(changed) == before
        assert (cluster.rules(forgotten), cluster.rules(new)) == ({SLOW: "pod"}, {})
        assert len(sampler.distinct()) == 1
        cluster.api.start()
        cluster.settles(changed, {FAST: "pod"}, seconds=RECOVERY_SECONDS)
        cluster.settles(new, {MORE_LOSS: "pod"}, seconds=RECOVERY_SECONDS)
        cluster.settles(forgotten, seconds=RECOVERY_SECONDS)
    assert sampler.fewest() >= 1
    assert len({programs for _, programs in sampler.distinct()}) == 1
    assert not cluster.observed(deleted)
    watch.hears("answers again", times=3, seconds=RECOVERY_SECONDS)
    # once for each stream, not for each attempt
    assert len(watch.said("the rules stay, trying again")) == 3


def live_through_a_partition(beside: Beside) -> None:
    """Podmgr itself, another one, makes the wall: the cgroup of the watch hears nothing any more.

    Only what comes in is lost: a packet that the hook drops on its way out counts as congestion,
    and the kernel then probes for ever whether the other end is alive.
    """
    cluster, watch = beside.cluster, beside.watch
    wall = cluster.settings._replace(
        state_dir=cluster.settings.state_dir.with_name("wall"),
        bpffs=cluster.settings.bpffs.with_name(cluster.settings.bpffs.name + "-wall"),
        cgroup_root=beside.root,
    )
    # Sockets belong to the cgroup in which they were made: the watch has none yet.
    cgroup_life.join(cgroup_life.create(beside.root, "watch"), watch.process.pid)
    pod = cluster.pod(annotations={"loss": "uniform egress 1%"})
    watch.is_in_order()
    cluster.settles(pod, {LOSS: "pod"})
    eventually(lambda: cluster.api.watching() == 3)
    try:
        podmgr(wall, "apply", "cgroup/watch", "--rule", "loss=uniform ingress 100%")
        cluster.annotate("pods", "web", {"loss": "uniform egress 2%"})
        watch.hears("the rules stay, trying again", times=3, seconds=90)
        assert cluster.rules(pod) == {LOSS: "pod"}
    finally:
        podmgr(wall, "clean")
    cluster.settles(pod, {MORE_LOSS: "pod"}, seconds=RECOVERY_SECONDS)


# A kernel that somebody else has touched


def pins_of(cluster: Simulated, pod: RunningPod) -> list[Path]:
    """The pin of its program, and its maps' folder."""
    return sorted((cluster.settings.bpffs / pod.uid).glob("*"))


def is_whole(cluster: Simulated, pod: RunningPod) -> bool:
    """Whether the pod has its one program, with a pin and a row in the ledger."""
    with suppress(DamagedLedgerError):
        return (
            cluster.rules(pod) == {LOSS: "pod"}
            and len(pod.programs()) == 1
            and len(pins_of(cluster, pod)) == 2
        )
    return False


def test_what_somebody_else_takes_away_is_repaired(simulated: Simulated, watching: Watch) -> None:
    detached, unpinned, both, other = pods = [
        simulated.pod(name, annotations={"loss": "uniform egress 1%"})
        for name in ("detached", "unpinned", "both", "other")
    ]
    watching("--resync", "1s")
    for pod in pods:
        simulated.settles(pod, {LOSS: "pod"})
    programs = other.programs()
    detached.lose_programs()
    both.lose_programs()
    for pod in (unpinned, both):
        pins_of(simulated, pod)[0].unlink()
    for _ in range(2):
        eventually(lambda: all(is_whole(simulated, pod) for pod in pods))
        time.sleep(1.5)  # and stays so
    assert all(is_whole(simulated, pod) for pod in pods)
    assert other.programs() == programs


@pytest.mark.parametrize("text", [None, '{"version": 1, "attach'], ids=["lost", "damaged"])
def test_a_ledger_that_is_lost_is_written_again(
    simulated: Simulated, watching: Watch, text: str | None
) -> None:
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    watching("--resync", "1s")
    simulated.settles(pod, {LOSS: "pod"})
    programs, ledger = pod.programs(), simulated.settings.state_dir / "ledger.json"
    with sampled(pod) as sampler:
        if text is None:
            ledger.unlink()
        else:
            ledger.write_text(text)
        eventually(lambda: is_whole(simulated, pod))
    assert sampler.fewest() == 1
    assert pod.programs() == programs


# A cluster that is too busy


def test_a_flood_of_changes_is_few_transactions_and_few_events(watched: Simulated, watch: Watching) -> None:
    flooded, other = (
        watched.pod(name, annotations={"loss": "uniform egress 1%"}) for name in ("web", "other")
    )
    for pod in (flooded, other):
        watched.settles(pod, {LOSS: "pod"})
    transactions, started = watch.transactions(), time.monotonic()
    flood = threading.Thread(target=_toggle, args=(watched,))
    with sampled(flooded) as sampler:
        flood.start()
        watched.annotate("pods", "other", {"loss": "uniform egress 2%"})
        watched.settles(other, {MORE_LOSS: "pod"})  # it does not wait for the flood to end
        flood.join()
        watched.settles(flooded, {"loss=uniform egress 42%": "pod"})
    assert sampler.fewest() >= 1
    # ten at once and then one a second, and some for the other pod
    assert watch.transactions() - transactions <= min(200, 15 + time.monotonic() - started)
    assert len(watched.events(flooded)) <= 20


def _toggle(cluster: Simulated) -> None:
    for number in range(9_999):
        cluster.annotate("pods", "web", {"loss": f"uniform egress {number % 2 + 1}%"})
    cluster.annotate("pods", "web", {"loss": "uniform egress 42%"})


def test_a_flood_of_services_is_few_transactions(watched: Simulated, watch: Watching) -> None:
    """Each touches every pod of the namespace, but is never in force."""
    pods = [watched.pod(f"web-{n}", labels=WEB, annotations={"loss": "uniform egress 1%"}) for n in range(20)]
    for pod in pods:
        watched.settles(pod, {LOSS: "pod"})
    programs, transactions = [pod.programs() for pod in pods], watch.transactions()
    for number in range(500):
        watched.service(f"s-{number}", WEB, {"loss": f"uniform egress {number % 9 + 2}%"})
    watched.service("last", WEB, {"bandwidth": "10 mbps egress"})
    for pod in pods:
        watched.settles(pod, {LOSS: "pod", SLOW: "service/last"})
    assert [set(before) <= set(pod.programs()) for before, pod in zip(programs, pods, strict=True)] == [
        True
    ] * 20
    assert watch.transactions() - transactions <= 200


def test_the_command_line_and_watch_take_turns(watched: Simulated) -> None:
    """Both change things at the same time, one transaction after the other."""
    cli = Cli(watched.settings)
    pod, plain = watched.pod(), watched.pod("plain", is_running=False)
    watched.start(plain, called="no-pod")
    for number in range(1, 5):
        watched.annotate("pods", "web", {"bandwidth": f"{number} mbps egress"})
        cli("apply", "cgroup/kubepods/no-pod", "--rule", f"bandwidth={number} gbps egress")
    watched.settles(pod, {"bandwidth=4 mbps egress": "pod"})
    assert {row["rule"] for row in cli.listed()} == {"bandwidth=4 mbps egress", "bandwidth=4 gbps egress"}
    cli("clean", "cgroup/kubepods/no-pod")


# What began with the first test


def test_an_outage_of_half_a_minute_changes_nothing_and_then_all_is_caught_up_with(
    outage: Future[None],
) -> None:
    outage.result()


def test_connections_that_are_dead_without_a_word_are_noticed(partition: Future[None]) -> None:
    partition.result()
