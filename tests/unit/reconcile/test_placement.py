"""Where rules act: at which hook, on which interfaces of which namespaces, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podmgr.attachment import Cgroup, Link
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel.netns import MOST_NAMESPACES, Namespaces
from podmgr.kernel.tc import Interface, Qdisc, TrafficControl
from podmgr.reconcile.placement import Networks, Placement
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Hook, Rule
from tests.unit.samples import EGRESS, INGRESS

OWN, POD, OTHER, FIRST = 100, 200, 300, 400  # namespaces; FIRST is that of process 1
POD_NUMBER, OTHER_NUMBER = 4, 5  # by which interfaces of the node's name them
CGROUP = Cgroup(Path("/cgroups/7"), 7)

LOSS, INGRESS_LOSS = "loss=uniform egress 1%", "loss=uniform ingress 1%"
SLOW = "bandwidth=1 mbps egress"
DELAY, INGRESS_DELAY = "bandwidth=1 mbps egress algorithm=edt", "bandwidth=1 mbps ingress algorithm=edt"
CUSTOM = "ebpf-limit=dropper egress"

AT_CGROUP = Placement(Hook.CGROUP)


def link(
    index: int,
    name: str,
    kind: str = "veth",
    *,
    peer: int | None = None,
    number: int | None = None,
    master: int | None = None,
) -> Interface:
    """One that is up."""
    return Interface(index, name, kind, True, False, master, peer, number)


LO = link(1, "lo", "")._replace(is_loopback=True)
HOST_ETH0 = link(2, "eth0", "")
HOST_SIDE = link(9, "cali1", peer=2, number=POD_NUMBER)
POD_ETH0 = link(2, "eth0", peer=9, number=0)


@dataclass
class Machine:
    """Namespaces, and the interfaces and qdiscs in them; by whom they are lived in."""

    links: dict[int, list[Interface]] = field(
        default_factory=lambda: {OWN: [LO, HOST_ETH0, HOST_SIDE], POD: [LO, POD_ETH0], OTHER: [LO, POD_ETH0]}
    )
    qdiscs: dict[int, dict[str, Qdisc]] = field(default_factory=dict)
    homes: list[int] = field(default_factory=lambda: [POD])
    shared: set[int] = field(default_factory=set)
    nodes: list[int] = field(default_factory=lambda: [OWN])
    numbers: dict[int, int] = field(default_factory=lambda: {POD: POD_NUMBER, OTHER: OTHER_NUMBER})
    error: PodmgrError | None = None
    asked: list[tuple[int, str]] = field(default_factory=list)

    def networks(self) -> Networks:
        return Networks(Seen(self))

    def place(
        self,
        rule: str,
        *,
        counts_loopback: bool = False,
        starts_here: bool = False,
        is_enforced: bool = False,
        hook: Hook | None = None,
    ) -> Placement:
        return self.networks().place(
            parsed(rule),
            CGROUP,
            counts_loopback=counts_loopback,
            starts_here=starts_here,
            is_enforced=is_enforced,
            hook=hook,
        )


class Seen(Namespaces):
    """What the machine has, without opening anything."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def of(self, cgroup: Cgroup, *, most: int = MOST_NAMESPACES) -> list[int]:
        assert cgroup == CGROUP
        self.machine.asked.append((0, "processes"))
        if self.machine.error is not None:
            raise self.machine.error
        return list(self.machine.homes)[:most]

    def own(self) -> int:
        return OWN

    def is_ours(self, inode: int) -> bool:
        return inode == OWN

    def is_shared(self, inode: int, cgroup: Cgroup) -> bool:
        assert cgroup == CGROUP
        return inode in self.machine.shared

    def traffic_control(self, inode: int, near: Cgroup | None = None) -> TrafficControl | None:
        assert near is None
        return Control(self.machine, inode) if inode in self.machine.links else None

    def nodes(self) -> list[int]:
        return self.machine.nodes

    def id_of(self, inode: int, viewer: int) -> int | None:
        return self.machine.numbers.get(inode) if viewer == self.machine.nodes[-1] else None


