"""What a look at some cgroups alone shows that their rows do not explain; the kernel is a table here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from podmgr.attachment import Attachment, Cgroup, Link
from podmgr.errors import PermissionDeniedError
from podmgr.kernel.bpf_syscall import AttachedPrograms
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.pins import Pin
from podmgr.kernel.tc import Filter
from podmgr.reconcile.actual import Sight, unknown_pins
from podmgr.rules.rule import Direction
from podmgr.settings import Settings
from tests.unit.machine import Device, Machine
from tests.unit.samples import EGRESS, INGRESS, attachment


@dataclass
class Kernel:
    """Programs by cgroup and direction, cgroups that are gone, and which were looked at."""

    attached: dict[tuple[int, Direction], tuple[int, ...]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    looked_at: set[int] = field(default_factory=set)

    @contextmanager
    def opened(self, cgroup: Cgroup) -> Iterator[int | None]:
        self.looked_at.add(cgroup.id)
        yield None if cgroup.id in self.gone else cgroup.id

    def attached_programs(self, fd: int, direction: Direction) -> AttachedPrograms:
        return AttachedPrograms(self.attached.get((fd, direction), ()), 0)

    def pinned_program_id(self, pin: str) -> int | None:
        """The file at the pin holds the program's id."""
        return int(Path(pin).read_text()) if Path(pin).exists() else None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr("podmgr.kernel.cgroups.opened", made.opened)
    monkeypatch.setattr("podmgr.kernel.bpf_syscall.attached_programs", made.attached_programs)
    monkeypatch.setattr("podmgr.kernel.bpf_syscall.pinned_program_id", made.pinned_program_id)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(bpffs=tmp_path)


@pytest.fixture
def look(settings: Settings) -> Sight:
    """A look at cgroups alone."""
    return Sight(settings, Namespaces())


def there(
    kernel: Kernel,
    settings: Settings,
    program_id: int = 5,
    *,
    cgroup_id: int = 7,
    owner: str = "7",
    digest: str = "0000000000000abc",
    direction: Direction = EGRESS,
) -> Attachment:
    """A row whose program is attached and pinned."""
    kernel.attached[cgroup_id, direction] = (*kernel.attached.get((cgroup_id, direction), ()), program_id)
    pinned(settings, owner, digest, program_id)
    return attachment(
        cgroup_id=cgroup_id, owner=owner, digest=digest, direction=direction, program_id=program_id
    )


def pinned(settings: Settings, owner: str, digest: str, program_id: int) -> Pin:
    pin = Pin(settings.bpffs, owner, digest)
    Path(pin.program).parent.mkdir(exist_ok=True)
    Path(pin.program).write_text(str(program_id))
    return pin


def is_healthy(look: Sight, row: Attachment) -> bool:
    return look.healthy([row]) == [row]


def near(*owners: str, cgroup_id: int = 7) -> dict[str, Cgroup]:
    return {owner: Cgroup(Path(f"/cgroups/{cgroup_id}"), cgroup_id) for owner in owners}


# A row's health


def test_row_is_healthy_if_its_program_is_attached_and_pinned(
    kernel: Kernel, settings: Settings, look: Sight
) -> None:
    row = there(kernel, settings)
    assert look.attached([row])
    assert is_healthy(look, row)


def test_row_whose_program_is_not_attached_is_not_healthy(
    kernel: Kernel, settings: Settings, look: Sight
) -> None:
    row = there(kernel, settings)
    for other in (row._replace(program_id=6), row._replace(program_id=None), row._replace(direction=INGRESS)):
        assert not look.attached([other])
        assert not is_healthy(look, other)


def test_row_without_its_pin_is_attached_but_not_healthy(
    kernel: Kernel, settings: Settings, look: Sight
) -> None:
    row = there(kernel, settings)
    pinned(settings, "7", "0000000000000abc", 6)
    assert look.attached([row])
    assert not is_healthy(look, row)
    Path(Pin(settings.bpffs, "7", "0000000000000abc").program).unlink()
    assert not is_healthy(look, row)


def test_row_of_a_cgroup_that_is_gone_is_not_attached(
    kernel: Kernel, settings: Settings, look: Sight
) -> None:
    row = there(kernel, settings)
    kernel.gone.add(7)
    assert not look.attached([row])


# Near some cgroups


def test_nothing_there_is_nothing_unknown(kernel: Kernel, look: Sight) -> None:
    assert not look.has_unknown_near([], near("7"))
    assert kernel.looked_at == {7}


