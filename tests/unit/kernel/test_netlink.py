"""rtnetlink: what a socket makes of answers, and for real in namespaces."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import netlink
from podmgr.kernel.netlink import RefusedError, RouteSocket, attribute, attributes, text

GETLINK, NEWQDISC = 18, 36
ERROR, DONE = 2, 3
MULTI, INTERRUPTED = 0x2, 0x10
CAPPED, ACK_TLVS = 0x100, 0x200


def message(kind: int, payload: bytes, *, flags: int = 0, sequence: int = 1) -> bytes:
    body = payload + bytes(-len(payload) % 4)
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 7) + body


def done(*, sequence: int = 1) -> bytes:
    return message(DONE, struct.pack("=i", 0), flags=MULTI, sequence=sequence)


def error(number: int, *, request: bytes = b"", told: str = "", is_capped: bool = False) -> bytes:
    """struct nlmsgerr: the request it answers, or its head alone, and the kernel's words."""
    head = struct.pack("=IHHII", 16 + len(request), NEWQDISC, 5, 1, 0)
    payload = struct.pack("=i", -number) + head + (b"" if is_capped else request)
    words = attribute(1, told.encode() + b"\0") if told else b""
    flags = (CAPPED if is_capped else 0) | (ACK_TLVS if told else 0)
    return message(ERROR, payload + words, flags=flags)


class Scripted:
    """A socket that gives these answers, one for each time that it is read."""

    def __init__(self, *answers: bytes, flags: int = 0) -> None:
        self.answers = list(answers)
        self.flags = flags
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)
        self.sent.append(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, None]:
        answer = self.answers.pop(0)
        assert len(answer) <= size
        return answer, [], self.flags, None


def route(*answers: bytes, flags: int = 0) -> tuple[RouteSocket, Scripted]:
    scripted = Scripted(*answers, flags=flags)
    return RouteSocket(cast(socket.socket, scripted)), scripted


# Answers


def test_dump_is_all_messages_until_the_kernel_says_that_it_is_done() -> None:
    first = message(16, b"one") + message(16, b"two!")
    made, scripted = route(first, message(16, b"three") + done())
    assert made.dump(GETLINK, bytes(16)) == [b"one", b"two!", b"three"]
    assert scripted.sent == [struct.pack("=IHHII", 32, GETLINK, 0x301, 1, 0) + bytes(16)]


def test_each_request_has_a_number_and_answers_to_others_are_passed_over() -> None:
    made, scripted = route(done(), message(16, b"old") + message(16, b"new", sequence=2) + done(sequence=2))
    assert made.dump(GETLINK, b"") == []
    assert made.dump(GETLINK, b"") == [b"new"]
    assert [struct.unpack_from("=I", sent, 8)[0] for sent in scripted.sent] == [1, 2]


def test_dump_that_a_change_fell_into_is_asked_for_again() -> None:
    torn = message(16, b"half", flags=INTERRUPTED | MULTI) + done()
    made, _ = route(torn, message(16, b"whole", sequence=2) + done(sequence=2))
    assert made.dump(GETLINK, b"") == [b"whole"]


def test_dump_that_is_always_torn_is_an_error_and_not_an_answer() -> None:
    torn = [message(16, b"half", flags=INTERRUPTED, sequence=n) + done(sequence=n) for n in range(1, 99)]
    made, _ = route(*torn)
    with pytest.raises(PodmgrError, match="changes faster than it can be looked at"):
        made.dump(GETLINK, b"")


def test_answer_that_was_cut_off_is_an_error() -> None:
    made, _ = route(message(16, b"one"), flags=socket.MSG_TRUNC)
    with pytest.raises(PodmgrError, match="more of an interface than there is room for"):
        made.dump(GETLINK, b"")


def test_question_has_one_answer_and_its_acknowledgement_is_read() -> None:
    made, scripted = route(message(88, b"answer") + error(0))
    assert made.ask(90, b"") == b"answer"
    assert scripted.answers == []


@pytest.mark.parametrize("is_capped", [True, False])
@pytest.mark.parametrize("request_", [b"", b"x" * 40])
def test_refusal_is_told_in_the_kernels_words(request_: bytes, is_capped: bool) -> None:
    told = error(errno.EEXIST, request=request_, told="Exclusivity flag on", is_capped=is_capped)
    made, _ = route(told)
    with pytest.raises(RefusedError, match=r"^Exclusivity flag on$") as caught:
        made.create(NEWQDISC, request_)
    assert caught.value.errno == errno.EEXIST


