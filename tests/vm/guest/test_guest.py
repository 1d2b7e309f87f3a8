"""What the other guest tests stand on: the kernel that was asked for, its qdiscs, a clock to trust."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import pytest

from tests.vm.machine import KERNEL_VARIABLE

INSIDE, OUTSIDE = "10.11.12.1", "10.11.12.2"


def run(*argv: str) -> str:
    """A command that must succeed; what it printed."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with eth0, a veth whose other end is in the machine's own namespace."""
    name = "podmgr-guest"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", "guest0", "type", "veth", "peer", "name", "eth0", "netns", name)
        for where, device, address in (((), "guest0", OUTSIDE), (("-n", name), "eth0", INSIDE)):
            run("ip", *where, "address", "add", f"{address}/24", "dev", device)
            run("ip", *where, "link", "set", device, "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


def test_the_kernel_is_the_one_that_was_asked_for() -> None:
    assert platform.release().startswith(os.environ[KERNEL_VARIABLE] + ".")


@pytest.mark.parametrize("module", ["cls_bpf", "act_bpf", "act_mirred", "sch_ingress", "sch_tbf", "ifb"])
def test_modules_of_traffic_control_can_be_loaded(module: str) -> None:
    run("modprobe", module)


@pytest.mark.parametrize("qdisc", ["fq", "netem", "tbf rate 1mbit burst 10k latency 1s", "clsact"])
def test_qdiscs_can_be_added_in_a_namespace(namespace: str, qdisc: str) -> None:
    kind, *options = qdisc.split()
    place = [] if kind == "clsact" else ["root"]
    run("tc", "-n", namespace, "qdisc", "add", "dev", "eth0", *place, kind, *options)
    assert f"qdisc {kind} " in run("tc", "-n", namespace, "qdisc", "show", "dev", "eth0")


def test_a_delay_is_as_long_as_it_was_ordered(namespace: str) -> None:
    """The median: a busy host stops the machine for many milliseconds now and then."""
    run("tc", "-n", namespace, "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "20ms")
    printed = run("ip", "netns", "exec", namespace, "ping", "-c", "30", "-i", "0.1", OUTSIDE)
    times_ms = [float(time) for time in re.findall(r"time=([\d.]+) ms", printed)]
    assert len(times_ms) >= 25, printed
    assert median(times_ms) == pytest.approx(20, rel=0.15)


def test_doctor_finds_fq_and_netem() -> None:
    argv = [sys.executable, "-m", "podmgr", "doctor"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    for qdisc in ("fq", "netem"):
        assert re.search(rf"^ok\s+qdisc {qdisc}\b", done.stdout, re.MULTILINE), done.stdout
