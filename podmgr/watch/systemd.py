"""sd_notify(3): telling systemd that we are ready, alive, or stopping. Nothing without systemd.

Apart from `health`, which alone uses it: a protocol by itself, for any service.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*lines: str) -> None:
    """Send assignments such as `READY=1`; what cannot be sent is not missed."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall("\n".join(lines).encode())
