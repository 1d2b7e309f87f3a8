"""What the rules do to real packets, between two network namespaces and on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import (
    PROBE,
    WORLD_ADDRESS,
    WORLD_ADDRESS6,
    Pod,
    send_datagrams,
    throughput,
    throw_away_pod,
)
from podmgr.kernel import cgroup_life
from podmgr.rules.chance import DRAWS
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.loss import ExponentialLoss, UniformLoss
from podmgr.settings import Settings
from tests.kernel.conftest import applied, counters, under
from tests.kernel.network import kernel_has_fq, tc_state, transfer

PORT = 4000


@pytest.fixture(scope="module")
def pod(cgroup_root: Path) -> Iterator[Pod]:
    with throw_away_pod(cgroup_root) as pod:
        yield pod


@pytest.mark.parametrize("hook", ["cgroup", "tc"])
@pytest.mark.parametrize("host", [WORLD_ADDRESS, WORLD_ADDRESS6])
def test_lost_datagrams_are_no_errors_to_their_sender(
    pod: Pod, settings: Settings, host: str, hook: str
) -> None:
    rule = f"loss=uniform egress 30% hook={hook}"
    with under(settings, pod.cgroup, rule) as listed:
        sent, errors, received = send_datagrams(pod, PORT, 20_000, host=host)
        low, high = binomial_interval(20_000, 0.3)
        assert (sent, errors) == (20_000, 0)
        assert low <= sent - received <= high
        passed, _, dropped, _ = counters(listed(), rule)
        # the namespace's own few packets (router and neighbour discovery) count as well
        assert passed - received in range(20)
        assert dropped - (sent - received) in range(20)


@pytest.mark.parametrize(
    "text",
    [
        *(f"loss=uniform egress {percent}%" for percent in ("0", "0.1", "50", "99", "100")),
        *(f"loss=exponential egress {threshold}" for threshold in (0, 100, 700, 1000)),
    ],
)
def test_loss_is_as_declared(pod: Pod, settings: Settings, text: str) -> None:
    (rule,) = parse_rule_option(text)
    assert isinstance(rule, UniformLoss | ExponentialLoss)
    low, high = binomial_interval(100_000, rule.drop_threshold / DRAWS)
    with under(settings, pod.cgroup, text):
        sent, errors, received = send_datagrams(pod, PORT, 100_000)
    assert errors == 0
    assert low <= sent - received <= high


def test_loss_on_the_way_in(settings: Settings, cgroup: Cgroup) -> None:
    """The receiver is in the cgroup, so ingress is its; on loopback of our own namespace."""
    rule = "loss=uniform ingress 25%"
    with under(settings, cgroup, rule, counts_loopback=True) as listed:
        receiver = proc.start(
            [*PROBE, "receive", str(PORT)],
            prepare=lambda: cgroup_life.join(cgroup),
            streams=subprocess.PIPE,
        )
        assert receiver.stdin is not None and receiver.stdout is not None
        with receiver.stdin, receiver.stdout:
            receiver.stdout.readline()
            proc.run([*PROBE, "send", "127.0.0.1", str(PORT), "20000"])
            receiver.stdin.close()
            received = json.loads(receiver.stdout.readline())["received"]
            receiver.wait()
        low, high = binomial_interval(20_000, 0.25)
        assert low <= 20_000 - received <= high
        assert counters(listed(), rule)[2] == 20_000 - received


@pytest.mark.parametrize(("text", "limit"), [("10 mbps", 10e6), ("100 mbps", 100e6), ("1 gbps", 1e9)])
def test_bandwidth_on_the_wire_is_the_limit(pod: Pod, settings: Settings, text: str, limit: float) -> None:
    # At 10 mbps, one pause of TCP more or less in 10 s is half a percent.
    tolerance = 0.04 if limit < 100e6 else 0.03
    with under(settings, pod.cgroup, f"bandwidth={text} egress"):
        assert throughput(pod, 10) == pytest.approx(limit, rel=tolerance)


def test_counters_count_every_segment_and_its_headers(pod: Pod, settings: Settings) -> None:
    """TCP hands over packets of up to 64 KiB; the wire sees full frames of 1514 bytes."""
    rule, payload = "bandwidth=400 gbps egress", 50_000_000
    with under(settings, pod.cgroup, rule) as listed:
        sent_again = transfer(pod, WORLD_ADDRESS, payload)
        passed_packets, passed_bytes, dropped, _ = counters(listed(), rule)
    assert dropped == 0
    payload += 1448 * sent_again
    assert passed_packets == pytest.approx(payload / 1448, rel=0.05)  # not all segments are full
    assert passed_bytes == pytest.approx(payload + 66 * passed_packets, rel=0.002)


def test_two_processes_and_a_child_cgroup_share_one_limit(pod: Pod, settings: Settings) -> None:
    child = Cgroup(pod.cgroup.path / "child", 0)
    child.path.mkdir()
    try:
        with under(settings, pod.cgroup, "bandwidth=20 mbps egress"):
            total = _udp_flood([pod.cgroup, pod.cgroup, child], pod, seconds=4)
    finally:
        cgroup_life.remove(child)
    assert total * 8 == pytest.approx(20e6 * 4, rel=0.15)  # three limits would let three times as much pass


def test_a_pods_own_loopback_is_not_its_network(pod: Pod, settings: Settings) -> None:
    rule = "loss=uniform egress 100%"
    with under(settings, pod.cgroup, rule) as listed:
        probe = list(PROBE)
        assert json.loads(pod.run([*probe, "send", "127.0.0.1", str(PORT), "100"]))["errors"] in range(100)
        assert counters(listed(), rule) == (0, 0, 0, 0)


def test_loopback_counts_for_a_plain_cgroup(cgroup: Cgroup, settings: Settings) -> None:
    rule = "loss=uniform egress 100%"
    with under(settings, cgroup, rule, counts_loopback=True) as listed:
        argv = [*PROBE, "send", "127.0.0.1", str(PORT), "100", "32"]
        proc.run(argv, prepare=lambda: cgroup_life.join(cgroup))
        assert counters(listed(), rule) == (0, 0, 100, 100 * (14 + 20 + 8 + 32))


def test_rules_on_one_cgroup_add_up(pod: Pod, settings: Settings) -> None:
    """Loss and a custom program both act; each sees all packets, as the cgroup hook has it."""
    loss, dropper = "loss=uniform egress 50% hook=cgroup", f"ebpf-limit=dropper egress -DPORT={PORT}"
    with under(settings, pod.cgroup, loss, dropper) as listed:
        _, _, at_port = send_datagrams(pod, PORT, 1_000)
        _, _, elsewhere = send_datagrams(pod, PORT + 1, 1_000)
        low, high = binomial_interval(1_000, 0.5)
        assert at_port == 0
        assert low <= elsewhere <= high
        assert counters(listed(), dropper)[2] == 1_000
        assert sum(counters(listed(), loss)[0::2]) == 2_000


@pytest.mark.parametrize("host", [WORLD_ADDRESS, WORLD_ADDRESS6])
def test_the_dropper_chooses_by_protocol(pod: Pod, settings: Settings, host: str) -> None:
    with under(settings, pod.cgroup, "ebpf-limit=dropper egress -DPROTOCOL=IPPROTO_TCP"):
        assert send_datagrams(pod, PORT, 100, host=host)[2] == 100
    with under(settings, pod.cgroup, "ebpf-limit=dropper egress -DPROTOCOL=IPPROTO_UDP"):
        assert send_datagrams(pod, PORT, 100, host=host)[2] == 0


@pytest.mark.parametrize("host", [WORLD_ADDRESS, WORLD_ADDRESS6])
def test_the_dropper_chooses_by_destination(pod: Pod, settings: Settings, host: str) -> None:
    others = [f"ebpf-limit=dropper egress -DDST={address}" for address in ("198.18.0.99", "fd00:db8::99")]
    with under(settings, pod.cgroup, *others):
        assert send_datagrams(pod, PORT, 100, host=host)[2] == 100
    with under(settings, pod.cgroup, *others, f"ebpf-limit=dropper egress -DDST={host}"):
        assert send_datagrams(pod, PORT, 100, host=host)[2] == 0


def test_edt_at_the_cgroup_hook_without_fq_says_so_and_attaches_nothing(pod: Pod, settings: Settings) -> None:
    rule = "bandwidth=10 mbps egress algorithm=edt hook=cgroup"
    (outcome,) = applied(settings, pod.cgroup, rule)
    assert outcome.error is not None
    assert "fq" in outcome.error.message
    assert "eth0 (noqueue)" in outcome.error.message
    assert not settings.bpffs.exists()


@pytest.mark.parametrize(
    ("rule", "instead"),
    [
        ("bandwidth=10 mbps egress algorithm=edt", "algorithm=tbf"),
        ("ebpf-limit=edt egress -DRATE=10000000", "bandwidth=RATE egress"),
    ],
)
def test_edt_brings_its_fq_and_a_kernel_without_it_is_told_of(
    pod: Pod, settings: Settings, rule: str, instead: str
) -> None:
    before = tc_state(pod.pid)
    if kernel_has_fq():
        with under(settings, pod.cgroup, rule):
            assert "qdisc fq 7ab0: root" in tc_state(pod.pid)
    else:
        (outcome,) = applied(settings, pod.cgroup, rule)
        assert outcome.error is not None
        assert "fq" in outcome.error.message
        assert "modprobe sch_fq" in (outcome.error.tip or "")
        assert f"or use {instead}" in (outcome.error.tip or "")
    assert tc_state(pod.pid) == before
    assert not settings.bpffs.exists()


_FLOOD = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    for _ in range(10):
        sock.sendto(bytes(1000), (sys.argv[1], int(sys.argv[2])))
    time.sleep(0.001)
"""


def _udp_flood(members: list[Cgroup], pod: Pod, *, seconds: float) -> int:
    """Each member floods the world, far over any limit here; the bytes on the wire that arrived."""
    before = _received_bytes(pod)
    namespace = f"--net=/proc/{pod.pid}/ns/net"
    argv = ["nsenter", namespace, sys.executable, "-c", _FLOOD, WORLD_ADDRESS, str(PORT), str(seconds)]
    senders = [
        proc.start(argv, prepare=lambda member=member: cgroup_life.join(member), streams=subprocess.DEVNULL)  # type: ignore[misc]
        for member in members
    ]
    assert [sender.wait() for sender in senders] == [0] * len(members)
    return _received_bytes(pod) - before


def _received_bytes(pod: Pod) -> int:
    """What the world's interface has received; UDP of this size is one frame a packet."""
    argv = ["nsenter", f"--net=/proc/{pod.world_pid}/ns/net", "ip", "-j", "-s", "link", "show", "eth0"]
    return int(json.loads(proc.run(argv).stdout)[0]["stats64"]["rx"]["bytes"])
