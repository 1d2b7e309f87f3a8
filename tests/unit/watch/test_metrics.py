"""Metrics and health over real HTTP: the kernel's figures as they are now, or none rather than wrong ones."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from podmgr import __version__
from podmgr.attachment import PodRef
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel.bpf_syscall import Counters
from podmgr.proc import Runner
from podmgr.reconcile.observe import Observed
from podmgr.settings import Settings
from podmgr.watch.metrics import Health, Metrics, serve
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
    """A server under test."""

    metrics: Metrics
    port: int
    is_alive: bool = True
    is_ready: bool = True

    def get(self, path: str, host: str = "127.0.0.1") -> tuple[int, str, Message]:
        try:
            with urllib.request.urlopen(f"http://{host}:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers

    def families(self) -> dict[str, Metric]:
        status, text, _ = self.get("/metrics")
        assert status == 200
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
def watched(kernel: Kernel) -> Iterator[Watched]:
    assert kernel.error is None
    made = Watched(Metrics(Settings(state_dir=Path("/here"))), 0)
    made.port = serve(("127.0.0.1", 0), made.metrics, Health(lambda: made.is_alive, lambda: made.is_ready))
    yield made


# Health


@pytest.mark.parametrize(("path", "name"), [("/healthz", "is_alive"), ("/readyz", "is_ready")])
def test_each_probe_asks_its_own_question_each_time(watched: Watched, path: str, name: str) -> None:
    watched.is_alive = watched.is_ready = False
    setattr(watched, name, True)
    assert watched.get(path)[:2] == (200, "ok\n")
    watched.is_alive = watched.is_ready = True
    setattr(watched, name, False)
    assert watched.get(path)[:2] == (503, "Service Unavailable\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/x", "/nothing"])
def test_other_paths_are_not_found(watched: Watched, path: str) -> None:
    assert watched.get(path)[0] == 404


def test_probe_does_not_look_at_the_kernel(watched: Watched, kernel: Kernel) -> None:
    watched.get("/healthz")
    watched.get("/readyz")
    assert kernel.asked == []


# Figures


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
    watched.metrics.pods = 7
    watched.metrics.errors.inc(3)
    watched.metrics.reconcile_seconds.observe(0.02)
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


def test_what_cannot_be_read_and_what_is_not_followed_is_shown(watched: Watched) -> None:
    assert watched.samples("podmgr_unreadable_annotations") == {(): 0}
    assert watched.samples("podmgr_api_connected") == {}
    watched.metrics.unreadable = 3
    watched.metrics.connected = {"pods": True, "services": False}
    assert watched.samples("podmgr_unreadable_annotations") == {(): 3}
    assert watched.samples("podmgr_api_connected") == {("pods",): 1, ("services",): 0}
    assert watched.families()["podmgr_api_connected"].type == "gauge"


def test_last_sync_is_a_time_of_day_and_zero_before_the_first(watched: Watched) -> None:
    assert watched.samples("podmgr_last_sync_timestamp_seconds") == {(): 0}
    before = time.time()
    watched.metrics.synced()
    (value,) = watched.samples("podmgr_last_sync_timestamp_seconds").values()
    assert before <= value <= time.time()


@pytest.mark.usefixtures("kernel")
def test_two_watches_in_one_process_do_not_share_figures() -> None:
    one, other = Metrics(Settings()), Metrics(Settings())
    one.errors.inc()
    assert one.registry.get_sample_value("podmgr_reconcile_errors_total") == 1
    assert other.registry.get_sample_value("podmgr_reconcile_errors_total") == 0


def test_nothing_is_read_before_the_first_scrape(kernel: Kernel) -> None:
    Metrics(Settings())
    assert kernel.asked == []


# The server


def test_slow_scrape_does_not_keep_probes_waiting(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: Settings, **__: Runner) -> tuple[list[Observed], int]:
        time.sleep(0.5)
        return [], 0

    monkeypatch.setattr("podmgr.watch.metrics.observe", slow)
    with ThreadPoolExecutor() as pool:
        scrape = pool.submit(watched.get, "/metrics")
        time.sleep(0.05)
        assert watched.get("/healthz")[0] == 200
        assert not scrape.done()
        assert scrape.result()[0] == 200


def test_requests_are_not_logged(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    watched.get("/healthz")
    watched.get("/nothing")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("request_line", [b"GET /healthz HTTP/1.0\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b""])
def test_client_that_hangs_up_is_nothing_to_tell(
    watched: Watched, capfd: pytest.CaptureFixture[str], request_line: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", watched.port)) as client:
        client.sendall(request_line)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
    time.sleep(0.05)
    assert watched.get("/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")


def silent(port: int) -> socket.socket:
    """A client that says nothing."""
    return socket.create_connection(("127.0.0.1", port), timeout=3)


def test_a_probe_is_heard_however_many_clients_say_nothing(watched: Watched) -> None:
    """The oldest gives way, and only as many as it takes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(silent(watched.port)) for _ in range(18)]
        assert watched.get("/healthz")[0] == 200
        for gone in clients[:3]:
            assert gone.recv(1) == b""
        for client in clients[3:]:
            client.settimeout(0.01)
            with pytest.raises(TimeoutError):
                client.recv(1)
    assert watched.get("/healthz")[0] == 200


def test_connections_that_have_ended_make_room(watched: Watched) -> None:
    for _ in range(40):
        assert watched.get("/healthz")[0] == 200


@pytest.mark.parametrize("said", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_client_that_says_no_more_is_hung_up_on(
    watched: Watched, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("podmgr.watch.metrics._Silent.timeout", 0.1)
    with silent(watched.port) as client:
        client.sendall(said)
        assert client.recv(1) == b""
    assert watched.get("/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


V6 = ["[::1]"] if has_ipv6() else []


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("", ["127.0.0.1", *V6]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        *(("::1", [host]) for host in V6),
        *(("::", ["127.0.0.1", host]) for host in V6),
    ],
)
def test_it_listens_where_it_was_told(address: str, hosts: list[str]) -> None:
    metrics = Metrics(Settings())
    port = serve((address, 0), metrics, Health(lambda: True, lambda: True))
    assert port > 0
    for host in hosts:
        assert Watched(metrics, port).get("/healthz", host)[0] == 200


def test_machine_without_ipv6_is_served_over_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    metrics = Metrics(Settings())
    port = serve(("", 0), metrics, Health(lambda: True, lambda: True))
    assert Watched(metrics, port).get("/healthz")[0] == 200


def test_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PodmgrError) as caught:
            serve(("127.0.0.1", port), Metrics(Settings()), Health(lambda: True, lambda: True))
    reason = os.strerror(errno.EADDRINUSE)
    assert caught.value.message == f"cannot listen on 127.0.0.1:{port}: {reason}"
    assert caught.value.tip == "see --metrics-address"


def test_host_that_is_none_is_an_error() -> None:
    with pytest.raises(PodmgrError, match=r"cannot listen on 203\.0\.113\.7:0: Cannot assign"):
        serve(("203.0.113.7", 0), Metrics(Settings()), Health(lambda: True, lambda: True))


def test_listening_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DNS does not answer, its timeout would hold up the start, and with it every rule."""
    for name in ("getfqdn", "gethostbyaddr", "gethostbyname"):
        monkeypatch.setattr(socket, name, None)
    for host in ("", "127.0.0.1"):
        assert serve((host, 0), Metrics(Settings()), Health(lambda: True, lambda: True))
