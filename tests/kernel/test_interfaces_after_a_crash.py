"""podmgr killed, ledger or pins lost, pods half gone: what was at tc is found and taken away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import Pod
from podmgr.kernel import bpf_syscall, cgroup_life, pins
from podmgr.kernel import tc as kernel_tc
from podmgr.kernel.netns import Namespaces
from podmgr.reconcile import ledger, qdiscs
from podmgr.reconcile.observe import observe
from podmgr.reconcile.transaction import clean
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import (
    MakeCgroup,
    applied,
    assert_nothing_left,
    assert_unloaded,
    compile_by_hand,
    run,
)
from tests.kernel.killing import is_killed, kill_everywhere
from tests.kernel.network import Place, ip, namespace, programs, qdisc_kinds, tc, tc_state, waits_until
from tests.kernel.test_interfaces_of_others import FOREIGN_PROGRAM

RULES = ("loss=uniform egress 1%", "loss=uniform ingress 1%", "bandwidth=10 mbps egress hook=tc")
CHANGED = ("loss=uniform egress 2%", "bandwidth=20 mbps egress hook=tc")
BOTH_HOOKS = ("loss=uniform egress 1%", "bandwidth=10 mbps egress")


@pytest.fixture
def foreign(pod: Pod, tmp_path: Path) -> Iterator[str]:
    """Somebody else's filter, on a clsact of theirs; what tc tells of it."""
    pin = Path(f"/sys/fs/bpf/foreign-{os.getpid()}")
    run("bpftool", "prog", "load", str(compile_by_hand(tmp_path, FOREIGN_PROGRAM)), str(pin))
    tc(pod.pid, "qdisc add dev eth0 clsact")
    tc(pod.pid, f"filter add dev eth0 egress protocol all prio 100 bpf da object-pinned {pin}")
    yield tc_state(pod.pid)
    pin.unlink()


def _apply(cgroup: Cgroup, settings: Settings, *rules: str) -> None:
    assert [outcome.error for outcome in applied(settings, cgroup, *rules) if outcome.error] == []


def _clean(settings: Settings) -> None:
    assert [outcome.error for outcome in clean(None, settings, runner=proc.run) if outcome.error] == []


def _pinned(settings: Settings) -> set[int]:
    ids = [bpf_syscall.pinned_program_id(pin.program) for pin in pins.pinned(settings.bpffs)]
    return {number for number in ids if number is not None}


@pytest.mark.parametrize("lost", ["nothing", "the ledger", "all state", "the programs' pins"])
def test_clean_after_a_killed_apply(pod: Pod, settings: Settings, lost: str) -> None:
    before, ours = tc_state(pod.pid), set[int]()

    def check() -> None:
        ours.update(_pinned(settings))
        if lost == "the ledger":
            (settings.state_dir / "ledger.json").unlink(missing_ok=True)
        if lost == "all state":
            shutil.rmtree(settings.state_dir, ignore_errors=True)
        if lost == "the programs' pins":
            for pin in list(pins.pinned(settings.bpffs)):
                pins.remove(pin)
        _clean(settings)
        assert tc_state(pod.pid) == before
        if lost == "all state" and settings.bpffs.exists():
            settings.bpffs.rmdir()  # an empty folder tells nobody anything
        assert_nothing_left(settings)

    step = 1 if lost == "nothing" else 3
    assert kill_everywhere(lambda: _apply(pod.cgroup, settings, *RULES), check, step=step) > 10
    assert ours
    assert_unloaded(sorted(ours))


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another qdisc in the place of fq, which this kernel may lack: all that is done for it is done."""
    monkeypatch.setattr(qdiscs, "FQ", "pfifo")
    monkeypatch.setattr(kernel_tc, "fq_options", lambda _: b"")


@pytest.mark.usefixtures("holding")
@pytest.mark.parametrize("lost", ["nothing", "the ledger", "the programs' pins"])
def test_clean_after_a_killed_apply_of_what_frees_and_delays(pod: Pod, settings: Settings, lost: str) -> None:
    """Two filters of one program, and a root qdisc of podmgr's own."""
    before = tc_state(pod.pid)

    def check() -> None:
        if lost == "the ledger":
            (settings.state_dir / "ledger.json").unlink(missing_ok=True)
        if lost == "the programs' pins":
            for pin in list(pins.pinned(settings.bpffs)):
                pins.remove(pin)
        _clean(settings)
        assert tc_state(pod.pid) == before
        assert_nothing_left(settings)

    rules = ("loss=uniform egress 1%", "delay=10ms egress")
    assert kill_everywhere(lambda: _apply(pod.cgroup, settings, *rules), check, step=2) > 10