def test_refusal_without_words_is_told_by_its_number() -> None:
    made, _ = route(error(errno.ENODEV, request=bytes(20)))
    with pytest.raises(RefusedError, match="No such device"):
        made.delete(NEWQDISC, b"")


def test_dump_may_end_with_an_error() -> None:
    made, _ = route(message(16, b"one") + message(DONE, struct.pack("=i", -errno.EPERM), flags=MULTI))
    with pytest.raises(RefusedError, match="Operation not permitted"):
        made.dump(GETLINK, b"")


def test_only_what_is_not_there_is_made() -> None:
    made, scripted = route(error(0), error(0).replace(struct.pack("=II", 1, 7), struct.pack("=II", 2, 7)))
    made.create(NEWQDISC, b"")
    made.delete(NEWQDISC, b"")
    flags = [struct.unpack_from("=H", sent, 6)[0] for sent in scripted.sent]
    assert flags == [0x1 | 0x4 | 0x200 | 0x400, 0x1 | 0x4]


# Attributes


@pytest.mark.parametrize("value", [b"", b"a", b"abcd", b"abcde"])
def test_attributes_are_read_as_they_are_written(value: bytes) -> None:
    data = attribute(1, value) + attribute(2, b"next")
    assert len(data) % 4 == 0
    assert attributes(data) == {1: value, 2: b"next"}
    assert attributes(b"head" + data, 4) == {1: value, 2: b"next"}


@pytest.mark.parametrize("data", [b"", b"\x01", b"\0\0\1\0", b"\xff\xff\1\0abcd"])
def test_broken_attributes_are_no_end_of_it(data: bytes) -> None:
    assert len(attributes(data)) <= 1


def test_flags_of_a_type_are_not_part_of_it() -> None:
    assert attributes(attribute(0x8000 | 5, b"nest")) == {5: b"nest"}


def test_text_ends_at_a_zero() -> None:
    assert (text(b"eth0\0rest"), text(b"eth0"), text(b"")) == ("eth0", "eth0", "")


# For real


@pytest.fixture
def namespace(stranger: int) -> Iterator[int]:
    fd = os.open(f"/proc/{stranger}/ns/net", os.O_RDONLY)
    yield fd
    os.close(fd)


def own() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_socket_is_in_the_namespace_and_we_are_not(namespace: int) -> None:
    here, before = own(), os.listdir("/proc/self/fd")
    with netlink.opened(namespace) as made:
        found = made.dump(GETLINK, bytes(16))
        assert own() == here
    assert {text(attributes(answer, 16)[3]) for answer in found} >= {"lo"}
    assert os.listdir("/proc/self/fd") == before


def test_new_namespace_is_nobodys_and_gone_again() -> None:
    here = own()
    with netlink.opened(None) as made:
        (lo,) = [answer for answer in made.dump(GETLINK, bytes(16)) if b"lo\0" in answer]
        assert struct.unpack_from("=I", lo, 8)[0] & 1 == 0  # nobody has set it up
        assert own() == here


def test_refusal_is_the_kernels(namespace: int) -> None:
    with netlink.opened(namespace) as made:
        body = struct.pack("=BxxxiIII", 0, 1, 0, 0xFFFFFFFF, 0) + attribute(1, b"nosuch\0")
        with pytest.raises(RefusedError, match="Specified qdisc kind is unknown") as caught:
            made.create(NEWQDISC, body)
        assert caught.value.errno == errno.ENOENT
        assert made.dump(GETLINK, bytes(16)) != []  # and the socket goes on


def test_what_is_no_namespace_is_an_error() -> None:
    with Path("/dev/null").open() as file, pytest.raises(PodmgrError, match="Invalid argument"):
        netlink.opened(file.fileno())


def test_namespace_that_may_not_be_entered_is_told_apart(namespace: int, mocker: MockerFixture) -> None:
    """As without SYS_ADMIN."""
    refusal = mocker.patch("podmgr.kernel.netlink._libc.setns", return_value=-1)
    mocker.patch("podmgr.kernel.netlink.ctypes.get_errno", return_value=errno.EPERM)
    with pytest.raises(PermissionDeniedError, match="not allowed to enter a network namespace"):
        netlink.opened(namespace)
    refusal.assert_called_once()
