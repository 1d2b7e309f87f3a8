"""`podmgr run --net`: a network for one command, rules on both its directions, and nothing afterwards."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.cli import running
from podmgr.demo.intervals import binomial_interval
from podmgr.kernel import cgroup_life
from podmgr.rules.grammar import parse_rule_option
from tests.kernel.conftest import Cli, assert_nothing_left
from tests.kernel.killing import kill_everywhere
from tests.kernel.network import ip, programs, tc_state, waits_until

EGRESS, INGRESS = "loss=uniform egress 20%", "loss=uniform ingress 40%"
RULE = "loss=uniform both 0%"
PORT = 4200
COUNT = 3000
_SO_RCVBUFFORCE = 33


@pytest.fixture(autouse=True)
def nothing_is_left(cgroup_root: Path) -> Iterator[None]:
    holders = _holders()
    yield
    assert waits_until(lambda: _veths() == [])
    assert _cgroups(cgroup_root) == []
    assert "clsact" not in tc_state(None)
    assert _holders() <= holders


@contextmanager
def echoing() -> Iterator[list[int]]:
    """A server of datagrams on the node's side, on all addresses; how many it has had."""
    seen = [0]
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)  # what is missing was lost before
        server.bind(("::", PORT))
        server.settimeout(0.2)
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                try:
                    data, peer = server.recvfrom(100)
                except TimeoutError:
                    continue
                seen[0] += 1
                server.sendto(data, peer)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield seen
        finally:
            is_over.set()
            serving.join()


_ECHOES = f"""
import os, select, socket
host = os.environ[NAME]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, {_SO_RCVBUFFORCE}, 1 << 26)
sock.connect((host, {PORT}))
answers = 0
for number in range({COUNT}):
    sock.send(b"x")
    while select.select([sock], [], [], 1 if number == {COUNT} - 1 else 0)[0]:
        sock.recv(100)
        answers += 1
print(answers)
"""


def _python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


@pytest.mark.parametrize("name", ["PODMGR_NET_HOST", "PODMGR_NET_HOST6"])
def test_what_leaves_and_what_arrives_is_lost_as_declared(podmgr: Cli, name: str) -> None:
    script = _ECHOES.replace("NAME", repr(name))
    with echoing() as seen:
        done = podmgr("run", "--net", "--rule", EGRESS, "--rule", INGRESS, "--", *_python(script))
    answered = int(done.stdout)
    low, high = binomial_interval(COUNT, 0.2)
    assert low <= COUNT - seen[0] <= high
    low, high = binomial_interval(seen[0], 0.4)
    assert low <= seen[0] - answered <= high
    for rule, count in ((EGRESS, COUNT), (INGRESS, seen[0])):  # and what the kernel sends of itself
        (line,) = [line for line in done.stderr.splitlines() if f"{rule}:" in line]
        assert count <= int(line.split()[-5]) + int(line.split()[-2]) <= count + 20


_SENDS = """
import os, socket, sys
with socket.create_connection((os.environ["PODMGR_NET_HOST"], PORT)) as sock:
    sock.sendall(bytes(1 << 21))
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    print(int.from_bytes(info[100:104], sys.byteorder))  # tcpi_total_retrans
""".replace("PORT", str(PORT))


def test_loss_is_loss_to_tcp(podmgr: Cli) -> None:
    received: list[int] = []

    def receive() -> None:
        connection, _ = server.accept()
        with connection:
            received.append(0)
            while data := connection.recv(1 << 20):
                received[0] += len(data)

    with socket.create_server(("", PORT)) as server:
        receiving = threading.Thread(target=receive)
        receiving.start()
        done = podmgr("run", "-q", "--net", "--rule", "loss=uniform both 5%", "--", *_python(_SENDS))
        receiving.join()
    assert int(done.stdout) > 0
    assert received == [1 << 21]


def test_it_is_told_where_this_machine_is_and_what_is_out_of_reach(podmgr: Cli) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(
        "0"
    )  # of the tests' own network, as this may be 1 elsewhere
    script = 'echo "$PODMGR_NET_HOST $PODMGR_NET_HOST6"; ip -o address show; ip route; ip -6 route'
    done = podmgr("run", "--net", "--rule", RULE, "sh", "-c", script)
    hosts, *rest = done.stdout.splitlines()
    host, host6 = hosts.split()
    notes = [line for line in done.stderr.splitlines() if "note: within" in line]
    assert notes[0] == (
        f"podmgr: note: within, this machine is {host} (PODMGR_NET_HOST) and {host6} (PODMGR_NET_HOST6)"
    )
    assert (
        "nothing beyond this machine is reached: it does not forward (net.ipv4.ip_forward is 0)" in notes[1]
    )
    shown = "\n".join(rest)
    assert re.search(r"eth0 +inet 198\.1[89]\.\d+\.\d+/30 ", shown)
    assert re.search(r"eth0 +inet6 fd[0-9a-f:]+/64 ", shown)
    assert f"default via {host} dev eth0" in shown
    assert f"default via {host6} dev eth0" in shown


