"""What Prometheus is shown: the kernel's figures as they are now, or none rather than wrong ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from podmgr import __version__
from podmgr.attachment import PodRef
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel.bpf_syscall import Counters
from podmgr.reconcile.observe import Observed
from podmgr.settings import Settings
from podmgr.watch.metrics import Metrics
from tests.unit.samples import INGRESS, attachment

POD = PodRef("shop", "web-1", "u-1")


@dataclass
class Kernel:
    """What `observe` finds."""

    observed: list[Observed] = field(default_factory=list)
    error: Exception | None = None
    asked: list[Settings] = field(default_factory=list)

    def __call__(self, settings: Settings) -> tuple[list[Observed], int]:
        self.asked.append(settings)
        if self.error is not None:
            raise self.error
        return self.observed, 0


@dataclass
class Watched:
    """Metrics, and what a scrape finds in them."""

    metrics: Metrics

    def families(self) -> dict[str, Metric]:
        text = generate_latest(self.metrics.registry).decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def samples(self, family: str) -> dict[tuple[str, ...], float]:
        """Values by the values of their labels, in the order of the labels' names."""
        found = self.families().get(family)
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for sample in (found.samples if found else [])
        }


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr("podmgr.watch.metrics.observe", found)
    return found


@pytest.fixture
def watched(kernel: Kernel) -> Watched:
    assert kernel.error is None
    return Watched(Metrics(Settings(state_dir=Path("/here"))))


def reconciled(
    metrics: Metrics,
    *pods: str,
    failures: int = 0,
    unreadable: dict[str, int] | None = None,
    connected: dict[str, bool] | None = None,
    is_in_order: bool = True,
) -> None:
    metrics.reconciled(
        0.02,
        failures=failures,
        unreadable=unreadable or {},
        pods=pods,
        connected=connected or {},
        is_in_order=is_in_order,
    )


def test_counters_are_the_kernels_with_pod_direction_and_rule(watched: Watched, kernel: Kernel) -> None:
    row = attachment("bandwidth=10 mbps ingress", direction=INGRESS, pod=POD, program_id=5)
    kernel.observed = [Observed(row, True, Counters(1, 2, 3, 4))]
    labels = ("ingress", "shop", "web-1", "bandwidth=10 mbps ingress")  # direction, namespace, pod, rule
    assert watched.samples("podmgr_passed_packets") == {labels: 1}
    assert watched.samples("podmgr_passed_bytes") == {labels: 2}
    assert watched.samples("podmgr_dropped_packets") == {labels: 3}
    assert watched.samples("podmgr_dropped_bytes") == {labels: 4}
    families = watched.families()
    assert families["podmgr_dropped_bytes"].type == "counter"
    assert {name for sample in families["podmgr_dropped_bytes"].samples for name in sample.labels} == {
        *("namespace", "pod", "direction", "rule")
    }
    assert kernel.asked[0].state_dir == Path("/here")


def test_figures_are_read_anew_at_each_scrape(watched: Watched, kernel: Kernel) -> None:
    for packets in (10, 20):
        kernel.observed = [Observed(attachment(pod=POD), True, Counters(packets, 0, 0, 0))]
        assert list(watched.samples("podmgr_passed_packets").values()) == [packets]
    kernel.observed = []
    assert watched.samples("podmgr_passed_packets") == {}


def test_plain_cgroup_is_named_by_its_target(watched: Watched, kernel: Kernel) -> None:
    kernel.observed = [Observed(attachment(target="cgroup/x.slice"), True, Counters(1, 2, 3, 4))]
    assert list(watched.samples("podmgr_passed_packets")) == [
        ("egress", "", "cgroup/x.slice", "loss=uniform egress 1%")
    ]


def test_counters_beyond_what_a_float_counts_stay_numbers(watched: Watched, kernel: Kernel) -> None:
    kernel.observed = [Observed(attachment(), True, Counters(2**64 - 1, 0, 0, 0))]
    assert list(watched.samples("podmgr_passed_packets").values()) == [pytest.approx(2.0**64)]


