"""The packets that the benchmark makes, and what it judges programs by."""

from __future__ import annotations

import struct

import pytest

from tests.bench.findings import above
from tests.bench.frames import tcp_of_two_segments, udp


@pytest.mark.parametrize("size", [64, 1_500])
def test_a_udp_frame_is_as_long_as_its_name_and_its_headers_say(size: int) -> None:
    packet = udp(size)
    assert len(packet.frame) == packet.wire_bytes == size
    assert struct.unpack_from("!H", packet.frame, 14 + 2)[0] == size - 14
    assert struct.unpack_from("!H", packet.frame, 14 + 20 + 4)[0] == size - 14 - 20


def test_a_gso_packet_has_headers_of_its_own_for_each_segment() -> None:
    packet = tcp_of_two_segments()
    assert packet.wire_bytes == 2 * len(packet.frame) == 2 * (14 + 20 + 32)
    assert packet.frame[14 + 9] == 6
    assert packet.frame[14 + 20 + 12] >> 4 == 8  # words of header


def test_the_context_says_how_many_segments_and_nothing_else() -> None:
    (*zeros, segments) = struct.unpack("=42I", tcp_of_two_segments().context)
    assert not any(zeros)
    assert segments == 2


def test_a_disturbed_round_does_not_count() -> None:
    assert above([50, 900, 51, 50, 50, 52], [30, 30, 31, 800, 30, 30]) == (20, 19, 20)


def test_the_range_is_that_of_thirds_of_the_rounds() -> None:
    assert above([50, 51, 60, 61, 40, 41], [30, 30, 30, 30, 30, 30]) == (10, 10, 30)


def test_the_range_holds_the_figure() -> None:
    """The least of all may be of different thirds."""
    assert above([50, 45, 50], [30, 40, 30]) == (15, 5, 20)