class Control(TrafficControl):
    """What is in one of the machine's namespaces; no default route."""

    def __init__(self, machine: Machine, namespace: int) -> None:
        self.machine = machine
        self.namespace = namespace

    def interfaces(self) -> list[Interface]:
        self.machine.asked.append((self.namespace, "link"))
        return self.machine.links[self.namespace]

    def qdiscs(self) -> dict[int, list[Qdisc]]:
        there = self.machine.qdiscs.get(self.namespace, {})
        return {
            item.index: [there[item.name]]
            for item in self.machine.links[self.namespace]
            if item.name in there
        }

    def _default_interfaces(self) -> set[int]:
        return set()


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """The true root of all cgroups is in sight, or not."""

    def see(is_seen: bool) -> None:
        monkeypatch.setattr("podmgr.kernel.cgroups.has_true_root", lambda: is_seen)

    see(True)
    yield see


def parsed(rule: str) -> Rule:
    (found,) = parse_rule_option(rule)
    return found


def names(place: Placement) -> list[str]:
    assert place.hook is Hook.TC
    return [link.name for link in place.links]


# A pod with a network of its own


@pytest.mark.parametrize(
    ("rule", "side"),
    [
        (LOSS, EGRESS),
        (INGRESS_LOSS, INGRESS),
        (DELAY, EGRESS),
        (f"{SLOW} hook=tc", EGRESS),
        ("bandwidth=1 mbps ingress hook=tc", INGRESS),
        ("bandwidth=1 mbps ingress interface=eth0", INGRESS),
        ("ebpf-limit=edt egress -DRATE=1000000", EGRESS),
    ],
)
def test_rule_acts_on_the_pods_own_interface(machine: Machine, rule: str, side: Any) -> None:
    assert machine.place(rule) == Placement(Hook.TC, (Link(POD, 2, side, "eth0"),))


@pytest.mark.parametrize(
    "rule", [SLOW, "bandwidth=1 mbps ingress", f"{LOSS} hook=cgroup", f"{INGRESS_LOSS} hook=cgroup"]
)
@pytest.mark.parametrize("counts_loopback", [True, False])
def test_rule_for_the_cgroup_hook_does_without_a_look_at_the_network(
    machine: Machine, rule: str, counts_loopback: bool
) -> None:
    """So that who may not look at it can limit all the same."""
    machine.error = PermissionDeniedError("not allowed to look")
    assert machine.place(rule, counts_loopback=counts_loopback) == AT_CGROUP
    assert counts_loopback is not bool(machine.asked)


BRIDGED_ETH0, BRIDGE = POD_ETH0._replace(master_index=5), link(5, "k6t-eth0", "bridge")
TAP, DUMMY = link(6, "tap0", "tun", master=5), link(7, "eth1", "dummy")
TUN, WIREGUARD = link(3, "tun0", "tun"), link(4, "wg0", "wireguard")
FORWARDS = "nothing of what passes eth0 without a socket of the pod"


@pytest.mark.parametrize(
    ("links", "amiss"),
    [
        ([LO, BRIDGED_ETH0, BRIDGE, TAP], FORWARDS),
        ([LO, POD_ETH0, TUN], "what tun0 carries twice, or never if it is a virtual machine's"),
        ([LO, POD_ETH0, WIREGUARD], "what wg0 carries twice, or never if it is a virtual machine's"),
        ([LO, POD_ETH0, BRIDGE, TAP], "what tap0 carries twice, or never if it is a virtual machine's"),
        ([LO, POD_ETH0._replace(kind="macvtap")], FORWARDS),
    ],
    ids=["port of a bridge", "tun", "tunnel", "virtual machine behind a router", "virtual machine's device"],
)
@pytest.mark.parametrize("side", [EGRESS, INGRESS])
def test_limit_goes_where_each_packet_passes_once(
    machine: Machine, links: list[Interface], amiss: str, side: Any
) -> None:
    machine.links[POD] = links
    rule = f"bandwidth=1 mbps {side}"
    note = f"would, at the cgroup's, see {amiss}"
    assert machine.place(rule) == Placement(Hook.TC, (Link(POD, 2, side, "eth0"),), note=note)
    stays = Placement(Hook.CGROUP, note=f"sees {amiss}")
    assert machine.place(rule, is_enforced=True) == stays  # else its pod could take it from tc
    assert machine.place(f"{rule} hook=cgroup") == stays
    assert machine.place(f"loss=1% {side} hook=cgroup") == stays
    assert machine.place(CUSTOM, hook=Hook.CGROUP) == stays
    assert machine.place(rule, counts_loopback=True) == AT_CGROUP