def test_attachments_are_counted_by_kind_and_state(watched: Watched, kernel: Kernel) -> None:
    loss, slow = attachment(), attachment("bandwidth=10 mbps egress")
    kernel.observed = [
        Observed(loss, True, Counters(0, 0, 0, 0)),
        Observed(loss, True, None),
        Observed(loss, False, None),
        Observed(slow, False, None),
    ]
    assert watched.samples("podmgr_attachments") == {
        ("loss", "active"): 2,
        ("loss", "missing"): 1,
        ("bandwidth", "missing"): 1,
    }
    assert len(watched.samples("podmgr_passed_packets")) == 1


@pytest.mark.parametrize("error", [PodmgrError("damaged"), PermissionDeniedError("not allowed")])
def test_kernel_that_cannot_be_read_leaves_its_figures_out_and_the_rest_in(
    watched: Watched, kernel: Kernel, error: PodmgrError
) -> None:
    kernel.observed = [Observed(attachment(), True, Counters(1, 2, 3, 4))]
    kernel.error = error
    families = watched.families()
    assert not {"podmgr_attachments", "podmgr_passed_packets", "podmgr_dropped_bytes"} & families.keys()
    assert {"podmgr_build_info", "podmgr_pods", "podmgr_last_sync_timestamp_seconds"} <= families.keys()


def test_what_was_counted_while_watching_is_shown(watched: Watched) -> None:
    reconciled(watched.metrics, *"abcdefg", failures=3)
    families = watched.families()
    assert watched.samples("podmgr_build_info") == {(__version__,): 1}
    assert watched.samples("podmgr_pods") == {(): 7}
    assert watched.samples("podmgr_reconcile_errors") == {(): 3}
    assert not [name for name in families if name.endswith("_created")]
    buckets = {
        sample.labels.get("le"): sample.value
        for sample in families["podmgr_reconcile_duration_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (buckets["0.01"], buckets["0.025"], buckets["+Inf"]) == (0, 1, 1)


def test_errors_and_times_add_up_over_transactions(watched: Watched) -> None:
    reconciled(watched.metrics, "a", failures=1)
    reconciled(watched.metrics, "a", failures=2)
    assert watched.samples("podmgr_reconcile_errors") == {(): 3}
    registry = watched.metrics.registry
    assert registry.get_sample_value("podmgr_reconcile_duration_seconds_count") == 2


def test_what_is_not_followed_is_shown(watched: Watched) -> None:
    assert watched.samples("podmgr_api_connected") == {}
    reconciled(watched.metrics, connected={"pods": True, "services": False})
    assert watched.samples("podmgr_api_connected") == {("pods",): 1, ("services",): 0}
    assert watched.families()["podmgr_api_connected"].type == "gauge"


def test_annotations_that_cannot_be_read_count_until_they_can_or_their_pod_is_gone(watched: Watched) -> None:
    def counted() -> float:
        (value,) = watched.samples("podmgr_unreadable_annotations").values()
        return value

    assert counted() == 0
    reconciled(watched.metrics, "a", "b", unreadable={"a": 2, "b": 1})
    assert counted() == 3
    reconciled(watched.metrics, "a", "b", unreadable={"a": 0})
    assert counted() == 1
    reconciled(watched.metrics, "a")
    assert counted() == 0


def test_last_sync_is_a_time_of_day_and_zero_before_the_first(watched: Watched) -> None:
    reconciled(watched.metrics, is_in_order=False)
    assert watched.samples("podmgr_last_sync_timestamp_seconds") == {(): 0}
    before = time.time()
    reconciled(watched.metrics)
    (value,) = watched.samples("podmgr_last_sync_timestamp_seconds").values()
    assert before <= value <= time.time()


@pytest.mark.usefixtures("kernel")
def test_two_watches_in_one_process_do_not_share_figures() -> None:
    one, other = Metrics(Settings()), Metrics(Settings())
    reconciled(one, failures=1)
    assert one.registry.get_sample_value("podmgr_reconcile_errors_total") == 1
    assert other.registry.get_sample_value("podmgr_reconcile_errors_total") == 0


def test_nothing_is_read_before_the_first_scrape(kernel: Kernel) -> None:
    Metrics(Settings())
    assert kernel.asked == []
