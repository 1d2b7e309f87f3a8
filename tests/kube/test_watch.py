"""`podmgr watch`: the rules in the kernel follow the annotations in the cluster.

Tests with `cluster` also run on a real one (see conftest). All others but the last few share one
watch, each in a namespace of its own.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

import pytest

from podmgr.demo.throwaway import PROBE, send_datagrams, throw_away_pod
from tests.kernel.conftest import Cli, assert_unloaded
from tests.kube.cluster import Cluster, RunningPod, Simulated, eventually
from tests.kube.watching import Watching, sampled

SLOW, FAST = "bandwidth=10 mbps egress", "bandwidth=100 mbps egress"
LOSS = "loss=uniform egress 1%"
MORE_LOSS = "loss=uniform egress 2%"
WEB = {"app": "web"}


# What also a real cluster shows


def test_a_services_rules_hold_on_the_pods_that_it_selects(cluster: Cluster) -> None:
    cluster.service("web", WEB, {"bandwidth": "10 mbps egress"})
    web, other = cluster.pod("web", labels=WEB), cluster.pod("other", labels={"app": "other"})
    cluster.settles(web, {SLOW: "service/web"})
    cluster.settles(other)
    cluster.delete("services", "web")
    cluster.settles(web)


def test_a_pods_rule_beats_its_services_of_the_same_kind_and_direction(cluster: Cluster) -> None:
    cluster.service("web", WEB, {"bandwidth": "10 mbps egress; 20 mbps ingress", "loss": "uniform egress 1%"})
    pod = cluster.pod(labels=WEB, annotations={"bandwidth": "100 mbps egress"})
    cluster.settles(pod, {FAST: "pod", "bandwidth=20 mbps ingress": "service/web", LOSS: "service/web"})


def test_rules_follow_an_annotation_that_is_added_changed_and_removed(cluster: Cluster) -> None:
    pod = cluster.pod()
    cluster.settles(pod)
    cluster.annotate("pods", pod.name, {"loss": "uniform egress 1%"})
    cluster.settles(pod, {LOSS: "pod"})
    cluster.annotate("pods", pod.name, {"loss": "uniform egress 2%", "podmgr.io/bandwidth": "10mbps egress"})
    cluster.settles(pod, {MORE_LOSS: "pod", SLOW: "pod"})
    cluster.annotate("pods", pod.name, {"loss": None})
    cluster.settles(pod, {SLOW: "pod"})
    cluster.annotate("pods", pod.name, {"podmgr.io/bandwidth": None})
    cluster.settles(pod)


def test_nothing_is_left_of_a_pod_that_is_deleted(cluster: Cluster) -> None:
    pod = cluster.pod(annotations={"loss": "uniform egress 1%"})
    cluster.settles(pod, {LOSS: "pod"})
    programs = pod.programs()
    cluster.delete("pods", pod.name)
    pins = cluster.settings.bpffs / pod.uid
    eventually(lambda: not (cluster.observed(pod) or pins.exists()), seconds=60)
    assert_unloaded(programs)


# Whose rules hold


def test_a_namespaces_rules_are_the_weakest(watched: Simulated) -> None:
    namespace = watched.namespace
    watched.annotate(
        "namespaces",
        namespace,
        {"bandwidth": "10 mbps egress; 10 mbps ingress", "loss": "uniform egress 1%"},
    )
    watched.service("web", WEB, {"bandwidth": "20 mbps ingress", "loss": "uniform ingress 5%"})
    plain, pod = watched.pod("plain"), watched.pod(labels=WEB, annotations={"loss": "uniform egress 2%"})
    source = f"namespace/{namespace}"
    watched.settles(plain, {SLOW: source, "bandwidth=10 mbps ingress": source, LOSS: source})
    watched.settles(
        pod,
        {
            SLOW: source,
            "bandwidth=20 mbps ingress": "service/web",
            "loss=uniform ingress 5%": "service/web",
            MORE_LOSS: "pod",
        },
    )
    watched.annotate("namespaces", namespace, {"bandwidth": None, "loss": None})
    watched.settles(plain)
    watched.settles(
        pod,
        {
            "bandwidth=20 mbps ingress": "service/web",
            "loss=uniform ingress 5%": "service/web",
            MORE_LOSS: "pod",
        },
    )


@pytest.mark.parametrize(
    ("annotations", "more"),
    [
        ({"bandwidth": "100 mbps egress"}, {FAST: "pod"}),
        ({"bandwidth": "no limit, please"}, {}),
        ({"bandwidth": "100 mbps egress", "podmgr.io/bandwidth": ""}, {}),
        ({"ebpf-limit": "nosuch egress"}, {}),
        ({"ebpf-limit": "nosuch egress", "loss": "uniform egress 1%"}, {LOSS: "pod"}),
        ({"podmgr.io/enforce": "false", "bandwidth": "10 mbps egress"}, {}),
    ],
    ids=["higher", "unreadable", "empty", "broken program", "broken program and another", "the same"],
)
def test_nothing_on_a_pod_lifts_what_its_namespace_enforces(
    watched: Simulated, annotations: dict[str, str], more: dict[str, str]
) -> None:
    enforced = {SLOW: f"namespace/{watched.namespace}"}
    watched.annotate(
        "namespaces", watched.namespace, {"podmgr.io/enforce": "true", "bandwidth": "10 mbps egress"}
    )
    before, after = watched.pod("before", annotations=annotations), watched.pod("after")
    watched.settles(before, enforced | more)
    watched.settles(after, enforced)
    program = after.programs()
    with sampled(after) as sampler:
        watched.annotate("pods", "after", annotations)
        watched.settles(after, enforced | more)
        watched.annotate("pods", "after", dict.fromkeys(annotations))
        watched.settles(after, enforced)
    assert all(set(program) <= programs for (programs,) in sampler.distinct())


def test_a_pod_whose_object_is_deleted_while_it_runs_keeps_what_its_namespace_enforces(
    watched: Simulated,
) -> None:
    """As `kubectl delete --force` does. Its other rules go, and all when its processes have ended."""
    watched.annotate(
        "namespaces", watched.namespace, {"podmgr.io/enforce": "true", "bandwidth": "10 mbps egress"}
    )
    pod = watched.pod(annotations={"loss": "uniform egress 1%"})
    enforced = {SLOW: f"namespace/{watched.namespace}"}
    watched.settles(pod, enforced | {LOSS: "pod"})
    watched.api.delete("pods", watched.namespace, "web")
    watched.settles(pod, enforced)
    watched.end(pod)
    eventually(lambda: not watched.observed(pod))


def test_a_namespace_that_enforces_no_more_gives_way_to_its_pods(watched: Simulated) -> None:
    namespace = watched.namespace
    watched.annotate("namespaces", namespace, {"podmgr.io/enforce": "true", "bandwidth": "10 mbps egress"})
    pod = watched.pod(annotations={"bandwidth": "100 mbps egress"})
    watched.settles(pod, {SLOW: f"namespace/{namespace}", FAST: "pod"})
    watched.annotate("namespaces", namespace, {"podmgr.io/enforce": None})
    watched.settles(pod, {FAST: "pod"})


def test_what_a_namespace_enforces_stays_when_it_becomes_unreadable(
    watched: Simulated, watch: Watching
) -> None:
    namespace = watched.namespace
    enforced = {SLOW: f"namespace/{namespace}", FAST: "pod"}
    watched.annotate("namespaces", namespace, {"podmgr.io/enforce": "true", "bandwidth": "10 mbps egress"})
    pod = watched.pod(annotations={"bandwidth": "100 mbps egress"})
    watched.settles(pod, enforced)
    watched.annotate("namespaces", namespace, {"bandwidth": "10 mbsp egress"})
    watch.hears(f"namespace/{namespace}.*mbsp")
    watched.annotate("pods", "web", {"loss": "uniform egress 1%"})
    watched.settles(pod, enforced | {LOSS: "pod"})


def test_of_two_services_that_collide_the_older_one_wins_with_a_warning(
    watched: Simulated, watch: Watching
) -> None:
    for name, rate, year in (("young", 100, 2026), ("old", 10, 2025)):
        watched.service(name, WEB, {"bandwidth": f"{rate} mbps egress"}, created=f"{year}-01-01T00:00:00Z")
    pod = watched.pod(labels=WEB)
    watched.settles(pod, {SLOW: "service/old"})
    (line,) = watch.said("service/young.*gives way to.*service/old")
    assert (line["level"], line["pod"], line["namespace"]) == ("warning", "web", watched.namespace)


def test_a_label_moves_a_pod_under_a_service_and_out_of_it(watched: Simulated) -> None:
    watched.service("web", WEB | {"tier": "front"}, {"bandwidth": "10 mbps egress"})
    pod = watched.pod(labels=WEB)
    watched.settles(pod)
    watched.patch("pods", pod.name, {"metadata": {"labels": {"tier": "front"}}})
    watched.settles(pod, {SLOW: "service/web"})
    watched.patch("pods", pod.name, {"metadata": {"labels": {"app": "other"}}})
    watched.settles(pod)


def test_rules_follow_a_service_that_is_created_points_elsewhere_and_is_deleted(watched: Simulated) -> None:
    web, other = watched.pod("web", labels=WEB), watched.pod("other", labels={"app": "other"})
    watched.service("s", WEB, {"bandwidth": "10 mbps egress"})
    watched.settles(web, {SLOW: "service/s"})
    watched.patch("services", "s", {"spec": {"selector": {"app": "other"}}})
    watched.settles(web)
    watched.settles(other, {SLOW: "service/s"})
    watched.annotate("services", "s", {"bandwidth": "100 mbps egress"})
    watched.settles(other, {FAST: "service/s"})
    watched.patch("services", "s", {"spec": {"selector": None}})
    watched.settles(other)
    watched.patch("services", "s", {"spec": {"selector": {"app": "other"}}})
    watched.settles(other, {FAST: "service/s"})
    watched.delete("services", "s")
    watched.settles(other)


# A pod's life


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_has_no_rules(watched: Simulated, phase: str) -> None:
    """Also while its object, and what is left of its cgroup, are still there."""
    pod, left = (watched.pod(name, annotations={"loss": "uniform egress 1%"}) for name in ("web", "left"))
    watched.settles(pod, {LOSS: "pod"})
    watched.settles(left, {LOSS: "pod"})
    watched.end(pod)
    for name in ("web", "left"):
        watched.patch("pods", name, {"status": {"phase": phase}})
    watched.settles(left)
    eventually(lambda: not (watched.observed(pod) or (watched.settings.bpffs / pod.uid).exists()))


def test_a_container_that_is_started_again_changes_nothing(watched: Simulated, watch: Watching) -> None:
    pod, fence = watched.pod(annotations={"loss": "uniform egress 1%"}), watched.pod("fence")
    watched.settles(pod, {LOSS: "pod"})
    programs, transactions = pod.programs(), settled_transactions(watch)
    watched.start_container(pod)
    pod.processes[0].kill()
    status = watched.api.get("pods", watched.namespace, "web")["status"]["containerStatuses"][0]
    for ready in (False, True):
        patch = {"status": {"containerStatuses": [status | {"restartCount": 1, "ready": ready}]}}
        watched.patch("pods", "web", patch)
    watched.annotate("pods", "web", {"example.com/other": "annotations are not ours"})
    watched.annotate("pods", "fence", {"loss": "uniform egress 1%"})
    watched.settles(fence, {LOSS: "pod"})
    eventually(lambda: watch.transactions() > transactions)
    assert pod.programs() == programs
    assert watch.transactions() == transactions + 1  # for the fence, whose program is compiled


def settled_transactions(watch: Watching) -> int:
    """How many there were, when there are no more."""
    count, before = watch.transactions(), -1
    while count != before:
        time.sleep(0.3)
        count, before = watch.transactions(), count
    return count


def test_a_pod_that_comes_again_under_its_name_is_another_pod(watched: Simulated) -> None:
    first = watched.pod(annotations={"loss": "uniform egress 1%"})
    watched.settles(first, {LOSS: "pod"})
    programs = first.programs()
    watched.delete("pods", "web")
    second = watched.pod(annotations={"loss": "uniform egress 2%"})
    watched.settles(second, {MORE_LOSS: "pod"})
    eventually(lambda: not watched.observed(first))
    assert not set(programs) & set(second.programs())
    assert_unloaded(programs)


def test_a_pod_is_given_its_rules_as_soon_as_its_cgroup_is_there(watched: Simulated) -> None:
    late = watched.pod(annotations={"loss": "uniform egress 1%"}, is_running=False, phase="Pending")
    other = watched.pod("other", annotations={"loss": "uniform egress 1%"})
    watched.settles(other, {LOSS: "pod"})  # it does not wait for the first one
    time.sleep(3)
    watched.start(late)
    started = time.monotonic()
    watched.patch("pods", "web", {"status": {"phase": "Running"}})
    watched.settles(late, {LOSS: "pod"})
    assert time.monotonic() - started < 10


def test_a_cgroup_that_appears_without_an_event_is_found_soon(watched: Simulated) -> None:
    late = watched.pod(annotations={"loss": "uniform egress 1%"}, is_running=False)
    time.sleep(1)
    watched.start(late)
    watched.settles(late, {LOSS: "pod"})


def test_a_static_pods_cgroup_is_called_after_its_manifest(watched: Simulated) -> None:
    digest = uuid.uuid4().hex
    pod = watched.pod(
        called=f"pod{digest}",
        annotations={"kubernetes.io/config.hash": digest, "loss": "uniform egress 1%"},
    )
    watched.settles(pod, {LOSS: "pod"})
    watched.delete("pods", pod.name)
    eventually(lambda: not watched.observed(pod))


def test_pods_of_other_nodes_are_left_alone(watched: Simulated) -> None:
    """Even where such a pod's cgroup seems to be on this machine."""
    watched.service("web", WEB, {"bandwidth": "10 mbps egress"})
    there = watched.pod("there", node="node-2", labels=WEB, annotations={"loss": "uniform egress 1%"})
    here = watched.pod("here", labels=WEB)
    watched.settles(here, {SLOW: "service/web"})
    watched.annotate("pods", "there", {"loss": "uniform egress 2%"})
    watched.annotate("pods", "here", {"loss": "uniform egress 2%"})
    watched.settles(here, {SLOW: "service/web", MORE_LOSS: "pod"})
    watched.settles(there)