@pytest.mark.parametrize(
    "links",
    [
        [LO, POD_ETH0, WIREGUARD._replace(is_up=False)],
        [LO, TUN],
        [LO, POD_ETH0, link(3, "eth0.5", "vlan", peer=2)],
        [LO, POD_ETH0, BRIDGE, link(8, "veth1", peer=2, number=7, master=5)],
    ],
    ids=["a tunnel that is down", "no other way out", "VLAN", "containers of the pod's own"],
)
def test_limit_stays_at_the_cgroup_hook_where_each_packet_is_seen_once(
    machine: Machine, links: list[Interface]
) -> None:
    machine.links[POD] = links
    assert machine.place(SLOW) == AT_CGROUP


@pytest.mark.parametrize("counts_loopback", [True, False])
def test_who_may_not_look_loses_at_the_cgroup_hook_and_is_told_so(
    machine: Machine, counts_loopback: bool
) -> None:
    machine.error = PermissionDeniedError("not allowed to look")
    place = machine.place(LOSS, counts_loopback=counts_loopback)
    note = "would act on interfaces, but podmgr is not allowed to look"
    assert place == Placement(Hook.CGROUP, note=note)


@pytest.mark.parametrize(
    "rule", [f"{LOSS} hook=tc", f"{LOSS} interface=eth0", DELAY, f"{SLOW} hook=tc", INGRESS_DELAY]
)
def test_not_being_allowed_to_look_is_no_reason_to_do_less_than_was_asked_for(
    machine: Machine, rule: str
) -> None:
    machine.error = PermissionDeniedError("not allowed to look")
    with pytest.raises(PermissionDeniedError, match="not allowed to look"):
        machine.place(rule)


@pytest.mark.parametrize("hook", Hook)
def test_custom_program_is_placed_where_its_section_says(machine: Machine, hook: Hook) -> None:
    place = machine.place(CUSTOM, hook=hook)
    assert place == (AT_CGROUP if hook is Hook.CGROUP else Placement(hook, (Link(POD, 2, EGRESS, "eth0"),)))


def test_pods_network_is_that_of_its_oldest_process(machine: Machine) -> None:
    """A container that made a network of its own is not the pod."""
    machine.homes = [POD, OTHER]
    assert machine.place(LOSS).links == (Link(POD, 2, EGRESS, "eth0"),)


def test_pods_network_is_its_own_though_another_looks_into_it(machine: Machine) -> None:
    """Such as a debugging process that was started with nsenter."""
    machine.shared = {POD}
    assert machine.place(LOSS) == Placement(Hook.TC, (Link(POD, 2, EGRESS, "eth0"),))


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ([LO, POD_ETH0], ["eth0"]),
        ([LO, POD_ETH0, link(3, "net1", peer=5, number=0)], ["eth0", "net1"]),
        ([LO, POD_ETH0, link(3, "net1", peer=5, number=0)._replace(is_up=False)], ["eth0"]),
        ([LO, POD_ETH0, link(3, "net1", "")], ["eth0", "net1"]),
        ([LO, POD_ETH0, link(3, "eth0.5", "vlan", peer=2)], ["eth0"]),
        ([LO, POD_ETH0, link(3, "docker0", "bridge"), link(4, "veth1", peer=5, number=7)], ["eth0"]),
        ([LO, POD_ETH0, link(3, "veth1", peer=5, number=7, master=99)], ["eth0"]),
        ([LO, POD_ETH0, link(3, "wg0", "wireguard")], ["eth0"]),
        ([LO, link(3, "wg0", "wireguard")], ["wg0"]),
        ([LO, link(3, "mac0", "macvlan", peer=2, number=0)], ["mac0"]),
        ([LO, BRIDGED_ETH0, BRIDGE, TAP], ["eth0"]),
        ([LO, BRIDGED_ETH0._replace(peer_index=77), BRIDGE, TAP, DUMMY], ["eth0"]),
        ([LO, BRIDGED_ETH0, BRIDGE, link(8, "veth1", peer=2, number=7, master=5)], ["eth0"]),
        ([LO, TUN, BRIDGE, link(8, "veth1", peer=2, number=7, master=5)], ["tun0"]),
        ([LO, link(8, "a", peer=2, number=7), link(9, "b", peer=2, number=8)], ["a", "b"]),
        ([LO, BRIDGED_ETH0, link(3, "net1", "", master=5), link(5, "bond0", "bond")], ["bond0"]),
        ([LO, POD_ETH0, link(3, "net1", "", master=5), link(5, "bond0", "bond")], ["bond0", "eth0"]),
        ([LO, BRIDGED_ETH0, link(5, "bond0", "bond", master=8), link(8, "br0", "bridge")], ["bond0"]),
        ([LO, BRIDGED_ETH0, link(5, "bond0", "bond"), link(8, "bond0.5", "vlan", peer=5)], ["bond0"]),
        ([LO, DUMMY, link(8, "eth1.5", "vlan", peer=7)], ["eth1"]),
    ],
    ids=[
        "one",
        "a second one",
        "what is down",
        "a hardware device",
        "a VLAN on top passes the one below",
        "a veth into a namespace below",
        "a port of a bridge",
        "a tunnel goes through the other",
        "nothing but a tunnel",
        "macvlan",
        "a port of the bridge to a virtual machine",
        "the same, with the node out of sight",
        "a bridge that also leads to containers of the pod's own",
        "a bridge that leads to those alone",
        "two of which nothing is known",
        "a bond",
        "a bond beside another interface",
        "a bond that is a port of a bridge",
        "a VLAN on top of a bond",
        "a VLAN on top of a dummy",
    ],
)
def test_rule_acts_on_what_leads_out_of_the_pod_and_on_nothing_twice(
    machine: Machine, links: list[Interface], expected: list[str]
) -> None:
    machine.links[POD] = links
    assert sorted(names(machine.place(LOSS))) == expected


