"""Packets for programs to judge, as the kernel takes them from user space."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_GSO_SEGS_OFFSET = 164  # of struct __sk_buff, in linux/bpf.h
PEER = "198.18.0.2"  # to whom they go
ETHERNET_BYTES, IPV4_BYTES, UDP_BYTES, _TCP_BYTES = 14, 20, 8, 20


@dataclass(frozen=True)
class Packet:
    """A frame; `segments` is what the kernel takes it for, and `wire_bytes` what that is on the wire."""

    name: str
    frame: bytes
    wire_bytes: int
    segments: int = 0

    @property
    def context(self) -> bytes:
        """A `struct __sk_buff` up to gso_segs, which alone is set."""
        return bytes(_GSO_SEGS_OFFSET) + struct.pack("=I", self.segments)


def udp(frame_bytes: int) -> Packet:
    """Ethernet, IPv4 and UDP, and a payload of zeros."""
    ip_bytes = frame_bytes - ETHERNET_BYTES
    header = struct.pack("!HHHH", 40_000, 9, ip_bytes - IPV4_BYTES, 0)
    return Packet(f"{frame_bytes} B", _ip(ip_bytes, 17, header), frame_bytes)


def tcp_of_two_segments() -> Packet:
    """What a GSO packet costs: the headers of its segments are looked for, however many there are.

    Only its headers can be loaded at once, as where TCP made it: its frame has nothing else.
    """
    options = b"\x01\x01\x08\x0a" + bytes(8)  # timestamps
    tcp_bytes = _TCP_BYTES + len(options)
    header = struct.pack("!HHIIBBHHH", 40_000, 9, 0, 0, (tcp_bytes // 4) << 4, 0x10, 1_000, 0, 0) + options
    frame_bytes = ETHERNET_BYTES + IPV4_BYTES + tcp_bytes
    return Packet("TCP, GSO", _ip(IPV4_BYTES + tcp_bytes, 6, header), 2 * frame_bytes, segments=2)


def _ip(ip_bytes: int, protocol: int, transport: bytes) -> bytes:
    addresses = bytes([198, 18, 0, 1]), bytes([198, 18, 0, 2])
    fields = struct.pack("!BBHHHBBH4s4s", 0x45, 0, ip_bytes, 0, 0, 64, protocol, 0, *addresses)
    head = bytes(12) + b"\x08\x00" + fields + transport
    return head.ljust(ETHERNET_BYTES + ip_bytes, b"\0")


SMALL, LARGE, GSO = udp(64), udp(1_500), tcp_of_two_segments()
