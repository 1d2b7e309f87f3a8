"""podmgr with what the DaemonSet gives its container: a few capabilities, and a root it cannot write.

Each command is a process of its own, so every one of them also finds what an earlier one left.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from podmgr import proc
from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import send_datagrams, throw_away_pod
from podmgr.kernel import cgroup_life, cgroups, pins
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.kernel.conftest import EXAMPLES, Cli, assert_unloaded, attached

ROOT = Path(__file__).parents[2]
RULES = [
    "bandwidth=10 mbps egress; 20 mbps ingress",
    "loss=uniform ingress 1%; exponential egress 400",
    "ebpf-limit=dropper egress -DPORT=5353",
]

# What cannot be done without a capability, and what podmgr then says.
NEEDED_FOR = {
    "BPF": ("apply", "the kernel refuses the program|not allowed to look"),  # the latter before 5.19
    "NET_ADMIN": ("list", "not allowed to look at a cgroup's programs"),
    "PERFMON": ("apply", "prohibited for !root"),
    "DAC_READ_SEARCH": ("list", "not allowed to look for cgroup"),
}
# What is then done less well, and told.
NEEDED_FOR_INTERFACES = ["SYS_PTRACE", "SYS_ADMIN"]

# Before 5.15 podmgr makes a cgroup at the top, to see whether sockets know theirs; before 5.11,
# RLIMIT_MEMLOCK must be raised.
IS_OLD_KERNEL = tuple(map(int, platform.release().split(".")[:2])) < (5, 15)
OLD_KERNELS_NEED = ["DAC_OVERRIDE", "SYS_RESOURCE"] if IS_OLD_KERNEL else []

# Namespaces of its own, but for the users; only state and pins can be written.
CONTAINER = """
set -e
mount --make-rprivate /
mount --bind "$PODMGR_STATE_DIR" "$PODMGR_STATE_DIR"
mount -o remount,bind,ro /
if mountpoint -q /tmp; then mount -o remount,bind,ro /tmp; fi
if [ -n "$LOOK_ONLY" ]; then mount -o remount,bind,ro "$LOOK_ONLY"; fi
mount -o remount,bind,rw "$PODMGR_STATE_DIR"
if touch /written 2>/dev/null; then echo "the root can be written" >&2; exit 99; fi
exec "$@"
"""


@dataclass(frozen=True)
class Container:
    """Runs podmgr as the container would, with all of its capabilities or some."""

    settings: Settings
    capabilities: tuple[str, ...]

    def __call__(self, *words: str, without: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        held = [f"+{name.lower()}" for name in self.capabilities if name != without]
        argv = ["unshare", "--mount", "--cgroup", "--net"]  # hostPID: it sees the node's processes
        argv += ["sh", "-c", CONTAINER, "sh"]
        argv += ["setpriv", "--bounding-set", ",".join(["-all", *held]), "--inh-caps=-all", "--no-new-privs"]
        argv += [sys.executable, "-B", "-m", "podmgr", *words]
        environment = dict(os.environ, LOOK_ONLY="" if IS_OLD_KERNEL else str(cgroups.find_root(None)))
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def apply(
        self, cgroup: Cgroup, rules: Sequence[str], *, without: str = "", code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        words = [word for rule in rules for word in ("--rule", rule)]
        target = f"cgroup/{cgroup.path}"
        return self("apply", target, *words, "--program-dir", str(EXAMPLES), without=without, code=code)


def manifest_capabilities() -> tuple[str, ...]:
    documents = yaml.safe_load_all((ROOT / "k3s/podmgr.yaml").read_text())
    (daemon_set,) = (item for item in documents if item["kind"] == "DaemonSet")
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    return tuple(container["securityContext"]["capabilities"]["add"])


@pytest.fixture
def container(podmgr: Cli) -> Iterator[Container]:
    """`podmgr`, which is asked for, has all rights: it cleans up at the end, and looks for leftovers."""
    pins.ensure_bpffs(podmgr.settings.bpffs, runner=proc.run)
    pins.remove_empty_folders(podmgr.settings.bpffs)
    podmgr.settings.state_dir.mkdir(mode=0o700)
    yield Container(podmgr.settings, (*manifest_capabilities(), *OLD_KERNELS_NEED))


def in_kernel(cgroup: Cgroup) -> set[int]:
    return {id_ for direction in Direction for id_ in attached(cgroup, direction)}


def test_the_capabilities_of_the_manifest_are_enough(
    container: Container, podmgr: Cli, make_cgroup: Callable[..., Cgroup]
) -> None:
    stays, vanishes = make_cgroup("stays"), make_cgroup("vanishes")
    container.apply(stays, RULES)
    container.apply(vanishes, RULES[:1])
    before = in_kernel(stays) | in_kernel(vanishes)
    assert (len(in_kernel(stays)), len(in_kernel(vanishes))) == (5, 2)

    again = container.apply(stays, RULES).stdout.splitlines()
    assert len(again) == 5
    assert all(line.endswith(" unchanged") for line in again)

    cgroup_life.remove(vanishes)
    states = [(row["target"], row["state"], row["counters"] is not None) for row in podmgr.listed()]
    assert container("list", "-o", "json").stdout == podmgr("list", "-o", "json").stdout
    assert (
        sorted(states) == [("cgroup/stays", "active", True)] * 5 + [("cgroup/vanishes", "missing", False)] * 2
    )

    changed = container.apply(stays, ["bandwidth=5 mbps egress"]).stdout
    assert "bandwidth=5 mbps egress replaced" in changed
    assert len(in_kernel(stays)) == 1
    before |= in_kernel(stays)
    container("clean")
    assert in_kernel(stays) == set()
    assert_unloaded(sorted(before))


def test_the_compiler_has_none_of_them(
    container: Container, cgroup: Cgroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what others wrote, and the container may not change to another user."""
    clang, seen = proc.find("clang"), container.settings.state_dir / "seen"
    wrapper = tmp_path / "clang"
    wrapper.write_text(f'#!/bin/sh\ngrep ^Cap[EP] /proc/self/status >> {seen}\nexec {clang} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    container.apply(cgroup, RULES[2:])
    held = {int(line.split()[1], 16) for line in seen.read_text().splitlines()}
    seen.unlink()
    assert held == {0}
    container("clean")


def test_every_capability_of_the_manifest_is_accounted_for() -> None:
    assert set(manifest_capabilities()) == {*NEEDED_FOR, *NEEDED_FOR_INTERFACES}


@pytest.mark.parametrize("capability", NEEDED_FOR)
def test_without_a_capability_something_fails_and_says_what(
    container: Container, make_cgroup: Callable[..., Cgroup], capability: str
) -> None:
    command, message = NEEDED_FOR[capability]
    cgroup, vanishes = make_cgroup(), make_cgroup("vanishes")
    # SYS_ADMIN stands for most of the others: who goes without it has to have them.
    left = tuple(name for name in container.capabilities if name not in NEEDED_FOR_INTERFACES)
    container = replace(container, capabilities=left)
    if command == "apply":
        done = container.apply(cgroup, RULES, without=capability, code=1)
        assert in_kernel(cgroup) == set()
    else:
        container.apply(vanishes, RULES[:1])
        cgroup_life.remove(vanishes)
        done = container("list", without=capability, code=1)
    # In a home that only its owner may enter, Python cannot even be started without this one.
    if capability != "DAC_READ_SEARCH" or is_open_to_all(ROOT, Path(sys.prefix)):
        assert re.search(message, done.stderr)


def _without_counters(listed: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """A young interface sends packets of its own: neighbour discovery."""
    return [
        row | {"counters": row["counters"] is not None} for row in json.loads(listed.stdout)["attachments"]
    ]


def test_they_are_enough_for_a_pods_interfaces(container: Container, podmgr: Cli, cgroup_root: Path) -> None:
    with throw_away_pod(cgroup_root) as pod:
        container.apply(pod.cgroup, ["loss=uniform egress 100%"])
        assert [(row["hook"], row["state"]) for row in podmgr.listed()] == [("tc", "active")]
        assert _without_counters(container("list", "-o", "json")) == _without_counters(
            podmgr("list", "-o", "json")
        )
        sent, errors, received = send_datagrams(pod, 4000, 100)
        assert (sent, errors, received) == (100, 0, 0)
        container("clean")
        assert send_datagrams(pod, 4000, 100) == (100, 0, 100)


@pytest.mark.parametrize("capability", NEEDED_FOR_INTERFACES)
def test_without_them_loss_falls_back_and_says_so(
    container: Container, podmgr: Cli, cgroup_root: Path, capability: str
) -> None:
    with throw_away_pod(cgroup_root) as pod:
        done = container.apply(pod.cgroup, ["loss=uniform egress 100%"], without=capability)
        assert "is at the cgroup hook" in done.stderr
        assert "not allowed to look into the network" in done.stderr
        assert [(row["hook"], row["state"]) for row in podmgr.listed()] == [("cgroup", "active")]
        edt = container.apply(
            pod.cgroup, ["bandwidth=10 mbps egress algorithm=edt"], without=capability, code=1
        )
        assert "not allowed to look into the network" in edt.stderr
        podmgr("clean")


def is_open_to_all(*paths: Path) -> bool:
    return all(
        folder.stat().st_mode & 0o001
        for path in paths
        for folder in (path.resolve(), *path.resolve().parents)
    )
