"""Prometheus metrics and the health of `watch`, over HTTP: /metrics, /healthz and /readyz.

The counters are read from the kernel when they are asked for.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, make_wsgi_app
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from podmgr import __version__
from podmgr.errors import PodmgrError, printable
from podmgr.reconcile.observe import observe
from podmgr.settings import Settings

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_MOST_CONNECTIONS = 16
_LABELS = ("namespace", "pod", "direction", "rule")
_COUNTERS = ("passed_packets", "passed_bytes", "dropped_packets", "dropped_bytes")


@dataclass(frozen=True, slots=True)
class Health:
    """Asked at each probe: whether the loop turns, and whether the rules are in force."""

    is_alive: Callable[[], bool]
    is_ready: Callable[[], bool]


class Metrics:
    """What is counted while watching. Everything else is asked of the kernel."""

    def __init__(self, settings: Settings) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a timestamp beside each counter
        self.registry = CollectorRegistry()
        self.last_sync = 0.0
        self.pods = 0
        self.unreadable = 0  # annotations
        self.connected: dict[str, bool] = {}  # by resource
        self.reconcile_seconds = Histogram(
            "podmgr_reconcile_duration_seconds",
            "From the first look to the last read-back of one transaction.",
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.errors = PrometheusCounter(
            "podmgr_reconcile_errors", "Pods whose rules failed, at each attempt.", registry=self.registry
        )
        self.registry.register(_Attachments(self, settings))

    def synced(self) -> None:
        """The kernel has what the cluster asks for, as far as it can."""
        self.last_sync = time.time()


class _Attachments(Collector):
    """Reads the ledger and the kernel at each scrape."""

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self._metrics = metrics
        self._settings = settings

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is read before the first scrape

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("podmgr_build_info", "Always 1.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        last_sync = GaugeMetricFamily(
            "podmgr_last_sync_timestamp_seconds", "When all rules were last found or made to be in force."
        )
        last_sync.add_metric([], self._metrics.last_sync)
        yield last_sync
        pods = GaugeMetricFamily("podmgr_pods", "Pods of this node.")
        pods.add_metric([], self._metrics.pods)
        yield pods
        unreadable = GaugeMetricFamily("podmgr_unreadable_annotations", "Annotations that cannot be read.")
        unreadable.add_metric([], self._metrics.unreadable)
        yield unreadable
        connected = GaugeMetricFamily(
            "podmgr_api_connected", "Whether the resource is being watched.", labels=["resource"]
        )
        for resource, is_connected in list(self._metrics.connected.items()):
            connected.add_metric([resource], is_connected)
        yield connected
        yield from self._attachments()

    def _attachments(self) -> Iterable[Metric]:
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
            observed = observe(self._settings)[0]
        except PodmgrError:
            return  # no figure rather than a wrong one
        counts = Counter((item.attachment.kind, item.state) for item in observed)
        for labels, count in counts.items():
            attachments.add_metric(labels, count)
        for item in observed:
            row = item.attachment
            if item.counters is None:
                continue
            namespace, pod = (row.pod.namespace, row.pod.name) if row.pod else ("", row.target)
            for name, family in families.items():
                texts = [printable(text) for text in (namespace, pod, row.direction, str(row.rule))]
                family.add_metric(texts, getattr(item.counters, name))
        yield attachments
        yield from families.values()


def serve(address: tuple[str, int], metrics: Metrics, health: Health) -> int:
    """Answer from threads of their own until the process ends; the port, chosen if it was 0.

    Raises PodmgrError if the address cannot be had.
    """
    show_metrics = make_wsgi_app(metrics.registry)
    probes = {"/healthz": health.is_alive, "/readyz": health.is_ready}

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            shown: Iterable[bytes] = show_metrics(environ, start_response)
            return shown
        probe = probes.get(path)
        is_good = probe() if probe else False
        status = "404 Not Found" if probe is None else "200 OK" if is_good else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [b"ok\n" if is_good else status.partition(" ")[2].encode() + b"\n"]

    is_v6 = ":" in address[0] or (not address[0] and socket.has_dualstack_ipv6())

    class Server(_Bounded, socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if is_v6 else socket.AF_INET

        def server_bind(self) -> None:
            """As inherited, but the own name is not asked of DNS, which may let us wait."""
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = address[0], self.server_address[1]
            self.setup_environ()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is nothing to tell."""

    try:
        server = make_server(*address, answer, server_class=Server, handler_class=_Silent)
    except OSError as error:
        raise PodmgrError(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror}", tip="see --metrics-address"
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_address[1])


class _Bounded:
    """So many connections at once: the oldest gives way to a new one, so that a probe is heard
    however many others say nothing.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self._open: list[Any] = []
        self._lock = threading.Lock()
        super().__init__(*args, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.append(request)
            oldest = self._open.pop(0) if len(self._open) > _MOST_CONNECTIONS else None
        if oldest is not None:
            with suppress(OSError):  # it has just ended
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)  # type: ignore[misc]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[misc]
        finally:
            with self._lock, suppress(ValueError):
                self._open.remove(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away, or says nothing, is nothing to tell."""


class _Silent(WSGIRequestHandler):
    timeout = 5  # seconds in which a client has to say what it wants

    def log_message(self, format: str, *args: object) -> None:
        """A probe every few seconds is nothing to tell."""
