"""What Prometheus is shown of a watch: what it has counted, and what the kernel has at this moment.

Owns the metrics, their names and labels. The ledger and the kernel are read at each scrape; that
they can be asked for is `server`'s business.

Apart from `loop`, which alone uses it: prometheus_client is loaded only where metrics are served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, make_wsgi_app
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from podmgr import __version__
from podmgr.errors import PodmgrError, printable
from podmgr.reconcile.observe import observe, with_figures
from podmgr.settings import Settings

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LABELS = ("namespace", "pod", "direction", "rule")
_COUNTERS = ("passed_packets", "passed_bytes", "dropped_packets", "dropped_bytes")


class Metrics:
    """What is counted while watching. Everything else is asked of the kernel."""

    def __init__(self, settings: Settings) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a timestamp beside each counter
        self.registry = registry = CollectorRegistry()
        build = Gauge("podmgr_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        self._last_sync = Gauge(
            "podmgr_last_sync_timestamp_seconds",
            "When all rules were last found or made to be in force.",
            registry=registry,
        )
        self._pods = Gauge("podmgr_pods", "Pods of this node.", registry=registry)
        self._unreadable = Gauge(
            "podmgr_unreadable_annotations", "Annotations that cannot be read.", registry=registry
        )
        self._unreadable_of: dict[str, int] = {}  # each pod
        self._connected = Gauge(
            "podmgr_api_connected", "Whether the resource is being watched.", ["resource"], registry=registry
        )
        self._seconds = Histogram(
            "podmgr_reconcile_duration_seconds",
            "From the first look to the last read-back of one transaction.",
            registry=registry,
            buckets=_BUCKETS,
        )
        self._errors = PrometheusCounter(
            "podmgr_reconcile_errors", "Pods whose rules failed, at each attempt.", registry=registry
        )
        registry.register(_Attachments(settings))

    def reconciled(
        self,
        seconds: float,
        *,
        failures: int,
        unreadable: Mapping[str, int],
        pods: Collection[str],
        connected: Mapping[str, bool],
        is_in_order: bool,
    ) -> None:
        """After each transaction.

        `unreadable` are the annotations of its pods, by UID; `pods`, all there are; `is_in_order`: the
        kernel has what the cluster asks for, as far as it can.
        """
        counts = {**self._unreadable_of, **unreadable}
        self._unreadable_of = {uid: count for uid, count in counts.items() if uid in pods}
        self._unreadable.set(sum(self._unreadable_of.values()))
        self._pods.set(len(pods))
        for resource, is_connected in connected.items():
            self._connected.labels(resource).set(is_connected)
        self._seconds.observe(seconds)
        self._errors.inc(failures)
        if is_in_order:
            self._last_sync.set_to_current_time()

    def page(self) -> WSGIApplication:
        """What answers a scrape."""
        return make_wsgi_app(self.registry)


class _Attachments(Collector):
    """Reads the ledger and the kernel at each scrape."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is read before the first scrape

    def collect(self) -> Iterable[Metric]:
        attachments = GaugeMetricFamily(
            "podmgr_attachments", "Attached programs, as the kernel has them now.", labels=["kind", "state"]
        )
        families = {
            name: CounterMetricFamily(
                f"podmgr_{name}", f"{name.replace('_', ' ').capitalize()}.", labels=_LABELS
            )
            for name in _COUNTERS
        }
        try:
            observed = with_figures(self._settings, observe(self._settings)[0])
        except PodmgrError:
            return  # no figure rather than a wrong one
        counts = Counter((item.attachment.kind, item.state) for item in observed)
        for labels, count in counts.items():
            attachments.add_metric(labels, count)
        figures: dict[str, GaugeMetricFamily] = {}
        for item in observed:
            row = item.attachment
            if item.counters is None:
                continue
            namespace, pod = (row.pod.namespace, row.pod.name) if row.pod else ("", row.target)
            texts = [printable(text) for text in (namespace, pod, row.direction, str(row.rule))]
            for name, family in families.items():
                family.add_metric(texts, getattr(item.counters, name))
            for figure in item.figures:
                name = "_".join(["podmgr", *figure.name.split(), *([figure.unit] if figure.unit else [])])
                text = f"{figure.name.capitalize()} of what the rule did."
                gauge = figures.setdefault(name, GaugeMetricFamily(name, text, labels=_LABELS))
                gauge.add_metric(texts, figure.value)
        yield attachments
        yield from families.values()
        yield from figures.values()