@pytest.mark.usefixtures("holding")
def test_a_delay_that_lost_its_first_filter_is_missing_and_put_back(pod: Pod, settings: Settings) -> None:
    """Without it every program sees a packet on its socket, and TCP is stopped: that is not the rule."""
    _apply(pod.cgroup, settings, "delay=10ms egress")
    assert [item.state for item in observe(settings)[0]] == ["active"]
    tc(pod.pid, "filter del dev eth0 egress prio 50")
    assert [item.state for item in observe(settings)[0]] == ["missing"]
    _apply(pod.cgroup, settings, "delay=10ms egress")
    assert [item.state for item in observe(settings)[0]] == ["active"]
    assert sorted(item.priority for item in _filters(pod)) == [50, 146]
    _clean(settings)


def _filters(pod: Pod) -> list[kernel_tc.Filter]:
    with Namespaces() as namespaces:
        control = namespaces.traffic_control(os.stat(f"/proc/{pod.pid}/ns/net").st_ino, pod.cgroup)
        assert control is not None
        (eth0,) = (item.index for item in control.interfaces() if item.name == "eth0")
        return control.filters(eth0, Direction.EGRESS)


@pytest.mark.parametrize("ledger_is_lost", [False, True])
def test_clean_beside_a_filter_of_others_after_a_killed_apply(
    pod: Pod, settings: Settings, foreign: str, ledger_is_lost: bool
) -> None:
    def check() -> None:
        if ledger_is_lost:
            (settings.state_dir / "ledger.json").unlink(missing_ok=True)
        _clean(settings)
        assert tc_state(pod.pid) == foreign
        assert_nothing_left(settings)

    assert kill_everywhere(lambda: _apply(pod.cgroup, settings, *BOTH_HOOKS), check, step=3) > 10


def test_clean_after_an_apply_that_was_killed_while_replacing(pod: Pod, settings: Settings) -> None:
    before = tc_state(pod.pid)

    def check() -> None:
        assert len(programs(pod.pid)) >= 2  # never without a rule
        _clean(settings)
        assert tc_state(pod.pid) == before
        assert_nothing_left(settings)
        _apply(pod.cgroup, settings, *RULES)

    _apply(pod.cgroup, settings, *RULES)
    assert kill_everywhere(lambda: _apply(pod.cgroup, settings, *CHANGED), check, step=3) > 8
    _clean(settings)


def test_apply_finishes_what_a_killed_apply_began(pod: Pod, settings: Settings) -> None:
    before = tc_state(pod.pid)

    def check() -> None:
        _apply(pod.cgroup, settings, *CHANGED)
        assert len(programs(pod.pid)) == 2
        assert programs(pod.pid, side="ingress") == []
        assert len(list((settings.bpffs / str(pod.cgroup.id)).iterdir())) == 4
        _clean(settings)
        assert tc_state(pod.pid) == before

    assert kill_everywhere(lambda: _apply(pod.cgroup, settings, *RULES), check, step=3) > 10
    assert_nothing_left(settings)


def test_clean_finishes_what_a_killed_clean_began(pod: Pod, settings: Settings) -> None:
    before = tc_state(pod.pid)

    def check() -> None:
        _clean(settings)
        assert tc_state(pod.pid) == before
        assert_nothing_left(settings)
        _apply(pod.cgroup, settings, *RULES)

    _apply(pod.cgroup, settings, *RULES)
    assert kill_everywhere(lambda: _clean(settings), check) > 5
    _clean(settings)


