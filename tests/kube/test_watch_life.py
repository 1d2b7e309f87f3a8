"""`podmgr watch` from start to end: what it finds, what it leaves, and what it tells its supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from podmgr.kernel import pins
from podmgr.reconcile.observe import observe
from tests.kernel.conftest import Cli, assert_nothing_left
from tests.kube import objects
from tests.kube.cluster import RunningPod, Simulated, eventually
from tests.kube.watching import Watching, assert_all_gone, sampled
from tests.scraping import ask

Watch = Callable[..., Watching]

LOSS = "loss=uniform egress 1%"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MANY = 110  # what a node runs by default


def many_pods(cluster: Simulated, programs: int) -> list[RunningPod]:
    """Pods that share so many programs, each of which takes a while to compile."""
    return [
        cluster.pod(f"web-{number}", annotations={"bandwidth": f"{number % programs + 1} mbps egress"})
        for number in range(MANY)
    ]


# Starting again


@pytest.mark.parametrize("end", ["killed", "kept"])
def test_a_new_start_leaves_every_program_where_it_is(
    simulated: Simulated, watching: Watch, end: str
) -> None:
    simulated.service("web", {"app": "web"}, {"bandwidth": "10 mbps egress; 10 mbps ingress"})
    pods = [simulated.pod(f"web-{number}", labels={"app": "web"}) for number in range(3)]
    first = watching(*(["--keep"] if end == "kept" else []))
    for pod in pods:
        simulated.settles(
            pod, dict.fromkeys(["bandwidth=10 mbps egress", "bandwidth=10 mbps ingress"], "service/web")
        )
    with sampled(*pods) as sampler:
        if end == "killed":
            first.kill()
        else:
            assert first.stop() == 0
        second = watching()
    assert len(sampler.distinct()) == 1
    assert sampler.fewest() == 2
    assert second.program_ids() == set()  # it had nothing to do


def test_what_changed_while_nobody_watched_is_caught_up_with(simulated: Simulated, watching: Watch) -> None:
    changed, deleted, same = (
        simulated.pod(name, annotations={"loss": "uniform egress 1%"})
        for name in ("changed", "deleted", "same")
    )
    first = watching()
    for pod in (changed, deleted, same):
        simulated.settles(pod, {LOSS: "pod"})
    first.kill()
    programs = same.programs()
    simulated.annotate("pods", "changed", {"loss": None, "bandwidth": "10 mbps egress"})
    simulated.delete("pods", "deleted")
    new = simulated.pod("new", annotations={"loss": "uniform egress 1%"})
    watching()
    simulated.settles(changed, {"bandwidth=10 mbps egress": "pod"})
    simulated.settles(new, {LOSS: "pod"})
    eventually(lambda: not simulated.observed(deleted))
    assert same.programs() == programs


def test_killed_in_the_middle_of_a_burst_it_goes_on_where_it_was(
    simulated: Simulated, watching: Watch
) -> None:
    still = [simulated.pod(f"still-{n}", annotations={"loss": "uniform egress 1%"}) for n in range(3)]
    moved = [simulated.pod(f"moved-{n}", annotations={"bandwidth": "1 gbps egress"}) for n in range(5)]
    watch = watching()
    programs = [pod.programs() for pod in still]
    new: list[RunningPod] = []
    with sampled(*still, *moved) as sampler:
        for round_, delay in enumerate((0.05, 0.15, 0.3)):
            for number, pod in enumerate(moved):
                simulated.annotate("pods", pod.name, {"bandwidth": f"{10 * round_ + number + 1} mbps egress"})
            new += [
                simulated.pod(
                    f"new-{round_}-{number}", annotations={"loss": f"uniform egress {number}.{round_}%"}
                )
                for number in range(8)
            ]
            time.sleep(delay)
            watch.kill()
            watch = watching(waits=False)
        watch.is_in_order()
        for number, pod in enumerate(moved):
            simulated.settles(pod, {f"bandwidth={21 + number} mbps egress": "pod"})
        for pod in new:
            eventually(lambda pod=pod: len(simulated.rules(pod)) == len(pod.programs()) == 1)  # type: ignore[misc]
    assert sampler.fewest() >= 1
    assert [pod.programs() for pod in still] == programs


# Ending


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: str(n.name))
def test_when_it_ends_all_limits_end(simulated: Simulated, watching: Watch, number: signal.Signals) -> None:
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    watch = watching()
    simulated.settles(pod, {LOSS: "pod"})
    assert watch.stop(number) == 0
    assert pod.programs() == ()
    assert ("RuleRemoved", LOSS) in simulated.events(pod)
    assert_all_gone([watch])


def test_without_an_api_server_it_ends_as_well(simulated: Simulated, watching: Watch) -> None:
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    watch = watching()
    simulated.settles(pod, {LOSS: "pod"})
    simulated.api.stop()
    assert watch.stop() == 0
    assert pod.programs() == ()


def test_its_end_leaves_alone_what_the_command_line_put_there(
    simulated: Simulated, watching: Watch, tmp_path: Path
) -> None:
    """On a cgroup, on a pod's cgroup by its path, and on a pod."""
    podmgr, rule = Cli(simulated.settings), ("--rule", "bandwidth=10 mbps egress")
    by_path, by_name, plain = pods = [
        simulated.pod(name, annotations={"loss": "uniform egress 1%"}) for name in ("path", "name", "plain")
    ]
    simulated.annotate("pods", "plain", {"loss": None})
    watch = watching()
    for target in (by_path, plain):
        podmgr("apply", f"cgroup/kubepods/{target.place.path.name}", *rule)
    manifest = tmp_path / "pod.json"
    manifest.write_text(json.dumps(simulated.api.get("pods", "default", "name")))
    podmgr("apply", "-f", str(manifest), *rule)
    by_hand = [row for row in podmgr.listed() if row["source"] == "cli"]
    assert len(by_hand) == 3
    for name in ("path", "name"):
        simulated.annotate("pods", name, {"loss": "uniform egress 2%"})
    eventually(lambda: all("loss=uniform egress 2%" in simulated.rules(pod) for pod in (by_path, by_name)))
    assert watch.stop() == 0
    assert podmgr.listed() == by_hand
    assert [len(pod.programs()) for pod in pods] == [1, 1, 1]
    podmgr("clean")


