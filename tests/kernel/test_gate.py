"""Custom programs see the packets of their rule's match alone, while it is in force: on real packets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podmgr.kernel import bpf_syscall
from tests.answers import ALL, UDP, Packet, answering, unanswered
from tests.lab import WORLD, WORLD6, Lab, lab

ROOT = Path(__file__).parents[2]
LICENCE = 'char LICENSE[] SEC("license") = "GPL";\n'
BPF = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
PROGRAMS = {
    "dropper": (ROOT / "examples/dropper.bpf.c").read_text(),
    "at_cgroup": BPF
    + 'SEC("cgroup_skb/" INTERFACE) int without_packets(struct __sk_buff *skb) { return 0; }\n',
    "at_tc": BPF + 'SEC("tc") int without_packets(struct __sk_buff *skb) { return skb->len ? 4 : 0; }\n',
    "with_header": '#include "podmgr.h"\nSEC("tc") int all(struct __sk_buff *skb) { return VERDICT_DROP; }\n',
    "vmlinux": (
        '#include "vmlinux.h"\n#include <bpf/bpf_helpers.h>\n'
        'SEC("tc") int without_packets(struct __sk_buff *skb) { return skb->protocol ? 4 : 0; }\n'
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("programs")
    made.chmod(0o755)
    for name, source in PROGRAMS.items():
        path = made / f"{name}.bpf.c"
        path.write_text(source if "LICENSE" in source else source + LICENCE)
        path.chmod(0o644)
    return made


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made):
        assert unanswered(made) == set()
        yield made


@pytest.mark.parametrize("direction", ["egress", "ingress"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_sees_what_matches_and_nothing_else(
    made: Lab, folder: Path, name: str, direction: str
) -> None:
    options = ("--program-dir", str(folder))
    rule = f"ebpf-limit={name} {direction} port=80,8080 peer={WORLD},{WORLD6} proto=tcp,udp"
    hit = {packet for packet in ALL if packet.port in (80, 8080) and packet.peer in (WORLD, WORLD6)}
    with made.under(rule, options=options):
        assert unanswered(made) == hit
        if name == "dropper":
            counters = made.counters()
            assert counters.passed_packets == 0  # what is not meant never gets there
            assert counters.dropped_packets >= len(hit)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_sees_nothing_before_and_after_its_time(made: Lab, folder: Path, name: str) -> None:
    some = [Packet(WORLD, UDP, 53, 6000), Packet(WORLD6, UDP, 53, 6001)]
    rule = f"ebpf-limit={name} egress for=3s"
    with made.under(rule, options=("--program-dir", str(folder))):
        assert unanswered(made, some, quiet_ms=100) == set(some)
        time.sleep(3)
        assert unanswered(made, some) == set()
    with made.under(rule.replace("for=3s", "after=1h"), options=("--program-dir", str(folder))):
        assert unanswered(made, some) == set()


def test_of_two_rules_of_a_program_one_alone_sees_a_packet(made: Lab, folder: Path) -> None:
    udp = [packet for packet in ALL if packet.protocol == UDP]
    rules = [f"ebpf-limit=dropper egress{match}" for match in ("", f" peer={WORLD}", " port=80")]
    with made.under(*rules, options=("--program-dir", str(folder))):
        assert unanswered(made, udp) == set(udp)
        counted = [
            bpf_syscall.pinned_counters(path)
            for path in (made.bpffs / str(made.cgroup.id)).glob("*-maps/podmgr_counters")
        ]
    assert len(counted) == len(rules)
    assert sum(item.dropped_packets for item in counted if item) == len(udp)
    assert all(item and item.dropped_packets for item in counted)