def test_rows_explain_all_that_is_there(kernel: Kernel, settings: Settings, look: Sight) -> None:
    rows = [
        there(kernel, settings, 5),
        there(kernel, settings, 6, digest="0000000000000def"),
        there(kernel, settings, 7, digest="0000000000000fed", direction=INGRESS),
    ]
    assert not look.has_unknown_near(look.healthy_near(rows, near("7")), near("7"))


def test_pods_pins_may_be_under_its_uid(kernel: Kernel, settings: Settings, look: Sight) -> None:
    row = there(kernel, settings, owner="u-1")
    assert not look.has_unknown_near(look.healthy_near([row], near("u-1")), near("u-1"))


def test_cgroup_may_be_called_otherwise_today(kernel: Kernel, settings: Settings, look: Sight) -> None:
    """By its pod's UID yesterday, by its number now: its row speaks for it all the same."""
    row = there(kernel, settings, owner="u-1")
    assert not look.has_unknown_near(look.healthy_near([row], near("7")), near("7"))


def test_pod_may_be_on_another_cgroup_today(kernel: Kernel, settings: Settings, look: Sight) -> None:
    row = there(kernel, settings, owner="u-1", cgroup_id=8)
    assert not look.has_unknown_near(look.healthy_near([row], near("u-1")), near("u-1"))
    assert look.has_unknown_near([], near("u-1"))


@pytest.mark.parametrize("direction", Direction)
def test_program_without_a_row_is_unknown(
    kernel: Kernel, settings: Settings, look: Sight, direction: Direction
) -> None:
    row = there(kernel, settings)
    kernel.attached[7, direction] = (*kernel.attached.get((7, direction), ()), 9)
    assert look.has_unknown_near(look.healthy_near([row], near("7")), near("7"))


def test_pin_without_a_row_is_unknown(kernel: Kernel, settings: Settings, look: Sight) -> None:
    row = there(kernel, settings)
    pinned(settings, "7", "000000000000face", 9)
    assert look.has_unknown_near(look.healthy_near([row], near("7")), near("7"))


def test_pin_that_the_rows_program_has_lost_to_another_is_unknown(
    kernel: Kernel, settings: Settings, look: Sight
) -> None:
    row = there(kernel, settings)
    pinned(settings, "7", "0000000000000abc", 9)
    assert look.has_unknown_near(look.healthy_near([row], near("7")), near("7"))


def test_row_that_is_not_attached_explains_no_pin(kernel: Kernel, settings: Settings, look: Sight) -> None:
    row = there(kernel, settings)
    kernel.attached.clear()
    assert look.has_unknown_near(look.healthy_near([row], near("7")), near("7"))


def test_row_that_lost_pin_and_program_hides_nothing(kernel: Kernel, look: Sight) -> None:
    assert not look.has_unknown_near(look.healthy_near([attachment(program_id=5)], near("7")), near("7"))
    assert kernel.looked_at == {7}


def test_row_on_another_cgroup_does_not_explain_what_is_here(
    kernel: Kernel, settings: Settings, look: Sight
) -> None:
    elsewhere = there(kernel, settings, 9, cgroup_id=8, owner="8")
    kernel.attached[7, EGRESS] = (9,)
    assert look.has_unknown_near(look.healthy_near([elsewhere], near("7")), near("7"))


def test_far_away_nothing_is_looked_at(kernel: Kernel, settings: Settings, look: Sight) -> None:
    """That is why it is quick: of 110 pods only the one that changes is looked at."""
    rows = [there(kernel, settings, 5)]
    rows += [there(kernel, settings, 10 + n, cgroup_id=10 + n, owner=str(10 + n)) for n in range(20)]
    kernel.attached[30, INGRESS] = (99,)
    pinned(settings, "30", "000000000000face", 98)
    kernel.looked_at.clear()
    assert not look.has_unknown_near(look.healthy_near(rows, near("7")), near("7"))
    assert kernel.looked_at == {7}


def test_cgroup_that_is_gone_has_nothing_attached(kernel: Kernel, look: Sight) -> None:
    kernel.attached[7, EGRESS] = (9,)
    kernel.gone.add(7)
    assert not look.has_unknown_near([], near("7"))