@pytest.mark.parametrize(
    ("programs", "seconds"),
    [(1, 0.0), (1, 0.3), (1, 0.6), (MANY, 2.0)],
    ids=["0 s", "0.3 s", "0.6 s", "slow"],
)
def test_ctrl_c_in_a_burst_leaves_nothing(
    simulated: Simulated, watching: Watch, programs: int, seconds: float
) -> None:
    pods = many_pods(simulated, programs)
    watch = watching(waits=False)
    watch.hears("watching the pods")
    time.sleep(seconds)
    assert watch.stop(signal.SIGINT) == 0
    assert [pod.programs() for pod in pods] == [()] * MANY
    assert_all_gone([watch])


@pytest.mark.parametrize("then", ["watch", "clean"])
def test_a_second_ctrl_c_stops_at_once_and_what_it_leaves_is_finished(
    simulated: Simulated, watching: Watch, then: str
) -> None:
    pods = many_pods(simulated, 8)
    watch = watching(waits=False)
    eventually(lambda: any(pins.pinned(simulated.settings.bpffs)))
    watch.send(signal.SIGINT)
    watch.send(signal.SIGTERM)  # another SIGINT might be taken together with the first
    assert watch.ended(2) == 130
    assert "podmgr clean, or the next watch, finishes it" in watch.lines[-1]["message"]
    if then == "watch":
        watching()
        for number, pod in enumerate(pods):
            simulated.settles(pod, {f"bandwidth={number % 8 + 1} mbps egress": "pod"})
    else:
        Cli(simulated.settings)("clean")
        assert [pod.programs() for pod in pods] == [()] * MANY
        assert_nothing_left(simulated.settings)


def test_a_second_watch_is_refused_and_the_first_goes_on(simulated: Simulated, watching: Watch) -> None:
    pod = simulated.pod()
    watching()
    second = watching(waits=False)
    assert second.ended() == 1
    assert "another podmgr watch runs on" in second.log.read_text()
    simulated.annotate("pods", "web", {"loss": "uniform egress 1%"})
    simulated.settles(pod, {LOSS: "pod"})


# What its supervisor sees


def test_it_is_alive_but_not_ready_before_it_has_seen_the_cluster(
    simulated: Simulated, watching: Watch
) -> None:
    """Here without --node-name: the API server is asked for that as well."""
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    simulated.api.stop()
    watch = watching("--metrics-address", "127.0.0.1:0", waits=False, names_node=False)
    watch.hears("cannot be reached")
    assert (watch.probe("/healthz"), watch.probe("/readyz")) == (200, 503)
    simulated.api.start()
    watch.is_in_order()
    simulated.settles(pod, {LOSS: "pod"})
    assert (watch.probe("/healthz"), watch.probe("/readyz")) == (200, 200)
    assert watch.said("watching the pods of node node-1")


def test_it_knows_its_node_by_the_boot_though_it_is_called_otherwise(
    simulated: Simulated, watching: Watch
) -> None:
    """As in a container without NODE_NAME, which has a name, addresses and a machine id of its own."""
    pod = simulated.pod(annotations={"loss": "uniform egress 1%"})
    simulated.api.create(objects.node("node-2", boot_id="another", address="10.0.0.12"))
    about = {"status": {"nodeInfo": {"bootID": BOOT_ID.read_text().strip()}}}
    simulated.api.patch("nodes", "", "node-1", about)
    watch = watching(names_node=False, environment={"NODE_NAME": ""})
    assert watch.said("watching the pods of node node-1")
    simulated.settles(pod, {LOSS: "pod"})


def test_an_address_of_this_machine_is_known_as_its_own() -> None:
    say = "from podmgr.cluster.this_machine import this_machine as m; print(m().has_address('10.99.0.1'))"
    both = 'ip link set lo up; $0 -c "$1"; ip address add 10.99.0.1/32 dev lo; $0 -c "$1"'
    argv = ["unshare", "--net", "sh", "-ec", both, sys.executable, say]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert said.stdout.split() == ["False", "True"]