@pytest.mark.parametrize("links", [[], [LO], [LO, POD_ETH0._replace(is_up=False)]])
def test_loss_without_an_interface_falls_back_to_the_cgroup_hook_and_says_so(
    machine: Machine, links: list[Interface]
) -> None:
    machine.links[POD] = links
    assert machine.place(LOSS) == Placement(Hook.CGROUP, note="finds no interface that is up")
    assert machine.place(INGRESS_LOSS) == Placement(Hook.CGROUP, note="finds no interface that is up")


@pytest.mark.parametrize("rule", [f"{LOSS} hook=tc", DELAY, f"{SLOW} hook=tc"])
def test_other_rules_without_an_interface_fail(machine: Machine, rule: str) -> None:
    machine.links[POD] = [LO]
    with pytest.raises(PodmgrError) as caught:
        machine.place(rule)
    assert caught.value.message == f"'{rule}' finds no interface that is up"
    assert caught.value.tip == "ip link shows them"


def test_custom_program_without_an_interface_fails(machine: Machine) -> None:
    machine.links[POD] = [LO]
    with pytest.raises(PodmgrError, match="finds no interface that is up"):
        machine.place(CUSTOM, hook=Hook.TC)


def test_pod_without_processes_loses_at_the_cgroup_hook_and_says_why(machine: Machine) -> None:
    machine.homes = []
    place = machine.place(LOSS)
    assert (place.hook, place.links) == (Hook.CGROUP, ())
    assert "not known before a process lives there" in place.note


@pytest.mark.parametrize("rule", [DELAY, f"{LOSS} hook=tc", f"{LOSS} interface=eth0", INGRESS_DELAY])
@pytest.mark.parametrize("counts_loopback", [True, False])
def test_rule_that_must_have_interfaces_waits_for_processes(
    machine: Machine, rule: str, counts_loopback: bool
) -> None:
    machine.homes = []
    if counts_loopback and rule == DELAY:
        assert machine.place(rule, counts_loopback=True) == AT_CGROUP
        return
    with pytest.raises(PodmgrError) as caught:
        machine.place(rule, counts_loopback=counts_loopback)
    arrives = "acts on its own interfaces alone"
    told = arrives if counts_loopback and rule == INGRESS_DELAY else "before a process lives there"
    assert told in caught.value.message


def test_namespace_that_has_vanished_is_an_error(machine: Machine) -> None:
    del machine.links[POD]
    with pytest.raises(PodmgrError, match="the pod's network namespace has vanished"):
        machine.place(LOSS)


# interface=


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("interface=net1", ["net1"]),
        ("interface=net1,eth0", ["eth0", "net1"]),
        ("hook=tc interface=eth0", ["eth0"]),
        ("interface=lo", ["lo"]),
        ("interface=down0", ["down0"]),
        ("interface=port0", ["port0"]),
    ],
)
def test_user_names_the_interfaces(machine: Machine, option: str, expected: list[str]) -> None:
    machine.links[POD] += [
        link(3, "net1"),
        link(4, "down0")._replace(is_up=False),
        link(5, "port0", master=99),
    ]
    assert names(machine.place(f"{LOSS} {option}")) == expected


