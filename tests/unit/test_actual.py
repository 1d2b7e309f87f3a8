"""What a look at some cgroups alone shows that their rows do not explain; the kernel is a table here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from podmgr.actual import has_unknown_near, is_attached, is_healthy, unknown_pins
from podmgr.bpf_syscall import AttachedPrograms
from podmgr.cgroups import Cgroup
from podmgr.errors import PermissionDeniedError
from podmgr.pins import Pin
from podmgr.plan import Attachment
from podmgr.rules import Direction
from podmgr.settings import Settings
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

    def pinned_program_id(self, pin: Path) -> int | None:
        """The file at the pin holds the program's id."""
        return int(pin.read_text()) if pin.exists() else None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr("podmgr.cgroups.opened", made.opened)
    monkeypatch.setattr("podmgr.bpf_syscall.attached_programs", made.attached_programs)
    monkeypatch.setattr("podmgr.bpf_syscall.pinned_program_id", made.pinned_program_id)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(bpffs=tmp_path)


def there(
    kernel: Kernel,
    settings: Settings,
    program_id: int = 5,
    *,
    cgroup_id: int = 7,
    owner: str = "7",
    digest: str = "abc",
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
    pin.program.parent.mkdir(exist_ok=True)
    pin.program.write_text(str(program_id))
    return pin


def near(*owners: str, cgroup_id: int = 7) -> dict[str, Cgroup]:
    return {owner: Cgroup(Path(f"/cgroups/{cgroup_id}"), cgroup_id) for owner in owners}


# A row's health


def test_row_is_healthy_if_its_program_is_attached_and_pinned(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    assert is_attached(row)
    assert is_healthy(settings, row)


def test_row_whose_program_is_not_attached_is_not_healthy(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    for other in (replace(row, program_id=6), replace(row, program_id=None), replace(row, direction=INGRESS)):
        assert not is_attached(other)
        assert not is_healthy(settings, other)


def test_row_without_its_pin_is_attached_but_not_healthy(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    pinned(settings, "7", "abc", 6)
    assert is_attached(row)
    assert not is_healthy(settings, row)
    Pin(settings.bpffs, "7", "abc").program.unlink()
    assert not is_healthy(settings, row)


def test_row_of_a_cgroup_that_is_gone_is_not_attached(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    kernel.gone.add(7)
    assert not is_attached(row)


# Near some cgroups


def test_nothing_there_is_nothing_unknown(kernel: Kernel, settings: Settings) -> None:
    assert not has_unknown_near(settings, [], near("7"))
    assert kernel.looked_at == {7}


def test_rows_explain_all_that_is_there(kernel: Kernel, settings: Settings) -> None:
    rows = [
        there(kernel, settings, 5),
        there(kernel, settings, 6, digest="def"),
        there(kernel, settings, 7, digest="ghi", direction=INGRESS),
    ]
    assert not has_unknown_near(settings, rows, near("7"))


def test_pods_pins_may_be_under_its_uid(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings, owner="u-1")
    assert not has_unknown_near(settings, [row], near("u-1"))


def test_cgroup_may_be_called_otherwise_today(kernel: Kernel, settings: Settings) -> None:
    """By its pod's UID yesterday, by its number now: its row speaks for it all the same."""
    row = there(kernel, settings, owner="u-1")
    assert not has_unknown_near(settings, [row], near("7"))


def test_pod_may_be_on_another_cgroup_today(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings, owner="u-1", cgroup_id=8)
    assert not has_unknown_near(settings, [row], near("u-1"))
    assert has_unknown_near(settings, [], near("u-1"))


@pytest.mark.parametrize("direction", Direction)
def test_program_without_a_row_is_unknown(kernel: Kernel, settings: Settings, direction: Direction) -> None:
    row = there(kernel, settings)
    kernel.attached[7, direction] = (*kernel.attached.get((7, direction), ()), 9)
    assert has_unknown_near(settings, [row], near("7"))


def test_pin_without_a_row_is_unknown(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    pinned(settings, "7", "orphan", 9)
    assert has_unknown_near(settings, [row], near("7"))


def test_pin_that_the_rows_program_has_lost_to_another_is_unknown(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    pinned(settings, "7", "abc", 9)
    assert has_unknown_near(settings, [row], near("7"))


def test_row_that_is_not_attached_explains_no_pin(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    kernel.attached.clear()
    assert has_unknown_near(settings, [row], near("7"))


def test_row_that_lost_pin_and_program_hides_nothing(kernel: Kernel, settings: Settings) -> None:
    assert not has_unknown_near(settings, [attachment(program_id=5)], near("7"))
    assert kernel.looked_at == {7}


def test_row_on_another_cgroup_does_not_explain_what_is_here(kernel: Kernel, settings: Settings) -> None:
    elsewhere = there(kernel, settings, 9, cgroup_id=8, owner="8")
    kernel.attached[7, EGRESS] = (9,)
    assert has_unknown_near(settings, [elsewhere], near("7"))


def test_far_away_nothing_is_looked_at(kernel: Kernel, settings: Settings) -> None:
    """That is why it is quick: of 110 pods only the one that changes is looked at."""
    rows = [there(kernel, settings, 5)]
    rows += [there(kernel, settings, 10 + n, cgroup_id=10 + n, owner=str(10 + n)) for n in range(20)]
    kernel.attached[30, INGRESS] = (99,)
    pinned(settings, "30", "orphan", 98)
    kernel.looked_at.clear()
    assert not has_unknown_near(settings, rows, near("7"))
    assert kernel.looked_at == {7}


def test_cgroup_that_is_gone_has_nothing_attached(kernel: Kernel, settings: Settings) -> None:
    kernel.attached[7, EGRESS] = (9,)
    kernel.gone.add(7)
    assert not has_unknown_near(settings, [], near("7"))


def test_several_cgroups_are_each_looked_at(kernel: Kernel, settings: Settings) -> None:
    both = near("7") | near("8", cgroup_id=8)
    assert not has_unknown_near(settings, [], both)
    kernel.attached[8, INGRESS] = (9,)
    assert has_unknown_near(settings, [], both)


def test_not_being_allowed_to_look_is_not_nothing_unknown(
    kernel: Kernel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, direction: Direction) -> AttachedPrograms:
        raise PermissionDeniedError(f"no look at {fd}, {direction}")

    monkeypatch.setattr("podmgr.bpf_syscall.attached_programs", refuse)
    with pytest.raises(PermissionDeniedError):
        has_unknown_near(settings, [], near("7"))
    assert kernel.looked_at == {7}


# Pins


def test_unknown_pins_are_those_of_no_row(kernel: Kernel, settings: Settings) -> None:
    row = there(kernel, settings)
    one, other = pinned(settings, "7", "orphan", 8), pinned(settings, "u-1", "abc", 9)
    assert unknown_pins(settings, [row]) == [one, other]
    assert unknown_pins(settings, [row], {"u-1"}) == [other]
    assert unknown_pins(settings, [row], ()) == []