def test_rules_are_at_its_interface_before_it_starts(podmgr: Cli) -> None:
    script = f"{sys.executable} -m podmgr list -o json; tc filter show dev eth0 egress"
    done = podmgr("run", "-q", "--net", "--rule", EGRESS, "--rule", INGRESS, "sh", "-c", script)
    document, end = json.JSONDecoder().raw_decode(done.stdout)
    rows = {row["rule"]: (row["hook"], row["state"]) for row in document["attachments"]}
    assert rows == {EGRESS: ("tc", "active"), INGRESS: ("tc", "active")}
    assert "bpf" in done.stdout[end:]


def test_it_may_be_named_as_the_interface(podmgr: Cli) -> None:
    rule = "bandwidth=1 gbps ingress interface=eth0"
    assert rule in podmgr("run", "--net", "--rule", rule, "true").stderr
    done = podmgr("run", "--net", "--rule", "bandwidth=1 gbps ingress interface=wlan0", "true", code=125)
    assert "has no interface wlan0 to act on\ntip: there are: eth0, lo" in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -KILL $$"], 137), (["no-such-command"], 127)],
)
def test_the_exit_code_is_the_commands_and_all_is_removed(podmgr: Cli, command: list[str], code: int) -> None:
    podmgr("run", "-q", "--net", "--rule", RULE, "--", *command, code=code)
    assert _veths() == []
    assert_nothing_left(podmgr.settings)


def test_under_sudo_it_runs_as_who_called_it_with_no_right_in_its_network(
    podmgr: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setenv("SUDO_UID", str(nobody.pw_uid))
    monkeypatch.setenv("SUDO_GID", str(nobody.pw_gid))
    script = (
        "id -u; ip link set eth0 down 2>/dev/null || echo refused; cat /proc/sys/net/ipv4/ping_group_range"
    )
    done = podmgr("run", "-q", "--net", "--rule", RULE, "sh", "-c", script)
    pings = Path("/proc/sys/net/ipv4/ping_group_range").read_text()
    assert done.stdout == f"{nobody.pw_uid}\nrefused\n{pings}"


def test_what_it_leaves_behind_is_killed_and_who_holds_its_network_does_not_count(podmgr: Cli) -> None:
    done = podmgr("run", "--net", "--rule", RULE, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
    assert "killed 1 processes" in done.stderr
    assert "killed" not in podmgr("run", "--net", "--rule", RULE, "true").stderr


def test_runs_inside_a_run_and_beside_it_have_other_addresses(podmgr: Cli) -> None:
    echo = ["sh", "-c", "echo $PODMGR_NET_HOST"]
    argv = [sys.executable, "-m", "podmgr", "run", "-q", "--net", "--rule", RULE, "--", *echo]
    both = f"{echo[-1]}; {shlex.join(argv)}"
    done = podmgr("run", "-q", "--net", "--rule", RULE, "--", "sh", "-c", both)
    assert len(set(done.stdout.split())) == 2
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 4


def test_without_the_right_it_says_so_in_a_line(podmgr: Cli) -> None:
    argv = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable]
    words = ["-m", "podmgr", "run", "--net", "--rule", RULE, "true"]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        "error: not allowed to make a network namespace",
        "tip: run as root (sudo podmgr ...)",
    ]
    assert_nothing_left(podmgr.settings)


Start = Callable[..., tuple["subprocess.Popen[bytes]", Cgroup]]
WAITING = ("tail", "-f", "/dev/null")