@pytest.mark.parametrize("rule", [LOSS, INGRESS_LOSS, SLOW, DELAY, INGRESS_DELAY])
def test_interface_that_there_is_not_is_an_error_that_names_the_others(machine: Machine, rule: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        machine.place(f"{rule} interface=eth0,net1")
    assert caught.value.message.endswith("has no interface net1 to act on")
    assert caught.value.tip == "there are: eth0, lo"


# Shared networks: host-network pods, cgroup/PATH, run


@pytest.fixture
def shared(machine: Machine) -> Machine:
    """The target lives in our own namespace."""
    machine.homes = [OWN]
    return machine


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([link(20, "vlan5", "vlan", peer=2)], []),
        ([link(20, "mac0", "macvlan", peer=2), link(21, "mac0.5", "vlan", peer=20)], []),
        ([link(20, "vx0", "vxlan"), link(21, "ipip0", "ipip", peer=0), link(22, "red", "vrf")], []),
        ([link(20, "wg0", "wireguard"), link(21, "tun0", "tun")], ["wg0", "tun0"]),
        ([link(20, "vx0", "vxlan", peer=2, number=7)], ["vx0"]),  # whose outside is another namespace's
        ([link(20, "v0", peer=21), link(21, "v1", peer=20)], ["v0", "v1"]),
        (
            [
                link(20, "net1", "", master=21),
                link(21, "br0", "bridge"),
                link(22, "mac0", "macvlan", peer=20),
            ],
            ["br0", "mac0"],
        ),
    ],
    ids=["vlan", "stack", "with socket", "without socket", "elsewhere", "pair", "above a port"],
)
def test_loss_of_what_a_cgroup_sends_acts_on_no_interface_above_another(
    shared: Machine, above: list[Interface], expected: list[str]
) -> None:
    shared.links[OWN] = [HOST_ETH0, *above]
    assert names(shared.place(LOSS, counts_loopback=True)) == ["eth0", *expected]


@pytest.mark.parametrize("counts_loopback", [True, False])
def test_loss_of_what_a_cgroup_sends_acts_on_all_interfaces_for_it_alone(
    shared: Machine, counts_loopback: bool
) -> None:
    place = shared.place(LOSS, counts_loopback=counts_loopback)
    assert place.is_scoped
    expected = [(1, "lo"), (2, "eth0"), (9, "cali1")] if counts_loopback else [(2, "eth0"), (9, "cali1")]
    assert place.links == tuple(Link(OWN, index, EGRESS, name) for index, name in expected)


@pytest.mark.parametrize(("rule", "expected"), [(INGRESS_LOSS, AT_CGROUP), (DELAY, AT_CGROUP)])
def test_what_cannot_be_told_apart_on_shared_interfaces_is_at_the_cgroup_hook(
    shared: Machine, rule: str, expected: Placement
) -> None:
    assert shared.place(rule, counts_loopback=True) == expected


@pytest.mark.parametrize(
    ("rule", "tip"),
    [
        (INGRESS_DELAY, "algorithm=tbf"),
        ("ebpf-limit=edt ingress -DRATE=1000000", "bandwidth=RATE ingress"),
        ("corrupt=1% ingress", "use corrupt on egress, where it can be had"),
        ("duplicate=1% ingress", "use duplicate on egress, where it can be had"),
        ("block=ingress reply=rst hook=tc", "use block on egress, where it can be had"),
        (f"{INGRESS_LOSS} hook=tc", "use the cgroup hook"),
        (f"{INGRESS_LOSS} interface=eth0", "use the cgroup hook"),
    ],
)
def test_of_what_arrives_on_shared_interfaces_nobody_knows_whose_it_is(
    shared: Machine, rule: str, tip: str
) -> None:
    with pytest.raises(PodmgrError, match="of what arrives on shared ones, tc does not know") as caught:
        shared.place(rule, counts_loopback=True)
    assert tip in (caught.value.tip or "")
    assert caught.value.message.startswith(f"'{rule}' acts on")


