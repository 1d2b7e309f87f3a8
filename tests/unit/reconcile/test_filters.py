"""Programs on interfaces: what is made for them and taken away again; nothing of others is touched."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from podmgr.attachment import Attachment, Cgroup, Link
from podmgr.errors import PermissionDeniedError
from podmgr.kernel import pins
from podmgr.kernel.netlink import RefusedError
from podmgr.kernel.pins import Mark
from podmgr.kernel.tc import Filter, FqLimits, Qdisc
from podmgr.reconcile.actual import Sight
from podmgr.reconcile.chain import priority
from podmgr.reconcile.filters import Filters
from podmgr.reconcile.qdiscs import OURS
from podmgr.rules.grammar import parse_rule_option
from podmgr.settings import Settings
from tests.unit.machine import CLSACT, DEFAULT, Device, Machine
from tests.unit.samples import EGRESS, INGRESS, attachment, parsed

POD, OWN = 200, 100
ETH0, HOST_SIDE = Link(POD, 2, EGRESS, "eth0"), Link(OWN, 9, EGRESS, "cali1")
ETH0_INGRESS, NET1 = Link(POD, 2, INGRESS, "eth0"), Link(POD, 3, EGRESS, "net1")
LOSS, SLOW = "loss=uniform egress 1%", "bandwidth=1 mbps egress hook=tc"
DELAY = "bandwidth=1 mbps egress algorithm=edt"
LATE = "delay=100ms egress"
OUR_FQ = Qdisc("fq", "7ab0:", True, OURS)
OLD_FQ = OUR_FQ._replace(limits=FqLimits(100_000, 100_000, 10 * 10**9))
THEIR_FQ = Qdisc("fq", "8001:", True, FqLimits(10_000, 1_000, 10 * 10**9))
THEIR_TBF = Qdisc("tbf", "1:", True)
THEIRS = Filter(1, 1, 999)
UNKNOWN_KIND = RefusedError(errno.ENOENT, "Specified qdisc kind is unknown")


@pytest.fixture
def machine() -> Machine:
    return Machine({POD: {2: Device("eth0"), 3: Device("net1")}, OWN: {9: Device("cali1")}})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(bpffs=tmp_path)


@pytest.fixture
def filters(machine: Machine, settings: Settings) -> Filters:
    return Filters(settings, Sight(settings, machine))


@pytest.fixture
def loaded(settings: Settings) -> Callable[..., Attachment]:
    """Makes rows whose programs are pinned."""

    def make(rule: str, program_id: int, *links: Link, is_scoped: bool = False) -> Attachment:
        row = attachment(
            rule,
            digest=f"d{program_id}",
            owner="u-1",
            direction=parsed(rule).direction,
            program_id=program_id,
            links=links,
            is_scoped=is_scoped,
        )
        (settings.bpffs / "u-1").mkdir(exist_ok=True)
        (settings.bpffs / "u-1" / row.digest).write_text(str(program_id))
        return row

    return make


def on(machine: Machine, link: Link) -> list[Filter]:
    return machine.namespaces[link.namespace][link.index].filters.get(link.side, [])


def qdiscs_of(machine: Machine, link: Link) -> list[Qdisc]:
    return machine.namespaces[link.namespace][link.index].qdiscs


def changes(machine: Machine) -> list[str]:
    return [line for _, line in machine.changes]


# Attaching


def test_program_is_put_on_its_interface_behind_a_clsact_that_is_marked_as_ours(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(LOSS, 92, ETH0)
    assert not filters.sight.attached([row])
    assert filters.attach([row]) == {}
    assert on(machine, ETH0) == [Filter(100, 92, 92)]
    assert machine.changes == [
        (POD, "qdisc add eth0 clsact"),
        (POD, "filter add eth0 egress prio 100 handle 92 u-1/d92"),
    ]
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact")]
    assert filters.sight.attached([row])


def test_mark_comes_before_its_qdisc(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    """What a crash leaves in between is found: a mark without a qdisc does no harm."""
    seen: list[list[str]] = []
    machine.meanwhile = lambda: seen.append([mark.kind for mark in pins.marks(settings.bpffs)])
    filters.attach([loaded(DELAY, 92, ETH0)])
    assert [line.split()[-1] for line in changes(machine)] == ["clsact", "fq", "u-1/d92"]
    assert seen == [["clsact"], ["clsact", "fq"], ["clsact", "fq"]]


@pytest.mark.parametrize("is_reversed", [True, False])
def test_chain_is_loss_custom_bandwidth_and_what_delays_last(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment], is_reversed: bool
) -> None:
    rows = [
        loaded(rule, number, ETH0)
        for number, rule in enumerate([LOSS, "ebpf-limit=dropper egress", SLOW, DELAY], start=5)
    ]
    assert filters.attach(rows[::-1] if is_reversed else rows) == {}
    assert sorted(on(machine, ETH0), key=lambda item: item.priority) == [
        *(Filter(100, 5, 5), Filter(101, 6, 6), Filter(143, 7, 7), Filter(144, 8, 8))
    ]


@pytest.mark.parametrize("rule", ["block=egress state=new", "block=egress cut=yes"])
def test_what_looks_at_the_other_side_stands_there_behind_what_blocks(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment], rule: str
) -> None:
    row = loaded(rule, 5, ETH0, ETH0_INGRESS)
    blocking = loaded("block=ingress", 6, ETH0_INGRESS)
    assert filters.attach([row, blocking]) == {}
    assert machine.changes[1:] == [
        (POD, "filter add eth0 egress prio 99 handle 5 u-1/d5"),
        (POD, "filter add eth0 ingress prio 100 handle 5 class 2 u-1/d5"),
        (POD, "filter add eth0 ingress prio 99 handle 6 u-1/d6"),
    ]
    assert filters.sight.attached([row]) == [row]


def test_what_is_enforced_comes_first_but_no_departure_time_is_taken_back() -> None:
    def place(text: str, *, is_enforced: bool = False, position: int = 0) -> int:
        return priority(parse_rule_option(text)[0], is_enforced=is_enforced, position=position)

    custom = "ebpf-limit=dropper egress"
    chain = [
        place("block=egress", is_enforced=True),
        place(LOSS, is_enforced=True),
        *(place(custom, is_enforced=True, position=number) for number in range(40)),
        place(SLOW, is_enforced=True),
        place("block=egress"),
        place(LOSS),
        *(place(custom, position=number) for number in range(40)),
        place(SLOW),
        place(DELAY),
        place(DELAY, is_enforced=True),
    ]
    assert chain == sorted(set(chain))
    assert place(custom, position=99) == place(custom, position=39)


def test_old_and_new_program_of_a_rule_stand_side_by_side(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    """The new one is there before the old one goes."""
    filters.attach([loaded(LOSS, 5, ETH0)])
    assert filters.attach([loaded("loss=uniform egress 2%", 6, ETH0)]) == {}
    assert on(machine, ETH0) == [Filter(100, 5, 5), Filter(100, 6, 6)]


def test_both_sides_of_an_interface_share_its_clsact(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    rows = [loaded(LOSS, 5, ETH0), loaded("loss=uniform ingress 1%", 6, ETH0_INGRESS)]
    assert filters.attach(rows) == {}
    assert [len(on(machine, link)) for link in (ETH0, ETH0_INGRESS)] == [1, 1]
    assert sum("qdisc add" in line for line in changes(machine)) == 1


def test_rule_is_on_all_its_interfaces_in_all_namespaces(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(LOSS, 5, ETH0, NET1, HOST_SIDE)
    assert filters.attach([row]) == {}
    assert all(on(machine, link) == [Filter(100, 5, 5)] for link in row.links)


def test_namespace_is_looked_for_near_the_rows_cgroup(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    filters.attach([loaded(LOSS, 5, ETH0)])
    assert machine.near[POD] == Cgroup(Path("/cgroups/7"), 7)


def test_clsact_of_others_is_used_and_not_marked(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    qdiscs_of(machine, ETH0).append(CLSACT)
    machine.namespaces[POD][2].filters["egress"] = [THEIRS]
    assert filters.attach([loaded(LOSS, 5, ETH0)]) == {}
    assert on(machine, ETH0) == [THEIRS, Filter(100, 5, 5)]
    assert pins.marks(settings.bpffs) == []


def test_delay_makes_fq_the_root_and_marks_it(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    assert filters.attach([loaded(DELAY, 5, ETH0)]) == {}
    assert qdiscs_of(machine, ETH0) == [CLSACT, OUR_FQ]
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact"), Mark(POD, 2, "fq")]


def test_second_attaching_makes_no_qdisc_again(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    filters.attach([loaded(DELAY, 5, ETH0)])
    machine.changes.clear()
    assert filters.attach([loaded("bandwidth=2 mbps egress algorithm=edt", 6, ETH0)]) == {}
    assert [line.split()[:2] for line in changes(machine)] == [["filter", "add"]]


def test_fq_of_ours_from_an_older_release_is_enlarged_in_place(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    qdiscs_of(machine, ETH0)[:] = [CLSACT, OLD_FQ]
    pins.mark(settings.bpffs, Mark(POD, 2, "fq"))
    assert filters.attach([loaded(DELAY, 5, ETH0)]) == {}
    assert changes(machine)[0] == "qdisc change eth0 root 7ab0: fq"
    assert qdiscs_of(machine, ETH0) == [CLSACT, OUR_FQ]
    machine.changes.clear()
    assert filters.attach([loaded(DELAY, 6, ETH0)]) == {}
    assert [line.split()[:2] for line in changes(machine)] == [["filter", "add"]]


def test_fq_under_our_handle_that_no_mark_calls_ours_is_left(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    qdiscs_of(machine, ETH0)[:] = [CLSACT, OLD_FQ]
    assert filters.attach([loaded(DELAY, 5, ETH0)]) == {}
    assert qdiscs_of(machine, ETH0) == [CLSACT, OLD_FQ]


def test_fq_of_others_that_suffices_is_used_and_left(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    qdiscs_of(machine, ETH0)[:] = [THEIR_FQ]
    assert filters.attach([loaded(DELAY, 5, ETH0), loaded(LATE, 6, ETH0)]) == {}
    assert qdiscs_of(machine, ETH0) == [THEIR_FQ, CLSACT]
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact")]


# What is refused


def test_fq_of_others_whose_horizon_is_less_than_all_delays_together_is_named_and_left(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    """8 s for a link of so low a rate, and 3 s; the packets of 3 s suffice."""
    fq = THEIR_FQ._replace(limits=FqLimits(30_000, 30_000, 10 * 10**9))
    qdiscs_of(machine, ETH0)[:] = [fq]
    rows = [loaded(DELAY, 5, ETH0), loaded("delay=3s egress", 6, ETH0), loaded(LOSS, 7, ETH0)]
    complaints = filters.attach(rows)
    assert complaints.keys() == set(rows[:2])
    for row, error in complaints.items():
        assert error.message == (
            f"'{row.rule}' delays packets through the fq qdisc, and that of eth0 has horizon 10s, "
            "of which 11s are needed"
        )
        assert (error.tip or "").startswith("tc qdisc change dev eth0 root fq horizon 11s")
    assert qdiscs_of(machine, ETH0) == [fq, CLSACT]
    assert on(machine, ETH0) == [Filter(100, 7, 7)]


def test_foreign_root_qdisc_fails_what_delays_and_is_left_alone(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    machine.namespaces[POD][2].qdiscs = [THEIR_TBF]
    rows = {loaded(DELAY, 5, ETH0): "algorithm=tbf"}
    rows[loaded("ebpf-limit=edt egress -DRATE=1000000", 6, ETH0)] = "bandwidth=RATE egress"
    complaints = filters.attach(list(rows))
    for row, instead in rows.items():
        assert (
            "eth0 has the root qdisc tbf 1:" in complaints[row].message
            and str(row.rule) in complaints[row].message
        )
        assert (complaints[row].tip or "").endswith(f"or use {instead}")
    assert THEIR_TBF in qdiscs_of(machine, ETH0)
    assert on(machine, ETH0) == []
    assert Mark(POD, 2, "fq") not in pins.marks(settings.bpffs)
    filters.tidy([])
    assert qdiscs_of(machine, ETH0) == [THEIR_TBF]


def test_delay_that_cannot_be_had_fails_no_other_rule_of_the_interface(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    machine.namespaces[POD][2].qdiscs = [THEIR_TBF]
    delay, loss = loaded(DELAY, 5, ETH0), loaded(LOSS, 6, ETH0)
    assert filters.attach([delay, loss]).keys() == {delay}
    assert on(machine, ETH0) == [Filter(100, 6, 6)]


def test_fq_is_not_made_on_interfaces_of_others(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(DELAY, 5, HOST_SIDE, is_scoped=True)
    assert "not the root qdisc of cali1 (noqueue)" in filters.attach([row])[row].message
    assert DEFAULT in qdiscs_of(machine, HOST_SIDE)
    assert on(machine, HOST_SIDE) == []


def test_older_ingress_qdisc_fails_all_rules_of_its_interface_and_no_other(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    qdiscs_of(machine, ETH0).append(Qdisc("ingress", "ffff:", False))
    rows = [loaded(LOSS, 5, ETH0), loaded(DELAY, 6, ETH0), loaded(LOSS, 7, NET1)]
    complaints = filters.attach(rows)
    assert complaints.keys() == set(rows[:2])
    assert on(machine, NET1) == [Filter(100, 7, 7)]
    assert pins.marks(settings.bpffs) == [Mark(POD, 3, "clsact")]


def test_kernel_without_fq_is_told_with_the_module_and_the_way_around(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    machine.refusals["qdisc add eth0 root"] = UNKNOWN_KIND
    delay, loss = loaded(DELAY, 5, ETH0), loaded(LOSS, 6, ETH0)
    complaints = filters.attach([delay, loss])
    assert complaints.keys() == {delay}
    error = complaints[delay]
    assert "fq qdisc, which this kernel does not have" in error.message
    assert (error.tip, error.detail) == ("modprobe sch_fq, or use algorithm=tbf", UNKNOWN_KIND.message)
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact")]


def test_clsact_that_somebody_else_made_meanwhile_is_not_ours(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    def be_faster() -> None:
        if CLSACT not in qdiscs_of(machine, ETH0):
            qdiscs_of(machine, ETH0).append(CLSACT)

    machine.meanwhile = be_faster
    filters.attach([loaded(LOSS, 5, ETH0)])
    assert pins.marks(settings.bpffs) == []
    machine.meanwhile = lambda: None
    filters.tidy([])
    assert CLSACT in qdiscs_of(machine, ETH0)


def test_root_qdisc_that_somebody_else_made_meanwhile_is_not_ours(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    def be_faster() -> None:
        machine.namespaces[POD][2].qdiscs = [THEIR_TBF]

    machine.meanwhile = be_faster
    row = loaded(DELAY, 5, ETH0)
    error = filters.attach([row])[row]
    assert error.message == f"the kernel refuses '{DELAY}' on cgroup/7"
    assert error.detail == "Exclusivity flag on, cannot modify"
    assert "hook=cgroup" in (error.tip or "")
    assert THEIR_TBF in qdiscs_of(machine, ETH0)
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact")]


def test_filter_that_is_refused_is_its_rows_alone(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    machine.refusals["filter add eth0 egress prio 100"] = RefusedError(errno.ENOMEM, "")
    loss, slow = loaded(LOSS, 5, ETH0), loaded(SLOW, 6, ETH0)
    complaints = filters.attach([loss, slow])
    assert complaints.keys() == {loss}
    assert complaints[loss].detail == "Cannot allocate memory"
    assert on(machine, ETH0) == [Filter(143, 6, 6)]
    assert not filters.sight.attached([loss])


def test_interface_that_vanished_fails_its_rows(filters: Filters, loaded: Callable[..., Attachment]) -> None:
    row, other = loaded(LOSS, 5, Link(POD, 8, EGRESS, "gone")), loaded(LOSS, 6, ETH0)
    assert filters.attach([row, other]).keys() == {row}


def test_namespace_that_vanished_fails_its_rows_and_no_others(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    row, other = loaded(LOSS, 5, Link(300, 2, EGRESS, "eth0")), loaded(LOSS, 6, ETH0)
    complaints = filters.attach([row, other])
    assert {row: error.message for row, error in complaints.items()} == {
        row: "its network namespace has vanished"
    }
    assert on(machine, ETH0) == [Filter(100, 6, 6)]


# Detaching


def test_our_filters_are_taken_off_and_no_others(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    """Not even one of the same priority and handle on another interface."""
    rows = [loaded(LOSS, 5, ETH0, HOST_SIDE), loaded(SLOW, 6, ETH0)]
    filters.attach(rows)
    foreign = [THEIRS, Filter(100, 7, 998), Filter(101, 5, None)]
    machine.namespaces[POD][2].filters["egress"] += foreign
    machine.namespaces[POD][3].filters["egress"] = [Filter(100, 5, 997)]
    machine.changes.clear()
    filters.detach(rows[:1])
    assert on(machine, ETH0) == [Filter(143, 6, 6), *foreign]
    assert (on(machine, HOST_SIDE), on(machine, NET1)) == ([], [Filter(100, 5, 997)])
    delete = "filter del {} egress prio 100 handle 5"
    assert sorted(machine.changes) == [(OWN, delete.format("cali1")), (POD, delete.format("eth0"))]
    assert not filters.sight.attached([rows[0]])
    assert filters.sight.attached([rows[1]])


def test_filter_in_the_place_of_ours_that_runs_another_program_stays(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(LOSS, 5, ETH0)
    filters.attach([row])
    machine.namespaces[POD][2].filters["egress"] = [Filter(100, 5, 999)]
    filters.sight.forget([POD])
    machine.changes.clear()
    filters.detach([row])
    assert (machine.changes, on(machine, ETH0)) == ([], [Filter(100, 5, 999)])


def test_program_that_somebody_moved_is_taken_off_where_it_is(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(LOSS, 5, ETH0)
    filters.attach([row])
    machine.namespaces[POD][2].filters["egress"] = [Filter(49_152, 1, 5)]
    filters.sight.forget([POD])
    filters.detach([row])
    assert on(machine, ETH0) == []


@pytest.mark.parametrize("is_gone", ["interface", "namespace"])
def test_what_is_gone_already_is_fine(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment], is_gone: str
) -> None:
    row = loaded(LOSS, 5, ETH0, HOST_SIDE)
    filters.attach([row])
    if is_gone == "interface":
        del machine.namespaces[POD][2]
    else:
        del machine.namespaces[POD]
    filters.sight.forget([POD])
    filters.detach([row])
    assert on(machine, HOST_SIDE) == []


def test_row_without_a_program_takes_nothing_off(machine: Machine, filters: Filters) -> None:
    machine.namespaces[POD][2].filters["egress"] = [Filter(1, 1, None)]
    filters.detach([attachment(LOSS, links=[ETH0])])
    assert machine.changes == []


# Tidying


def test_qdiscs_of_ours_that_nobody_needs_go_with_their_marks(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(DELAY, 5, ETH0, HOST_SIDE)
    filters.attach([row])
    filters.detach([row])
    filters.tidy([])
    assert qdiscs_of(machine, ETH0) == qdiscs_of(machine, HOST_SIDE) == [DEFAULT]
    assert pins.marks(settings.bpffs) == []


def test_second_tidying_does_nothing(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(DELAY, 5, ETH0)
    filters.attach([row])
    filters.detach([row])
    filters.tidy([])
    machine.changes.clear()
    filters.tidy([])
    assert machine.changes == []


def test_qdiscs_that_rows_need_stay(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    delay, loss = loaded(DELAY, 5, ETH0), loaded(LOSS, 6, ETH0)
    filters.attach([delay, loss])
    filters.tidy([delay, loss])
    assert qdiscs_of(machine, ETH0) == [CLSACT, OUR_FQ]
    filters.detach([delay])
    filters.tidy([loss])
    assert qdiscs_of(machine, ETH0) == [CLSACT, DEFAULT]
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact")]


def test_clsact_stays_for_the_other_side(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment]
) -> None:
    rows = [loaded(LOSS, 5, ETH0), loaded("loss=uniform ingress 1%", 6, ETH0_INGRESS)]
    filters.attach(rows)
    filters.detach(rows[:1])
    filters.tidy(rows[1:])
    assert on(machine, ETH0_INGRESS) == [Filter(100, 6, 6)]


@pytest.mark.parametrize("side", ["egress", "ingress"])
def test_clsact_that_others_use_by_now_is_left_to_them(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment], side: str
) -> None:
    """Taking it away would take away their filters."""
    row = loaded(LOSS, 5, ETH0)
    filters.attach([row])
    machine.namespaces[POD][2].filters.setdefault(side, []).append(THEIRS)
    filters.detach([row])
    filters.tidy([])
    assert machine.namespaces[POD][2].filters[side] == [THEIRS]
    assert CLSACT in qdiscs_of(machine, ETH0)
    assert pins.marks(settings.bpffs) == []


def test_fq_that_somebody_replaced_is_left_to_them(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(DELAY, 5, ETH0)
    filters.attach([row])
    filters.detach([row])
    machine.namespaces[POD][2].qdiscs = [CLSACT, THEIR_TBF]
    filters.tidy([])
    assert qdiscs_of(machine, ETH0) == [THEIR_TBF]
    assert pins.marks(settings.bpffs) == []


def test_qdiscs_of_others_are_never_looked_for(
    machine: Machine, filters: Filters, settings: Settings
) -> None:
    machine.namespaces[POD][2].qdiscs = [CLSACT, OUR_FQ]
    filters.tidy([])
    assert machine.changes == []
    assert qdiscs_of(machine, ETH0) == [CLSACT, OUR_FQ]
    assert pins.marks(settings.bpffs) == []


@pytest.mark.parametrize("mark", [Mark(POD, 8, "clsact"), Mark(300, 2, "fq"), Mark(POD, 2, "fq")])
def test_marks_of_what_is_gone_go(machine: Machine, filters: Filters, settings: Settings, mark: Mark) -> None:
    """With the interface, the namespace, or the qdisc alone."""
    pins.mark(settings.bpffs, mark)
    filters.tidy([])
    assert pins.marks(settings.bpffs) == []
    assert machine.changes == []


def test_row_that_only_a_pin_tells_of_needs_its_clsact(
    machine: Machine, filters: Filters, settings: Settings, loaded: Callable[..., Attachment]
) -> None:
    row = loaded(LOSS, 5, ETH0)
    filters.attach([row])
    unknown = attachment("", digest=row.digest, owner=row.owner, program_id=5, links=[ETH0])
    filters.tidy([unknown])
    assert on(machine, ETH0) == [Filter(100, 5, 5)]
    assert pins.marks(settings.bpffs) == [Mark(POD, 2, "clsact")]


def test_namespace_that_cannot_be_entered_is_an_error(
    machine: Machine, filters: Filters, loaded: Callable[..., Attachment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionDeniedError("not allowed to enter the pod's network")

    monkeypatch.setattr(machine, "traffic_control", refuse)
    with pytest.raises(PermissionDeniedError):
        filters.attach([loaded(LOSS, 5, ETH0)])
