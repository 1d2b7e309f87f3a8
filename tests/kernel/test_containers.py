"""Rules about one container of a pod: whose socket a packet has, at both hooks, on real packets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from podmgr.attachment import Cgroup
from podmgr.demo.throwaway import inside
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.hooks import require_possible
from podmgr.rules.rule import Hook
from tests.answers import ALL, Packet, answering, unanswered
from tests.lab import Lab, lab

ONE, OTHER, NOBODY = "one", "other", ""
WHOLE = set(ALL)
NONE: set[Packet] = set()


@contextmanager
def container(made: Lab, name: str) -> Iterator[Cgroup]:
    """A cgroup below the pod's own while the block runs."""
    path = made.cgroup.path / name
    path.mkdir()
    found = Cgroup(path, path.stat().st_ino)
    try:
        yield found
    finally:
        cgroup_life.remove(found)


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made, answering(made), ExitStack() as stack:
        stack.callback(cgroup_life.kill, made.cgroup)
        yield made


def _unanswered(made: Lab, name: str) -> set[Packet]:
    """Of what is sent from a container, or from the pod's own cgroup."""
    path = made.cgroup.path / name
    return unanswered(replace(made, cgroup=Cgroup(path, path.stat().st_ino)))


RULES: dict[tuple[str, ...], tuple[set[Packet], set[Packet], set[Packet]]] = {
    ("loss=100% egress container=one hook=tc",): (WHOLE, NONE, NONE),
    ("loss=100% egress container=one hook=cgroup",): (WHOLE, NONE, NONE),
    ("loss=100% ingress container=one hook=cgroup",): (WHOLE, NONE, NONE),
    ("loss=100% egress container=one,other",): (WHOLE, WHOLE, NONE),
    ("loss=100% egress; 0% egress container=one",): (NONE, WHOLE, WHOLE),
    ("loss=0% egress container=one; 100% egress port=80,53,8080",): (
        {packet for packet in ALL if packet.port},
        {packet for packet in ALL if packet.port},
        {packet for packet in ALL if packet.port},
    ),
    ("ebpf-limit=at_tc egress container=other",): (NONE, WHOLE, NONE),
    ("ebpf-limit=at_cgroup ingress container=other",): (NONE, WHOLE, NONE),
}
SOURCE = (
    '#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nSEC("{}") int none(struct __sk_buff *skb)\n'
    '{{ return {}; }}\nchar LICENSE[] SEC("license") = "GPL";\n'
)


@pytest.mark.parametrize("rules", RULES)
def test_a_rule_hits_the_sockets_of_its_containers(made: Lab, rules: tuple[str, ...], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, section, verdict in (("at_tc", "tc", 4), ("at_cgroup", "cgroup_skb/ingress", 0)):
        (tmp_path / f"{name}.bpf.c").write_text(SOURCE.format(section, verdict))
    options = ("--program-dir", str(tmp_path))
    with container(made, ONE), container(made, OTHER), made.under(*rules, options=options):
        hit = tuple(_unanswered(made, name) for name in (ONE, OTHER, NOBODY))
    assert hit == RULES[rules]


def test_what_a_container_makes_below_its_cgroup_is_its_own(made: Lab) -> None:
    with container(made, ONE), container(made, f"{ONE}/inner"), made.under("loss=100% egress container=one"):
        assert _unanswered(made, f"{ONE}/inner") == WHOLE


def test_a_container_that_comes_later_or_again_is_met_by_the_same_program(made: Lab) -> None:
    rule = "loss=100% egress container=one"
    with made.under(rule):
        for _ in range(2):  # each has a cgroup of another number
            with container(made, ONE):
                said = made.podmgr("apply", made.target, "--rule", rule)
                assert "unchanged" in said
                assert _unanswered(made, ONE) == WHOLE


def test_a_container_that_is_not_there_is_waited_for(made: Lab) -> None:
    try:
        words = ["apply", made.target, "--rule", "loss=100% egress container=three"]
        own = {"PODMGR_STATE_DIR": str(made.state_dir), "PODMGR_BPFFS": str(made.bpffs)}
        argv = inside(made.node, [sys.executable, "-m", "podmgr", *words])
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=os.environ | own)
        assert "waits for container three" in done.stderr
        assert _unanswered(made, NOBODY) == NONE
    finally:
        made.podmgr("clean", made.target)


@pytest.mark.parametrize(
    ("rule", "tip"),
    [
        ("loss=1% ingress container=one", "hook=cgroup knows"),
        ("delay=1ms ingress container=one", "container= on egress"),
    ],
)
def test_what_arrives_at_tc_is_nobodys_yet(rule: str, tip: str) -> None:
    (found,) = parse_rule_option(rule)
    with pytest.raises(PodmgrError, match="which container") as caught:
        require_possible(found, Hook.TC)
    assert caught.value.tip == tip