def test_what_sends_acts_on_the_nodes_side_on_what_arrives_and_what_changes_packets_in_the_pod(
    machine: Machine,
) -> None:
    inside = Placement(Hook.TC, (Link(POD, 2, EGRESS, "eth0"),))
    for key in ("duplicate", "corrupt", "reorder"):
        assert machine.place(f"{key}=1% egress") == inside
    for key in ("duplicate", "reorder"):
        assert machine.place(f"{key}=1% ingress") == Placement(Hook.TC, (Link(OWN, 9, EGRESS, "cali1"),))
    assert machine.place("corrupt=1% ingress") == Placement(Hook.TC, (Link(POD, 2, INGRESS, "eth0"),))


def test_block_acts_in_the_pod_and_with_state_new_or_cut_sees_the_other_side_too(machine: Machine) -> None:
    out, back = Link(POD, 2, EGRESS, "eth0"), Link(POD, 2, INGRESS, "eth0")
    assert machine.place("block=egress reply=rst") == Placement(Hook.TC, (out,))
    assert machine.place("block=ingress") == Placement(Hook.TC, (back,))
    for rule in ("block=egress state=new", "block=ingress state=new", "block=egress cut=yes"):
        assert machine.place(rule) == Placement(Hook.TC, (out, back))


def test_block_of_what_arrives_on_shared_interfaces_is_silence_at_the_cgroup_hook(shared: Machine) -> None:
    assert shared.place("block=ingress", counts_loopback=True) == AT_CGROUP
    for option in ("reply=rst", "reply=icmp", "state=new", "cut=yes"):
        with pytest.raises(PodmgrError, match="cannot act at the cgroup hook") as caught:
            shared.place(f"block=ingress {option}", counts_loopback=True)
        assert option.partition("=")[0] in caught.value.message


def test_delay_on_shared_interfaces_may_be_asked_for(shared: Machine) -> None:
    place = shared.place(f"{DELAY} interface=eth0", counts_loopback=True)
    assert place == Placement(Hook.TC, (Link(OWN, 2, EGRESS, "eth0"),), is_scoped=True)


def test_custom_program_on_shared_interfaces_is_scoped(shared: Machine) -> None:
    assert shared.place(CUSTOM, counts_loopback=True, hook=Hook.TC).is_scoped


def test_cgroup_with_a_network_to_itself_is_not_scoped(machine: Machine) -> None:
    place = machine.place(LOSS, counts_loopback=True)
    assert place == Placement(Hook.TC, (Link(POD, 2, EGRESS, "eth0"),))
    assert machine.place(INGRESS_LOSS, counts_loopback=True).links == (Link(POD, 2, INGRESS, "eth0"),)


def test_cgroup_in_a_namespace_with_others_is_scoped(machine: Machine) -> None:
    """Such as one container of a pod."""
    machine.shared = {POD}
    place = machine.place(LOSS, counts_loopback=True)
    assert (place.is_scoped, names(place)) == (True, ["lo", "eth0"])
    assert machine.place(INGRESS_LOSS, counts_loopback=True) == AT_CGROUP


def test_cgroup_in_several_namespaces_acts_in_each_and_is_scoped(machine: Machine) -> None:
    """Such as the folder of all pods."""
    machine.homes = [OTHER, POD]
    place = machine.place(LOSS, counts_loopback=True)
    assert place.is_scoped
    assert [(link.namespace, link.name) for link in place.links] == [
        *((POD, "lo"), (POD, "eth0"), (OTHER, "lo"), (OTHER, "eth0")),
    ]


def test_command_that_podmgr_starts_will_live_here(machine: Machine) -> None:
    machine.homes = []
    place = machine.place(LOSS, counts_loopback=True, starts_here=True)
    assert place.is_scoped
    assert {link.namespace for link in place.links} == {OWN}


def test_command_that_lives_elsewhere_already_is_found_there(machine: Machine) -> None:
    place = machine.place(LOSS, counts_loopback=True, starts_here=True)
    assert {link.namespace for link in place.links} == {POD}


def test_empty_cgroup_loses_at_the_cgroup_hook_and_says_why(machine: Machine) -> None:
    machine.homes = []
    place = machine.place(LOSS, counts_loopback=True)
    assert (place.hook, "before a process lives there" in place.note) == (Hook.CGROUP, True)


def test_cgroup_whose_level_is_not_seen_loses_at_the_cgroup_hook_and_says_why(
    shared: Machine, root: Callable[[bool], None]
) -> None:
    root(False)
    place = shared.place(LOSS, counts_loopback=True)
    assert place.hook is Hook.CGROUP
    assert "needs the cgroup's level below the true root" in place.note
    with pytest.raises(PodmgrError, match="needs the cgroup's level below the true root"):
        shared.place(f"{SLOW} hook=tc", counts_loopback=True)


