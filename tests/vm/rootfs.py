"""The guest's root file system: Debian with podmgr's tools and Python libraries, and nothing of podmgr."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.vm import debian
from tests.vm.cache import tell
from tests.vm.disks import make_disk

SUITE = "bookworm"
PYTHON = "3.11"
PACKAGES = (
    *("ethtool", "iperf3", "iproute2", "iputils-ping", "kmod", "nftables", "procps", "tcpdump", "util-linux"),
    *("bpftool", "clang", "libbpf-dev", "linux-libc-dev", "python3", "wireguard-tools"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
FREE_BYTES = 1 << 30  # for what runs in the guest; the file is sparse

UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists")


def make(lock: Path, folder: Path) -> None:
    """Write root.img into `folder`, with the libraries that are locked."""
    root, log = folder / "root", folder / "build.log"
    tell(f"bootstrapping Debian {SUITE} with {', '.join(PACKAGES)}")
    debian.bootstrap(SUITE, PACKAGES, root, log)
    tell(f"installing the libraries of {lock.name}")
    _install_libraries(lock, root, log)
    _tidy(root)
    tell("writing the root's disk")
    make_disk(root, folder / "root.img", log, free_bytes=FREE_BYTES)
    shutil.rmtree(root)


def _install_libraries(lock: Path, root: Path, log: Path) -> None:
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
    debian.run([*pip, *options, *platforms, "--require-hashes", "--requirement", str(lock)], log)
    # An emulated processor needs seconds for what need not be compiled again at each boot.
    debian.run(
        ["chroot", str(root), "python3", "-m", "compileall", "-q", f"/{target}", "/usr/lib/python3.11"], log
    )


def _tidy(root: Path) -> None:
    (root / "etc/hostname").write_text("podmgr-vm\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost podmgr-vm\n::1 localhost\n")
    for unused in UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