def test_an_interrupted_apply_is_undone(pod: Pod, settings: Settings) -> None:
    before, number, undone = tc_state(pod.pid), 1, 0
    while is_killed(lambda: _apply(pod.cgroup, settings, *RULES), number, by=signal.SIGINT):
        if tc_state(pod.pid) == before:
            undone += 1
            assert_nothing_left(settings)
        else:
            assert len(programs(pod.pid)) == 2
            assert len(ledger.read(settings.state_dir)) == len(RULES)
            _clean(settings)
            assert tc_state(pod.pid) == before
        number += 1
    _clean(settings)
    assert undone > 8


def test_clean_waits_for_the_tools_of_a_killed_apply(pod: Pod, settings: Settings) -> None:
    """Killed while its children run: they hold the lock on, so that clean does not overtake them."""
    before = tc_state(pod.pid)
    for number in range(1, 25, 2):
        for delay_seconds in (0.001, 0.004):
            is_killed(lambda: _apply(pod.cgroup, settings, *RULES), number, delay_seconds=delay_seconds)
            _clean(settings)
            assert tc_state(pod.pid) == before
            assert_nothing_left(settings)


def test_all_pins_and_marks_lost_leave_no_filter(pod: Pod, settings: Settings) -> None:
    """With the marks it is lost whose the clsact is: it stays, and holds nothing."""
    _apply(pod.cgroup, settings, *RULES)
    ours = programs(pod.pid) + programs(pod.pid, side="ingress")
    shutil.rmtree(settings.bpffs)
    _clean(settings)
    assert programs(pod.pid) == programs(pod.pid, side="ingress") == []
    assert qdisc_kinds(pod.pid) == {"noqueue", "clsact"}
    assert_nothing_left(settings)
    assert_unloaded(ours)


def test_lost_pins_are_replaced_by_the_next_apply(pod: Pod, settings: Settings) -> None:
    before = tc_state(pod.pid)
    _apply(pod.cgroup, settings, *RULES)
    ours = set(programs(pod.pid))
    for pin in list(pins.pinned(settings.bpffs)):
        pins.remove(pin)
    _apply(pod.cgroup, settings, *RULES)
    assert len(programs(pod.pid)) == 2
    assert not ours & set(programs(pod.pid))
    _clean(settings)
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)


# Pods that are half gone


@contextmanager
def mounted(name: str) -> Iterator[Path]:
    """A network namespace that a bind mount keeps, with an interface `eth0`."""
    run("ip", "netns", "add", name)
    path = Path("/run/netns") / name
    try:
        argv = ["nsenter", f"--net={path}", "sh", "-c"]
        run(*argv, "ip link add eth0 type veth peer name peer0; ip link set eth0 up")
        yield path
    finally:
        with suppress(subprocess.CalledProcessError):
            run("ip", "netns", "del", name)


