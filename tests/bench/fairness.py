"""What one pod's changes cost another: its change until attached, in quiet and beside pods that are restless.

A restless pod is patched ten times a second, each time with a rule that must be compiled.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

from tests.bench.effort import Effort
from tests.bench.findings import Findings
from tests.bench.node import NAMESPACES, PODS, Actions, Node, Result, findings, full_node, p99, soon
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.kube.cluster import NODE

EFFORT = Effort(rounds=20)

PATCHES_PER_SECOND = 10
WARM_SECONDS = 5.0  # until the restless have used what they may at once
QUIET_PODS = [number for number in range(PODS) if number % NAMESPACES >= 4]  # of other namespaces
TIMES = 2.0  # the quiet time, at most

_LIGHT = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#ifndef NUMBER
#define NUMBER 0
#endif
SEC("cgroup_skb/egress") int light(struct __sk_buff *skb) { return skb->len != NUMBER; }
char LICENSE[] SEC("license") = "GPL";
"""
# More than the seconds that a compiler is let: 16,384 conditions, each on what is left of the one before.
_HEAVY = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#ifndef NUMBER
#define NUMBER 0
#endif
#define R4(x) x x x x
#define R256(x) R4(R4(R4(R4(x))))
SEC("cgroup_skb/egress") int heavy(struct __sk_buff *skb)
{
	unsigned int x = skb->mark;
	R4(R256(R4(R4(if (x & 1) x = x * 33 ^ skb->len; else x += x >> 3 ^ NUMBER;))))
	return x != NUMBER;
}
char LICENSE[] SEC("license") = "GPL";
"""

RESTLESS: Mapping[str, tuple[str, ...]] = {
    "built-in": ("bandwidth={} kbps egress hook=cgroup",),
    "a custom program": ("ebpf-limit=light egress -DNUMBER={}",),
    "one that takes a compiler too long": ("ebpf-limit=heavy egress -DNUMBER={}",),
    "all three": (
        "bandwidth={} kbps egress hook=cgroup",
        "ebpf-limit=light egress -DNUMBER={}",
        "ebpf-limit=heavy egress -DNUMBER={}",
    ),
}


def measure(effort: Effort) -> Findings:
    """All results. Leaves nothing behind."""
    rounds = effort.rounds or 1
    actions: Actions = {
        "fill": _fill,
        "annotate": _annotate,
        "restless": _Restless.start,
        "rest": _Restless.rest,
    }
    with full_node("fairness", actions) as node:
        folder = node.folder / "programs"
        folder.mkdir()
        folder.chmod(0o755)
        node.folder.chmod(0o755)
        for name, text in (("light", _LIGHT), ("heavy", _HEAVY)):
            (folder / f"{name}.bpf.c").write_text(text)
            (folder / f"{name}.bpf.c").chmod(0o644)
        settings = node.settings._replace(program_dir=folder)
        node.settings = settings
        node.ask("fill", [(pod.namespace, pod.name, pod.uid) for pod in node.pods])
        results = []
        rates = itertools.count(2_001)
        with node.watch("--resync", "1h") as watch:
            watch.is_in_order()
            quiet = _changes(node, rounds, rates)
            results.append(Result("quiet: change that must be compiled, p50", 1000 * median(quiet), "ms"))
            results.append(Result("quiet: p99", 1000 * p99(quiet), "ms"))
            for name, rules in RESTLESS.items():
                with _restless(node, rules):
                    found = _changes(node, rounds, rates)
                factor = median(found) / median(quiet)
                results += [
                    Result(f"beside {name}: p50", 1000 * median(found), "ms"),
                    Result(f"beside {name}: p99", 1000 * p99(found), "ms"),
                    Result(f"beside {name}: p50, times the quiet", factor, "", TIMES),
                ]
    return findings("A pod's change beside restless ones", results)


def _changes(node: Node, rounds: int, rates: Iterator[int]) -> list[float]:
    """Seconds from the event until the new program is attached, as the kernel has it."""
    seen = []
    for number in range(rounds):
        pod = node.pods[QUIET_PODS[number % len(QUIET_PODS)]]
        before = set(pod.programs())
        at = node.ask("annotate", pod.namespace, pod.name, f"{next(rates)} kbps egress hook=cgroup")
        soon(lambda pod=pod, before=before: set(pod.programs()) - before)  # type: ignore[misc]
        seen.append(time.time() - at)
        time.sleep(0.05)
    return seen


@contextmanager
def _restless(node: Node, rules: tuple[str, ...]) -> Iterator[None]:
    pods = [(pod.namespace, pod.name, rule) for pod, rule in zip(node.pods, rules, strict=False)]
    node.ask("restless", pods)
    time.sleep(WARM_SECONDS)
    try:
        yield
    finally:
        node.ask("rest")
        time.sleep(1)


# The API server's process


def _fill(api: ApiServer, pods: list[tuple[str, str, str]]) -> None:
    api.create(objects.node(NODE))
    for namespace in {namespace for namespace, _, _ in pods}:
        api.create(objects.namespace(namespace))
    for namespace, name, uid in pods:
        annotations = {"bandwidth": "1 mbps egress hook=cgroup"}
        api.create(objects.pod(name, namespace, uid=uid, annotations=annotations))


def _annotate(api: ApiServer, namespace: str, name: str, value: str) -> None:
    api.annotate("pods", namespace, name, {"bandwidth": value})


class _Restless:
    """Patches pods until it is told to rest."""

    _resting = threading.Event()
    _threads: list[threading.Thread] = []  # noqa: RUF012
    _numbers = itertools.count(2_000_000)

    @classmethod
    def start(cls, api: ApiServer, pods: list[tuple[str, str, str]]) -> None:
        cls._resting.clear()
        for pod in pods:
            cls._threads.append(threading.Thread(target=cls._patch, args=(api, *pod), daemon=True))
            cls._threads[-1].start()

    @classmethod
    def rest(cls, _: ApiServer) -> None:
        cls._resting.set()
        while cls._threads:
            cls._threads.pop().join()

    @classmethod
    def _patch(cls, api: ApiServer, namespace: str, name: str, rule: str) -> None:
        key, _, value = rule.partition("=")
        while not cls._resting.wait(1 / PATCHES_PER_SECOND):
            api.annotate("pods", namespace, name, {key: value.format(next(cls._numbers))})
