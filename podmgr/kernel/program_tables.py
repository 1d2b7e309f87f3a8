"""What programs look up beside themselves: which packets are theirs, and when. bpf/match.h, bpf/timing.h.

The tables of a program that acts are changed so that each packet meets the old list or the new one: lists are
written where none is in use, then prefixes are led to them, and only then those go that are not wanted.
Meanwhile the program remembers no peer (bpf/recent.h), also if the one who writes is killed.

Apart from `reconcile.lookups`, which alone uses it: the layout in the kernel, without what shall stand there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from podmgr.errors import PodmgrError
from podmgr.kernel.map_contents import PinnedMap
from podmgr.kernel.pins import Pin
from podmgr.kernel.starts import now_ns, since_boot_ns
from podmgr.rules.peers import Prefix
from podmgr.rules.tables import Term
from podmgr.rules.timing import Timing

_MOST_TERMS = 512
_WORTH_REMEMBERING = 256  # prefixes: with fewer the kernel finds a peer sooner than podmgr's memory does
_FOREVER_NS = 2**64 - 1

_INDEX = struct.Struct("=I")
_PREFIX = struct.Struct("=I17s3x")
_LIST = struct.Struct("=II")
_TERM = struct.Struct("=6HBBHI")
_WINDOW = struct.Struct("=5Q")
_STATE = struct.Struct("=Q")
_THE_ONE = _INDEX.pack(0)
_TAKES_AWAY, _IS_TIMED = 1, 2


def write_windows(pin: Pin, windows: Sequence[tuple[Timing, int]]) -> None:
    """The times of the program's own rule and of those that may hide it, each with its start since boot."""
    with PinnedMap(pin.windows, _INDEX.size, _WINDOW.size) as there:
        for number, (timing, start_ns) in enumerate(windows):
            until_ns = since_boot_ns(timing.until_ns) if timing.until_ns else _FOREVER_NS
            from_ns = start_ns + timing.after_ns
            there[_INDEX.pack(number)] = _WINDOW.pack(
                0, from_ns, min(max(until_ns, 0), _FOREVER_NS), timing.for_ns, timing.every_ns
            )


def write_lists(pin: Pin, lists: Mapping[Prefix, tuple[Term, ...]]) -> int:
    """Make the program's table this one; how many prefixes were changed. Raises PodmgrError."""
    with (
        PinnedMap(pin.peers, _PREFIX.size, _LIST.size) as peers,
        PinnedMap(pin.terms, _INDEX.size, _TERM.size) as terms,
        PinnedMap(pin.state_of_peers, _INDEX.size, _STATE.size) as state,
    ):
        there = {key: peers[key] for key in list(peers)}
        places = {
            b"".join(terms[_INDEX.pack(first + number)] for number in range(count)): (first, count)
            for first, count in map(_LIST.unpack, set(there.values()))
        }
        packed = {wanted: b"".join(map(_pack, wanted)) for wanted in set(lists.values())}
        for content in packed.values():
            if content not in places:
                first = _free_place(places.values(), len(content) // _TERM.size)
                for number in range(len(content) // _TERM.size):
                    start = number * _TERM.size
                    terms[_INDEX.pack(first + number)] = content[start : start + _TERM.size]
                places[content] = (first, len(content) // _TERM.size)
        wanted = {
            _PREFIX.pack(prefix.bits, prefix.address): _LIST.pack(*places[packed[terms_there]])
            for prefix, terms_there in lists.items()
        }
        changed = [key for key, value in wanted.items() if there.get(key) != value]
        gone = there.keys() - wanted.keys()
        if changed or gone:
            state[_THE_ONE] = _STATE.pack(0)
        for key in changed:
            peers[key] = wanted[key]
        for key in gone:
            del peers[key]
        if len(wanted) >= _WORTH_REMEMBERING and state[_THE_ONE] == _STATE.pack(0):
            state[_THE_ONE] = _STATE.pack(now_ns())  # no state before it had this number
        return len(changed) + len(gone)


def _pack(term: Term) -> bytes:
    return _TERM.pack(
        term.protocol or 0,
        0 if term.protocol is None else 0xFFFF,
        *term.ports,
        *term.local_ports,
        term.rule,
        _TAKES_AWAY * term.takes_away | _IS_TIMED * term.is_timed,
        term.container is not None,
        (term.container or 0) & 0xFFFF_FFFF,
    )


def _free_place(taken: Iterable[tuple[int, int]], count: int) -> int:
    """Where so many terms lie in nobody's list."""
    end = 0
    for first, length in sorted(taken):
        if first - end >= count:
            return end
        end = max(end, first + length)
    if end + count > _MOST_TERMS:
        raise PodmgrError("a program's table has no room for a change", tip="apply again")
    return end
