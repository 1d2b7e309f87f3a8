"""What arrives at an interface, packet by packet: captured in a process of its own, and reckoned."""

from __future__ import annotations

import itertools
import mmap
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from podmgr.demo.throwaway import inside

WINDOW_SECONDS = 0.2


@dataclass(frozen=True)
class Arrivals:
    """When packets were seen at an interface, in seconds from the first, and their bytes on the wire.

    Or payload, every 100 ms, made into what it was on the wire.
    """

    seen: tuple[tuple[float, int], ...]

    def rate(self, start: float, end: float) -> float:
        """Bits per second between two moments."""
        return 8 * sum(size for moment, size in self.seen if start <= moment < end) / (end - start)

    def worst_window(self, start: float, end: float) -> float:
        """The most bits per second in any window of 200 ms that ends with a packet."""
        worst = first = total = 0
        inside = [(moment, size) for moment, size in self.seen if start <= moment < end]
        for moment, size in inside:
            total += size
            while inside[first][0] < moment - WINDOW_SECONDS:
                total -= inside[first][1]
                first += 1
            worst = max(worst, total)
        return 8 * worst / WINDOW_SECONDS


@contextmanager
def arrivals(pid: int, name: str) -> Iterator[list[Arrivals]]:
    """What arrives at an interface in the namespace of a process while the block runs.

    A packet(7) socket in a process of its own; GSO packets are counted as the segments that they
    stand for.
    """
    argv = inside(pid, [sys.executable, "-m", "tests.capture", name])
    capture = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert capture.stdout is not None
    capture.stdout.readline()
    result: list[Arrivals] = []
    try:
        yield result
    finally:
        output, _ = capture.communicate(b"\n")
        assert capture.returncode == 0
        rows = list(struct.iter_unpack("=dI", output))
        start = rows[0][0] if rows else 0.0
        result.append(Arrivals(tuple((moment - start, size) for moment, size in rows)))


_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_VNET_HDR = 5, 6, 10, 15
_TPACKET_V2 = 1
_FRAME_BYTES, _BLOCK_BYTES, _BLOCKS = 256, 1 << 20, 128  # a packet's headers fit into a frame
_FRAME_WORDS = _FRAME_BYTES // 4
_VNET_BYTES = 10


def _capture(name: str) -> None:
    """Print the arrival and the size of each packet until standard input ends.

    The kernel writes the headers of packets into a ring (packet(7), TPACKET_V2) of which whole blocks
    are copied now and then: what is measured does not share its CPU with a look at each packet.
    """
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    packet.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS: of the arrival
    packet.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
    packet.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)  # how a GSO packet will be cut
    frames = _BLOCK_BYTES // _FRAME_BYTES
    request = struct.pack("=IIII", _BLOCK_BYTES, _BLOCKS, _FRAME_BYTES, _BLOCKS * frames)
    packet.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
    ring = memoryview(mmap.mmap(packet.fileno(), _BLOCKS * _BLOCK_BYTES)).cast("I")
    packet.bind((name, 0))
    packet.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # what came before the bind does not count
    sys.stdout.write("ready\n")
    sys.stdout.flush()

    taken: list[bytes] = []
    free = memoryview(bytes(4 * frames)).cast("I")
    for block in itertools.cycle(range(_BLOCKS)):
        words = ring[block * frames * _FRAME_WORDS :][: frames * _FRAME_WORDS]
        is_over = False
        while not (is_full := all(words[::_FRAME_WORDS])) and not is_over:
            is_over = bool(select.select([sys.stdin], [], [], 0.1)[0])
        taken.append(words.tobytes())
        if not is_full:
            break
        words[::_FRAME_WORDS] = free
    _, dropped = struct.unpack("II", packet.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    if dropped:
        sys.exit(f"{dropped} packets were not seen: the machine is too busy to measure")
    for copied in taken:
        sys.stdout.buffer.write(b"".join(map(_row, _frames(copied))))
    sys.stdout.flush()


def _frames(copied: bytes) -> Iterator[bytes]:
    """The frames that were filled and are of a packet that came, by IP."""
    for start in range(0, len(copied), _FRAME_BYTES):
        frame = copied[start : start + _FRAME_BYTES]
        (status,) = struct.unpack_from("=I", frame)
        protocol, kind = struct.unpack_from("!H", frame, 34)[0], frame[42]  # struct sockaddr_ll, behind
        if status and protocol in (0x0800, 0x86DD) and kind != 4:  # PACKET_OUTGOING
            yield frame


def _row(frame: bytes) -> bytes:
    """Arrival and size, from struct tpacket2_hdr and what it says the place of."""
    start, seconds, nanoseconds = struct.unpack_from("=HxxII", frame, 12)
    return struct.pack("=dI", seconds + nanoseconds / 1e9, _length(frame[start - _VNET_BYTES :]))


def _length(data: bytes) -> int:
    """Bytes on the wire, from the virtio header, the IP header and the size of segments."""
    _, gso_type, _, segment = struct.unpack_from("=BBHH", data, 0)
    frame = data[10:]
    is_ipv4 = frame[12:14] == b"\x08\x00"
    ip_bytes = (
        struct.unpack_from("!H", frame, 16)[0] if is_ipv4 else 40 + struct.unpack_from("!H", frame, 18)[0]
    )
    total = 14 + ip_bytes
    if gso_type and segment:
        transport = 14 + ((frame[14] & 15) * 4 if is_ipv4 else 40)
        is_tcp = frame[23 if is_ipv4 else 20] == 6
        headers = transport + ((frame[transport + 12] >> 4) * 4 if is_tcp else 8)
        segments = -(-(total - headers) // segment)
        total += (segments - 1) * headers
    return int(total)


if __name__ == "__main__":
    _capture(sys.argv[1])