def _state_of(path: Path) -> str:
    lines = "qdisc show\nfilter show dev eth0 egress\nfilter show dev eth0 ingress\n"
    argv = ["nsenter", f"--net={path}", "tc", "-force", "-batch", "-"]
    return subprocess.run(argv, input=lines, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("lost", ["nothing", "the ledger", "the cgroup", "the ledger and the cgroup"])
def test_a_namespace_that_only_a_mount_keeps_is_cleaned(
    make_cgroup: MakeCgroup, settings: Settings, lost: str
) -> None:
    """The pod's processes have ended, and the runtime has not taken its network down yet."""
    cgroup = make_cgroup("mounted")
    with mounted(f"podmgr-test-{os.getpid()}") as path:
        before = _state_of(path)
        process = proc.start(
            ["nsenter", f"--net={path}", "sleep", "1000"],
            prepare=lambda: cgroup_life.join(cgroup),
            streams=subprocess.DEVNULL,
        )
        assert waits_until(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino == path.stat().st_ino)
        _apply(cgroup, settings, *RULES)
        assert _state_of(path) != before
        ours = _pinned(settings)
        process.kill()
        process.wait()
        assert all(item.is_active for item in observe(settings)[0])
        if "ledger" in lost:
            (settings.state_dir / "ledger.json").unlink()
        if "cgroup" in lost:
            cgroup_life.remove(cgroup)
        _clean(settings)
        assert _state_of(path) == before
        assert_nothing_left(settings)
        assert_unloaded(sorted(ours))


@pytest.mark.parametrize("lost", ["nothing", "the ledger", "the cgroup", "the ledger and the cgroup"])
def test_a_namespace_that_is_gone_leaves_nothing(
    make_cgroup: MakeCgroup, settings: Settings, lost: str
) -> None:
    cgroup = make_cgroup("going")
    with namespace() as pid:
        ip(pid, "link add eth0 type veth peer name peer0")
        ip(pid, "link set eth0 up")
        cgroup_life.join(cgroup, pid)
        _apply(cgroup, settings, *RULES)
        ours = _pinned(settings)
    assert {item.is_active for item in observe(settings)[0]} == {False}
    if "ledger" in lost:
        (settings.state_dir / "ledger.json").unlink()
    if "cgroup" in lost:
        cgroup_life.remove(cgroup)
    _clean(settings)
    assert_nothing_left(settings)
    assert_unloaded(sorted(ours))


def test_a_pod_whose_namespace_was_made_anew_gets_its_rules_there(
    make_cgroup: MakeCgroup, settings: Settings
) -> None:
    """A sandbox that died and was started again in the same cgroup."""
    cgroup, ours = make_cgroup("anew"), set[int]()
    for _ in range(2):
        with namespace() as pid:
            ip(pid, "link add eth0 type veth peer name peer0")
            ip(pid, "link set eth0 up")
            cgroup_life.join(cgroup, pid)
            _apply(cgroup, settings, *RULES)
            assert len(programs(pid)) == 2
            ours |= set(programs(pid))
            rows = observe(settings)[0]
            assert [item.is_active for item in rows] == [True] * len(RULES)
    _clean(settings)
    assert_nothing_left(settings)
    assert_unloaded(sorted(ours))


def test_a_clean_finds_a_program_of_the_ledger_on_interfaces_that_the_ledger_does_not_name(
    pod: Pod, settings: Settings
) -> None:
    """An old ledger came back, from before the rule was applied anew."""
    before = tc_state(pod.pid)
    _apply(pod.cgroup, settings, RULES[0])
    old = (settings.state_dir / "ledger.json").read_bytes()
    _apply(pod.cgroup, settings, "loss=uniform egress 3%")
    (settings.state_dir / "ledger.json").write_bytes(old)
    _clean(settings)
    assert tc_state(pod.pid) == before
    assert_nothing_left(settings)


def test_a_state_folder_of_another_podmgr_is_no_reason_to_touch_its_rules(
    pod: Pod, settings: Settings, tmp_path: Path
) -> None:
    """Two podmgr with state and pins of their own, on one pod: each takes away what is its own."""
    before = tc_state(pod.pid)
    (tmp_path / "other").mkdir(mode=0o700)
    other = settings._replace(
        state_dir=tmp_path / "other", bpffs=settings.bpffs.with_name(settings.bpffs.name + "-other")
    )
    _apply(pod.cgroup, settings, RULES[0])
    first = programs(pod.pid)
    _apply(pod.cgroup, other, "loss=uniform egress 5%")
    assert len(programs(pod.pid)) == 2
    _clean(settings)
    (second,) = programs(pod.pid)
    assert second not in first
    _clean(other)
    assert programs(pod.pid) == []
    # The first one made the clsact and left it to the second's filter; whose it is now, nobody knows.
    tc(pod.pid, "qdisc del dev eth0 clsact")
    assert tc_state(pod.pid) == before


def test_nobody_is_kept_from_leaving(pod: Pod, settings: Settings) -> None:
    """A program at tc holds neither the namespace nor the cgroup."""
    _apply(pod.cgroup, settings, *RULES)
    world = Place(pod.world_pid)
    cgroup_life.kill(pod.cgroup)
    assert waits_until(lambda: "eth0" not in world.run("ip", "link", "show"))
    _clean(settings)
    assert_nothing_left(settings)
