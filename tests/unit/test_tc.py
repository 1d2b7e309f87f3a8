"""ip and tc: what they answer, recorded and for real in a namespace of its own, and what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from podmgr import proc, tc
from podmgr.errors import PodmgrError
from podmgr.mounts import Mount
from podmgr.proc import Completed
from podmgr.tc import Filter, Interface, Qdisc
from tests.unit.samples import EGRESS, HEADERS, INGRESS, LICENCE, PROGRAM, Script, bpf_object, said

LINKS = ("ip", "-j", "-d", "link", "show")
ROUTES = ("ip", "-j", "route", "show", "default")
QDISCS = ("tc", "-j", "qdisc", "show")
FD = 7

# Recorded with iproute2 6.1, shortened to what matters or might.
LO = {"ifindex": 1, "ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "qdisc": "noqueue"}
ETH0 = {
    "ifindex": 2,
    "link_index": 9,
    "ifname": "eth0",
    "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
    "linkinfo": {"info_kind": "veth"},
    "link_netnsid": 0,
}
ETH1 = {"ifindex": 3, "ifname": "eth1", "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"]}
VIA_ETH0 = {"dst": "default", "gateway": "10.42.0.1", "dev": "eth0", "flags": []}
OVER_TWO = {"dst": "default", "flags": [], "nexthops": [{"gateway": "10.0.0.1", "dev": "eth0", "weight": 1}]}
LO_ROOT = {"kind": "noqueue", "handle": "0:", "dev": "lo", "root": True, "refcnt": 2, "options": {}}


def root(dev: str, kind: str) -> dict[str, Any]:
    return {"kind": kind, "handle": "8001:", "dev": dev, "root": True, "refcnt": 2, "options": {}}


def child(dev: str, kind: str, number: int) -> dict[str, Any]:
    return {"kind": kind, "handle": "0:", "dev": dev, "parent": f"1:{number}", "options": {}}


class Answers:
    """A runner that answers as if in one namespace, for each command line."""

    def __init__(self, links: object = (), routes: object = (), qdiscs: object = ()) -> None:
        self.answers = {LINKS: links, ROUTES: routes, QDISCS: qdiscs}
        self.code = 0

    def __call__(self, argv: Sequence[str], *, stdin: bytes = b"", pass_fds: Sequence[int] = ()) -> Completed:
        (fd,) = pass_fds
        assert list(argv[:2]) == ["nsenter", f"--net=/proc/self/fd/{fd}"]
        assert (fd, stdin) == (FD, b"")
        answer = self.answers[tuple(argv[2:])]
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return said(text, code=self.code, stderr="Cannot open it\n" if self.code else "")


# Interfaces


def test_interface_is_read_with_its_other_end() -> None:
    port = {"ifindex": 9, "ifname": "cali1", "flags": [], "master": "cni0", "linkinfo": {"info_kind": "veth"}}
    found = tc.interfaces(FD, runner=Answers([LO, ETH0, {}, port]))
    assert found == [
        Interface(1, "lo", "", True, True, False, None, None),
        Interface(2, "eth0", "veth", True, False, False, 9, 0),
        Interface(9, "cali1", "veth", False, False, True, None, None),
    ]


@pytest.mark.parametrize(
    ("more", "is_port"),
    [
        ({}, False),
        ({"master": "br0"}, True),
        ({"master": "br0", "linkinfo": {"info_slave_kind": "bridge"}}, True),
        ({"master": "blue", "linkinfo": {"info_slave_kind": "vrf"}}, False),
    ],
)
def test_port_of_a_bridge_is_not_the_end_of_the_way_but_a_vrf_is_no_device(
    more: dict[str, Any], is_port: bool
) -> None:
    (found,) = tc.interfaces(FD, runner=Answers([ETH1 | more]))
    assert found.is_port is is_port


def test_routes_tell_which_interfaces_lead_out() -> None:
    via_eth1 = VIA_ETH0 | {"dev": "eth1"}
    assert tc.default_devices(FD, runner=Answers(routes=[VIA_ETH0, OVER_TWO, via_eth1])) == {"eth0", "eth1"}


def test_qdiscs_are_by_interface() -> None:
    rows = [root("eth0", "mq"), child("eth0", "fq", 1), LO_ROOT, {"kind": "noqueue", "dev": "eth1"}]
    assert tc.qdiscs(FD, runner=Answers(qdiscs=rows)) == {
        "eth0": [Qdisc("mq", "8001:", None, True), Qdisc("fq", "0:", "1:1", False)],
        "lo": [Qdisc("noqueue", "0:", None, True)],
        "eth1": [Qdisc("noqueue", "0:", None, False)],
    }


# fq


@pytest.mark.parametrize(
    ("links", "routes", "qdiscs", "lacking"),
    [
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT, root("eth0", "fq")], {}),
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT, root("eth0", "noqueue")], {"eth0": "noqueue"}),
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT, root("eth0", "fq_codel")], {"eth0": "fq_codel"}),
        ([LO, ETH0], [VIA_ETH0], [LO_ROOT], {"eth0": "none"}),
        ([LO, ETH0], [VIA_ETH0], [root("eth0", "htb"), child("eth0", "fq", 1)], {"eth0": "htb"}),
        (
            [LO, ETH0],
            [VIA_ETH0],
            [root("eth0", "mq"), child("eth0", "fq", 1), child("eth0", "fq", 2)],
            {},
        ),
        (
            [LO, ETH0],
            [VIA_ETH0],
            [root("eth0", "mq"), child("eth0", "fq", 1), child("eth0", "pfifo_fast", 2)],
            {"eth0": "mq"},
        ),
        ([LO, ETH0], [VIA_ETH0], [root("eth0", "mq")], {"eth0": "mq"}),
        ([LO, ETH0, ETH1], [VIA_ETH0], [root("eth0", "fq"), root("eth1", "noqueue")], {}),
        ([LO, ETH0, ETH1], [VIA_ETH0], [root("eth0", "noqueue"), root("eth1", "fq")], {"eth0": "noqueue"}),
        ([LO, ETH0, ETH1], [], [root("eth0", "fq"), root("eth1", "noqueue")], {"eth1": "noqueue"}),
        ([LO, ETH0, ETH1], [OVER_TWO], [root("eth0", "fq"), root("eth1", "fq")], {}),
        ([LO, ETH0, ETH1 | {"flags": []}], [], [root("eth0", "fq"), root("eth1", "noqueue")], {}),
        ([{}, ETH0], [VIA_ETH0], [root("eth0", "pfifo_fast")], {"eth0": "pfifo_fast"}),
        ([LO], [], [LO_ROOT], {}),
        ([], [], [], {}),
        ("", "", "", {}),
    ],
    ids=[
        "fq",
        "a veth's noqueue",
        "another qdisc",
        "no qdisc",
        "fq below another qdisc",
        "fq on every queue",
        "fq on some queues",
        "queues without qdiscs",
        "only the default route's interface counts",
        "the default route's interface lacks it",
        "without a default route all count",
        "a default route over several interfaces",
        "what is down does not count",
        "an empty row",
        "only loopback",
        "nothing",
        "no output",
    ],
)
def test_interfaces_that_leave_the_namespace_without_fq_are_named(
    links: object, routes: object, qdiscs: object, lacking: dict[str, str]
) -> None:
    assert tc.without_fq(FD, runner=Answers(links, routes, qdiscs)) == lacking


@pytest.mark.parametrize("hook", ["clsact", "ingress"])
def test_hooks_beside_the_queues_do_not_count(hook: str) -> None:
    qdiscs = [root("eth0", "mq"), child("eth0", "fq", 1), child("eth0", "fq", 2)]
    qdiscs.append({"kind": hook, "handle": "ffff:", "dev": "eth0", "parent": "ffff:fff1", "options": {}})
    assert tc.without_fq(FD, runner=Answers([ETH0], [VIA_ETH0], qdiscs)) == {}


# Answers that are none


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("qdisc noqueue 0: dev lo root", "tc answered what is not JSON"),
        ("{}", "tc answered what is not a list"),
    ],
)
def test_answer_that_cannot_be_read_is_an_error(text: str, complaint: str) -> None:
    with pytest.raises(PodmgrError, match=complaint):
        tc.qdiscs(FD, runner=Answers(qdiscs=text))


def test_failing_command_is_an_error_and_not_an_empty_answer() -> None:
    runner = Answers("", "", "")
    runner.code = 1
    for ask in (tc.interfaces, tc.default_devices, tc.qdiscs):
        with pytest.raises(PodmgrError, match=r"cannot look at the pod's interfaces: Cannot open it$"):
            ask(FD, runner=runner)


# Filters. Recorded: a bpf filter has two rows of which the first is empty.

EMPTY = {"protocol": "all", "pref": 7, "kind": "bpf", "chain": 0}
BPF = EMPTY | {"options": {"handle": "0x5", "direct-action": True, "prog": {"id": 92, "name": "p"}}}
U32 = {"protocol": "ip", "pref": 8, "kind": "u32", "chain": 0, "options": {"fh": "800:", "ht_divisor": 1}}
MATCHALL = {"protocol": "all", "pref": 9, "kind": "matchall", "chain": 0, "options": {"handle": 1}}
CGROUP = {"protocol": "all", "pref": 10, "kind": "cgroup", "chain": 0, "options": {"odd": 1}}


def test_filters_of_all_sides_are_asked_in_one_process() -> None:
    sides = [("eth0", EGRESS), ("eth0", INGRESS), ("eth5", EGRESS)]
    runner = Script(said(f"{json.dumps([EMPTY, BPF])}\n[]\n{json.dumps([U32, MATCHALL, CGROUP])}\n"))
    assert tc.filters(FD, sides, runner=runner) == {
        ("eth0", EGRESS): [Filter(7, 5, 92)],
        ("eth0", INGRESS): [],
        ("eth5", EGRESS): [Filter(8, 0, None), Filter(9, 1, None), Filter(10, 0, None)],
    }
    assert runner.calls == [("nsenter", f"--net=/proc/self/fd/{FD}", "tc", "-force", "-j", "-batch", "-")]
    assert runner.inputs == [
        b"filter show dev eth0 egress\nfilter show dev eth0 ingress\nfilter show dev eth5 egress\n"
    ]
    assert runner.fds == [(FD,)]


def test_no_sides_ask_nothing() -> None:
    runner = Script(said("", code=1))
    assert tc.filters(FD, [], runner=runner) == {}
    assert runner.calls == []


@pytest.mark.parametrize("program", [5, None, {}, {"name": "p"}])
def test_filter_whose_program_is_not_told_runs_none_of_ours(program: object) -> None:
    odd = EMPTY | {"options": {"handle": "0x5", "prog": program}}
    assert tc.filters(FD, [("eth0", EGRESS)], runner=Script(said(json.dumps([odd])))) == {
        ("eth0", EGRESS): [Filter(7, 5, None)]
    }


def test_side_that_tc_cannot_show_is_left_out_and_the_others_keep_their_places() -> None:
    stderr = 'Cannot find device "if3"\nCommand failed -:2\n'
    runner = Script(said(f"[]\n{json.dumps([BPF])}\n", code=1, stderr=stderr))
    found = tc.filters(FD, [("eth0", EGRESS), ("eth1", EGRESS), ("eth2", EGRESS)], runner=runner)
    assert found == {("eth0", EGRESS): [], ("eth2", EGRESS): [Filter(7, 5, 92)]}


@pytest.mark.parametrize("answer", ["", "[]\n[]\n[]\n"])
def test_answers_that_belong_to_no_side_are_an_error_and_not_no_filters(answer: str) -> None:
    with pytest.raises(PodmgrError, match="tc does not say what filters there are") as caught:
        tc.filters(
            FD, [("eth0", EGRESS), ("eth0", INGRESS)], runner=Script(said(answer, code=1, stderr="broken"))
        )
    assert caught.value.detail == "broken"


# Changes


def test_commands_are_spelled_as_tc_wants_them() -> None:
    place = ("dev", "eth0", "egress", "protocol", "all", "prio", "101", "handle", "0x5c", "bpf")
    assert tc.delete_filter("eth0", EGRESS, 101, 92) == ("filter", "del", *place)
    how = ("direct-action", "object-pinned", "/p")
    assert tc.add_filter("eth0", EGRESS, 101, 92, "/p") == ("filter", "add", *place, *how)
    assert tc.add_qdisc("eth0", "clsact") == ("qdisc", "add", "dev", "eth0", "clsact")
    assert tc.delete_qdisc("eth0", "root") == ("qdisc", "del", "dev", "eth0", "root")


def test_commands_go_into_one_process_with_the_descriptors_that_they_name() -> None:
    runner = Script(said(""))
    commands = [tc.add_qdisc("eth0", "clsact"), tc.delete_qdisc("eth1", "root")]
    assert tc.batch(FD, commands, runner=runner, pass_fds=[8, 9]) == {}
    assert runner.inputs == [b"qdisc add dev eth0 clsact\nqdisc del dev eth1 root\n"]
    assert runner.calls == [("nsenter", f"--net=/proc/self/fd/{FD}", "tc", "-force", "-batch", "-")]
    assert runner.fds == [(FD, 8, 9)]


def test_no_commands_start_no_process() -> None:
    runner = Script(said(""))
    assert tc.batch(FD, [], runner=runner) == {}
    assert runner.calls == []


def test_failure_is_told_by_the_command_and_in_tcs_own_words() -> None:
    stderr = (
        "Error: Exclusivity flag on, cannot modify.\nCommand failed -:1\n"
        "Error: Filter with specified priority/protocol not found.\n"
        "We have an error talking to the kernel\nCommand failed -:3\n"
        "We have an error talking to the kernel\nCommand failed -:4\n"
        "Couldn't retrieve it\nUnable to parse it\nUnable to parse it\nCommand failed -:12\n"
        "a warning that belongs to nothing\n"
    )
    assert tc.batch(FD, [("x",)] * 12, runner=Script(said("", code=1, stderr=stderr))) == {
        0: "Error: Exclusivity flag on, cannot modify.",
        2: "Error: Filter with specified priority/protocol not found.",
        3: "no reason given",
        11: "Couldn't retrieve it; Unable to parse it",
    }


# For real, in a network namespace of its own


@pytest.fixture
def namespace(stranger: int) -> Iterator[int]:
    """A namespace with a veth pair, of which `one` is up; its descriptor."""
    fd = os.open(f"/proc/{stranger}/ns/net", os.O_RDONLY)
    inside(fd, "ip", "link", "add", "one", "type", "veth", "peer", "name", "other")
    inside(fd, "ip", "link", "set", "one", "up")
    yield fd
    os.close(fd)


def inside(fd: int, *argv: str) -> str:
    command = ["nsenter", f"--net=/proc/self/fd/{fd}", *argv]
    return subprocess.run(command, check=True, pass_fds=[fd], capture_output=True, text=True).stdout


def test_real_interfaces_are_read(namespace: int) -> None:
    found = {item.name: item for item in tc.interfaces(namespace, runner=proc.run)}
    assert {"lo", "one", "other"} <= found.keys()
    assert (found["lo"].is_loopback, found["lo"].kind) == (True, "")
    assert (found["one"].is_up, found["other"].is_up) == (True, False)
    assert found["one"].kind == found["other"].kind == "veth"
    assert found["one"].peer_namespace_id is None


def test_real_veth_says_where_its_other_end_is(namespace: int, make_stranger: Any) -> None:
    inside(namespace, "ip", "link", "set", "other", "netns", str(make_stranger()))
    (one,) = [item for item in tc.interfaces(namespace, runner=proc.run) if item.name == "one"]
    assert one.peer_index is not None
    assert one.peer_namespace_id is not None


def test_real_routes_are_read(namespace: int) -> None:
    assert tc.default_devices(namespace, runner=proc.run) == set()
    inside(namespace, "ip", "address", "add", "10.9.9.1/24", "dev", "one")
    inside(namespace, "ip", "link", "set", "other", "up")
    inside(namespace, "ip", "route", "add", "default", "via", "10.9.9.2")
    assert tc.default_devices(namespace, runner=proc.run) == {"one"}


def test_real_qdisc_is_made_once_and_removed(namespace: int) -> None:
    name = "one"

    def kinds() -> set[str]:
        return {item.kind for item in tc.qdiscs(namespace, runner=proc.run).get("one", [])}

    assert kinds() == {"noqueue"}
    assert tc.batch(namespace, [tc.add_qdisc(name, "clsact")], runner=proc.run) == {}
    assert kinds() == {"noqueue", "clsact"}
    again = tc.batch(namespace, [tc.add_qdisc(name, "clsact")], runner=proc.run)
    assert again.keys() == {0} and again[0] != "no reason given"
    assert tc.batch(namespace, [tc.delete_qdisc(name, "clsact")], runner=proc.run) == {}
    assert kinds() == {"noqueue"}


def test_real_qdiscs_default_is_told_from_one_that_somebody_made(namespace: int) -> None:
    inside(namespace, "tc", "qdisc", "add", "dev", "other", "root", "handle", "5:", "pfifo")
    found = tc.qdiscs(namespace, runner=proc.run)
    assert [(item.handle, item.is_root) for item in found["one"]] == [("0:", True)]
    assert found["other"] == [Qdisc("pfifo", "5:", None, True)]


def test_real_commands_that_fail_stop_no_other_and_are_told_apart(namespace: int) -> None:
    name = "one"
    commands = [
        tc.delete_filter(name, EGRESS, 9, 1),
        tc.add_qdisc(name, "clsact"),
        tc.add_qdisc("gone", "clsact"),
        tc.delete_qdisc(name, "clsact"),
    ]
    complaints = tc.batch(namespace, commands, runner=proc.run)
    assert complaints.keys() == {0, 2}
    assert "No such device" in complaints[2] or "find device" in complaints[2]


def test_real_filter_is_told_by_its_program_and_taken_off_alone(namespace: int, tmp_path: Path) -> None:
    name = "one"
    (tmp_path / "x.o").write_bytes(bpf_object(HEADERS + LICENCE + PROGRAM.replace("cgroup_skb/egress", "tc")))
    inside(namespace, "tc", "qdisc", "add", "dev", "one", "clsact")
    for handle in ("0x5", "0x6"):
        words = ["prio", "7", "handle", handle, "bpf", "direct-action", "object-file", str(tmp_path / "x.o")]
        inside(
            namespace, "tc", "filter", "add", "dev", "one", "egress", "protocol", "all", *words, "sec", "tc"
        )
    sides = [(name, EGRESS), (name, INGRESS), ("gone", EGRESS), ("other", EGRESS)]
    found = tc.filters(namespace, sides, runner=proc.run)
    one, other = sorted(found.pop((name, EGRESS)), key=lambda item: item.handle)
    assert ((one.priority, one.handle), (other.priority, other.handle)) == ((7, 5), (7, 6))
    assert one.program_id and other.program_id and one.program_id != other.program_id
    assert not any(found.values())
    assert tc.batch(namespace, [tc.delete_filter(name, EGRESS, 7, 5)], runner=proc.run) == {}
    assert tc.filters(namespace, sides, runner=proc.run)[name, EGRESS] == [other]


def test_real_tc_reads_the_command_that_attaches(namespace: int, tmp_path: Path) -> None:
    """It finds nothing wrong with it but that nothing is pinned there."""
    name = "one"
    command = tc.add_filter(name, INGRESS, 101, 92, str(tmp_path / "nothing"))
    said_of_it = tc.batch(namespace, [tc.add_qdisc(name, "clsact"), command], runner=proc.run)
    assert said_of_it.keys() == {1}
    assert "pinned" in said_of_it[1] and "No such file" in said_of_it[1]


@pytest.mark.parametrize("name", ["eth0", "if2", "cali12@if3", "eth0.5", "_x", "br-0"])
def test_a_plain_name_goes_into_a_batch(name: str) -> None:
    assert tc.is_plain(name)


@pytest.mark.parametrize("name", ["", "#x", 'a"b', "a b", "x\x01y", "-x", ".x", "a\\b", "eth0\n", "ä"])
def test_a_name_that_a_batch_cannot_hold_is_seen(name: str) -> None:
    assert not tc.is_plain(name)


def test_control_characters_in_names_are_no_end_of_it() -> None:
    text = '[{"ifindex": 2, "ifname": "x\x01y", "flags": []}]'
    assert [item.name for item in tc.interfaces(FD, runner=Script(said(text)))] == ["x\x01y"]


def test_a_batch_that_ends_badly_without_saying_at_which_command_is_an_error() -> None:
    with pytest.raises(PodmgrError, match="tc did not do its work"):
        tc.batch(FD, [tc.add_qdisc("eth0", "clsact")], runner=Script(said("", code=1, stderr="Too many")))


@pytest.fixture
def bpffs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is taken for a mounted bpf file system."""
    monkeypatch.setattr("podmgr.mounts.table", lambda: [Mount(Path("/"), "ext4"), Mount(tmp_path, "bpf")])
    return tmp_path


def make_as_iproute2_does(bpffs: Path) -> None:
    (bpffs / "tc/globals").mkdir(parents=True)
    for name in ("ip", "xdp"):
        (bpffs / name).symlink_to(f"{bpffs}/tc/")


def test_folders_that_tc_makes_beside_the_pins_are_gone_again(bpffs: Path) -> None:
    (bpffs / "pin").touch()
    with tc.without_folders():
        make_as_iproute2_does(bpffs)
    assert [path.name for path in bpffs.iterdir()] == ["pin"]


def test_folders_that_were_there_or_are_used_stay(bpffs: Path) -> None:
    with tc.without_folders():
        make_as_iproute2_does(bpffs)
        (bpffs / "tc/globals/map").touch()
    assert (bpffs / "tc/globals/map").exists() and (bpffs / "ip").is_symlink()
    (bpffs / "tc/globals/map").unlink()
    with tc.without_folders():
        pass
    assert (bpffs / "tc/globals").is_dir() and (bpffs / "xdp").is_symlink()
