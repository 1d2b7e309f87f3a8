"""The qdiscs that tc programs need: which are made, which serve as they are, and which stand in the way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from podmgr.errors import PodmgrError
from podmgr.kernel.pins import Mark
from podmgr.kernel.tc import FqLimits, Qdisc
from podmgr.reconcile import qdiscs
from podmgr.reconcile.qdiscs import NoFqError
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import FqNeeds
from tests.unit.machine import Control, Device, Machine

PLACE = (100, 2, "eth0")
CLSACT, FQ = Mark(100, 2, "clsact"), Mark(100, 2, "fq")

HOOK = Qdisc("clsact", "ffff:", False)
OLD_HOOK = Qdisc("ingress", "ffff:", False)
DEFAULT = Qdisc("noqueue", "0:", True)
DEFAULT_FQ = Qdisc("fq", "0:", True)
OUR_FQ = Qdisc("fq", "7ab0:", True)
THEIR_FQ = Qdisc("fq", "8001:", True)
THEIR_TBF = Qdisc("tbf", "1:", True)
MQ = Qdisc("mq", "0:", True)
ALL_FQ = [MQ, Qdisc("fq", "0:", False), Qdisc("fq", "0:", False)]


# clsact


@pytest.mark.parametrize("there", [[], [DEFAULT], [THEIR_TBF], [OUR_FQ]])
def test_clsact_is_made_where_there_is_none(there: Sequence[Qdisc]) -> None:
    assert qdiscs.lacking_clsact(*PLACE, there) == CLSACT


@pytest.mark.parametrize("there", [[HOOK], [DEFAULT, HOOK]])
def test_clsact_of_others_serves(there: Sequence[Qdisc]) -> None:
    assert qdiscs.lacking_clsact(*PLACE, there) is None


def test_older_ingress_qdisc_is_an_error_that_names_it_and_the_way_around() -> None:
    with pytest.raises(PodmgrError, match="eth0 has an ingress qdisc that is not podmgr's") as caught:
        qdiscs.lacking_clsact(*PLACE, [DEFAULT, OLD_HOOK])
    assert "hook=cgroup" in (caught.value.tip or "") and "dev eth0" in (caught.value.tip or "")


# fq


@pytest.mark.parametrize("may_make", [True, False])
@pytest.mark.parametrize("there", [[DEFAULT_FQ], [OUR_FQ], [THEIR_FQ], ALL_FQ, [THEIR_FQ, HOOK]])
def test_fq_serves_whosever_it_is(there: Sequence[Qdisc], may_make: bool) -> None:
    assert qdiscs.lacking_fq(*PLACE, there, may_make=may_make) is None


@pytest.mark.parametrize("there", [[], [DEFAULT], [MQ], [DEFAULT, HOOK]])
def test_fq_is_made_in_place_of_what_the_kernel_made_by_itself(there: Sequence[Qdisc]) -> None:
    assert qdiscs.lacking_fq(*PLACE, there, may_make=True) == FQ


NEEDS = FqNeeds(1_000, 10 * 10**9)
ENOUGH = FqLimits(1_000, 1_000, 10 * 10**9)
SMALL = {
    "limit": (ENOUGH._replace(packets=999), "999", "1000"),
    "flow_limit": (ENOUGH._replace(flow_packets=100), "100", "1000"),
    "horizon": (ENOUGH._replace(horizon_ns=9_999_999_000), "9.999999s", "10s"),
}


def fq(limits: FqLimits, handle: str = "8001:", *, is_root: bool = True) -> Qdisc:
    return Qdisc("fq", handle, is_root, limits)


@pytest.mark.parametrize(
    "there", [[fq(ENOUGH)], [fq(ENOUGH, "0:")], [MQ, fq(ENOUGH, "0:", is_root=False)], [THEIR_FQ]]
)
def test_fq_with_as_much_as_is_needed_serves(there: Sequence[Qdisc]) -> None:
    """And one that does not say what it has."""
    assert qdiscs.lacking_fq(*PLACE, there, may_make=True, needs=NEEDS) is None


@pytest.mark.parametrize("option", SMALL)
def test_fq_of_others_with_less_is_an_error_that_names_the_option(option: str) -> None:
    limits, has, needed = SMALL[option]
    with pytest.raises(NoFqError) as caught:
        qdiscs.lacking_fq(*PLACE, [fq(limits)], may_make=True, needs=NEEDS)
    assert caught.value.reason == f"and that of eth0 has {option} {has}, of which {needed} are needed"
    assert caught.value.tip == f"tc qdisc change dev eth0 root fq {option} {needed}"


@pytest.mark.parametrize("option", SMALL)
def test_one_of_many_queues_with_less_is_enough_to_refuse(option: str) -> None:
    limits, has, needed = SMALL[option]
    children = [fq(ENOUGH, "0:", is_root=False), fq(limits, "0:", is_root=False)]
    with pytest.raises(NoFqError, match=f"{option} {has}, of which") as caught:
        qdiscs.lacking_fq(*PLACE, [Qdisc("mq", "1:", True), *children], may_make=True, needs=NEEDS)
    assert caught.value.tip == f"tc qdisc replace dev eth0 root fq {option} {needed}"


def test_fq_that_the_kernel_made_by_itself_gives_way_to_a_larger_one_where_we_may_make_it() -> None:
    small, _, _ = SMALL["flow_limit"]
    for there in ([fq(small, "0:")], [MQ, fq(small, "0:", is_root=False)]):
        assert qdiscs.lacking_fq(*PLACE, there, may_make=True, needs=NEEDS) == FQ
        with pytest.raises(NoFqError) as caught:
            qdiscs.lacking_fq(*PLACE, there, may_make=False, needs=NEEDS)
        assert caught.value.tip == "tc qdisc replace dev eth0 root fq flow_limit 1000"


@pytest.mark.parametrize("may_make", [True, False])
@pytest.mark.parametrize("there", [[THEIR_TBF], [THEIR_TBF, Qdisc("fq", "0:", False)]])
def test_root_qdisc_of_others_is_an_error_that_names_it(there: Sequence[Qdisc], may_make: bool) -> None:
    with pytest.raises(NoFqError, match=r"eth0 has the root qdisc tbf 1:, which is not podmgr's") as caught:
        qdiscs.lacking_fq(*PLACE, there, may_make=may_make)
    assert caught.value.tip == "remove it (tc qdisc del dev eth0 root)"


@pytest.mark.parametrize(("there", "kind"), [([DEFAULT], "noqueue"), ([], "none"), ([MQ], "mq")])
def test_fq_of_an_interface_of_others_is_not_ours_to_make(there: Sequence[Qdisc], kind: str) -> None:
    with pytest.raises(NoFqError, match=rf"not the root qdisc of eth0 \({kind}\)") as caught:
        qdiscs.lacking_fq(*PLACE, there, may_make=False)
    assert caught.value.tip == "tc qdisc replace dev eth0 root fq (kernel module sch_fq)"


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("bandwidth=1 mbps egress algorithm=edt", "algorithm=tbf"),
        ("ebpf-limit=edt egress -DRATE=1000000", "bandwidth=RATE egress"),
        ("ebpf-limit=edt ingress -DRATE=1000000", "bandwidth=RATE ingress"),
    ],
)
@pytest.mark.parametrize(
    ("lack", "reason", "remedy"),
    [
        (
            qdiscs.not_root({"eth1": "mq", "eth0": "noqueue"}),
            "which is not the root qdisc of eth0 (noqueue), eth1 (mq)",
            "tc qdisc replace dev eth0 root fq, and so for the others (kernel module sch_fq)",
        ),
        (
            qdiscs.not_root({"a$b": "none"}),
            "which is not the root qdisc of a$b (none)",
            "tc qdisc replace dev 'a$b' root fq (kernel module sch_fq)",
        ),
        (
            qdiscs.unknown_fq(PodmgrError("unknown qdisc")),
            "which this kernel does not have",
            "modprobe sch_fq",
        ),
    ],
)
def test_a_rule_that_delays_is_told_what_lacks_and_what_fits_it(
    lack: NoFqError, reason: str, remedy: str, option: str, instead: str
) -> None:
    (rule,) = parse_rule_option(option)
    error = lack.of(rule)
    assert error.message == f"'{rule}' delays packets through the fq qdisc, {reason}"
    assert (error.tip, error.detail) == (f"{remedy}, or use {instead}", lack.detail)


# Changes


def test_qdiscs_are_made_under_our_own_handle() -> None:
    machine = Machine({100: {2: Device("eth0")}})
    for mark in (CLSACT, FQ):
        qdiscs.make(mark, Control(machine, 100))
    assert machine.changes == [(100, "qdisc add eth0 clsact"), (100, "qdisc add eth0 root 7ab0: fq")]


@pytest.mark.parametrize(
    ("mark", "there", "changes"),
    [
        (CLSACT, [DEFAULT, HOOK], ["qdisc del eth0 clsact"]),
        (CLSACT, [DEFAULT], []),
        (CLSACT, [OLD_HOOK], []),
        (CLSACT, [OUR_FQ], []),
        (FQ, [OUR_FQ, HOOK], ["qdisc del eth0 root"]),
        (FQ, [], []),
        (FQ, [DEFAULT_FQ], []),
        (FQ, [THEIR_FQ], []),
        (FQ, [THEIR_TBF], []),
        (FQ, [HOOK], []),
        (FQ, [Qdisc("tbf", "7ab0:", True)], []),
        (FQ, [THEIR_TBF, Qdisc("fq", "7ab0:", False)], []),
        (Mark(100, 2, "other"), [OUR_FQ, HOOK], []),
    ],
    ids=[
        "clsact",
        "clsact is gone",
        "another is in clsact's place",
        "fq is not clsact",
        "fq",
        "fq is gone",
        "fq of the kernel",
        "fq of another",
        "another root",
        "clsact is not fq",
        "another kind under our handle",
        "our fq below another",
        "a kind of a later version",
    ],
)
def test_only_what_is_ours_and_still_there_is_removed(
    mark: Mark, there: Sequence[Qdisc], changes: Sequence[str]
) -> None:
    machine = Machine({100: {2: Device("eth0", qdiscs=list(there))}})
    qdiscs.unmake(mark, there, Control(machine, 100))
    assert [line for _, line in machine.changes] == changes
