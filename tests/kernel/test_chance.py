"""duplicate and corrupt on real packets: as many as the rule says, each once, and found by whom it says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from podmgr.demo.intervals import binomial_interval
from podmgr.demo.throwaway import inside, wait_for_listener
from podmgr.kernel import bpf_syscall
from podmgr.settings import Settings
from podmgr.watch.metrics import Metrics
from tests.lab import WORLD, WORLD6, Lab, lab
from tests.numbered import exchange

DATAGRAMS = 5_000
TCP_PORT = 4101
TCP_BYTES = 3 << 20

# Forgets what programs before it have written, and lets all pass on.
FORGETFUL = """\
#include "podmgr.h"
SEC("tc") int forgetful(struct __sk_buff *skb)
{
	for (int i = 0; i < 5; i++)
		skb->cb[i] = 0;
	return VERDICT_PASS;
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "forgetful.bpf.c").write_text(FORGETFUL)
    return folder


def _is_fair(count: int, percent: float) -> bool:
    low, high = binomial_interval(DATAGRAMS, percent / 100)
    return low <= count <= high


def _csum_errors(made: Lab, pid: int, name: str) -> int:
    """A counter of the namespace, such as UdpInCsumErrors."""
    return int(re.findall(rf"{name}\s+(\d+)", made.sh(pid, f"nstat -asz {name}"))[0])