# Never without a limit


def test_a_change_replaces_the_program_without_a_moment_without_one(watched: Simulated) -> None:
    """Twenty changes, on two pods: of more than ten at once, a pod is spared some."""
    pods = [watched.pod(name, annotations={"bandwidth": "1 mbps egress"}) for name in ("a", "b")]
    for pod in pods:
        watched.settles(pod, {"bandwidth=1 mbps egress": "pod"})
    with sampled(*pods) as sampler:
        for rate in range(2, 12):
            for pod in pods:
                watched.annotate("pods", pod.name, {"bandwidth": f"{rate} mbps egress"})
            if rate % 3:  # others overtake each other
                for pod in pods:
                    watched.settles(pod, {f"bandwidth={rate} mbps egress": "pod"})
    assert sampler.fewest() >= 1
    assert all(len({programs[number] for programs in sampler.samples}) > 5 for number in range(2))


def test_a_rule_that_passes_from_service_to_pod_is_replaced_without_a_moment_without_one(
    watched: Simulated,
) -> None:
    watched.service("web", WEB, {"bandwidth": "10 mbps egress"})
    pod = watched.pod(labels=WEB)
    watched.settles(pod, {SLOW: "service/web"})
    with sampled(pod) as sampler:
        for _ in range(3):
            watched.annotate("pods", "web", {"bandwidth": "100 mbps egress"})
            watched.settles(pod, {FAST: "pod"})
            watched.annotate("pods", "web", {"bandwidth": None})
            watched.settles(pod, {SLOW: "service/web"})
    assert sampler.fewest() >= 1
    assert len(sampler.distinct()) > 6


