"""The guest's root file system: Debian with podmgr's tools and Python libraries, and nothing of podmgr."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.vm import debian
from tests.vm.cache import tell
from tests.vm.disks import make_disk

SUITE = "bookworm"
PYTHON = "3.11"
PACKAGES = (
    *("ethtool", "iperf3", "iproute2", "iputils-ping", "kmod", "procps", "tcpdump", "util-linux"),
    *("bpftool", "clang", "libbpf-dev", "linux-libc-dev", "python3"),
)
# Of the extra `test`, what tests import or are run by.
TEST_LIBRARIES = ("hypothesis", "pytest", "pytest-mock", "pytest-timeout")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
FREE_BYTES = 1 << 30  # for what runs in the guest; the file is sparse

UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists")


def requirements(pyproject: Path) -> tuple[str, ...]:
    """podmgr's libraries and those of its tests, with the versions that its pyproject.toml wants."""
    project = tomllib.loads(pyproject.read_text())["project"]
    of_tests = [line for line in project["optional-dependencies"]["test"] if _name(line) in TEST_LIBRARIES]
    return (*project["dependencies"], *of_tests)


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def make(libraries: Sequence[str], folder: Path) -> None:
    """Write root.img into `folder`."""
    root, log = folder / "root", folder / "build.log"
    tell(f"bootstrapping Debian {SUITE} with {', '.join(PACKAGES)}")
    debian.bootstrap(SUITE, PACKAGES, root, log)
    tell(f"installing {', '.join(map(_name, libraries))}")
    _install_libraries(libraries, root, log)
    _tidy(root)
    tell("writing the root's disk")
    make_disk(root, folder / "root.img", log, free_bytes=FREE_BYTES)
    shutil.rmtree(root)


def _install_libraries(libraries: Sequence[str], root: Path, log: Path) -> None:
    """With this machine's pip and its configuration, as wheels for the guest's Python."""
    target = f"usr/local/lib/python{PYTHON}/dist-packages"
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = [
        "--quiet",
        "--target",
        str(root / target),
        "--only-binary",
        ":all:",
        "--python-version",
        PYTHON,
    ]
    pip = [sys.executable, "-m", "pip", "install", "--root-user-action", "ignore"]
    debian.run([*pip, *options, *platforms, *libraries], log)
    # An emulated processor needs seconds for what need not be compiled again at each boot.
    debian.run(
        ["chroot", str(root), "python3", "-m", "compileall", "-q", f"/{target}", "/usr/lib/python3.11"], log
    )


def _tidy(root: Path) -> None:
    (root / "etc/hostname").write_text("podmgr-vm\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost podmgr-vm\n::1 localhost\n")
    for unused in UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