def test_pod_with_its_own_network_needs_no_level(machine: Machine, root: Callable[[bool], None]) -> None:
    root(False)
    assert names(machine.place(LOSS)) == ["eth0"]


def hook(kind: str) -> Qdisc:
    return Qdisc(kind, "ffff:", False)


def root_qdisc(kind: str) -> Qdisc:
    return Qdisc(kind, "8001:", True)


def test_shared_interface_with_the_older_ingress_qdisc_is_passed_over(shared: Machine) -> None:
    shared.qdiscs[OWN] = {"cali1": hook("ingress"), "eth0": hook("clsact"), "lo": root_qdisc("noqueue")}
    assert names(shared.place(LOSS, counts_loopback=True)) == ["lo", "eth0"]


def test_where_all_shared_interfaces_have_it_loss_is_at_the_cgroup_hook(shared: Machine) -> None:
    shared.qdiscs[OWN] = dict.fromkeys(("lo", "eth0", "cali1"), hook("ingress"))
    expected = Placement(Hook.CGROUP, note="finds no interface that takes clsact")
    assert shared.place(LOSS, counts_loopback=True) == expected


@pytest.mark.parametrize("other", [HOST_SIDE._replace(is_up=False), HOST_SIDE._replace(master_index=99)])
def test_shared_interface_that_is_down_or_another_port_is_passed_over(
    shared: Machine, other: Interface
) -> None:
    shared.links[OWN] = [LO, HOST_ETH0, other]
    assert names(shared.place(LOSS, counts_loopback=True)) == ["lo", "eth0"]


# Delaying what arrives


def test_what_arrives_is_delayed_on_the_hosts_side_of_the_pods_veth(machine: Machine) -> None:
    assert machine.place(INGRESS_DELAY) == Placement(Hook.TC, (Link(OWN, 9, EGRESS, "cali1"),))


def test_podmgr_in_a_network_of_its_own_finds_the_nodes(machine: Machine) -> None:
    """Also if an interface of its own looks like the pod's other end."""
    machine.nodes = [OWN, FIRST]
    machine.links[FIRST] = [LO, link(9, "cali7", peer=2, number=POD_NUMBER)]
    assert machine.place(INGRESS_DELAY).links == (Link(FIRST, 9, EGRESS, "cali7"),)


def test_custom_use_of_the_delaying_program_acts_there_too(machine: Machine) -> None:
    rule = "ebpf-limit=edt ingress -DRATE=1000000"
    assert machine.place(rule).links == (Link(OWN, 9, EGRESS, "cali1"),)


def test_each_interface_of_the_pod_has_its_own_side_on_the_host(machine: Machine) -> None:
    machine.links[POD].append(link(3, "net1", peer=12, number=0))
    machine.links[OWN].append(link(12, "cali2", peer=3, number=POD_NUMBER))
    assert names(machine.place(INGRESS_DELAY)) == ["cali1", "cali2"]
    assert names(machine.place(f"{INGRESS_DELAY} interface=net1")) == ["cali2"]


@pytest.mark.parametrize(
    ("own", "number"),
    [
        ([LO, HOST_ETH0], POD_NUMBER),
        ([link(9, "cali1", peer=3, number=POD_NUMBER)], POD_NUMBER),
        ([link(9, "cali1", peer=2, number=OTHER_NUMBER)], POD_NUMBER),
        ([link(9, "cali1", peer=2)], POD_NUMBER),
        ([link(9, "cali1", peer=2)], None),
        ([link(9, "cali1", peer=2, number=POD_NUMBER)], None),
        ([link(9, "eth9", "", peer=2, number=POD_NUMBER)], POD_NUMBER),
        ([link(9, "mac0", "macvlan", peer=2, number=POD_NUMBER)], POD_NUMBER),
        ([link(8, "cali1", peer=2, number=POD_NUMBER)], POD_NUMBER),
    ],
    ids=[
        "none there",
        "it leads to another interface of the pod",
        "it leads to another pod's interface of the same number",
        "it leads to one of our own of the same number",
        "it leads to one of our own, and the pod's namespace has no number",
        "the pod's namespace has no number",
        "a hardware device of the same number",
        "no veth",
        "another interface's other end",
    ],
)
def test_veth_whose_other_end_is_not_here_or_lies_about_itself_is_refused(
    machine: Machine, own: list[Interface], number: int | None
) -> None:
    """Both ends must name each other, and the namespaces: numbers of interfaces repeat in each."""
    machine.links[OWN] = own
    machine.numbers = {} if number is None else {POD: number}
    with pytest.raises(PodmgrError) as caught:
        machine.place(INGRESS_DELAY)
    assert caught.value.message.startswith(f"'{INGRESS_DELAY}' acts on the node's side of a veth")
    assert "the other end of eth0 is not there" in caught.value.message
    assert "algorithm=tbf" in (caught.value.tip or "")