def test_a_rule_whose_source_alone_changes_keeps_its_program(watched: Simulated) -> None:
    watched.service("web", WEB, {"bandwidth": "10 mbps egress"})
    pod = watched.pod(labels=WEB)
    watched.settles(pod, {SLOW: "service/web"})
    programs = pod.programs()
    watched.annotate("pods", "web", {"bandwidth": "10 MBPS egress"})
    watched.settles(pod, {SLOW: "pod"})
    assert pod.programs() == programs


# What cannot be read


def test_a_bad_annotation_is_told_where_it_is_and_stops_no_other_pod(
    watched: Simulated, watch: Watching
) -> None:
    bad = watched.pod("bad", annotations={"bandwidth": "10 mbsp egress", "loss": "uniform egress 1%"})
    good = watched.pod("good", annotations={"loss": "uniform egress 1%"})
    watched.settles(good, {LOSS: "pod"})
    watched.settles(bad, {LOSS: "pod"})
    eventually(lambda: [reason for reason, _ in watched.events(bad)].count("RuleFailed"))
    failed = [message for reason, message in watched.events(bad) if reason == "RuleFailed"]
    assert len(failed) == 1
    for part in ("pod/bad", "bandwidth", "10 mbsp egress", "mbsp", "mbps"):
        assert part in failed[0]
    (line,) = [line for line in watch.said("bandwidth") if line.get("uid") == bad.uid]
    assert (line["level"], line["pod"]) == ("error", "bad")
    assert line["message"] in failed[0]
    assert not [reason for reason, _ in watched.events(good) if reason == "RuleFailed"]
    watched.annotate("pods", "bad", {"bandwidth": "10 mbps egress"})
    watched.settles(bad, {LOSS: "pod", SLOW: "pod"})