def _passed(made: Lab) -> list[int]:
    """What each program on the pod has counted, sorted."""
    found = []
    for path in (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters"):
        counters = bpf_syscall.pinned_counters(path)
        assert counters is not None
        found.append(counters.passed_packets)
    return sorted(found)


def test_list_and_metrics_tell_what_the_receiver_counts(made: Lab) -> None:
    rules = ("duplicate=10% egress", "corrupt=10% egress")
    settings = Settings(made.state_dir, made.bpffs, None, Path("/nowhere"))
    with made.under(*rules):
        found = exchange(made, DATAGRAMS)
        shown = made.podmgr("list", "-o", "wide")
        page = generate_latest(Metrics(settings).registry).decode()
    copies, corrupted = found.times.get(2, 0), DATAGRAMS - found.total + found.times.get(2, 0)
    told = {
        name: float(re.findall(rf"^podmgr_{name}{{.*}} (.*)$", page, re.M)[0])
        for name in ("copies", "corrupted")
    }
    assert told["corrupted"] == corrupted
    assert told["copies"] >= copies  # those of corrupted ones the receiver has discarded, both
    for name, value in told.items():
        assert f"   {name} {value:,.0f}\n" in shown


# duplicate


@pytest.mark.parametrize(
    ("percent", "direction", "is_ipv6"), [(1, "egress", False), (10, "ingress", True), (25, "egress", True)]
)
def test_as_many_copies_as_the_rule_says(made: Lab, percent: int, direction: str, is_ipv6: bool) -> None:
    with made.under(f"duplicate={percent}% {direction}"):
        found = exchange(made, DATAGRAMS, ingress=direction == "ingress", is_ipv6=is_ipv6)
        (passed,) = _passed(made)
    assert set(found.times) == {1, 2}
    assert sum(found.times.values()) == DATAGRAMS
    assert _is_fair(found.times[2], percent)
    assert DATAGRAMS <= passed <= DATAGRAMS + 10  # each once, and what neighbours and routers say


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_nothing_is_copied_twice_whatever_stands_before(made: Lab, programs: Path, direction: str) -> None:
    rules = [
        f"duplicate=100% {direction}",
        f"ebpf-limit=forgetful {direction}",
        f"loss=0% {direction}",
        f"corrupt=0% {direction}",
        f"bandwidth=10 gbps {direction} hook=tc",
    ]
    with made.under(*rules, options=["--program-dir", str(programs)]):
        found = exchange(made, DATAGRAMS, ingress=direction == "ingress")
    assert found.times == {2: DATAGRAMS}


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_loss_and_duplicates_multiply(made: Lab, direction: str) -> None:
    with made.under(f"loss=20% {direction}", f"duplicate=25% {direction}"):
        found = exchange(made, DATAGRAMS, ingress=direction == "ingress")
    # A copy more or less for each datagram: its variance is below 0.5, and 4 deviations are 99.99 %.
    assert abs(found.total - DATAGRAMS * 0.8 * 1.25) <= 4 * (0.5 * DATAGRAMS) ** 0.5
    if direction == "egress":  # where both are at one hook, the loss is of the packet with its copy
        assert _is_fair(DATAGRAMS - sum(found.times.values()), 20)


def test_copies_count_in_a_limit_behind_them(made: Lab) -> None:
    with made.under("duplicate=100% egress", "bandwidth=10 gbps egress hook=tc"):
        exchange(made, DATAGRAMS)
        few, many = _passed(made)
    assert DATAGRAMS <= few <= DATAGRAMS + 10
    assert 2 * DATAGRAMS <= many <= 2 * DATAGRAMS + 20


def test_tcp_lives_with_duplicates(made: Lab) -> None:
    with made.under("duplicate=30% egress"):
        assert _wrong_bits(_sent_by_tcp(made, WORLD)) == 0


# corrupt


@pytest.mark.parametrize("is_ipv6", [False, True])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_the_receivers_checksum_finds_what_is_corrupt(made: Lab, direction: str, is_ipv6: bool) -> None:
    receiver = made.pod if direction == "ingress" else made.world
    counter = "Udp6InCsumErrors" if is_ipv6 else "UdpInCsumErrors"
    before = _csum_errors(made, receiver, counter)
    with made.under(f"corrupt=10% {direction}"):
        found = exchange(made, DATAGRAMS, ingress=direction == "ingress", is_ipv6=is_ipv6)
    discarded = DATAGRAMS - found.total
    assert (set(found.times), set(found.wrong_bits)) == ({1}, {0})
    assert _is_fair(discarded, 10)
    assert _csum_errors(made, receiver, counter) - before == discarded


@pytest.mark.parametrize("is_ipv6", [False, True])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_one_bit_is_wrong_at_the_application(made: Lab, direction: str, is_ipv6: bool) -> None:
    with made.under(f"corrupt=10% {direction} as=payload"):
        found = exchange(made, DATAGRAMS, ingress=direction == "ingress", is_ipv6=is_ipv6)
    assert found.times == {1: DATAGRAMS}
    assert set(found.wrong_bits) == {0, 1}
    assert _is_fair(found.wrong_bits[1], 10)


@pytest.mark.parametrize("words", [3, 367, 2_000])  # 12 bytes, a full frame, and six fragments
def test_datagrams_of_any_length_are_found(made: Lab, words: int) -> None:
    with made.under("corrupt=100% egress"):
        assert exchange(made, 200, words=words).times == {}
    with made.under("corrupt=100% egress as=payload"):
        assert exchange(made, 200, words=words).wrong_bits == {1: 200}


@pytest.mark.parametrize("host", [WORLD, WORLD6])
def test_tcp_sends_again_what_is_discarded(made: Lab, host: str) -> None:
    before = _csum_errors(made, made.world, "TcpInCsumErrors")
    with made.under("corrupt=20% egress"):  # of some 60 packets at the hook, each of many segments
        assert _wrong_bits(_sent_by_tcp(made, host)) == 0
    assert _csum_errors(made, made.world, "TcpInCsumErrors") > before


@pytest.mark.parametrize("host", [WORLD, WORLD6])
def test_tcp_delivers_wrong_bits(made: Lab, host: str) -> None:
    before = _csum_errors(made, made.world, "TcpInCsumErrors")
    with made.under("corrupt=20% egress as=payload"):
        assert _wrong_bits(_sent_by_tcp(made, host)) > 0
    assert _csum_errors(made, made.world, "TcpInCsumErrors") == before


@pytest.mark.parametrize("host", [WORLD, WORLD6])
def test_pings_are_discarded_or_come_back_wrong(made: Lab, host: str) -> None:
    with made.under("corrupt=100% egress"):
        assert _answer_to_ping(made, host) == "none"
    with made.under("corrupt=100% egress as=payload"):
        assert _answer_to_ping(made, host) == "1 bit wrong"


def _answer_to_ping(made: Lab, host: str) -> str:
    """What the kernel of the world sends back; of IPv6 it makes the checksum of the question too."""
    is_ipv6 = ":" in host
    family, protocol = (socket.AF_INET6, 58) if is_ipv6 else (socket.AF_INET, 1)
    asking = (
        "import socket, struct\n"
        f"asker = socket.socket({int(family)}, socket.SOCK_RAW, {protocol})\n"
        "asker.settimeout(0.3)\n"
        f"head = struct.pack('>BBHHH', {128 if is_ipv6 else 8}, 0, {0 if is_ipv6 else 0xF7FF - 1}, 0, 1)\n"
        f"asker.sendto(head + bytes(64), ('{host}', 0))\n"
        "try:\n"
        f"    while (answer := asker.recv(2048))[{0 if is_ipv6 else 20}] != {129 if is_ipv6 else 0}:\n"
        "        pass\n"
        "    print(int.from_bytes(answer[-64:], 'big').bit_count(), 'bit wrong')\n"
        "except TimeoutError:\n"
        "    print('none')\n"
    )
    return made.in_pod([sys.executable, "-c", asking]).communicate()[0].strip()


def _sent_by_tcp(made: Lab, host: str) -> bytes:
    """What arrives of TCP_BYTES bytes, which are all 0."""
    receiving = (
        "import socket, sys\n"
        f"server = socket.create_server(('{'::' if ':' in host else ''}', {TCP_PORT}),"
        f" family={int(socket.AF_INET6 if ':' in host else socket.AF_INET)})\n"
        "connection, _ = server.accept()\n"
        "while data := connection.recv(1 << 20):\n"
        "    sys.stdout.buffer.write(data)\n"
    )
    sending = (
        "import socket\n"
        f"connection = socket.create_connection(('{host}', {TCP_PORT}))\n"
        f"connection.sendall(bytes({TCP_BYTES}))\n"
    )
    receiver = subprocess.Popen(inside(made.world, [sys.executable, "-c", receiving]), stdout=subprocess.PIPE)
    try:
        wait_for_listener(made.world, TCP_PORT)
        made.in_pod([sys.executable, "-c", sending])
        data, _ = receiver.communicate(timeout=60)
    finally:
        receiver.kill()
        receiver.wait()
    assert len(data) == TCP_BYTES
    return data


def _wrong_bits(data: bytes) -> int:
    """Of bytes that were 0."""
    return int.from_bytes(data, "big").bit_count()
