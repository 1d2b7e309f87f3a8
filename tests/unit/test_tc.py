"""Which interfaces lack fq: recorded answers of ip and tc, asked in a cgroup's namespaces."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from podmgr import tc
from podmgr.cgroups import Cgroup
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.proc import Completed
from tests.unit.samples import said

LINKS = ("ip", "-j", "link", "show", "up")
ROUTES = ("ip", "-j", "route", "show", "default")
QDISCS = ("tc", "-j", "qdisc", "show")

# Recorded with iproute2 6.1, shortened to what matters or might.
LO = {"ifindex": 1, "ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "qdisc": "noqueue"}
ETH0 = {
    "ifindex": 2,
    "link_index": 9,
    "ifname": "eth0",
    "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
}
ETH1 = {"ifindex": 3, "ifname": "eth1", "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"]}
VIA_ETH0 = {"dst": "default", "gateway": "10.42.0.1", "dev": "eth0", "flags": []}
OVER_TWO = {"dst": "default", "flags": [], "nexthops": [{"gateway": "10.0.0.1", "dev": "eth0", "weight": 1}]}
LO_ROOT = {"kind": "noqueue", "handle": "0:", "dev": "lo", "root": True, "refcnt": 2, "options": {}}


def root(dev: str, kind: str) -> dict[str, Any]:
    return {"kind": kind, "handle": "8001:", "dev": dev, "root": True, "refcnt": 2, "options": {}}


def child(dev: str, kind: str, number: int) -> dict[str, Any]:
    return {"kind": kind, "handle": "0:", "dev": dev, "parent": f"1:{number}", "options": {}}


class Namespaces:
    """A runner that answers for every namespace alike, and keeps which it was asked for."""

    def __init__(self, links: object = (), routes: object = (), qdiscs: object = ()) -> None:
        self.answers = {LINKS: links, ROUTES: routes, QDISCS: qdiscs}
        self.inodes: list[int] = []
        self.code = 0

    def __call__(self, argv: Sequence[str], *, stdin: bytes = b"", pass_fds: Sequence[int] = ()) -> Completed:
        (fd,) = pass_fds
        assert list(argv[:2]) == ["nsenter", f"--net=/proc/self/fd/{fd}"]
        assert stdin == b""
        self.inodes.append(os.fstat(fd).st_ino)
        answer = self.answers[tuple(argv[2:])]
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return said(text, code=self.code, stderr="Cannot open it\n" if self.code else "")


@pytest.fixture
def cgroup(tmp_path: Path) -> Cgroup:
    """A cgroup with this process in it."""
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return Cgroup(tmp_path, tmp_path.stat().st_ino)


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
        "only loopback",
        "nothing",
        "no output",
    ],
)
def test_interfaces_that_leave_the_pod_without_fq_are_named(
    cgroup: Cgroup, links: object, routes: object, qdiscs: object, lacking: dict[str, str]
) -> None:
    assert tc.interfaces_without_fq(cgroup, runner=Namespaces(links, routes, qdiscs)) == lacking


def test_namespace_of_the_cgroups_processes_is_entered_once(cgroup: Cgroup) -> None:
    (cgroup.path / "below").mkdir()
    (cgroup.path / "below/cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    runner = Namespaces()
    tc.interfaces_without_fq(cgroup, runner=runner)
    assert runner.inodes == [os.stat("/proc/self/ns/net").st_ino] * 3


@pytest.mark.parametrize("pids", ["", "4194305\n"], ids=["no process", "a process that has ended"])
def test_cgroup_without_processes_lives_in_our_namespace(cgroup: Cgroup, pids: str) -> None:
    (cgroup.path / "cgroup.procs").write_text(pids)
    runner = Namespaces([ETH0], [], [root("eth0", "noqueue")])
    assert tc.interfaces_without_fq(cgroup, runner=runner) == {"eth0": "noqueue"}
    assert set(runner.inodes) == {os.stat("/proc/self/ns/net").st_ino}


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process in a network namespace of its own."""
    argv = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    yield child.pid
    child.communicate()