def test_an_unknown_key_of_ours_is_told_once_on_its_pod(watched: Simulated, watch: Watching) -> None:
    pod = watched.pod("typo", annotations={"podmgr.io/bandwith": "1 mbps egress", "loss": "1% egress"})
    watched.settles(pod, {LOSS: "pod"})
    eventually(lambda: "RuleFailed" in dict(watched.events(pod)))
    assert "did you mean podmgr.io/bandwidth?" in dict(watched.events(pod))["RuleFailed"]
    watched.annotate("pods", "typo", {"loss": "2% egress"})
    watched.settles(pod, {"loss=uniform egress 2%": "pod"})
    assert len(watch.said("podmgr.io/bandwith")) == 1


def test_a_rule_stays_in_force_when_its_annotation_becomes_unreadable(
    watched: Simulated, watch: Watching
) -> None:
    watched.service("web", WEB, {"loss": "uniform egress 1%"})
    pod = watched.pod(labels=WEB, annotations={"bandwidth": "10 mbps egress; 20 mbps ingress"})
    before = {SLOW: "pod", "bandwidth=20 mbps ingress": "pod", LOSS: "service/web"}
    watched.settles(pod, before)
    programs = pod.programs()
    watched.annotate("pods", "web", {"bandwidth": "10 mbps upwards"})
    watched.annotate("services", "web", {"loss": "lots"})
    for text in ("10 mbps upwards", "lots"):
        watch.hears(text)
    settled_transactions(watch)
    assert (watched.rules(pod), pod.programs()) == (before, programs)
    watched.annotate("pods", "web", {"bandwidth": "20 mbps ingress"})
    watched.annotate("services", "web", {"loss": None})
    watched.settles(pod, {"bandwidth=20 mbps ingress": "pod"})


