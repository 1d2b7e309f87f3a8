"""Rules at the tc hook: on a pod's own interfaces, and for one cgroup on those that others use too."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import (
    POD_ADDRESS,
    POD_ADDRESS6,
    WORLD_ADDRESS,
    WORLD_ADDRESS6,
    Pod,
    throw_away_pod,
)
from podmgr.errors import RuleError
from podmgr.kernel import cgroup_life
from podmgr.kernel.bpf_syscall import Counters
from podmgr.rules.grammar import parse_rule_option, parse_value
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import Cli, MakeCgroup, applied, attached, counters, run, under
from tests.kernel.network import (
    Outside,
    Place,
    datagrams,
    ip,
    outside,
    pings,
    program_folder,
    programs,
    qdisc_kinds,
    tc_state,
    transfer,
)

PORT = 4100
NOISE = 40  # neighbour and router discovery, which the kernel sends by itself
HOSTS = [(WORLD_ADDRESS, POD_ADDRESS), (WORLD_ADDRESS6, POD_ADDRESS6)]
each_family = pytest.mark.parametrize(("world", "own"), HOSTS, ids=["IPv4", "IPv6"])

TC_DROPPER = """
#define PODMGR_TC 1
#include "podmgr.h"
#include <bpf/bpf_endian.h>

#ifndef PORT
#define PORT 0
#endif