def test_every_namespace_of_the_cgroup_is_entered(cgroup: Cgroup, stranger: int) -> None:
    (cgroup.path / "cgroup.procs").write_text(f"{os.getpid()}\n{stranger}\n")
    runner = Namespaces()
    tc.interfaces_without_fq(cgroup, runner=runner)
    inodes = [os.stat(f"/proc/{pid}/ns/net").st_ino for pid in (os.getpid(), stranger)]
    assert inodes[0] != inodes[1]
    assert runner.inodes == [inodes[0]] * 3 + [inodes[1]] * 3


def test_process_that_has_left_the_cgroup_does_not_count(
    cgroup: Cgroup, stranger: int, mocker: MockerFixture
) -> None:
    mocker.patch("podmgr.cgroups.processes", side_effect=[[stranger, os.getpid()], [], [os.getpid()]])
    runner = Namespaces()
    tc.interfaces_without_fq(cgroup, runner=runner)
    assert runner.inodes == [os.stat("/proc/self/ns/net").st_ino] * 3


@pytest.mark.parametrize("does_fail", [False, True])
def test_namespaces_are_closed_again(cgroup: Cgroup, does_fail: bool) -> None:
    before = os.listdir("/proc/self/fd")
    if does_fail:
        with pytest.raises(PodmgrError):
            tc.interfaces_without_fq(cgroup, runner=Namespaces("not JSON"))
    else:
        tc.interfaces_without_fq(cgroup, runner=Namespaces())
    assert os.listdir("/proc/self/fd") == before


def test_answer_that_is_not_json_is_an_error(cgroup: Cgroup) -> None:
    with pytest.raises(PodmgrError, match="tc answered what is not JSON"):
        tc.interfaces_without_fq(cgroup, runner=Namespaces(qdiscs="qdisc noqueue 0: dev lo root"))


def test_failing_command_is_an_error_and_not_an_empty_answer(cgroup: Cgroup) -> None:
    runner = Namespaces("", "", "")
    runner.code = 1
    with pytest.raises(PodmgrError, match=r"cannot look at the pod's interfaces: Cannot open it$"):
        tc.interfaces_without_fq(cgroup, runner=runner)


def test_interfaces_that_are_down_are_empty_rows_and_passed_over(cgroup: Cgroup) -> None:
    runner = Namespaces([{}, ETH0], [VIA_ETH0], [root("eth0", "pfifo_fast")])
    assert tc.interfaces_without_fq(cgroup, runner=runner) == {"eth0": "pfifo_fast"}


@pytest.mark.parametrize("hook", ["clsact", "ingress"])
def test_hooks_beside_the_queues_do_not_count(cgroup: Cgroup, hook: str) -> None:
    qdiscs = [root("eth0", "mq"), child("eth0", "fq", 1), child("eth0", "fq", 2)]
    qdiscs.append({"kind": hook, "handle": "ffff:", "dev": "eth0", "parent": "ffff:fff1", "options": {}})
    assert tc.interfaces_without_fq(cgroup, runner=Namespaces([ETH0], [VIA_ETH0], qdiscs)) == {}


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    empty = Cgroup(tmp_path, tmp_path.stat().st_ino)
    tc.interfaces_without_fq(empty, runner=Namespaces([ETH0], [VIA_ETH0], [root("eth0", "fq")]))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_namespace_that_may_not_be_opened_is_not_taken_for_ours(
    cgroup: Cgroup, mocker: MockerFixture
) -> None:
    mocker.patch("podmgr.tc.os.open", side_effect=PermissionError(13, "Permission denied"))
    with pytest.raises(PermissionDeniedError, match="not allowed to look at the network of process"):
        tc.interfaces_without_fq(cgroup, runner=Namespaces())
