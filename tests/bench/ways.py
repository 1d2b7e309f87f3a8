"""Ways of limiting a pod in a lab: podmgr's, the kernel's own, and those of peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copy

from tests.lab import Lab


@dataclass(frozen=True)
class Way:
    """One way of limiting a pod: `limiting(made, mbps, direction)` holds it while a block runs."""

    name: str
    parameters: str
    limiting: Callable[[Lab, float, str], AbstractContextManager[None]]
    drops_behind_the_interface: bool = False  # of what the pod receives
    counts: bool = True


@contextmanager
def _podmgr(options: str, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    with made.under(f"bandwidth={mbps:g} mbps {direction}{options}"):
        yield


NO_LIMIT = Way("no limit", "", lambda *_: nullcontext())
TBF = Way("podmgr tbf", "bandwidth=RATE DIRECTION", partial(_podmgr, ""), drops_behind_the_interface=True)
EDT = Way("podmgr edt", "bandwidth=RATE DIRECTION algorithm=edt", partial(_podmgr, " algorithm=edt"))


@contextmanager
def _seed(programs: Path, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    rule = f"ebpf-limit=seed {direction} -DRATE={int(mbps * 1e6)}ULL"
    with made.under(rule, options=["--program-dir", str(programs)]):
        yield


def seed_way(programs: Path) -> Way:
    return Way(
        "seed",
        "a full bucket of 1 s, no lock, return 0",
        partial(_seed, programs),
        drops_behind_the_interface=True,
        counts=False,
    )


@contextmanager
def seed_programs() -> Iterator[Path]:
    """A program folder that holds the seed, as podmgr wants it: nobody else can write to it."""
    with tempfile.TemporaryDirectory(prefix="podmgr-bench-") as folder:
        copy(Path(__file__).with_name("seed.bpf.c"), folder)
        yield Path(folder)


@contextmanager
def qdisc(words: str, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    """As the root of the interface that sends: the pod's, or the node's towards the pod."""
    pid, name = (made.node, "pod0") if direction == "ingress" else (made.pod, "eth0")
    first, *others = words.format(rate=f"{mbps:g}mbit", dev=name).split("; ")
    made.sh(pid, f"tc {first}")
    try:
        for line in others:
            made.sh(pid, f"tc {line}")
        yield
    finally:
        made.sh(pid, f"tc qdisc del dev {name} root")


@contextmanager
def _plugin(burst: str, made: Lab, mbps: float, direction: str) -> Iterator[None]:
    """The CNI bandwidth plugin's way: all on the node's side, egress through an ifb."""
    tbf = f"root tbf rate {mbps:g}mbit burst {burst} latency 25ms"
    if direction == "ingress":
        with qdisc(f"qdisc add dev {{dev}} {tbf}", made, mbps, direction):
            yield
        return
    with ExitStack() as stack:
        made.sh(made.node, "ip link add bwp0 type ifb")
        stack.callback(made.sh, made.node, "ip link del bwp0")
        made.sh(made.node, "ip link set bwp0 up")
        made.sh(made.node, f"tc qdisc add dev bwp0 {tbf}")
        made.sh(made.node, "tc qdisc add dev pod0 clsact")
        stack.callback(made.sh, made.node, "tc qdisc del dev pod0 clsact")
        redirect = f"{_ALL} action mirred egress redirect dev bwp0"
        made.sh(made.node, f"tc filter add dev pod0 ingress protocol all {redirect}")
        yield


_ALL = "u32 match u32 0 0"
_TBF = "tbf rate {rate} burst 128kb latency 50ms"
_HTB = (
    "qdisc add dev {dev} root handle 1: htb default 1; "
    "class add dev {dev} parent 1: classid 1:1 htb rate {rate}"
)
KERNEL = (
    Way("kernel tbf", _TBF, partial(qdisc, f"qdisc add dev {{dev}} root {_TBF}")),
    Way("kernel htb", "htb default 1, class rate RATE", partial(qdisc, _HTB)),
    Way(
        "CNI plugin",
        "tbf rate RATE burst 536870911b latency 25ms: containerd's burst, 2^32 - 1 bits",
        partial(_plugin, "536870911b"),
    ),
    Way("CNI plugin, 128 KiB", "tbf rate RATE burst 128kb latency 25ms", partial(_plugin, "128kb")),
)


def lacking(made: Lab, way: Way, direction: str) -> str | None:
    """What this kernel lacks for it. podmgr's own ways lack nothing but fq: they work, or it is an error."""
    if way is TBF:
        return None
    try:
        if way is EDT:
            made.sh(made.world, "tc qdisc add dev eth0 root fq")
            made.sh(made.world, "tc qdisc del dev eth0 root")
        else:
            with way.limiting(made, 10, direction):
                pass
    except AssertionError as error:
        return " ".join(str(error.args[0][2]).split())
    return None