def test_a_custom_program_that_is_broken_leaves_in_force_what_it_would_replace(watched: Simulated) -> None:
    pod = watched.pod(annotations={"ebpf-limit": "dropper egress -DPORT=9", "loss": "uniform egress 1%"})
    before = {"ebpf-limit=dropper egress -DPORT=9": "pod", LOSS: "pod"}
    watched.settles(pod, before)
    watched.annotate("pods", "web", {"ebpf-limit": "dropper egress -DNOSUCH=1", "loss": "uniform egress 2%"})
    after = {"ebpf-limit=dropper egress -DPORT=9": "pod", MORE_LOSS: "pod"}
    watched.settles(pod, after)
    eventually(lambda: "RuleFailed" in dict(watched.events(pod)))
    assert "NOSUCH" in dict(watched.events(pod))["RuleFailed"]


def test_events_tell_what_was_applied_and_removed(watched: Simulated) -> None:
    watched.service("web", WEB, {"loss": "uniform egress 1%"})
    pod = watched.pod(labels=WEB, annotations={"bandwidth": "10 mbps egress"})
    watched.settles(pod, {SLOW: "pod", LOSS: "service/web"})
    eventually(lambda: watched.events(pod))
    limit, loss = f"{SLOW} (cgroup hook)", f"{LOSS} (service/web, tc hook)"
    wanted = []
    for value, rules, reason in (
        (None, {}, "RuleRemoved"),
        ("10 mbps egress", {SLOW: "pod"}, "RuleApplied"),
        (None, {}, "RuleRemoved"),
        ("10 mbps egress", {SLOW: "pod"}, "RuleApplied"),
    ):
        watched.annotate("pods", "web", {"bandwidth": value})
        watched.settles(pod, rules | {LOSS: "service/web"})
        wanted.append((reason, limit if rules else SLOW))
        eventually(lambda: len(watched.events(pod)) > len(wanted), why=lambda: watched.events(pod))
    first, *others = watched.events(pod)
    assert first[0] == "RuleApplied"
    assert sorted(first[1].split("; ")) == [limit, loss]
    assert others == wanted
    event = next(event for event in watched.api.events() if event["involvedObject"]["uid"] == pod.uid)
    assert (event["type"], event["source"]) == ("Normal", {"component": "podmgr", "host": watched.node})
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": watched.namespace,
        "name": "web",
        "uid": pod.uid,
    }


