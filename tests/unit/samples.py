"""What several unit tests need: strategies for rules, rows, scripted commands, BPF objects, patience."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from hypothesis import strategies as st

from podmgr import proc
from podmgr.attachment import Attachment, Link, PodRef
from podmgr.proc import Completed, Limits
from podmgr.programs import clang
from podmgr.rules import distributions
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.kinds.bandwidth import (
    MAX_BURST_BYTES,
    MAX_RATE_BITS_PER_SECOND,
    MIN_BURST_BYTES,
    MIN_RATE_BITS_PER_SECOND,
    Algorithm,
    Bandwidth,
)
from podmgr.rules.kinds.block import Block, Cut, Reply, State
from podmgr.rules.kinds.corrupt import As, Corrupt
from podmgr.rules.kinds.custom import Custom
from podmgr.rules.kinds.delay import MIN_DELAY_NS, Delay, Order
from podmgr.rules.kinds.duplicate import Duplicate
from podmgr.rules.kinds.loss import ExponentialLoss, UniformLoss
from podmgr.rules.kinds.loss_bursts import BurstLoss, GilbertLoss, MarkovLoss
from podmgr.rules.kinds.reorder import Reorder
from podmgr.rules.programs import RESERVED_MACROS
from podmgr.rules.rule import ANYWHERE, Direction, Hook, Place, Rule, only
from podmgr.rules.source import CLI
from podmgr.rules.waiting import MAX_WAIT_NS, MIN_WAIT_NS

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS

directions = st.sampled_from(Direction)
rates = st.integers(MIN_RATE_BITS_PER_SECOND, MAX_RATE_BITS_PER_SECOND)


def decimals(maximum: int) -> st.SearchStrategy[Decimal]:
    """0 to `maximum`, with up to twelve decimals."""
    return st.integers(0, 12).flatmap(
        lambda places: st.integers(0, maximum * 10**places).map(lambda n: Decimal(n).scaleb(-places))
    )


percents = decimals(100)
thresholds = decimals(1000)

interfaces = st.frozensets(
    st.sampled_from(["eth0", "eth0.100", "net1", "cali12ab34cd56e", "ETH0", "veth@x", "a-b_c", "0"]),
    max_size=3,
).map(lambda names: tuple(sorted(names)))
places = st.one_of(
    st.just(ANYWHERE),
    st.just(Place(Hook.CGROUP)),
    st.builds(Place, st.sampled_from([None, Hook.TC]), interfaces),
)
tc_places = st.builds(Place, st.sampled_from([None, Hook.TC]), interfaces)

bursts = st.none() | st.integers(MIN_BURST_BYTES, MAX_BURST_BYTES)
bandwidths = st.one_of(
    st.builds(Bandwidth, directions, rates, bursts, place=places),
    st.builds(Bandwidth, directions, rates, st.none(), st.just(Algorithm.EDT), place=places),
)
uniform_losses = st.builds(UniformLoss, directions, percents, place=places)
exponential_losses = st.builds(ExponentialLoss, directions, thresholds, place=places)
wholes = st.integers(MIN_DELAY_NS, 10**9)


@st.composite
def _delays(draw: st.DrawFn) -> Delay:
    time_ns = draw(wholes)
    place = draw(places.filter(lambda place: place.hook is not Hook.CGROUP))
    jitter_ns = draw(st.just(0) | st.integers(1, time_ns))
    if not jitter_ns:
        return Delay(draw(directions), time_ns, place=place)
    distribution = draw(st.sampled_from(["uniform", *distributions.BUILT_IN, "Own-1"]))
    correlation = draw(percents.filter(lambda percent: percent < 100))
    order = draw(st.sampled_from(Order))
    return Delay(draw(directions), time_ns, jitter_ns, distribution, correlation, order, place=place)


delays = _delays()


@st.composite
def _bursts(draw: st.DrawFn) -> BurstLoss:
    """Of which no two runs meet: P is N / (N + 1) at most."""
    percent, length = draw(percents), 1 + draw(decimals(999_999))
    if percent * (length + 1) > 100 * length:
        percent = Decimal(50)
    return BurstLoss(draw(directions), percent, length, place=draw(places))


@st.composite
def _markovs(draw: st.DrawFn) -> MarkovLoss:
    """Of which no state is left more often than always."""
    (p13, p14), (p31, p32) = (
        (one, min(other, 100 - one)) for one, other in draw(st.tuples(*[st.tuples(percents, percents)] * 2))
    )
    return MarkovLoss(draw(directions), p13, p31, p32, draw(percents), p14, place=draw(places))


burst_losses = _bursts()
gilbert_losses = st.builds(GilbertLoss, directions, percents, percents, percents, percents, place=places)
markov_losses = _markovs()
chained_losses: st.SearchStrategy[BurstLoss | GilbertLoss | MarkovLoss] = st.one_of(
    burst_losses, gilbert_losses, markov_losses
)
duplicates = st.builds(Duplicate, directions, percents, place=tc_places)
corruptions = st.builds(Corrupt, directions, percents, st.sampled_from(As), place=tc_places)
reorders = st.builds(Reorder, directions, percents, st.integers(MIN_WAIT_NS, MAX_WAIT_NS), place=tc_places)
blocks = st.builds(
    Block, directions, st.sampled_from(Reply), st.just(State.ALL), st.sampled_from(Cut), place=tc_places
) | st.one_of(
    st.builds(Block, directions, st.sampled_from(Reply), st.just(State.NEW), place=tc_places),
    st.builds(Block, directions, place=places),
)
by_chance = st.one_of(duplicates, corruptions, reorders)
macro_tuples = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True).filter(
        lambda name: name not in RESERVED_MACROS
    ),
    st.none() | st.from_regex(r"[A-Za-z0-9_]{0,20}", fullmatch=True),
    max_size=4,
).map(lambda macros: tuple(sorted(macros.items())))
customs = st.builds(
    Custom,
    directions,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
    macro_tuples,
    place=st.builds(Place, st.none(), interfaces),
)
rules: st.SearchStrategy[Rule] = st.one_of(
    bandwidths, delays, uniform_losses, exponential_losses, chained_losses, by_chance, blocks, customs
)


def parsed(text: str) -> Rule:
    """The one rule of a `KEY=VALUE`."""
    return only(parse_rule_option(text))


def attachment(
    rule: str = "loss=uniform egress 1%",
    *,
    cgroup_id: int = 7,
    digest: str = "0123456789abcdef",
    direction: Direction = EGRESS,
    owner: str | None = None,
    pod: PodRef | None = None,
    program_id: int | None = None,
    target: str | None = None,
    links: Sequence[Link] = (),
    is_scoped: bool = False,
) -> Attachment:
    """A row as `apply` makes it; with `links` one at the tc hook."""
    return Attachment(
        target=f"cgroup/{cgroup_id}" if target is None else target,
        owner=str(cgroup_id) if owner is None else owner,
        cgroup_path=f"/cgroups/{cgroup_id}",
        cgroup_id=cgroup_id,
        rule=parsed(rule) if rule else None,
        direction=direction,
        hook=Hook.TC if links else Hook.CGROUP,
        source=CLI,
        digest=digest,
        object_digest="f" * 16,
        pod=pod,
        program_id=program_id,
        links=tuple(links),
        is_scoped=is_scoped,
    )


@dataclass
class Script:
    """A runner that gives always the same answer, or that of a function, and keeps what it was given."""

    answer: Completed | Callable[[Sequence[str], bytes], Completed]
    calls: list[tuple[str, ...]] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    fds: list[tuple[int, ...]] = field(default_factory=list)
    variables: list[Mapping[str, str]] = field(default_factory=list)

    def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        limits: Limits | None = None,  # noqa: ARG002
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.calls.append(tuple(argv))
        self.inputs.append(stdin)
        self.fds.append(tuple(pass_fds))
        self.variables.append(env or {})
        return self.answer if isinstance(self.answer, Completed) else self.answer(argv, stdin)


def said(stdout: str, *, code: int = 0, stderr: str = "") -> Completed:
    """A command that has ended after printing `stdout`."""
    return Completed(("command",), code, stdout.encode(), stderr)


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 30  # a busy machine's
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HEADERS = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
"""
LICENCE = 'char LICENSE[] SEC("license") = "GPL";\n'
PROGRAM = 'SEC("cgroup_skb/egress") int program(struct __sk_buff *skb) { return 1; }\n'


@functools.cache
def bpf_object(source: str) -> bytes:
    """The BPF object of a C source."""
    return clang.compile_c(source.encode(), name="sample", macros=(), runner=proc.run)