def test_one_interface_without_a_host_side_fails_the_rule(machine: Machine) -> None:
    """Half a limit is none."""
    machine.links[POD].append(link(3, "net1", "macvlan", peer=2, number=0))
    with pytest.raises(PodmgrError, match="the other end of net1 is not there"):
        machine.place(INGRESS_DELAY)


@pytest.mark.parametrize("counts_loopback", [True, False])
@pytest.mark.parametrize("rule", [f"{INGRESS_DELAY} hook=cgroup"])
def test_what_arrives_cannot_be_delayed_at_the_cgroup_hook(
    machine: Machine, rule: str, counts_loopback: bool
) -> None:
    with pytest.raises(PodmgrError, match="cannot delay what arrives") as caught:
        machine.place(rule, counts_loopback=counts_loopback)
    assert "algorithm=tbf" in (caught.value.tip or "")


def test_a_pod_that_makes_interfaces_without_end_holds_up_nobody(machine: Machine) -> None:
    """It may, with NET_ADMIN: 64 take a filter, and what more there are is told, or is at the cgroup hook."""
    machine.links[POD] += [link(10 + number, f"net{number}", "", number=0) for number in range(63)]
    assert len(machine.place(LOSS).links) == 64
    machine.links[POD].append(link(100, "last", "", number=0))
    placed = machine.place(LOSS)
    assert (placed.hook, placed.links) == (Hook.CGROUP, ())
    assert "would act on 65 sides of interfaces, 64 are the most" in placed.note
    with pytest.raises(PodmgrError, match="64 are the most"):
        machine.place(DELAY)


def test_a_pods_many_veths_are_looked_up_and_not_compared_with_each_of_the_nodes(machine: Machine) -> None:
    compared = 0

    class Counted(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str(self) == str(other)

        __hash__ = str.__hash__

    machine.links[OWN] += [
        link(1000 + number, f"cali{number}", Counted("veth"), peer=2, number=OTHER_NUMBER)
        for number in range(300)
    ]
    machine.links[POD] += [
        link(1000 + number, f"v{number}", peer=5000 + number, number=7) for number in range(300)
    ]
    assert names(machine.place(INGRESS_DELAY)) == ["cali1"]
    assert compared < 3000


# What is asked


def test_target_and_its_interfaces_are_looked_at_once(machine: Machine) -> None:
    networks = machine.networks()
    for rule in (LOSS, INGRESS_LOSS, DELAY, INGRESS_DELAY, f"{SLOW} hook=tc"):
        networks.place(parsed(rule), CGROUP, counts_loopback=False)
    assert machine.asked == [(0, "processes"), (POD, "link"), (OWN, "link")]


# Without fq


def test_interfaces_without_fq_are_named_for_every_namespace(machine: Machine) -> None:
    machine.homes = [POD, OTHER]
    machine.qdiscs = {
        POD: {"eth0": root_qdisc("noqueue")},
        OTHER: {"eth0": root_qdisc("fq")},
    }
    assert machine.networks().without_fq(CGROUP) == {"eth0": "noqueue"}
    machine.homes = [OTHER]
    assert machine.networks().without_fq(CGROUP) == {}


def test_cgroup_without_processes_is_taken_to_send_from_here(machine: Machine) -> None:
    machine.homes = []
    machine.qdiscs = {OWN: {"eth0": root_qdisc("pfifo_fast"), "cali1": root_qdisc("fq")}}
    assert machine.networks().without_fq(CGROUP) == {"eth0": "pfifo_fast"}


def test_not_being_allowed_to_look_is_not_lacking_nothing(machine: Machine) -> None:
    machine.error = PermissionDeniedError("not allowed to look")
    with pytest.raises(PermissionDeniedError):
        machine.networks().without_fq(CGROUP)
