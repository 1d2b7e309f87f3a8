"""Who owns a pod with CAP_NET_ADMIN: what it can take from its own interfaces, and what it cannot reach."""

from __future__ import annotations

import json
import subprocess
import sys

from podmgr import proc
from podmgr.cli.render import error_text
from podmgr.demo.throwaway import Pod, inside, send_datagrams
from podmgr.kernel import cgroup_life, cgroups
from podmgr.kernel.bpf_syscall import AttachedPrograms, attached_programs
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import applied, under

LOSE_ALL = "loss=uniform egress 100% hook=cgroup"

# What a runtime makes of a container: its cgroup is all that it sees, and bpffs is not there.
CONTAINER = """
set -e
mount --make-rprivate /
mount -t tmpfs none /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /sys/fs/bpf
exec setpriv --bounding-set -all,+net_admin --inh-caps=-all --no-new-privs "$@"
"""

# BPF_PROG_DETACH in both directions, of every cgroup that is to be seen, with each program that can be had.
DETACH = """
import ctypes, json, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
def bpf(command, *fields):
    attr = ctypes.create_string_buffer(struct.pack("=4I", *(*fields, 0, 0, 0, 0)[:4]), 64)
    return libc.syscall(number, command, attr, 64)
programs = [bpf(13, int(id)) for id in sys.argv[1:]]  # BPF_PROG_GET_FD_BY_ID
seen = [folder for folder, *_ in os.walk("/sys/fs/cgroup")]
done = []
for folder in seen:
    fd = os.open(folder, os.O_RDONLY)
    for direction in (0, 1):
        for program in [0, *(item for item in programs if item >= 0)]:
            done.append(bpf(9, fd, program, direction))  # BPF_PROG_DETACH
print(json.dumps({"seen": len(seen), "held": sum(item >= 0 for item in programs), "done": done}))
"""


def in_container(pod: Pod, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a container of the pod with NET_ADMIN: in its network, and in a cgroup below its."""
    made = cgroup_life.create(pod.cgroup.path, "container")
    try:
        shell = ["unshare", "--mount", "--cgroup", "sh", "-c", CONTAINER, "sh", *argv]
        return subprocess.run(
            inside(pod.pid, shell),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: cgroup_life.join(made),
        )
    finally:
        cgroup_life.kill(made)
        cgroup_life.remove(made)


def directly(pod: Pod) -> AttachedPrograms:
    with cgroups.opened(pod.cgroup) as fd:
        assert fd is not None
        return attached_programs(fd, Direction.EGRESS)


def test_what_hangs_on_its_cgroup_is_out_of_its_reach(pod: Pod, settings: Settings) -> None:
    with under(settings, pod.cgroup, LOSE_ALL):
        before = directly(pod)
        assert len(before.program_ids) == 1
        words = [sys.executable, "-c", DETACH, *map(str, before.program_ids)]
        done = in_container(pod, *words)
        assert done.returncode == 0, done.stderr
        tried = json.loads(done.stdout)
        assert tried["seen"] == 1  # its own cgroup, and neither the pod's nor another's
        assert tried["held"] == 0
        assert tried["done"] == [-1, -1]
        assert directly(pod) == before
        assert send_datagrams(pod, 4000, 50)[2] == 0


def test_it_may_take_away_what_hangs_on_its_interface_and_the_next_look_puts_it_back(
    pod: Pod, settings: Settings
) -> None:
    rule = "loss=uniform egress 100%"
    with under(settings, pod.cgroup, rule) as observed:
        assert send_datagrams(pod, 4000, 50)[2] == 0
        done = in_container(pod, "tc", "qdisc", "del", "dev", "eth0", "clsact")
        assert done.returncode == 0, done.stderr
        assert observed()[rule].state == "missing"  # told, and not believed of the ledger
        assert send_datagrams(pod, 4000, 50)[2] == 50
        applied(settings, pod.cgroup, rule)
        assert observed()[rule].state == "active"
        assert send_datagrams(pod, 4000, 50)[2] == 0


def test_names_that_it_gives_to_interfaces_reach_no_terminal_as_they_are(
    pod: Pod, settings: Settings
) -> None:
    name = "e\x1b[31mv\u202ex"
    done = in_container(pod, "ip", "link", "set", "eth0", "down")
    assert done.returncode == 0, done.stderr
    done = in_container(pod, "ip", "link", "set", "eth0", "name", name)
    assert done.returncode == 0, done.stderr
    in_container(pod, "ip", "link", "set", name, "up")
    (outcome,) = applied(settings, pod.cgroup, "loss=uniform egress 1% interface=nosuch")
    assert outcome.error is not None
    shown = error_text(outcome.error)
    assert "there are: " in shown and "\x1b" not in shown and "\u202e" not in shown
    argv = [sys.executable, "-m", "podmgr", "list", "-o"]
    with under(settings, pod.cgroup, "loss=uniform egress 1%"):
        for form in ("wide", "json", "yaml"):
            listed = proc.run([*argv, form])
            assert listed.succeeded
            assert "\x1b" not in listed.stdout and "\u202e" not in listed.stdout
