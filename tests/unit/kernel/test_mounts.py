"""The mount table: how its lines are read, and which file system a path lies on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from podmgr.kernel import mounts
from podmgr.kernel.mounts import Mount

# Recorded, but for the blank in a path, the overmount and the optional fields.
TABLE = """\
23 1 254:0 / / rw,relatime - ext4 /dev/root rw
24 23 0:22 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 - cgroup2 cgroup2 rw
42 23 0:39 / /sys/fs/bpf rw,relatime shared:11 - bpf bpf rw
50 23 0:50 / /mnt/a\\040b\\134c\\011d rw - tmpfs none rw
51 23 0:51 / /mnt/over rw - tmpfs none rw
52 51 0:52 / /mnt/over rw - bpf none rw
"""


@pytest.fixture
def recorded(mocker: MockerFixture) -> None:
    mocker.patch.object(Path, "read_bytes", return_value=os.fsencode(TABLE))


@pytest.mark.usefixtures("recorded")
def test_table_lists_paths_and_file_systems_in_order() -> None:
    assert mounts.table()[3:] == [
        Mount(Path("/sys/fs/cgroup/unified"), "cgroup2"),
        Mount(Path("/sys/fs/bpf"), "bpf"),
        Mount(Path("/mnt/a b\\c\td"), "tmpfs"),
        Mount(Path("/mnt/over"), "tmpfs"),
        Mount(Path("/mnt/over"), "bpf"),
    ]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("path", "filesystem"),
    [
        ("/", "ext4"),
        ("/no/such/path", "ext4"),
        ("/sys/fs/bpf", "bpf"),
        ("/sys/fs/bpf/not/made/yet", "bpf"),
        ("/sys/fs/bpffs", "ext4"),
        ("/sys/fs/cgroup/cpu", "tmpfs"),
        ("/sys/fs/cgroup/unified/a", "cgroup2"),
        ("/sys/fs/bpf/../cgroup", "tmpfs"),
        ("/mnt/a b\\c\td/x", "tmpfs"),
        ("/mnt/over/x", "bpf"),
    ],
)
def test_path_lies_on_the_deepest_and_latest_mount_above_it(path: str, filesystem: str) -> None:
    assert mounts.filesystem_of(Path(path)) == filesystem


def test_path_below_no_mount_lies_on_none(mocker: MockerFixture) -> None:
    mocker.patch.object(Path, "read_bytes", return_value=b"24 23 0:22 / /proc rw - proc proc rw\n")
    assert mounts.filesystem_of(Path("/sys")) is None


def test_symlink_lies_where_it_points(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert mounts.filesystem_of(link) == "proc"


def test_own_mount_table_is_readable() -> None:
    assert Path("/proc") in [mount.path for mount in mounts.table()]
    assert mounts.filesystem_of(Path("/proc/self")) == "proc"


def test_mount_paths_need_not_be_text(mocker: MockerFixture) -> None:
    line = b"24 23 0:22 / /mnt/l\xf6\x0cx rw - tmpfs tmpfs rw\n"
    mocker.patch.object(Path, "read_bytes", return_value=line)
    assert [os.fsencode(mount.path) for mount in mounts.table()] == [b"/mnt/l\xf6\x0cx"]
