"""`podmgr run --net` where there are fq and nft: delay and departure times both ways, and the way beyond."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import fmean

import pytest

from podmgr.demo.throwaway import WIRE_PER_PAYLOAD, inside, wait_for_listener
from tests.kernel.conftest import network_of_ones_own
from tests.lab import WORLD, WORLD6, lab

PINGS = 50
DELAY = "delay=20ms rtt"
EDT = "bandwidth=10 mbps both algorithm=edt"


@pytest.fixture(scope="module", autouse=True)
def own_network() -> Iterator[None]:
    with network_of_ones_own():
        yield


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "podmgr", "run", "--net", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done


def test_a_round_trip_takes_what_is_declared() -> None:
    ping = f"ping -c {PINGS} -i 0.01"
    done = _run("--rule", DELAY, "--", "sh", "-c", f"{ping} $PODMGR_NET_HOST; {ping} $PODMGR_NET_HOST6")
    times = [float(text) for text in re.findall(r"time=([0-9.]+) ms", done.stdout)]
    print(f"{len(times)} of {2 * PINGS}, {min(times)} to {max(times)}, mean {fmean(times)} ms")
    assert len(times) == 2 * PINGS
    assert 19.5 <= fmean(times) <= 20.5
    for direction in ("egress", "ingress"):
        assert re.search(rf"delay=10ms {direction}: \d+ packets passed, 0 dropped", done.stderr)
    assert "podmgr-" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def test_departure_times_hold_the_rate_both_ways() -> None:
    server = subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL)
    try:
        wait_for_listener(os.getpid(), 5201)
        client = "iperf3 -J -t 2 -c $PODMGR_NET_HOST"
        printed = _run("--rule", EDT, "--", "sh", "-c", f"{client} && {client} -R").stdout
    finally:
        server.kill()
        server.wait()
    egress, end = json.JSONDecoder().raw_decode(printed)
    for name, document in (("egress", egress), ("ingress", json.loads(printed[end:]))):
        rate = document["end"]["sum_received"]["bits_per_second"] * WIRE_PER_PAYLOAD / 10e6
        print(f"{name}: {rate:.3f} of the rate")
        assert 0.85 <= rate <= 1.03  # an emulated CPU that is short of time carries less, never more


@pytest.fixture(scope="module")
def node() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands on a node, which forwards; the world behind knows no way to the networks of runs."""
    with lab() as made:
        made.sh(made.world, "ip route del default")
        made.sh(made.world, "ip -6 route del default")

        def start(*argv: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                inside(made.node, argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

        yield start


Start = Callable[..., "subprocess.Popen[str]"]
PODMGR = [sys.executable, "-m", "podmgr"]
RULE = ["--rule", "loss=uniform egress 0%"]


def test_what_lies_beyond_is_reached_where_this_machine_forwards(node: Start) -> None:
    script = f"ping -q -c 5 -i 0.01 {WORLD} && ping -q -c 5 -i 0.01 {WORLD6}"
    output, notes = node(*PODMGR, "run", "--net", *RULE, "sh", "-c", script).communicate()
    print(output, notes)
    assert output.count(" 0% packet loss") == 2
    assert "beyond" not in notes
    assert _tables(node) == ""


def test_a_firewall_that_forwards_nothing_is_told(node: Start) -> None:
    chain = "add chain ip f c { type filter hook forward priority 0; policy drop; }"
    assert node("nft", f"add table ip f; {chain}").wait() == 0
    _, notes = node(*PODMGR, "run", "--net", *RULE, "true").communicate()
    assert node("nft", "delete table ip f").wait() == 0
    assert "beyond this machine its firewall may drop what is not admitted: nft list chain ip f c" in notes


def test_the_table_of_a_run_that_was_killed_is_removed_by_clean(node: Start) -> None:
    running = node(*PODMGR, "run", "--net", *RULE, "sh", "-c", "echo ready; exec sleep 1000")
    assert running.stdout is not None and running.stdout.readline() == "ready\n"
    running.kill()
    running.communicate()
    assert "table inet podmgr-" in _tables(node)
    _, said = node(*PODMGR, "clean").communicate()
    assert "removed the nft table inet podmgr-" in said
    assert _tables(node) == ""


def _tables(node: Start) -> str:
    return node("nft", "list", "tables").communicate()[0]