SEC("tc")
int tcdropper(struct __sk_buff *skb)
{
	struct transport transport;
	__be16 ports[2] = {};

	if (is_exempt(skb))
		return VERDICT_PASS;
	transport = transport_of(skb);
	if (transport.protocol == IPPROTO_UDP)
		bpf_skb_load_bytes_relative(skb, transport.offset, ports, sizeof(ports), BPF_HDR_START_NET);
	return count(wire_of(skb), ports[1] == bpf_htons(PORT) ? VERDICT_DROP : VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
"""
BARE_DROPPER = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int bare(struct __sk_buff *skb)
{
	return skb->len > 1000 ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture(scope="module")
def pod(cgroup_root: Path) -> Iterator[Pod]:
    with throw_away_pod(cgroup_root) as pod:
        yield pod


@pytest.fixture(autouse=True)
def the_pods_interfaces_are_as_before(pod: Pod) -> Iterator[None]:
    before = tc_state(pod.pid)
    yield
    assert tc_state(pod.pid) == before


@pytest.fixture
def with_programs(settings: Settings, tmp_path: Path) -> Settings:
    """`dropper`, for the cgroup hook; `tcdropper`, and `bare`, which knows nothing of podmgr.h."""
    folder = program_folder(tmp_path / "programs", tcdropper=TC_DROPPER, bare=BARE_DROPPER)
    return settings._replace(program_dir=folder)


def in_pod(pod: Pod) -> Place:
    return Place(pod.pid, pod.cgroup)


def in_world(pod: Pod) -> Place:
    return Place(pod.world_pid)


# Loss on a pod's own interfaces


@each_family
def test_datagrams_that_are_lost_on_the_way_out_are_no_errors(
    pod: Pod, settings: Settings, world: str, own: str
) -> None:
    del own
    rule = "loss=uniform egress 30%"
    with under(settings, pod.cgroup, rule) as listed:
        assert listed()[rule].attachment.hook == "tc"
        assert attached(pod.cgroup) == ()
        errors, (received,) = datagrams(in_pod(pod), in_world(pod), world, 20_000)
        low, high = binomial_interval(20_000, 0.3)
        assert errors == 0
        assert low <= 20_000 - received <= high
        passed, passed_bytes, dropped, dropped_bytes = counters(listed(), rule)
        assert passed - received in range(NOISE)
        assert dropped - (20_000 - received) in range(NOISE)
        frame = 14 + (40 if ":" in world else 20) + 8 + 100
        assert passed_bytes == pytest.approx(frame * received, abs=200 * NOISE)
        assert dropped_bytes == pytest.approx(frame * dropped, abs=200 * NOISE)


@each_family
def test_datagrams_are_lost_on_the_way_in(pod: Pod, settings: Settings, world: str, own: str) -> None:
    del world
    rule = "loss=uniform ingress 30%"
    with under(settings, pod.cgroup, rule) as listed:
        assert listed()[rule].attachment.hook == "tc"
        assert attached(pod.cgroup, Direction.INGRESS) == ()
        errors, (received,) = datagrams(in_world(pod), in_pod(pod), own, 20_000)
        low, high = binomial_interval(20_000, 0.3)
        assert errors == 0
        assert low <= 20_000 - received <= high
        assert counters(listed(), rule)[2] - (20_000 - received) in range(NOISE)


@each_family
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_echoes_are_lost_whoever_asks(
    pod: Pod, settings: Settings, world: str, own: str, direction: str
) -> None:
    """Also those that the kernel answers, which belong to no process of the pod."""
    assert pings(in_pod(pod), world, 500) == pings(in_world(pod), own, 500) == 500
    low, high = binomial_interval(4_000, 0.2)
    with under(settings, pod.cgroup, f"loss=uniform {direction} 20%"):
        assert low <= 4_000 - pings(in_pod(pod), world, 4_000) <= high
        assert low <= 4_000 - pings(in_world(pod), own, 4_000) <= high


@each_family
def test_tcp_sends_again_what_is_lost(pod: Pod, settings: Settings, world: str, own: str) -> None:
    del own
    rule = "loss=uniform egress 2%"
    with under(settings, pod.cgroup, rule) as listed:
        again = transfer(pod, world, 40_000_000)
        dropped = counters(listed(), rule)[2]
    print(f"2 % egress loss, 40 MB: {dropped} segments dropped, {again} sent again")
    assert dropped > 0
    assert again >= 0.9 * dropped  # an acknowledgement may be lost as well


def test_tcp_does_not_learn_of_a_loss_at_the_cgroup_hook(pod: Pod, settings: Settings) -> None:
    """Why it is not the default. Of a dozen drops a few may be sent again all the same."""
    rule = "loss=uniform egress 2% hook=cgroup"
    shares = []
    for _ in range(3):
        with under(settings, pod.cgroup, rule) as listed:
            again = transfer(pod, WORLD_ADDRESS, 40_000_000)
            dropped = counters(listed(), rule)[2]
        assert dropped > 0
        shares.append(again / dropped)
        if shares[-1] < 0.5:
            return
    pytest.fail(f"sent again {shares} of what was dropped")


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_pods_loopback_is_left_alone(pod: Pod, settings: Settings, direction: str) -> None:
    rule = f"loss=uniform {direction} 100%"
    with under(settings, pod.cgroup, rule) as listed:
        assert datagrams(in_pod(pod), in_pod(pod), "127.0.0.1", 100) == (0, [100])
        assert counters(listed(), rule)[2] < NOISE
        assert qdisc_kinds(pod.pid, "lo").isdisjoint({"clsact"})


def test_neighbours_are_found_though_all_is_lost(pod: Pod, settings: Settings) -> None:
    """ARP is not IP, and the cgroup hook does not see it either."""
    with under(settings, pod.cgroup, "loss=uniform egress 100%"):
        ip(pod.pid, "neigh del 198.18.0.2 dev eth0")
        try:
            in_pod(pod).run("python3", "-c", _ONE_DATAGRAM)
            (row,) = json.loads(ip(pod.pid, "-j neigh show 198.18.0.2"))
            assert row["lladdr"] == "02:00:00:00:00:02"
        finally:
            ip(pod.pid, "neigh replace 198.18.0.2 lladdr 02:00:00:00:00:02 nud permanent dev eth0")


_ONE_DATAGRAM = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.sendto(b"", ("198.18.0.2", 9))
time.sleep(0.5)
"""


def test_an_attachment_at_tc_is_listed_as_such(podmgr: Cli, pod: Pod, tmp_path: Path) -> None:
    manifest = tmp_path / "pod.yaml"
    manifest.write_text("kind: Pod\nmetadata: {name: web, annotations: {loss: uniform egress 1%}}\n")
    words = ("apply", "-f", str(manifest), "--cgroup", str(pod.cgroup.path))
    assert podmgr(*words).stdout == "pod/web loss=uniform egress 1% attached\n"
    (program,) = programs(pod.pid)
    (row,) = podmgr.listed()
    assert row.pop("counters").keys() == {
        "passed_packets",
        "passed_bytes",
        "dropped_packets",
        "dropped_bytes",
    }
    assert row == {
        "pod": {"namespace": "default", "name": "web", "uid": ""},
        "target": "pod/web",
        "kind": "loss",
        "rule": "loss=uniform egress 1%",
        "source": "pod",
        "direction": "egress",
        "hook": "tc",
        "program_id": program,
        "state": "active",
    }
    assert podmgr(*words).stdout == "pod/web loss=uniform egress 1% unchanged\n"
    assert programs(pod.pid) == [program]
    run(*Place(pod.pid).argv("tc", "filter", "del", "dev", "eth0", "egress"))
    assert [row["state"] for row in podmgr.listed()] == ["missing"]
    podmgr(*words)
    assert [row["state"] for row in podmgr.listed()] == ["active"]
    podmgr("clean", "pod/web")
    assert programs(pod.pid) == []


# One cgroup on interfaces that others use too


@pytest.fixture(scope="module")
def beyond() -> Iterator[Outside]:
    with outside() as beyond:
        yield beyond
        assert "clsact" not in tc_state(None)


@pytest.fixture
def member(make_cgroup: MakeCgroup) -> Iterator[Place]:
    """A process in a cgroup, in the network that the tests run in."""
    cgroup = make_cgroup("member")
    place = Place(None, cgroup)
    with place.start("sleep", "infinity") as process:
        yield place
        process.kill()


def cgroup_of(place: Place) -> Cgroup:
    assert place.cgroup is not None
    return place.cgroup


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_loss_of_a_cgroup_on_shared_interfaces_is_its_alone(
    beyond: Outside, member: Place, settings: Settings, family: str
) -> None:
    host, loopback = (beyond.address, "127.0.0.1") if family == "IPv4" else (beyond.address6, "::1")
    rule, there, here = "loss=uniform egress 30%", Place(beyond.pid), Place()
    low, high = binomial_interval(10_000, 0.3)
    with under(settings, cgroup_of(member), rule, counts_loopback=True) as listed:
        assert listed()[rule].attachment.hook == "tc"
        assert attached(cgroup_of(member)) == ()
        errors, (received,) = datagrams(member, there, host, 10_000)
        assert errors == 0
        assert low <= 10_000 - received <= high
        errors, (on_loopback,) = datagrams(member, here, loopback, 10_000)
        assert errors == 0
        assert low <= 10_000 - on_loopback <= high
        before = counters(listed(), rule)
        assert before[0] + before[2] == 20_000  # what is not its own is not even counted
        assert datagrams(here, there, host, 5_000) == (0, [5_000])
        assert datagrams(here, here, loopback, 5_000) == (0, [5_000])
        assert datagrams(there, member, _own_address(host), 5_000) == (0, [5_000])
        assert counters(listed(), rule) == before


def _own_address(address: str) -> str:
    return address.removesuffix("2") + "1"


def test_a_cgroup_loses_what_its_children_send_and_not_what_its_neighbours_do(
    beyond: Outside, member: Place, settings: Settings, make_cgroup: MakeCgroup
) -> None:
    rule, there = "loss=uniform egress 100%", Place(beyond.pid)
    cgroup = cgroup_of(member)
    child = cgroup_life.create(cgroup.path, "child")
    grandchild = cgroup_life.create(child.path, "grandchild")
    neighbour = make_cgroup("neighbour")
    with under(settings, cgroup, rule, counts_loopback=True):
        for place in (cgroup, child, grandchild):
            assert datagrams(Place(None, place), there, beyond.address, 100) == (0, [0])
        assert datagrams(Place(None, neighbour), there, beyond.address, 100) == (0, [100])


def test_the_losses_of_nested_cgroups_add_up(beyond: Outside, member: Place, settings: Settings) -> None:
    rule, there = "loss=uniform egress 50%", Place(beyond.pid)
    child = cgroup_life.create(cgroup_of(member).path, "child")
    inner = Place(None, child)
    with inner.start("sleep", "infinity") as process:
        try:
            with (
                under(settings, cgroup_of(member), rule, counts_loopback=True),
                under(settings, child, rule, counts_loopback=True),
            ):
                assert len(programs(None, "out0")) == 2
                low, high = binomial_interval(8_000, 0.25)
                assert low <= datagrams(inner, there, beyond.address, 8_000)[1][0] <= high
                low, high = binomial_interval(8_000, 0.5)
                assert low <= datagrams(member, there, beyond.address, 8_000)[1][0] <= high
        finally:
            process.kill()


UPPER = {
    "vlan": "link add link out0 name upper0 type vlan id 7",
    "macvlan": "link add link out0 name upper0 type macvlan mode bridge",
    "vxlan": "link add upper0 type vxlan id 7 local 198.18.10.1 remote 198.18.10.2 dstport 4789 dev out0",
}
BEYOND = {
    "vlan": "link add link in0 name lower0 type vlan id 7",
    "macvlan": "link add link in0 name lower0 type macvlan mode bridge",
    "vxlan": "link add lower0 type vxlan id 7 local 198.18.10.2 remote 198.18.10.1 dstport 4789 dev in0",
}


@contextmanager
def stacked(kind: str, beyond: Outside) -> Iterator[str | None]:
    """An interface `upper0` above `out0`; the address that is reached through both.

    None if the kernel has no such interfaces.
    """
    try:
        ip(None, UPPER[kind])
    except subprocess.CalledProcessError:
        yield None
        return
    try:
        ip(beyond.pid, BEYOND[kind])
        for pid, device, end in ((None, "upper0", 1), (beyond.pid, "lower0", 2)):
            ip(pid, f"addr add 198.18.11.{end}/24 dev {device}")
            ip(pid, f"link set {device} up")
        yield "198.18.11.2"
        ip(beyond.pid, "link del lower0")
    finally:
        ip(None, "link del upper0")


def test_a_packet_that_passes_two_interfaces_is_judged_once(
    beyond: Outside, member: Place, settings: Settings
) -> None:
    """On VLANs, tunnels and the like: those that this kernel has."""
    rule, there = "loss=uniform egress 50%", Place(beyond.pid)
    low, high = binomial_interval(10_000, 0.5)
    tried = []
    for kind in UPPER:
        with stacked(kind, beyond) as host:
            if host is None:
                continue
            assert datagrams(member, there, host, 100) == (0, [100])
            with under(settings, cgroup_of(member), rule, counts_loopback=True) as listed:
                assert (programs(None, "upper0"), len(programs(None, "out0"))) == ([], 1)
                errors, (received,) = datagrams(member, there, host, 10_000)
                assert errors == 0
                assert low <= received <= high, kind
                passed, _, dropped, _ = counters(listed(), rule)
                assert (passed, dropped) == (received, 10_000 - received)
            tried.append(kind)
    print(f"judged once on: {', '.join(tried)}")
    assert len(tried) >= 2


def test_loss_ingress_and_bandwidth_of_a_cgroup_are_at_the_cgroup_hook(
    member: Place, settings: Settings
) -> None:
    rules = ("loss=uniform ingress 100%", "bandwidth=10 mbps egress", "bandwidth=10 mbps ingress")
    with under(settings, cgroup_of(member), *rules, counts_loopback=True) as listed:
        assert {item.attachment.hook for item in listed().values()} == {"cgroup"}
        assert len(attached(cgroup_of(member))) == 1
        assert len(attached(cgroup_of(member), Direction.INGRESS)) == 2
        assert datagrams(Place(), member, "127.0.0.1", 100) == (0, [0])


def test_an_empty_cgroup_has_its_loss_at_the_cgroup_hook_and_is_told_why(
    cgroup: Cgroup, settings: Settings
) -> None:
    rule = "loss=uniform egress 100%"
    with under(settings, cgroup, rule, counts_loopback=True):
        assert len(attached(cgroup)) == 1
        assert "clsact" not in tc_state(None)
    (outcome,) = applied(settings, cgroup, rule, counts_loopback=True)
    with under(settings, cgroup, rule, counts_loopback=True):
        assert (outcome.hook, "before a process lives there" in outcome.note) == ("cgroup", True)


def test_a_cgroup_that_was_empty_gets_its_loss_at_tc_when_it_is_applied_again(
    cgroup: Cgroup, settings: Settings
) -> None:
    rule = "loss=uniform egress 100%"
    applied(settings, cgroup, rule, counts_loopback=True)
    with Place(None, cgroup).start("sleep", "infinity") as process:
        with under(settings, cgroup, rule, counts_loopback=True) as listed:
            assert listed()[rule].attachment.hook == "tc"
            assert attached(cgroup) == ()
        process.kill()
    assert "clsact" not in tc_state(None)


def test_loss_at_tc_of_an_empty_cgroup_is_refused_where_it_is_asked_for(
    cgroup: Cgroup, settings: Settings
) -> None:
    (outcome,) = applied(settings, cgroup, "loss=uniform egress 1% hook=tc", counts_loopback=True)
    assert outcome.error is not None
    assert "before a process lives there" in outcome.error.message
    assert not settings.bpffs.exists()


# Every two rules on one pod and direction

RATE_BITS_PER_SECOND = 8_000_000
PORTS = (4200, 4201, 4202)
PAIRED = {
    "bandwidth at cgroup": "bandwidth=8 mbps {} hook=cgroup",
    "bandwidth at tc": "bandwidth=8 mbps {} hook=tc",
    "loss": "loss=uniform {} 50%",
    "custom at cgroup": f"ebpf-limit=dropper {{}} -DPORT={PORTS[0]}",
    "custom at tc": f"ebpf-limit=tcdropper {{}} -DPORT={PORTS[1]}",
}
PAIRS = [
    pytest.param(one, two, id=f"{one} and {two}")
    for one, two in itertools.combinations(PAIRED, 2)
    if not (one.startswith("bandwidth") and two.startswith("bandwidth"))
]
IN_CHAIN = ["loss", "custom at tc", "bandwidth at tc"]


@each_family
@pytest.mark.parametrize("direction", ["egress", "ingress"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_two_rules_both_hold(
    pod: Pod, with_programs: Settings, one: str, two: str, direction: str, world: str, own: str
) -> None:
    rules = {name: PAIRED[name].format(direction) for name in (one, two)}
    with under(with_programs, pod.cgroup, *rules.values()) as listed:
        start = time.monotonic()
        sender, receiver, host = in_pod(pod), in_world(pod), world
        if direction == "ingress":
            sender, receiver, host = receiver, sender, own
        errors, arrived = datagrams(sender, receiver, host, 1_000, ports=PORTS, size_bytes=1_000)
        seconds = time.monotonic() - start
        observed = {name: listed()[rule].counters for name, rule in rules.items()}
    did = {name: found for name, found in observed.items() if found is not None}
    assert len(did) == 2
    assert errors == 0
    assert arrived[2] > 0
    assert "custom at cgroup" not in rules or arrived[0] == 0
    assert "custom at tc" not in rules or arrived[1] == 0
    if "loss" in rules:
        low, high = binomial_interval(_seen(did["loss"]), 0.5)
        assert low <= did["loss"].dropped_packets <= high
    for name in rules:
        if name.startswith("bandwidth"):
            assert did[name].dropped_packets > 0
            most = 16_000 + RATE_BITS_PER_SECOND / 8 * seconds
            assert did[name].passed_bytes <= most
    _assert_each_sees_what_comes_through(did, direction, sum(arrived))


def _seen(found: Counters) -> int:
    return found.passed_packets + found.dropped_packets


def _assert_each_sees_what_comes_through(did: dict[str, Counters], direction: str, arrived: int) -> None:
    """A chain at tc ends for what is dropped; at the cgroup hook each program sees all."""
    chain = [name for name in IN_CHAIN if name in did]
    at_cgroup = [name for name in did if name not in IN_CHAIN]
    stages = [[name] for name in chain]
    if at_cgroup:
        stages = [at_cgroup, *stages] if direction == "egress" else [*stages, at_cgroup]
    offered = 3_000
    for stage in stages:
        for name in stage:
            assert _seen(did[name]) == pytest.approx(offered, abs=NOISE), (name, did)
        offered = min(did[name].passed_packets for name in stage)
    if len(at_cgroup) < 2:
        assert arrived == pytest.approx(offered, abs=NOISE)
    else:
        assert arrived <= offered


def test_bandwidth_at_both_hooks_collides_as_any_two_do() -> None:
    with pytest.raises(RuleError, match="collides"):
        parse_value("bandwidth", "1 mbps egress hook=cgroup; 1 mbps egress hook=tc")


def test_loss_comes_first_custom_next_and_bandwidth_last(pod: Pod, with_programs: Settings) -> None:
    """Whatever the order in which they were written, or came."""
    rules = [PAIRED[name].format("egress") for name in ("bandwidth at tc", "custom at tc", "loss")]
    for order in itertools.permutations(rules):
        with under(with_programs, pod.cgroup, order[0]):
            applied(with_programs, pod.cgroup, *order[:2])
            with under(with_programs, pod.cgroup, *order) as listed:
                ids = {item.attachment.program_id: rule for rule, item in listed().items()}
                assert [ids[number].partition("=")[0] for number in programs(pod.pid)] == [
                    "loss",
                    "ebpf-limit",
                    "bandwidth",
                ]


# Programs of the user's own


def test_a_program_of_ones_own_at_tc_with_podmgr_h_counts(pod: Pod, with_programs: Settings) -> None:
    rule = f"ebpf-limit=tcdropper egress -DPORT={PORT}"
    with under(with_programs, pod.cgroup, rule) as listed:
        assert listed()[rule].attachment.hook == "tc"
        ports = (PORT, PORT + 1)
        assert datagrams(in_pod(pod), in_world(pod), WORLD_ADDRESS, 500, ports=ports) == (0, [0, 500])
        assert counters(listed(), rule)[2] == 500
        assert counters(listed(), rule)[0] - 500 in range(NOISE)


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_program_of_ones_own_at_tc_needs_no_podmgr_h(
    pod: Pod, with_programs: Settings, direction: str
) -> None:
    rule = f"ebpf-limit=bare {direction}"
    with under(with_programs, pod.cgroup, rule) as listed:
        assert listed()[rule].counters is None
        assert len(programs(pod.pid, side=direction)) == 1
        ends = (in_pod(pod), in_world(pod), WORLD_ADDRESS)
        if direction == "ingress":
            ends = (in_world(pod), in_pod(pod), POD_ADDRESS)
        assert datagrams(*ends, 200, size_bytes=900)[1] == [200]
        assert datagrams(*ends, 200, size_bytes=1100)[1] == [0]


def test_on_shared_interfaces_a_program_of_ones_own_that_asks_the_scope_is_told_it(
    beyond: Outside, member: Place, with_programs: Settings
) -> None:
    rule, there = f"ebpf-limit=tcdropper egress -DPORT={PORT}", Place(beyond.pid)
    with under(with_programs, cgroup_of(member), rule, counts_loopback=True):
        assert datagrams(member, there, beyond.address, 200) == (0, [0])
        assert datagrams(Place(), there, beyond.address, 200) == (0, [200])


def test_on_shared_interfaces_a_program_of_ones_own_that_does_not_ask_is_refused(
    beyond: Outside, member: Place, with_programs: Settings
) -> None:
    before = tc_state(None)
    (outcome,) = applied(with_programs, cgroup_of(member), "ebpf-limit=bare egress", counts_loopback=True)
    assert outcome.error is not None
    assert "would touch the packets of others" in outcome.error.message
    assert "is_exempt()" in (outcome.error.tip or "")
    assert tc_state(None) == before
    assert not with_programs.bpffs.exists()
    assert datagrams(Place(), Place(beyond.pid), beyond.address, 10, size_bytes=1100) == (0, [10])


def test_a_refused_program_leaves_the_rule_that_it_was_to_stand_beside(
    member: Place, with_programs: Settings
) -> None:
    rule = "loss=uniform egress 5%"
    with under(with_programs, cgroup_of(member), rule, counts_loopback=True) as listed:
        before = tc_state(None)
        outcomes = applied(
            with_programs, cgroup_of(member), rule, "ebpf-limit=bare egress", counts_loopback=True
        )
        assert [outcome.error is not None for outcome in outcomes] == [True]
        assert tc_state(None) == before
        assert listed()[rule].is_active


# interface=


SECOND = "198.18.12.2"


@pytest.fixture
def second(pod: Pod) -> Iterator[str]:
    """A second interface of the pod, `net1`; the address that it leads to."""
    ip(pod.pid, f"link add net1 type veth peer net1 netns {pod.world_pid}")
    for pid, end in ((pod.pid, 1), (pod.world_pid, 2)):
        ip(pid, f"addr add 198.18.12.{end}/24 dev net1")
        ip(pid, "link set net1 up")
    yield SECOND
    ip(pod.pid, "link del net1")


def lost(pod: Pod, host: str) -> float:
    """The share that is lost of what the pod sends."""
    errors, (received,) = datagrams(in_pod(pod), in_world(pod), host, 200)
    assert errors == 0
    return 1 - received / 200


def test_without_interface_all_that_lead_out_share_one_program(
    pod: Pod, second: str, settings: Settings
) -> None:
    rule = "loss=uniform egress 100%"
    with under(settings, pod.cgroup, rule) as listed:
        assert (
            programs(pod.pid, "eth0") == programs(pod.pid, "net1") == [listed()[rule].attachment.program_id]
        )
        assert (lost(pod, WORLD_ADDRESS), lost(pod, second)) == (1, 1)
        assert counters(listed(), rule)[2] - 400 in range(NOISE)


@pytest.mark.parametrize(
    ("names", "losses"), [("eth0", (1, 0)), ("net1", (0, 1)), ("net1,eth0", (1, 1)), ("eth0,net1", (1, 1))]
)
def test_interface_names_those_that_the_rule_acts_on(
    pod: Pod, second: str, settings: Settings, names: str, losses: tuple[int, int]
) -> None:
    with under(settings, pod.cgroup, f"loss=uniform egress 100% interface={names}") as listed:
        (item,) = listed().values()
        on = {name for name in ("eth0", "net1") if programs(pod.pid, name) == [item.attachment.program_id]}
        assert on == set(names.split(","))
        assert {name for name in ("eth0", "net1") if "clsact" in qdisc_kinds(pod.pid, name)} == on
        assert (lost(pod, WORLD_ADDRESS), lost(pod, second)) == losses


def test_two_interfaces_share_one_limit(pod: Pod, second: str, settings: Settings) -> None:
    rule = "bandwidth=8 mbps egress interface=eth0,net1"
    with under(settings, pod.cgroup, rule) as listed:
        start = time.monotonic()
        for host in (WORLD_ADDRESS, second):
            errors, (received,) = datagrams(in_pod(pod), in_world(pod), host, 2_000, size_bytes=1_000)
            assert (errors, received > 0) == (0, True)
        passed, passed_bytes, dropped, _ = counters(listed(), rule)
        seconds = time.monotonic() - start
        assert listed()[rule].attachment.hook == "tc"
    assert passed + dropped - 4_000 in range(NOISE)
    assert passed_bytes <= 16_000 + RATE_BITS_PER_SECOND / 8 * seconds


def test_an_interface_that_is_not_there_is_an_error_that_names_those_that_are(
    pod: Pod, second: str, settings: Settings
) -> None:
    del second
    (outcome,) = applied(settings, pod.cgroup, "loss=uniform egress 1% interface=eth0,eth7")
    assert outcome.error is not None
    assert "eth7" in outcome.error.message
    assert outcome.error.tip == "there are: eth0, lo, net1"
    assert "clsact" not in tc_state(pod.pid)
    assert not settings.bpffs.exists()


def test_another_interface_is_another_place_for_the_same_rule(
    pod: Pod, second: str, settings: Settings
) -> None:
    del second
    for names in ("eth0", "net1", "eth0,net1", "eth0"):
        applied(settings, pod.cgroup, "loss=uniform egress 1% interface=eth0")
        with under(settings, pod.cgroup, f"loss=uniform egress 1% interface={names}"):
            on = [name for name in ("eth0", "net1") if "clsact" in qdisc_kinds(pod.pid, name)]
            assert on == names.split(",")
            assert all(len(programs(pod.pid, name)) == 1 for name in on)


def test_an_interface_that_is_taken_away_leaves_the_rule_on_the_other(
    pod: Pod, second: str, settings: Settings
) -> None:
    del second
    rule = "loss=uniform egress 100%"
    try:
        with under(settings, pod.cgroup, rule) as listed:
            ip(pod.pid, "link del net1")
            assert listed()[rule].is_active
            assert lost(pod, WORLD_ADDRESS) == 1
            (outcome,) = applied(settings, pod.cgroup, rule)
            assert outcome.error is None
            assert len(programs(pod.pid)) == 1
    finally:
        ip(pod.pid, f"link add net1 type veth peer net1 netns {pod.world_pid}")


def test_an_interface_that_comes_later_gets_the_rule_when_it_is_applied_again(
    pod: Pod, settings: Settings
) -> None:
    rule = "loss=uniform egress 100%"
    with under(settings, pod.cgroup, rule):
        ip(pod.pid, f"link add net1 type veth peer net1 netns {pod.world_pid}")
        try:
            ip(pod.pid, "link set net1 up")
            with under(settings, pod.cgroup, rule):
                assert len(programs(pod.pid, "net1")) == len(programs(pod.pid, "eth0")) == 1
        finally:
            ip(pod.pid, "link del net1")


def test_rules_that_say_where_they_act_come_back_the_same_from_the_list(
    pod: Pod, second: str, settings: Settings
) -> None:
    del second
    rule = "loss=uniform egress 1% interface=eth0,net1"
    with under(settings, pod.cgroup, "loss=uniform egress 1% interface=net1,eth0,eth0") as listed:
        assert list(listed()) == [rule]
        assert str(parse_rule_option(rule)[0]) == rule