# Real packets


def test_an_annotation_changes_what_becomes_of_a_pods_packets(watched: Simulated) -> None:
    """A pod with a network namespace of its own; its packets go over a veth pair to the world."""
    pod = watched.pod()
    with throw_away_pod(pod.place.path) as container:
        pod.processes[0].kill()  # so that the other's network is the pod's
        assert send_datagrams(container, 4000, 200) == (200, 0, 200)
        watched.annotate("pods", "web", {"loss": "uniform egress 100%"})
        watched.settles(pod, {"loss=uniform egress 100%": "pod"})
        sent, errors, received = send_datagrams(container, 4000, 200)
        assert (sent, errors, received) == (200, 0, 0)
        own = json.loads(container.run([*PROBE, "send", "127.0.0.1", "4000", "100"]))
        assert own["errors"] in range(100)  # its loopback is not its network
        (item,) = watched.observed(pod)
        assert item.counters is not None
        assert item.counters.dropped_packets - 200 in range(20)  # and a few of the namespace's own
        watched.annotate("pods", "web", {"loss": None})
        watched.settles(pod)
        assert send_datagrams(container, 4000, 200) == (200, 0, 200)


@pytest.mark.parametrize("has_host_network", [True, False])
def test_loopback_counts_for_a_pod_in_the_hosts_network_alone(
    watched: Simulated, has_host_network: bool
) -> None:
    pod = watched.pod(host_network=has_host_network)
    assert _received_on_loopback(pod) == 100
    watched.annotate("pods", "web", {"loss": "uniform egress 100%"})
    watched.settles(pod, {"loss=uniform egress 100%": "pod"})
    assert _received_on_loopback(pod) == (0 if has_host_network else 100)
    watched.annotate("pods", "web", {"loss": None})
    watched.settles(pod)
    assert _received_on_loopback(pod) == 100


def _received_on_loopback(pod: RunningPod) -> int:
    """How many of 100 datagrams arrive that a process of the pod sends to itself."""
    errors, received = json.loads(pod.run([sys.executable, "-I", "-c", _TO_ITSELF]))
    assert errors == 0
    return int(received)


_TO_ITSELF = """
import json, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(0.2)
    errors, received = 0, 0
    for _ in range(100):
        try:
            sock.sendto(b"", sock.getsockname())
        except OSError:
            errors += 1
    try:
        while True:
            sock.recv(100)
            received += 1
    except TimeoutError:
        print(json.dumps([errors, received]))
"""


# Beside the command line


def test_what_the_command_line_put_on_a_cgroup_is_left_alone(watched: Simulated) -> None:
    podmgr = Cli(watched.settings)
    pod = watched.pod(annotations={"loss": "uniform egress 1%"})
    plain = watched.pod("plain", is_running=False)
    watched.start(plain, called="no-pod")  # a plain cgroup: kubelet calls none so
    watched.settles(pod, {LOSS: "pod"})
    podmgr("apply", "cgroup/kubepods/no-pod", "--rule", SLOW)
    before = [row for row in podmgr.listed() if row["source"] == "cli"]
    assert len(before) == 1
    watched.annotate("pods", "web", {"loss": "uniform egress 2%"})
    watched.annotate("pods", "plain", {"loss": "uniform egress 2%"})
    watched.settles(pod, {MORE_LOSS: "pod"})
    assert [row for row in podmgr.listed() if row["source"] == "cli"] == before
    podmgr("clean", "cgroup/kubepods/no-pod")