def test_several_cgroups_are_each_looked_at(kernel: Kernel, look: Sight) -> None:
    both = near("7") | near("8", cgroup_id=8)
    assert not look.has_unknown_near([], both)
    kernel.attached[8, INGRESS] = (9,)
    assert look.has_unknown_near([], both)


def test_not_being_allowed_to_look_is_not_nothing_unknown(
    kernel: Kernel, look: Sight, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, direction: Direction) -> AttachedPrograms:
        raise PermissionDeniedError(f"no look at {fd}, {direction}")

    monkeypatch.setattr("podmgr.kernel.bpf_syscall.attached_programs", refuse)
    with pytest.raises(PermissionDeniedError):
        look.has_unknown_near([], near("7"))
    assert kernel.looked_at == {7}


# On interfaces


@pytest.fixture
def machine() -> Machine:
    """A pod's namespace with two interfaces, and our own with one."""
    return Machine({200: {2: Device("eth0"), 3: Device("net1")}, 100: {9: Device("cali1")}})


@pytest.fixture
def sight(settings: Settings, machine: Machine) -> Sight:
    return Sight(settings, machine)


ETH0, NET1, CALI1 = Link(200, 2, EGRESS, "eth0"), Link(200, 3, EGRESS, "net1"), Link(100, 9, EGRESS, "cali1")


def on_interfaces(machine: Machine, settings: Settings, program_id: int, *links: Link) -> Attachment:
    """A row whose program is pinned, and on all its interfaces that there are."""
    for link in links:
        device = machine.namespaces.get(link.namespace, {}).get(link.index)
        if device is not None:
            device.filters.setdefault(link.side, []).append(Filter(100, program_id, program_id))
    pinned(settings, "7", f"{13 * 16 + program_id:016x}", program_id)
    return attachment(digest=f"{13 * 16 + program_id:016x}", program_id=program_id, links=links)


def test_row_is_attached_if_its_program_is_on_all_its_interfaces(
    machine: Machine, settings: Settings, kernel: Kernel, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0, NET1, CALI1)
    assert sight.attached([row])
    assert sight.healthy([row]) == [row]
    assert kernel.looked_at == set()


@pytest.mark.parametrize("link", [ETH0, NET1, CALI1])
def test_row_that_lacks_one_of_its_interfaces_is_not_attached(
    machine: Machine, settings: Settings, sight: Sight, link: Link
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0, NET1, CALI1)
    machine.namespaces[link.namespace][link.index].filters.clear()
    assert not sight.attached([row])