def test_it_is_ready_no_sooner_than_all_rules_are_in_force(simulated: Simulated, watching: Watch) -> None:
    many_pods(simulated, 5)
    watch = watching("--metrics-address", "127.0.0.1:0", waits=False)
    eventually(lambda: watch.probe("/readyz") == 200)
    assert len([item for item in observe(simulated.settings)[0] if item.is_active]) == MANY


def test_a_socket_with_a_token_tells_its_figures_to_those_who_have_it(
    simulated: Simulated, watching: Watch, tmp_path: Path
) -> None:
    simulated.pod(annotations={"loss": "uniform egress 1%"})
    token, folder = tmp_path / "token", Path(f"/tmp/podmgr-{os.getpid()}")
    token.write_text("s3cret\n")
    token.chmod(0o600)
    folder.mkdir(mode=0o755)
    path = folder / "socket"
    try:
        watch = watching("--metrics", f"unix:{path}", "--metrics-token-file", str(token))
        assert ask(path, "/metrics") == (401, "Unauthorized\n")
        status, figures = ask(path, "/metrics", "Bearer s3cret")
        assert status == 200
        assert 'podmgr_attachments{kind="loss",state="active"} 1.0' in figures
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        assert watch.stop() == 0
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()


# More than a compiler is let: each condition is on what is left of the one before.
ENDLESS = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#define R4(x) x x x x
#define R256(x) R4(R4(R4(R4(x))))
SEC("cgroup_skb/egress") int endless(struct __sk_buff *skb)
{
	unsigned int x = skb->mark;
	R256(R256(if (x & 1) x = x * 33 ^ skb->len; else x += x >> 3 ^ 7;))
	return x != 7;
}
char LICENSE[] SEC("license") = "GPL";
"""


def test_a_program_that_takes_a_compiler_too_long_holds_up_nobody(
    simulated: Simulated, watching: Watch, tmp_path: Path
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir(mode=0o755)
    (folder / "endless.bpf.c").write_text(ENDLESS)
    simulated.settings = simulated.settings._replace(program_dir=folder)
    slow = simulated.pod("slow", annotations={"ebpf-limit": "endless egress", "loss": "uniform egress 1%"})
    pods = many_pods(simulated, 5)
    watch = watching("--metrics-address", "127.0.0.1:0", waits=False)
    eventually(lambda: watch.probe("/readyz") == 200, seconds=60, why=watch.tail)
    assert watch.said("1 of .* not in order")
    for pod in pods:
        assert pod.programs()
    assert not watch.said("endless")
    assert not slow.programs()


def test_systemd_is_told_when_it_is_ready_alive_and_stopping(
    simulated: Simulated, watching: Watch, tmp_path: Path
) -> None:
    simulated.pod(annotations={"loss": "uniform egress 1%"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        watch = watching(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        told: list[str] = []
        while "READY=1" not in told or told[-1] != "WATCHDOG=1":
            told.append(supervisor.recv(1000).decode())
        assert len([item for item in observe(simulated.settings)[0] if item.is_active]) == 1
        assert watch.stop() == 0
        while told[-1] != "STOPPING=1":
            told.append(supervisor.recv(1000).decode())
    assert (told.count("READY=1"), told.count("STOPPING=1")) == (1, 1)
    assert set(told) == {"READY=1", "WATCHDOG=1", "STOPPING=1"}


def test_every_line_of_a_log_in_json_is_json(simulated: Simulated, watching: Watch) -> None:
    """Also with an annotation that would rather not be."""
    annotations = {"bandwidth": '10 "mbps"\n\x1b[31m{egress}', "loss": "uniform egress 1%"}
    pod = simulated.pod(annotations=annotations)
    watch = watching("--metrics-address", "127.0.0.1:0")
    simulated.settles(pod, {LOSS: "pod"})
    simulated.api.cut_watches()
    watch.hears("answers again")
    assert watch.stop() == 0
    lines = watch.lines
    assert len(lines) == len(watch.log.read_text().splitlines())
    assert {line["level"] for line in lines} == {"info", "error"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    (attached,) = watch.said("loss.*attached")
    for name, value in (("pod", pod.name), ("uid", pod.uid), ("rule", LOSS), ("source", "pod")):
        assert attached[name] == value


def test_a_log_in_text_is_read_by_people(simulated: Simulated, watching: Watch) -> None:
    pod = simulated.pod(annotations={"loss": "uniform egress 1%", "bandwidth": "1\x1b[31m0 mbps"})
    watch = watching("--log-format", "text", waits=False)
    simulated.settles(pod, {LOSS: "pod"})
    assert watch.stop() == 0
    text = watch.log.read_text()
    assert re.search(rf"^\S+Z info    default/web: {re.escape(LOSS)} attached$", text, re.MULTILINE)
    assert re.search(r"^\S+Z error   default/web: ", text, re.MULTILINE)
    assert "\x1b" not in text
