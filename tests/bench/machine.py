"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from podmgr import __version__

TOOLS = {
    "clang": ("clang", "--version"),
    "bpftool": ("bpftool", "version"),
    "iproute2": ("tc", "-V"),
    "iperf3": ("iperf3", "--version"),
}


def describe() -> tuple[tuple[str, str], ...]:
    """Label and text, line by line."""
    return (
        ("podmgr", _revision()),
        ("kernel", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", processor()),
        ("tools", ", ".join(f"{name} {_version(argv)}" for name, argv in TOOLS.items())),
        ("python", platform.python_version()),
        ("load before", f"{os.getloadavg()[0]:.1f}"),
    )


def _revision() -> str:
    """The version and, in a checkout, the commit."""
    argv = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return __version__
    return f"{__version__} {done.stdout.strip()}".strip()


def processor() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", text)
    virtual = " in a virtual machine" if " hypervisor" in text else ""
    name = (found[1] if found else "unknown") + virtual
    return f"{name}, {os.cpu_count()} CPUs, {memory_gib:.0f} GiB"


def _version(argv: tuple[str, ...]) -> str:
    try:
        output = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return "none"
    found = re.search(r"(?:version |iperf |v|-)?(\d+\.\d+[\w.]*)", output)
    return found[1] if found else "unknown"
