"""bpf(2) for reading: what a cgroup has, and that not being allowed is never nothing. Loads no program."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import bpf_syscall, cgroups
from podmgr.kernel.bpf_syscall import AttachedPrograms
from podmgr.rules.rule import Direction
from tests.unit.samples import EGRESS


@pytest.fixture
def root_fd() -> Iterator[int]:
    fd = os.open(cgroups.find_root(None), os.O_RDONLY)
    yield fd
    os.close(fd)


def failing(mocker: MockerFixture, number: int) -> None:
    """The kernel refuses every call with this errno."""

    def syscall(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    mocker.patch("podmgr.kernel.bpf_syscall._libc").syscall = syscall


@pytest.mark.parametrize("direction", Direction)
def test_programs_of_a_cgroup_can_be_read(root_fd: int, direction: Direction) -> None:
    found = bpf_syscall.attached_programs(root_fd, direction)
    assert all(program_id > 0 for program_id in found.program_ids)


@pytest.mark.parametrize(
    ("programs", "is_exclusive"),
    [
        (AttachedPrograms((), 0), False),
        (AttachedPrograms((), 2), False),
        (AttachedPrograms((5,), 0), True),
        (AttachedPrograms((5,), 1), True),
        (AttachedPrograms((5, 6), 2), False),
    ],
)
def test_program_without_multi_is_exclusive(programs: AttachedPrograms, is_exclusive: bool) -> None:
    assert programs.is_exclusive is is_exclusive


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_not_being_allowed_to_look_is_never_nothing(mocker: MockerFixture, number: int) -> None:
    failing(mocker, number)
    with pytest.raises(PermissionDeniedError, match="not allowed to look at a cgroup's programs"):
        bpf_syscall.attached_programs(0, EGRESS)
    with pytest.raises(PermissionDeniedError, match="not allowed to open the pin"):
        bpf_syscall.pinned_program_id(Path("/pin"))
    with pytest.raises(PermissionDeniedError, match="not allowed to open the pin"):
        bpf_syscall.pinned_counters(Path("/pin"))


def test_other_failures_carry_their_cause(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PodmgrError, match="cannot look at a cgroup's programs: Bad file") as caught:
            bpf_syscall.attached_programs(fd, EGRESS)
    finally:
        os.close(fd)
    assert isinstance(caught.value.__cause__, OSError)


def test_no_pin_is_none_and_no_error(tmp_path: Path) -> None:
    assert bpf_syscall.pinned_program_id(tmp_path / "gone") is None
    assert bpf_syscall.pinned_counters(tmp_path / "gone") is None


def test_unknown_machine_is_an_error(mocker: MockerFixture) -> None:
    mocker.patch("podmgr.kernel.bpf_syscall.platform.machine", return_value="pdp11")
    with pytest.raises(PodmgrError, match="no bpf system call number known for pdp11"):
        bpf_syscall.attached_programs(0, EGRESS)


@pytest.mark.parametrize(
    ("number", "is_there"), [(errno.ENOSYS, False), (errno.EPERM, True), (errno.EFAULT, True)]
)
def test_kernel_without_bpf_is_told_from_one_that_refuses(
    mocker: MockerFixture, number: int, is_there: bool
) -> None:
    failing(mocker, number)
    assert bpf_syscall.is_available() is is_there


@pytest.mark.parametrize(("text", "cpus"), [("0\n", 1), ("0-3\n", 4), ("0-127\n", 128), ("0,2-5\n", 6)])
def test_possible_cpus_are_counted_to_the_last(mocker: MockerFixture, text: str, cpus: int) -> None:
    mocker.patch.object(Path, "read_text", return_value=text)
    assert bpf_syscall.possible_cpus.__wrapped__() == cpus