@pytest.mark.parametrize("found", [Filter(100, 5, 6), Filter(100, 5, None)])
def test_filter_in_its_place_with_another_program_is_not_it(
    machine: Machine, settings: Settings, sight: Sight, found: Filter
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    machine.namespaces[200][2].filters["egress"] = [found]
    assert not sight.attached([row])
    assert sight.filters_of(row) == []


def test_program_on_the_other_side_is_not_it(machine: Machine, settings: Settings, sight: Sight) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    machine.namespaces[200][2].filters = {"ingress": [Filter(100, 5, 5)]}
    assert not sight.attached([row])


def test_row_without_a_program_is_not_attached(machine: Machine, settings: Settings, sight: Sight) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    machine.namespaces[200][2].filters["egress"] = [Filter(1, 1, None)]
    assert not sight.attached([row._replace(program_id=None)])
    assert sight.filters_of(row._replace(program_id=None)) == []


def test_interface_that_is_gone_is_no_reason_as_long_as_another_is_left(
    machine: Machine, settings: Settings, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0, NET1)
    del machine.namespaces[200][3]
    assert sight.attached([row])
    sight.forget([200])
    del machine.namespaces[200][2]
    assert not sight.attached([row])


def test_namespace_that_is_gone_leaves_nothing_attached(
    machine: Machine, settings: Settings, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    other = on_interfaces(machine, settings, 6, CALI1)
    del machine.namespaces[200]
    assert sight.attached([row, other]) == [other]


def test_row_that_lost_its_pin_is_attached_but_not_healthy(
    machine: Machine, settings: Settings, kernel: Kernel, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    Path(Pin(settings.bpffs, "7", "00000000000000d5").program).unlink()
    assert (sight.attached([row]), sight.healthy([row])) == ([row], [])
    assert kernel.looked_at == set()


def test_each_namespace_is_asked_once_for_all_rows(
    machine: Machine, settings: Settings, sight: Sight
) -> None:
    rows = [on_interfaces(machine, settings, 5 + number, ETH0, NET1) for number in range(5)]
    rows.append(on_interfaces(machine, settings, 99, CALI1))
    assert sight.attached(rows) == rows
    assert sight.attached(rows) == rows
    assert [link for link, _ in sight.filters_of(rows[0])] == [ETH0, NET1]
    assert sorted(machine.asked) == [100, 200]
    assert machine.near[200] == Cgroup(Path("/cgroups/7"), 7)


def test_what_was_changed_is_looked_at_again_after_forgetting(
    machine: Machine, settings: Settings, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    assert sight.attached([row])
    machine.namespaces[200][2].filters.clear()
    sight.forget([100])
    assert sight.attached([row])
    sight.forget([200])
    assert not sight.attached([row])


def test_filter_of_a_renamed_interface_is_found(machine: Machine, settings: Settings, sight: Sight) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    machine.namespaces[200][2].name = "moved"
    machine.namespaces[200][9] = Device("eth0")  # one that has taken its name is another
    assert sight.attached([row])
    assert sight.filters_of(row) == [(ETH0, Filter(100, 5, 5))]


# What only pins tell of


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cgroups on the whole machine."""
    found = [Cgroup(Path("/cgroups/7"), 7), Cgroup(Path("/cgroups/8"), 8)]
    monkeypatch.setattr("podmgr.kernel.cgroups.find_root", lambda _: Path("/cgroups"))
    monkeypatch.setattr("podmgr.kernel.cgroups.walk_everywhere", lambda _: found)
    return Path("/cgroups")


def test_program_without_a_row_is_found_on_its_interfaces(
    machine: Machine, settings: Settings, kernel: Kernel, tree: Path, sight: Sight
) -> None:
    on_interfaces(machine, settings, 5, CALI1, NET1, ETH0)
    (row,) = sight.unknown_attachments([])
    assert kernel.looked_at == {7, 8} and tree
    assert (row.links, row.hook, row.rule) == ((CALI1, ETH0, NET1), "tc", None)
    assert [link.name for link in row.links] == ["cali1", "eth0", "net1"]
    assert (row.owner, row.digest, row.program_id) == ("7", "00000000000000d5", 5)
    assert (row.target, row.cgroup_id) == ("cgroup/7", 7)
    assert sight.attached([row])


def test_whose_program_it_is_the_folder_of_its_pin_says(
    machine: Machine, settings: Settings, kernel: Kernel, tree: Path, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    Path(Pin(settings.bpffs, "7", "00000000000000d5").program).unlink()
    pinned(settings, "u-1", "00000000000000d5", 5)
    (found,) = sight.unknown_attachments([row], near("u-1", cgroup_id=8))
    assert (found.target, found.owner, found.cgroup_id) == ("pod/u-1", "u-1", 8)
    assert found.cgroup_path == "/cgroups/8"
    (far,) = sight.unknown_attachments([row])
    assert (far.target, far.cgroup_id) == ("pod/u-1", 0)
    assert kernel.looked_at and tree


def test_program_on_a_cgroup_is_not_looked_for_on_interfaces(
    machine: Machine, settings: Settings, kernel: Kernel, tree: Path, sight: Sight
) -> None:
    there(kernel, settings, 5)
    (row,) = sight.unknown_attachments([])
    assert (row.hook, row.links, row.target) == ("cgroup", (), "cgroup/7")
    assert machine.asked == [] and tree


def test_row_that_is_healthy_speaks_for_its_program(
    machine: Machine, settings: Settings, kernel: Kernel, tree: Path, sight: Sight
) -> None:
    row = on_interfaces(machine, settings, 5, ETH0)
    assert sight.unknown_attachments([row]) == []
    machine.namespaces[200][2].filters.clear()
    machine.namespaces[100][9].filters["ingress"] = [Filter(1, 1, 5), Filter(2, 1, 5)]
    sight.forget([100, 200])
    (found,) = sight.unknown_attachments([row])
    assert found.links == (Link(100, 9, INGRESS, "cali1"),)
    assert kernel.looked_at and tree


# Pins


def test_unknown_pins_are_those_of_no_row(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    one, other = pinned(settings, "7", "000000000000face", 8), pinned(settings, "u-1", "0000000000000abc", 9)
    assert unknown_pins(settings, [row]) == [one, other]
    assert unknown_pins(settings, [row], {"u-1"}) == [other]
    assert unknown_pins(settings, [row], ()) == []
