"""Every manifest of examples/ on a real cgroup: what is attached is what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from podmgr.cgroups import Cgroup
from podmgr.rules import Direction
from tests.kernel.conftest import EXAMPLES, Cli, attached

BANDWIDTH = "bandwidth=10 mbps egress"
UNIFORM = "loss=uniform egress 2%"
EXPONENTIAL = "loss=exponential egress 400"
DROPPER = "ebpf-limit=dropper egress -DPORT=5353"

# Target, and rule to source, of each file.
RULES = {
    "bandwidth": ("pod/bandwidth", {BANDWIDTH: "pod"}),
    "loss-uniform": ("pod/loss-uniform", {UNIFORM: "pod"}),
    "loss-exponential": ("pod/loss-exponential", {EXPONENTIAL: "pod"}),
    "dropper": ("pod/dropper", {DROPPER: "pod"}),
    "service": (
        "pod/web-0",
        {
            "bandwidth=50 mbps egress burst=64kb": "pod",
            "bandwidth=200 mbps ingress": "service/web",
            "loss=uniform ingress 1%": "service/web",
        },
    ),
    "service-bandwidth": ("pod/service-bandwidth-0", {BANDWIDTH: "service/service-bandwidth"}),
    "service-loss-uniform": ("pod/service-loss-uniform-0", {UNIFORM: "service/service-loss-uniform"}),
    "service-loss-exponential": (
        "pod/service-loss-exponential-0",
        {EXPONENTIAL: "service/service-loss-exponential"},
    ),
    "service-dropper": ("pod/service-dropper-0", {DROPPER: "service/service-dropper"}),
    "deployment-bandwidth": ("deployment/deployment-bandwidth", {BANDWIDTH: "pod"}),
    "deployment-loss-uniform": ("deployment/deployment-loss-uniform", {UNIFORM: "pod"}),
    "deployment-loss-exponential": ("deployment/deployment-loss-exponential", {EXPONENTIAL: "pod"}),
    "deployment-dropper": ("deployment/deployment-dropper", {DROPPER: "pod"}),
    "namespace": (
        "pod/greedy",
        {"bandwidth=100 mbps egress": "pod", "bandwidth=10 mbps egress": "namespace/slow"},
    ),
}


def test_no_example_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_an_example_attaches_what_it_says_and_once(
    podmgr: Cli, make_cgroup: Callable[..., Cgroup], name: str
) -> None:
    target, rules = RULES[name]
    cgroup = make_cgroup()
    command = ["apply", "-f", str(EXAMPLES / f"{name}.yaml"), "--cgroup", str(cgroup.path)]
    command += ["--program-dir", str(EXAMPLES)]
    podmgr(*command)

    rows = podmgr.listed()
    assert {row["rule"]: row["source"] for row in rows} == rules
    assert {row["target"] for row in rows} == {target}
    assert {row["state"] for row in rows} == {"active"}
    assert all(row["counters"] is not None for row in rows)
    in_kernel = {id_ for direction in Direction for id_ in attached(cgroup, direction)}
    assert {row["program_id"] for row in rows} <= in_kernel

    again = podmgr(*command).stdout.splitlines()
    assert len(again) == len(in_kernel)
    assert all(line.endswith(" unchanged") for line in again)
