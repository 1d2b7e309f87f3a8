"""Network namespaces, real ones: whose processes live where, and descriptors that outlive them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from podmgr.attachment import Cgroup
from podmgr.errors import PermissionDeniedError
from podmgr.kernel import netlink, netns
from podmgr.kernel.mounts import Mount
from podmgr.kernel.netns import Namespaces

NO_PROCESS = 2**22 + 1  # beyond the largest number of a process


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    with Namespaces() as made:
        yield made


def home_of(pid: int) -> int:
    """The namespace of a process."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def forbid(mocker: MockerFixture, pid: int) -> None:
    """As the kernel does without SYS_PTRACE, for one process."""
    real = os.stat

    def stat(path: Any, **more: Any) -> os.stat_result:
        if path == f"/proc/{pid}/ns/net":
            raise PermissionError(13, "Permission denied")
        return real(path, **more)

    mocker.patch("podmgr.kernel.netns.os.stat", side_effect=stat)


OURS = home_of(os.getpid())


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Cgroup]:
    """Makes a folder that looks like a cgroup with these processes."""

    def make(*pids: int, name: str = "a") -> Cgroup:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return Cgroup(tmp_path / name, 7)

    return make


# Whose


def test_namespace_of_a_process_is_found_once(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int
) -> None:
    assert namespaces.of(fill(stranger)) == [home_of(stranger)]
    assert namespaces.of(fill(os.getpid(), os.getppid())) == [OURS]
    assert home_of(stranger) != OURS


@pytest.mark.parametrize("pids", [(), (NO_PROCESS,)], ids=["no process", "a process that has ended"])
def test_cgroup_without_processes_has_no_namespace(
    namespaces: Namespaces, fill: Callable[..., Cgroup], pids: tuple[int, ...]
) -> None:
    assert namespaces.of(fill(*pids)) == []


def test_cgroup_that_is_gone_has_no_namespace(namespaces: Namespaces, tmp_path: Path) -> None:
    assert namespaces.of(Cgroup(tmp_path / "gone", 7)) == []


@pytest.mark.parametrize("is_reversed", [False, True])
def test_oldest_process_comes_first_whatever_its_number(
    namespaces: Namespaces,
    fill: Callable[..., Cgroup],
    make_stranger: Callable[[], int],
    mocker: MockerFixture,
    is_reversed: bool,
) -> None:
    """The sandbox is older than the containers; numbers of processes wrap around."""
    pids = [make_stranger(), make_stranger(), make_stranger()]
    ages = dict(zip(pids, (30, 10, 20), strict=True))
    mocker.patch("podmgr.kernel.netns._started", side_effect=ages.__getitem__)
    cgroup = fill(*(reversed(pids) if is_reversed else pids))
    assert namespaces.of(cgroup) == [home_of(pids[1]), home_of(pids[2]), home_of(pids[0])]


def test_age_of_a_process_is_read_from_the_kernel(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int
) -> None:
    """This process was there before the stranger, which it started."""
    assert namespaces.of(fill(stranger, os.getpid())) == [OURS, home_of(stranger)]


def test_process_that_has_left_the_cgroup_meanwhile_does_not_count(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int, mocker: MockerFixture
) -> None:
    """Its number may be another's by now, whose network is nobody's business."""
    mocker.patch("podmgr.kernel.cgroup_life.processes", side_effect=[[stranger, os.getpid()], [os.getpid()]])
    assert namespaces.of(fill()) == [OURS]
    mocker.patch("podmgr.kernel.cgroup_life.processes", side_effect=[[stranger], []])
    assert namespaces.of(fill()) == []


def test_not_being_allowed_to_look_is_not_living_nowhere(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int, mocker: MockerFixture
) -> None:
    forbid(mocker, stranger)
    with pytest.raises(PermissionDeniedError, match=f"network of process {stranger}") as caught:
        namespaces.of(fill(stranger))
    assert "hook=cgroup" in (caught.value.tip or "")


def test_our_own_namespace_is_ours_and_so_is_that_of_process_1(
    namespaces: Namespaces, make_stranger: Callable[[], int], mocker: MockerFixture
) -> None:
    """As for a podmgr in a container of its own, with the host's processes in sight."""
    first, other = make_stranger(), make_stranger()
    homes = {1: home_of(first)}
    mocker.patch("podmgr.kernel.netns._inode_of", side_effect=homes.get)
    assert namespaces.own() == OURS
    assert namespaces.is_ours(OURS)
    assert namespaces.is_ours(home_of(first))
    assert not namespaces.is_ours(home_of(other))
    homes.clear()  # process 1 may not be looked at
    assert not namespaces.is_ours(home_of(first))


