"""algorithm=edt through fq: the rate, without bursts and without loss.

An emulated CPU that is short of time carries less than the limit, never more: what is asserted
here holds on a busy machine too. The figures are the benchmark's, `bandwidth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.demo.intervals import binomial_interval
from tests.bench.bandwidth import Shaped, shape
from tests.bench.loss import PORT, datagrams_lost
from tests.bench.ways import EDT as BY_EDT
from tests.lab import WORLD, WORLD6, Lab, lab, tcp

SECONDS = 4


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


def _shape(made: Lab, limit_mbps: float, direction: str, flows: int) -> Shaped:
    return shape(made, BY_EDT, limit_mbps, direction, flows, seconds=SECONDS)


@pytest.mark.parametrize(("limit_mbps", "direction"), [(10, "egress"), (100, "egress"), (10, "ingress")])
def test_the_wire_carries_the_limit(made: Lab, limit_mbps: int, direction: str) -> None:
    found = _shape(made, limit_mbps, direction, 1)
    print(found)
    assert 0.8 <= found.wire <= 1.03
    assert 0.7 <= found.first_second <= 1.15


def test_udp_beyond_the_limit_is_cut_to_it(made: Lab) -> None:
    found = _shape(made, 10, "egress", 0)
    print(found)
    assert 0.8 <= found.wire <= 1.03


def test_parallel_flows_share_it(made: Lab) -> None:
    found = _shape(made, 10, "egress", 8)
    print(found)
    assert 0.8 <= found.wire <= 1.03


def test_fq_is_made_for_it_and_removed_with_it(made: Lab) -> None:
    before = made.sh(made.pod, "tc qdisc show dev eth0")
    with made.under("bandwidth=10 mbps egress algorithm=edt"):
        assert "qdisc fq" in made.sh(made.pod, "tc qdisc show dev eth0")
    assert made.sh(made.pod, "tc qdisc show dev eth0") == before


def test_a_fq_of_others_is_used_and_left(made: Lab) -> None:
    made.sh(made.pod, "tc qdisc add dev eth0 root handle 7: fq flow_limit 50")
    before = made.sh(made.pod, "tc qdisc show dev eth0")
    with made.under("bandwidth=10 mbps egress algorithm=edt"):
        pass
    assert made.sh(made.pod, "tc qdisc show dev eth0") == before
    made.sh(made.pod, "tc qdisc del dev eth0 root")


def test_a_root_qdisc_of_others_is_named_and_left(made: Lab) -> None:
    made.sh(made.pod, "tc qdisc add dev eth0 root handle 7: tbf rate 1gbit burst 100k latency 10ms")
    before = made.sh(made.pod, "tc qdisc show dev eth0")
    with (
        pytest.raises(AssertionError, match="root qdisc tbf 7:"),
        made.under("bandwidth=10 mbps egress algorithm=edt"),
    ):
        pass
    assert made.sh(made.pod, "tc qdisc show dev eth0") == before
    made.sh(made.pod, "tc qdisc del dev eth0 root")


PINGS = 1000
EDT = "bandwidth=5 mbps egress algorithm=edt"


def test_loss_and_edt_hold_together(made: Lab) -> None:
    low, high = binomial_interval(PINGS, 0.2)
    with made.under("loss=uniform egress 20%", EDT):
        for host in (WORLD, WORLD6):
            assert low <= PINGS - _answered(made, host) <= high
            assert tcp(made, SECONDS, host=host).bits_per_second < 5e6


def test_programs_of_ones_own_and_edt_hold_together(
    made: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at each hook takes away the datagrams to a port; what they leave is delayed."""
    source = (Path(__file__).parents[3] / "examples/dropper.bpf.c").read_text()
    (tmp_path / "dropper.bpf.c").write_text(source)
    (tmp_path / "tcdropper.bpf.c").write_text(source.replace('SEC("cgroup_skb/" INTERFACE)', 'SEC("tc")'))
    (tmp_path / "okay.bpf.c").write_text(_OKAY)
    monkeypatch.setenv("PODMGR_PROGRAM_DIR", str(tmp_path))
    ports = {"dropper": PORT, "tcdropper": PORT + 1}
    rules = [f"ebpf-limit={name} egress -DPORT={port}" for name, port in ports.items()]
    with made.under("ebpf-limit=okay egress", *rules, EDT):
        for host in (WORLD, WORLD6):
            for port in ports.values():
                assert datagrams_lost(made, 1, 200, host=host, port=port).lost == 200
            assert 3.5e6 < tcp(made, SECONDS, host=host).bits_per_second < 5e6


_OKAY = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("tc") int okay(struct __sk_buff *skb) { return 0; /* TC_ACT_OK, which ends the chain of others */ }
char LICENSE[] SEC("license") = "GPL";
"""


def _answered(made: Lab, host: str) -> int:
    """Of PINGS pings, each in its own time: 0.2 of 5 Mbit/s."""
    argv = ["ping", "-q", "-c", str(PINGS), "-i", "0.005", "-W", "1", host]
    words = made.in_pod(argv).communicate()[0].split()
    return int(words[words.index("received,") - 1])


def test_flows_that_understand_ecn_are_marked(made: Lab) -> None:
    for pid in (made.pod, made.world):
        made.sh(pid, "sysctl -q -w net.ipv4.tcp_ecn=1")
    before = _marked(made, made.pod)
    print(_shape(made, 5, "ingress", 4))
    assert _marked(made, made.pod) > before


def _marked(made: Lab, pid: int) -> int:
    """Packets that arrived with the mark of congestion."""
    lines = made.sh(pid, "cat /proc/net/netstat").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if "InCEPkts" in names:
            return int(values.split()[names.split().index("InCEPkts")])
    raise AssertionError("no InCEPkts")