@pytest.fixture
def start(cgroup_root: Path) -> Iterator[Start]:
    """Starts a run whose command waits, and returns once the command is there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> tuple[subprocess.Popen[bytes], Cgroup]:
        argv = [sys.executable, "-m", "podmgr", "run", "-q", "--net", "--rule", RULE, *(command or WAITING)]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        started.append(process)
        while not (found := list(cgroup_root.glob("podmgr-run-*"))) or "tail" not in _commands(found[0]):
            assert process.poll() is None
            time.sleep(0.01)
        assert len(_veths()) == 1
        return process, Cgroup(found[0], found[0].stat().st_ino)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command_and_all_is_removed(
    podmgr: Cli, start: Start, number: signal.Signals
) -> None:
    process, _ = start()
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert _veths() == []
    assert_nothing_left(podmgr.settings)


def test_all_goes_when_podmgr_is_killed_and_clean_removes_the_cgroup_and_the_pins(
    podmgr: Cli, start: Start
) -> None:
    process, cgroup = start()
    _kill(process, cgroup)
    assert waits_until(lambda: _veths() == [])
    assert cgroup.path.exists()
    done = podmgr("clean")
    assert f"removed {cgroup.path}, left by a crash" in done.stderr
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize("command", [["clean"], ["list"], ["run", "--rule", RULE, "true"]], ids=" ".join)
def test_what_the_command_has_started_ends_with_its_network(
    podmgr: Cli, start: Start, command: list[str]
) -> None:
    """They outlive podmgr, as its command's children, and would go on without its rules."""
    process, cgroup = start("sh", "-c", "tail -f /dev/null & tail -f /dev/null; true")
    process.kill()
    process.wait()
    assert waits_until(lambda: _commands(cgroup.path) == {"tail"})
    assert len(_veths()) == 1
    done = podmgr(*command)
    assert f"removed {cgroup.path}, left by a crash" in done.stderr
    assert waits_until(lambda: _veths() == [])
    assert_nothing_left(podmgr.settings)


def test_who_has_left_the_cgroup_loses_the_network(podmgr: Cli, start: Start, cgroup_root: Path) -> None:
    """Root may; there the rules of a network go with it, and its connection with what is removed."""
    outside = cgroup_root.parent / "cgroup.procs"
    script = f"(echo 0 > {outside}; exec sleep 1000) & exec tail -f /dev/null"
    process, cgroup = start("sh", "-c", script)
    (inside,) = (int(pid) for pid in _children(process.pid) if "tail" in _commands_of(pid))
    (gone,) = _children(inside)
    assert waits_until(lambda: gone not in cgroup_life.processes(cgroup))
    process.kill()
    process.wait()
    podmgr("list")
    try:
        assert _veths() == []
        assert_nothing_left(podmgr.settings)
    finally:
        os.kill(gone, signal.SIGKILL)


def test_what_was_left_is_removed_by_the_next_run_too(podmgr: Cli, start: Start) -> None:
    process, cgroup = start()
    _kill(process, cgroup)
    done = podmgr("run", "--net", "--rule", RULE, "true")
    assert f"removed {cgroup.path}, left by a crash" in done.stderr
    assert not cgroup.path.exists()
    assert_nothing_left(podmgr.settings)


def test_clean_after_a_run_that_was_killed_anywhere(podmgr: Cli) -> None:
    (rule,) = parse_rule_option("loss=uniform egress 0%")

    def work() -> None:
        code = running.run(
            [rule],
            ["true"],
            podmgr.settings,
            runner=proc.run,
            report=lambda _: None,
            user=None,
            has_own_network=True,
        )
        assert code == 0

    def check() -> None:
        assert waits_until(lambda: _veths() == [])
        podmgr("clean")
        assert_nothing_left(podmgr.settings)
        assert _cgroups(podmgr.settings.cgroup_root) == []

    assert kill_everywhere(work, check, step=6) > 30


def test_its_network_may_be_taken_away_meanwhile(podmgr: Cli, start: Start) -> None:
    process, _ = start()
    ip(None, f"link del {_veths()[0]}")
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert_nothing_left(podmgr.settings)


@pytest.mark.usefixtures("podmgr")
def test_programs_are_in_the_network_of_the_command_alone(start: Start) -> None:
    process, cgroup = start()
    (pid, *_) = cgroup_life.processes(cgroup)
    assert os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    assert [len(programs(pid, "eth0", side)) for side in ("egress", "ingress")] == [1, 1]
    assert programs(None, _veths()[0]) == programs(None, "lo") == []
    process.terminate()
    process.wait(10)


def _kill(process: subprocess.Popen[bytes], cgroup: Cgroup) -> None:
    process.kill()
    process.wait()
    assert waits_until(lambda: cgroup_life.processes(cgroup) == [])


def _veths() -> list[str]:
    names: Sequence[str] = [row["ifname"] for row in json.loads(ip(None, "-j link show"))]
    return [name for name in names if name.startswith("podmgr-")]


def _cgroups(root: Path | None) -> list[Path]:
    assert root is not None
    return [path for path in root.iterdir() if path.is_dir()]


def _commands(cgroup: Path) -> set[str]:
    pids = cgroup_life.processes(Cgroup(cgroup, 0))
    return {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids if Path(f"/proc/{pid}").exists()}


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _commands_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def _holders() -> set[str]:
    """The processes of this test that hold a namespace: `sleep infinity`, with its environment."""
    ours = f"PODMGR_STATE_DIR={os.environ['PODMGR_STATE_DIR']}\0".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended just now
            if (path / "cmdline").read_bytes() == b"sleep\0infinity\0":
                found |= {path.name} if ours in (path / "environ").read_bytes() else set()
    return found