def test_what_the_command_line_put_on_a_pods_cgroup_by_its_path_is_left_alone(watched: Simulated) -> None:
    """It counts loopback, as a rule on a plain cgroup does: the pod's own rules do not."""
    podmgr = Cli(watched.settings)
    pod = watched.pod(annotations={"loss": "uniform egress 1%"})
    watched.settles(pod, {LOSS: "pod"})
    podmgr("apply", f"cgroup/kubepods/{pod.place.path.name}", "--rule", SLOW)
    before = podmgr.listed()
    assert [(row["rule"], row["source"]) for row in before] == [(SLOW, "cli")]
    watched.annotate("pods", "web", {"loss": "uniform egress 2%", "bandwidth": "100 mbps egress"})
    eventually(lambda: len(podmgr.listed()) == 2)
    rows = podmgr.listed()
    assert [row for row in rows if row["source"] == "cli"] == before
    assert [(row["rule"], row["source"]) for row in rows if row["source"] != "cli"] == [(MORE_LOSS, "pod")]
    podmgr("clean", before[0]["target"])


def test_the_command_line_outranks_a_pods_annotation_until_it_is_cleaned(
    watched: Simulated, tmp_path: Path
) -> None:
    podmgr = Cli(watched.settings)
    pod = watched.pod(annotations={"bandwidth": "10 mbps egress", "loss": "uniform egress 1%"})
    watched.settles(pod, {SLOW: "pod", LOSS: "pod"})
    manifest = tmp_path / "pod.json"
    manifest.write_text(json.dumps(watched.api.get("pods", watched.namespace, "web")))
    podmgr("apply", "-f", str(manifest), "--rule", FAST)
    watched.settles(pod, {FAST: "cli", LOSS: "pod"})
    programs = set(pod.programs())
    watched.annotate("pods", "web", {"bandwidth": "20 mbps egress", "loss": "uniform egress 2%"})
    watched.settles(pod, {FAST: "cli", MORE_LOSS: "pod"})
    assert len(programs & set(pod.programs())) == 1  # the command line's
    podmgr("clean", "pod/web")
    watched.annotate("pods", "web", {"loss": "uniform egress 1%"})
    watched.settles(pod, {"bandwidth=20 mbps egress": "pod", LOSS: "pod"})


def test_what_the_command_line_takes_from_a_pod_comes_back(watched: Simulated) -> None:
    pod = watched.pod(annotations={"loss": "uniform egress 1%"})
    watched.settles(pod, {LOSS: "pod"})
    Cli(watched.settings)("clean")
    watched.settles(pod, {LOSS: "pod"})


# What it tells


def test_metrics_are_what_list_shows(watched: Simulated, watch: Watching) -> None:
    podmgr = Cli(watched.settings)
    pod = watched.pod(
        host_network=True, annotations={"loss": "uniform egress 50%", "bandwidth": "1 gbps ingress"}
    )
    watched.settles(pod, {"loss=uniform egress 50%": "pod", "bandwidth=1 gbps ingress": "pod"})
    _received_on_loopback(pod)
    rows, metrics = podmgr.listed(), watch.metrics()
    (loss,) = [row for row in rows if row["kind"] == "loss"]
    assert loss["counters"]["dropped_packets"] > 0
    for name in ("passed_packets", "passed_bytes", "dropped_packets", "dropped_bytes"):
        assert metrics[f"podmgr_{name}_total"] == {
            (
                ("direction", row["direction"]),
                ("namespace", watched.namespace),
                ("pod", "web"),
                ("rule", row["rule"]),
            ): row["counters"][name]
            for row in rows
        }
    assert metrics["podmgr_attachments"] == {
        (("kind", "loss"), ("state", "active")): 1,
        (("kind", "bandwidth"), ("state", "active")): 1,
    }
    assert metrics["podmgr_pods"][()] == 1
    assert 0 <= time.time() - metrics["podmgr_last_sync_timestamp_seconds"][()] < 60
    assert len(metrics["podmgr_build_info"]) == 1
    assert (watch.probe("/healthz"), watch.probe("/readyz"), watch.probe("/nosuch")) == (200, 200, 404)


def test_metrics_show_a_program_that_somebody_took_away(watched: Simulated, watch: Watching) -> None:
    pod = watched.pod(annotations={"loss": "uniform egress 1%"})
    watched.settles(pod, {LOSS: "pod"})
    pod.lose_programs()
    missing = {(("kind", "loss"), ("state", "missing")): 1.0}
    assert watch.metrics()["podmgr_attachments"] == missing
    watched.annotate("pods", "web", {"loss": "uniform egress 2%"})
    watched.settles(pod, {MORE_LOSS: "pod"})
