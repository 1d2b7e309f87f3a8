"""What this machine calls itself: by that, the cluster's nodes are compared with it.

Apart from `this_node`, which alone uses it: that one is pure but for its questions to the API server.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# As kubelet looks for it. In a container it is the image's, or none, and so no node's.
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # the kernel's: in containers, too


@dataclass(frozen=True, slots=True)
class Machine:
    """`boot_id` is another one after each boot; `machine_id` stays, and copies of a machine may share it."""

    host: str
    boot_id: str
    machine_id: str
    has_address: Callable[[str], bool]


def this_machine() -> Machine:
    """As it is now; "" for what it does not say."""
    ids = (_text(path) for path in _MACHINE_IDS)
    return Machine(
        socket.gethostname().lower(), _text(_BOOT_ID), next(filter(None, ids), ""), _is_address_of_ours
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _is_address_of_ours(text: str) -> bool:
    """Whether the network that we are in has this address, other than as a loopback."""
    try:
        address = ipaddress.ip_address(text)
        if address.is_loopback or address.is_unspecified:
            return False
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as mine:
            mine.bind((str(address), 0))  # only what is ours can be bound
    except (ValueError, OSError):
        return False
    return True
