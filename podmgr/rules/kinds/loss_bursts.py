"""The rules of `loss` that lose packets in runs, by a Markov chain of four states: bpf/burst.bpf.c."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

from podmgr.errors import Fail
from podmgr.rules.kinds.loss_base import DECIDES, HOOKS, Loss
from podmgr.rules.markov import STATES, Cells, Chain, chain_of, runs_of
from podmgr.rules.rule import Direction, Figure, Hook, Macros, Rule, Stage, Template
from podmgr.rules.units import format_count, format_number, parse_number
from podmgr.rules.words import Words, percent_option

MAX_LENGTH = 1_000_000  # 1/N of 2^32 draws is then within 0.012 % of what it should be
LENGTHS_ARE = f"length=N, the packets of a run on average: 1 to {MAX_LENGTH}"
# What each form cannot be without, and what to write.
REQUIRED = {
    "burst": {"length": "length=N, the packets of a run on average, such as length=5"},
    "gilbert": {
        "p": "p=P%: how many packets lead from the good state to the bad one",
        "r": "r=P%: how many packets lead from the bad state to the good one",
    },
    "markov": {"p13": "p13=P%: how many packets lead from a gap to a burst"},
}
OPTIONS = {
    "burst": ("length",),
    "gilbert": ("p", "r", "bad", "good"),
    "markov": ("p13", "p31", "p32", "p23", "p14"),
}
LONGEST = 16  # packets of a run that are told apart, as in the program

TEMPLATE = Template("burst", Stage.LOSS, HOOKS, second_choice=Hook.CGROUP)

_WHOLE = Decimal(100)
_NONE = Decimal(0)


@dataclass(frozen=True, slots=True)
class _Chained(Loss):
    """What all of them have in common: a chain of states, of which some lose the packet."""

    @property
    @abstractmethod
    def cells(self) -> Cells:
        """How probably a state leads to another; what is not there never happens."""

    @property
    @abstractmethod
    def parameters(self) -> list[tuple[str, str]]:
        """Rows of `explain`: what makes the chain."""

    @property
    def chain(self) -> Chain:
        return chain_of(self.cells)

    @property
    def program(self) -> str:
        return TEMPLATE.name

    @property
    def macros(self) -> Macros:
        return tuple(
            (f"P{state}{to}", f"{draws}ULL")
            for state, row in self.chain.rows.items()
            for to, draws in row.items()
            if draws and to != state
        )

    def explain(self) -> list[tuple[str, str]]:
        runs = runs_of(self.chain)
        never = "without end" if runs.loss else "none"
        one_in = f", 1 in {format_count(1 / runs.loss)} packets" if runs.loss else ""
        rows = [("mean loss", f"{_percent_text(runs.loss)}{one_in}")]
        rows.append(("mean run", never if runs.run is None else f"{format_count(runs.run)} packets in a row"))
        if runs.gap is not None:
            rows.append(("mean gap", f"{format_count(runs.gap)} packets between runs"))
        first = ("first packet", "as if the one before had been received, in a gap")
        return [*rows, *self.parameters, first, DECIDES]

    def caveats(self, hook: Hook) -> list[str]:
        loss, run, _ = runs_of(self.chain)
        lines = []
        if not loss and runs_of(_not_rounded(self.cells)).loss:
            lines.append(f"'{self}' drops nothing: the least that is not 0 is one draw in 2^32")
        if loss and run is None:
            lines.append(f"'{self}' ends no run of losses: from the first on all packets are lost")
        return lines + Loss.caveats(self, hook)

    def figures(self, counted: Sequence[int]) -> list[Figure]:
        """Runs begun, and the mean length of those that have ended: see bpf/burst.bpf.c."""
        begun, ended, lost = counted[0], sum(counted[1 : 1 + LONGEST]), counted[1 + LONGEST]
        mean = [Figure("mean run", lost / ended, "packets")] if ended else []
        return [Figure("runs", begun), *mean]


def _not_rounded(cells: Cells) -> Chain:
    """A chain that goes all ways that these have, however rarely they do."""
    return chain_of({way: Fraction(1, 4) for way, probability in cells.items() if probability})


@dataclass(frozen=True, slots=True)
class BurstLoss(_Chained):
    """`percent` (0 to 100) of all packets are lost, in runs of `length` (1 to 1e6) packets on average.

    Gilbert's model: a run ends with probability r = 1/N, and begins with p = P r / (1 - P).
    """

    percent: Decimal
    length: Decimal

    @property
    def words(self) -> list[str]:
        length = f"length={format_number(self.length)}"
        return ["burst", self.direction, f"{format_number(self.percent)}%", length]

    @property
    def cells(self) -> Cells:
        loss, ends = Fraction(self.percent) / 100, 1 / Fraction(self.length)
        return {(1, 3): loss * ends / (1 - loss), (3, 1): ends}

    @property
    def parameters(self) -> list[tuple[str, str]]:
        return [
            ("run begins", f"{_percent_text(self.cells[1, 3])} of packets behind one that was received"),
            ("run ends", f"{_percent_text(self.cells[3, 1])} of packets behind one that was lost"),
        ]


@dataclass(frozen=True, slots=True)
class GilbertLoss(_Chained):
    """Gilbert-Elliott. Percent, 0 to 100: `p` of packets lead from the good state to the bad one, `r` back;
    in the bad one `bad` are lost, in the good one `good`.
    """

    p: Decimal
    r: Decimal
    bad: Decimal = _WHOLE
    good: Decimal = _NONE

    @property
    def words(self) -> list[str]:
        words = ["gilbert", self.direction, *_option("p", self.p), *_option("r", self.r)]
        return words + _option("bad", self.bad, _WHOLE) + _option("good", self.good, _NONE)

    @property
    def cells(self) -> Cells:
        p, r, bad, good = (Fraction(percent) / 100 for percent in (self.p, self.r, self.bad, self.good))
        from_good = {1: (1 - p) * (1 - good), 4: (1 - p) * good, 2: p * (1 - bad), 3: p * bad}
        from_bad = {1: r * (1 - good), 4: r * good, 2: (1 - r) * (1 - bad), 3: (1 - r) * bad}
        rows = {1: from_good, 4: from_good, 2: from_bad, 3: from_bad}
        return {(state, to): row[to] for state, row in rows.items() for to in STATES if to != state}

    @property
    def parameters(self) -> list[tuple[str, str]]:
        return [
            ("p", f"{format_number(self.p)}%: from the good state to the bad one"),
            ("r", f"{format_number(self.r)}%: from the bad state to the good one"),
            ("bad", f"{format_number(self.bad)}% of packets are lost in the bad state"),
            ("good", f"{format_number(self.good)}% of packets are lost in the good state"),
        ]


@dataclass(frozen=True, slots=True)
class MarkovLoss(_Chained):
    """netem's four states. Percent, 0 to 100: `p13` of packets lead from state 1 to state 3, and so on.

    1: received, in a gap; 2: received, in a burst; 3: lost, in a burst; 4: lost alone, from where it is
    always 1 again.
    """

    p13: Decimal
    p31: Decimal
    p32: Decimal = _NONE
    p23: Decimal = _WHOLE
    p14: Decimal = _NONE

    @property
    def words(self) -> list[str]:
        words = ["markov", self.direction, *_option("p13", self.p13), *_option("p31", self.p31)]
        words += _option("p32", self.p32, _NONE) + _option("p23", self.p23, _WHOLE)
        return words + _option("p14", self.p14, _NONE)

    @property
    def cells(self) -> Cells:
        return {
            (1, 3): Fraction(self.p13) / 100,
            (1, 4): Fraction(self.p14) / 100,
            (2, 3): Fraction(self.p23) / 100,
            (3, 1): Fraction(self.p31) / 100,
            (3, 2): Fraction(self.p32) / 100,
            (4, 1): Fraction(1),
        }

    @property
    def parameters(self) -> list[tuple[str, str]]:
        return [
            ("p13", f"{format_number(self.p13)}%: from a gap to the first loss of a burst"),
            ("p31", f"{format_number(self.p31)}%: from a loss of a burst to a gap"),
            ("p32", f"{format_number(self.p32)}%: from a loss of a burst to what is received within it"),
            ("p23", f"{format_number(self.p23)}%: from there to a loss of the burst again"),
            ("p14", f"{format_number(self.p14)}%: from a gap to an isolated loss"),
        ]


def _option(name: str, percent: Decimal, default: Decimal | None = None) -> list[str]:
    return [] if percent == default else [f"{name}={format_number(percent)}%"]


def _percent_text(share: Fraction) -> str:
    return f"{float(share * 100):.7g}%"


def _read_burst(words: Words, directions: Collection[Direction]) -> tuple[Rule, ...]:
    percent = words.percent("the probability")
    own, common = words.options({"length": _length})
    length = _required(words, own, "burst", "length")
    if Fraction(percent) / 100 > Fraction(length) / (Fraction(length) + 1):
        most = _hundredth(100 * Fraction(length) / (Fraction(length) + 1), ROUND_FLOOR)
        expected = f"{most}% at most with length={format_number(length)}, since a packet lies between runs"
        if percent < 100:
            least = _hundredth(Fraction(percent) / (100 - Fraction(percent)), ROUND_CEILING)
            expected += f"; or length={least} and more"
        raise words.fail(f"runs cannot be so short with a loss of {format_number(percent)}%", expected)
    return tuple(BurstLoss(direction, percent, length, **common._asdict()) for direction in directions)


def _hundredth(number: Fraction, rounding: str) -> str:
    exact = Decimal(number.numerator) / Decimal(number.denominator)
    return format_number(exact.quantize(Decimal("0.01"), rounding))


def _length(text: str, fail: Fail) -> Decimal:
    try:
        length = parse_number(text)
    except ValueError as error:
        raise fail(f"the length is wrong: {error}", LENGTHS_ARE) from error
    if not 1 <= length <= MAX_LENGTH:
        raise fail(f"a length of {format_number(length)} is out of range", LENGTHS_ARE)
    return length


def _read_gilbert(words: Words, directions: Collection[Direction]) -> tuple[Rule, ...]:
    own, common = words.options(dict.fromkeys(OPTIONS["gilbert"], percent_option))
    for name in REQUIRED["gilbert"]:
        _required(words, own, "gilbert", name)
    return tuple(GilbertLoss(direction, **own, **common._asdict()) for direction in directions)


def _read_markov(words: Words, directions: Collection[Direction]) -> tuple[Rule, ...]:
    own, common = words.options(dict.fromkeys(OPTIONS["markov"], percent_option))
    p13: Decimal = _required(words, own, "markov", "p13")
    is_written = "p31" in own
    p31: Decimal = own.setdefault("p31", _WHOLE - p13)
    for one, other, more in (("p13", "p14", p13), ("p31", "p32", p31)):
        if more + own.get(other, _NONE) > _WHOLE:
            rest, beside = format_number(_WHOLE - more), f"{one}={format_number(more)}%"
            beside += " (100% - p13 where it is not written)" if one == "p31" and not is_written else ""
            raise words.fail(
                f"{one} and {other} are {format_number(more + own[other])}% together",
                f"{other}={rest}% at most beside {beside}: both leave state {one[1]}",
                option=other,
            )
    return tuple(MarkovLoss(direction, **own, **common._asdict()) for direction in directions)


def _required(words: Words, own: Mapping[str, Decimal], form: str, name: str) -> Decimal:
    if name not in own:
        raise words.error(f"{name} is missing", expected=REQUIRED[form][name])
    return own[name]


READERS: Mapping[str, Callable[[Words, Collection[Direction]], tuple[Rule, ...]]] = {
    "burst": _read_burst,
    "gilbert": _read_gilbert,
    "markov": _read_markov,
}