def test_namespace_is_shared_if_somebody_outside_the_cgroup_lives_there(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int
) -> None:
    inode = home_of(stranger)
    assert not namespaces.is_shared(inode, fill(stranger))
    child = subprocess.Popen(
        ["nsenter", f"--net=/proc/{stranger}/ns/net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert namespaces.is_shared(inode, fill(stranger))
        assert not namespaces.is_shared(inode, fill(stranger, child.pid))
    finally:
        child.communicate()
    assert not namespaces.is_shared(inode, fill(stranger))


# Descriptors


def test_descriptor_leads_into_the_namespace(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int
) -> None:
    fd = namespaces.descriptor(home_of(stranger), fill(stranger))
    assert fd is not None
    assert os.fstat(fd).st_ino == home_of(stranger)
    control = namespaces.traffic_control(home_of(stranger))
    assert control is not None
    assert [item.name for item in control.interfaces() if item.is_up] == []


def test_descriptor_is_the_same_each_time(namespaces: Namespaces, stranger: int) -> None:
    fds = {namespaces.descriptor(home_of(stranger)) for _ in range(3)}
    assert len(fds) == 1 and None not in fds


def test_what_was_opened_outlives_the_process(namespaces: Namespaces, fill: Callable[..., Cgroup]) -> None:
    """A pod that goes while podmgr is at work is no other pod meanwhile."""
    child = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    (inode,) = namespaces.of(fill(child.pid))
    child.communicate()
    fd = namespaces.descriptor(inode)
    assert fd is not None and os.fstat(fd).st_ino == inode
    with Namespaces() as others:
        assert others.descriptor(inode) is None


def test_namespace_is_found_by_any_process_in_it(namespaces: Namespaces, stranger: int) -> None:
    fd = namespaces.descriptor(home_of(stranger))
    assert fd is not None and os.fstat(fd).st_ino == home_of(stranger)


def test_cgroup_that_is_near_is_looked_at_first(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int, mocker: MockerFixture
) -> None:
    """For 110 pods, all processes of a node are not looked through."""
    mocker.patch("podmgr.kernel.netns._all_pids", side_effect=AssertionError("looked at all processes"))
    assert namespaces.descriptor(home_of(stranger), fill(stranger)) is not None
    assert namespaces.descriptor(OURS) is not None


def test_namespace_that_is_nowhere_has_no_descriptor(
    namespaces: Namespaces, fill: Callable[..., Cgroup]
) -> None:
    assert namespaces.descriptor(5) is None
    assert namespaces.descriptor(5, fill(os.getpid())) is None


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A namespace that a mount alone holds, as `ip netns` and container runtimes make them."""
    path = tmp_path / "name d"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_namespace_that_a_mount_alone_holds_is_found(namespaces: Namespaces, mounted: Path) -> None:
    inode = mounted.stat().st_ino
    fd = namespaces.descriptor(inode)
    assert fd is not None and os.fstat(fd).st_ino == inode


def test_all_namespaces_are_those_of_processes_and_of_mounts(
    namespaces: Namespaces, mounted: Path, stranger: int
) -> None:
    found = namespaces.all()
    assert {OURS, home_of(stranger), mounted.stat().st_ino} <= set(found)
    assert len(set(found)) == len(found)


def test_mounts_of_other_namespaces_than_the_networks_do_no_harm(
    namespaces: Namespaces, tmp_path: Path, mocker: MockerFixture
) -> None:
    """A mount that is gone, or not to be seen from here, is none."""
    mocker.patch("podmgr.kernel.mounts.table", return_value=[Mount(tmp_path / "gone", "nsfs")])
    assert OURS in namespaces.all()
    assert namespaces.descriptor(5) is None


def test_process_that_may_not_be_looked_at_is_passed_over_in_a_look_at_all(
    namespaces: Namespaces, stranger: int, mocker: MockerFixture
) -> None:
    hidden = home_of(stranger)
    forbid(mocker, stranger)
    found = namespaces.all()
    assert OURS in found and hidden not in found
    assert namespaces.descriptor(hidden) is None


@pytest.mark.parametrize("does_fail", [False, True])
def test_nothing_is_left_open(fill: Callable[..., Cgroup], stranger: int, does_fail: bool) -> None:
    before = os.listdir("/proc/self/fd")
    try:
        with Namespaces() as made:
            made.of(fill(os.getpid(), stranger))
            made.id_of(home_of(stranger), OURS)
            assert made.own() == made.own()
            made.all()
            assert len(os.listdir("/proc/self/fd")) > len(before)
            if does_fail:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert os.listdir("/proc/self/fd") == before


def test_descriptors_are_not_for_children(namespaces: Namespaces, stranger: int) -> None:
    fd = namespaces.descriptor(home_of(stranger))
    assert fd is not None and not os.get_inheritable(fd)


# Numbers of namespaces


@pytest.fixture
def linked(make_stranger: Callable[[], int]) -> tuple[int, int]:
    """Two strangers, of whom an interface of one has its other end at the other's."""
    here, there = make_stranger(), make_stranger()
    enter = ["nsenter", f"--net=/proc/{here}/ns/net"]
    peer = ["peer", "name", "two", "netns", str(there)]
    subprocess.run([*enter, "ip", "link", "add", "one", "type", "veth", *peer], check=True)
    return here, there


def test_number_of_a_namespace_is_that_which_ip_shows(namespaces: Namespaces, stranger: int) -> None:
    """As seen from our own: a veth from here into the stranger's namespace."""
    inode = home_of(stranger)
    assert namespaces.id_of(inode, OURS) is None
    name = f"t{os.getpid()}"
    command = ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(stranger)]
    subprocess.run(command, check=True)
    try:
        control = namespaces.traffic_control(namespaces.own())
        assert control is not None
        (seen,) = [item for item in control.interfaces() if item.name == name]
        assert seen.peer_namespace_id is not None
        assert namespaces.id_of(inode, OURS) == seen.peer_namespace_id
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_number_depends_on_who_looks(namespaces: Namespaces, linked: tuple[int, int]) -> None:
    """An interface of one leads to the other; none of our own leads to either."""
    here, there = map(home_of, linked)
    control = namespaces.traffic_control(here)
    assert control is not None
    (one,) = [item for item in control.interfaces() if item.name == "one"]
    assert one.peer_namespace_id is not None
    assert namespaces.id_of(there, here) == one.peer_namespace_id
    assert namespaces.id_of(here, OURS) is None
    assert namespaces.id_of(there, OURS) is None


def test_namespace_that_is_nowhere_has_no_number(namespaces: Namespaces) -> None:
    assert namespaces.id_of(5, OURS) is None
    assert namespaces.id_of(OURS, 5) is None


def test_asking_in_another_namespace_leaves_us_in_our_own(
    namespaces: Namespaces, linked: tuple[int, int]
) -> None:
    here, there = map(home_of, linked)
    namespaces.id_of(there, here)
    assert os.stat("/proc/thread-self/ns/net").st_ino == namespaces.own() == OURS


# Nodes


@pytest.fixture
def first(stranger: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The stranger is process 1, as seen from a podmgr in a container."""
    real_home, real_open = netns._inode_of, Namespaces._open
    monkeypatch.setattr(netns, "_inode_of", lambda pid: real_home(stranger if pid == 1 else pid))
    monkeypatch.setattr(Namespaces, "_open", lambda self, pid: real_open(self, stranger if pid == 1 else pid))
    return stranger


def test_nodes_side_of_a_veth_may_be_with_us_or_with_process_1(namespaces: Namespaces, first: int) -> None:
    assert namespaces.nodes() == [OURS, home_of(first)]
    fd = namespaces.descriptor(home_of(first))
    assert fd is not None and os.fstat(fd).st_ino == home_of(first)


def test_namespace_of_a_process_1_that_may_not_be_looked_at_is_no_node(
    namespaces: Namespaces, first: int, mocker: MockerFixture
) -> None:
    forbid(mocker, first)
    assert namespaces.nodes() == [OURS]


def test_one_node_is_one(namespaces: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "_inode_of", lambda _: OURS)
    assert namespaces.nodes() == [OURS]


def test_who_may_not_enter_is_told_so_before_anything_is_tried(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int, mocker: MockerFixture
) -> None:
    """To look is allowed to more than to enter; without processes there is nothing to enter."""
    mocker.patch("podmgr.kernel.netns._may_enter", return_value=False)
    with pytest.raises(PermissionDeniedError, match=f"look into the network of process {stranger}"):
        namespaces.of(fill(stranger))
    assert namespaces.of(fill()) == []


def test_no_more_namespaces_are_opened_than_asked_for(
    namespaces: Namespaces, fill: Callable[..., Cgroup], stranger: int
) -> None:
    cgroup = fill(stranger, os.getpid())
    assert namespaces.of(cgroup, most=1) == [OURS]  # we are the older one
    assert namespaces.of(cgroup) == [OURS, home_of(stranger)]


def test_a_namespace_that_anybody_could_make_comes_last(
    namespaces: Namespaces, fill: Callable[..., Cgroup]
) -> None:
    argv = ["unshare", "--user", "--map-root-user", "--net", "sleep", "infinity"]
    with subprocess.Popen(argv, start_new_session=True) as tenant:
        try:
            while home_of(tenant.pid) == OURS:
                assert tenant.poll() is None
            with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as younger:
                try:
                    while home_of(younger.pid) == OURS:
                        assert younger.poll() is None
                    found = namespaces.of(fill(tenant.pid, younger.pid))
                    assert found == [home_of(younger.pid), home_of(tenant.pid)]
                finally:
                    younger.kill()
        finally:
            tenant.kill()


def test_socket_of_a_namespace_is_kept_and_the_oldest_go_first(
    namespaces: Namespaces, make_stranger: Callable[[], int], mocker: MockerFixture
) -> None:
    mocker.patch("podmgr.kernel.netns._MOST_ROUTES", 2)
    opened = mocker.spy(netlink, "opened")
    inodes = [home_of(make_stranger()) for _ in range(3)]
    for inode, times in zip([*inodes, inodes[1], inodes[0]], [1, 2, 3, 3, 4], strict=True):
        control = namespaces.traffic_control(inode)
        assert control is not None
        assert [item.name for item in control.interfaces() if item.name == "lo"] == ["lo"]
        assert opened.call_count == times


def test_namespace_that_is_nowhere_has_no_traffic_control(namespaces: Namespaces) -> None:
    assert namespaces.traffic_control(1) is None
