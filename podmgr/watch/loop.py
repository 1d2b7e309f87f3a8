"""`podmgr watch`: the pods of this node have the rules of their annotations, for as long as it runs.

Informers keep a `Cluster` up to date and put the UIDs of pods into a queue; this thread takes
what is due and lets `podsync` bring it in order. Nothing is remembered of a pod but what the API
server, the ledger and the kernel say, so a start after a crash is a reconcile like any other:
what is attached as it should be is left as it is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from podmgr.attachment import PodRef
from podmgr.cluster.access import Access
from podmgr.cluster.announcer import Announcer
from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.cluster.backoff import Backoff
from podmgr.cluster.informer import Informer
from podmgr.cluster.objects import Cluster
from podmgr.cluster.this_node import find_node
from podmgr.errors import EXIT_DONE, EXIT_FAILED, PodmgrError, UsageError, printable, unexpected
from podmgr.proc import Completed, Limits, Runner
from podmgr.reconcile import ledger
from podmgr.rules.precedence import PodRules
from podmgr.settings import Settings
from podmgr.watch import systemd
from podmgr.watch.journal import Journal
from podmgr.watch.podsync import PodSync, Wanted
from podmgr.watch.workqueue import WorkQueue

if TYPE_CHECKING:  # prometheus_client only where metrics are served
    from podmgr.watch.metrics import Metrics

RESYNC_SECONDS = 180.0

_WAIT_SECONDS = 2.0  # at most, between two looks for the cgroup of a pod that starts
_HEARTBEAT_SECONDS = 5.0
_STUCK_SECONDS = 180.0  # a loop that has not turned for so long is not alive
_LAST_EVENTS_SECONDS = 3.0
_LAST_LINES_SECONDS = 2.0
_AT_ONCE = 32  # pods in one transaction: who stops us waits for it, and so for its programs to compile
_NO_RULES = PodRules((), (), ())


@dataclass(frozen=True, slots=True)
class Options:
    """How to watch. `node` None: found out. `keeps_rules`: they stay when watch ends.

    `reads_standard`: Kubernetes' own annotations of pods count, too.
    """

    node: str | None = None
    keeps_rules: bool = False
    resync_seconds: float = RESYNC_SECONDS
    posts_events: bool = True
    reads_standard: bool = False
    metrics_address: tuple[str, int] | None = None


def watch(access: Access, options: Options, settings: Settings, journal: Journal, *, runner: Runner) -> int:
    """Watch until SIGINT, SIGTERM or SIGHUP; the exit code.

    The signals are blocked in all threads, and so in the tools that are run: they reach the one
    thread that waits for them. Raises PodmgrError if it cannot begin at all.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _signals())
    with _only_one(settings):
        api = Api(access)  # credentials that cannot be read are an error now, not one to wait out
        return Watch(api, access, options, settings, journal, runner=runner).run()


class Watch:
    """One run of `watch`."""

    def __init__(
        self,
        api: Api,
        access: Access,
        options: Options,
        settings: Settings,
        journal: Journal,
        *,
        runner: Runner,
    ) -> None:
        self._api = api
        self._access = access
        self._options = options
        self._settings = settings
        self._journal = journal
        self._cluster = Cluster(reads_standard=options.reads_standard)
        self._lock = threading.Lock()  # over the cluster, which the informers write
        self._sync = PodSync(
            settings, journal, self._announce, runner=self._beating(runner), enforces=self._enforces
        )
        self._queue = WorkQueue()
        self._stopping = threading.Event()
        self._informers: list[Informer] = []
        self._announcer: Announcer | None = None
        self._metrics: Metrics | None = None
        self._troubled: set[str] = set()
        self._unreadable: dict[str, int] = {}  # annotations, by pod
        self._is_listed = False
        self._is_ready = False
        self._turned_at = time.monotonic()

    def run(self) -> int:
        _thread("signals", self._await_signals)
        self._serve_metrics()
        node = self._find_node()
        if node is not None:
            self._start(node)
            self._loop()
        return self._end()

    def _connect(self) -> Api:
        """With the credentials of today, but to the server of the beginning.

        Another one, to which the kubeconfig may have been switched, knows none of our pods: their
        limits would go.
        """
        api = Api(self._access)
        if api.server != self._api.server:
            api.close()
            raise PodmgrError(
                f"the kubeconfig leads to {api.server} now, not to {self._api.server}",
                tip="start podmgr watch again to follow it, or name a --context",
            )
        return api

    def _beating(self, runner: Runner) -> Runner:
        """A transaction may run many tools, each of which may take long: that is being alive."""

        def run(
            argv: Sequence[str],
            *,
            stdin: bytes = b"",
            pass_fds: Sequence[int] = (),
            limits: Limits | None = None,
            env: Mapping[str, str] | None = None,
        ) -> Completed:
            done = runner(argv, stdin=stdin, pass_fds=pass_fds, limits=limits, env=env)
            self._turn()
            return done

        return run

    def _enforces(self, namespace: str) -> bool:
        with self._lock:
            return self._cluster.enforces(namespace)

    def _find_node(self) -> str | None:
        """This node's name, waiting for the API server if it must be asked; None if stopped."""
        backoff = Backoff(0.5, 15.0)
        while not self._stopping.is_set():
            try:
                return find_node(self._api, self._options.node)
            except (UnreachableError, StatusError) as error:
                self._complain(error)
                self._turn()
                self._stopping.wait(backoff.next_seconds())
        return None

    def _start(self, node: str) -> None:
        self._journal.info(f"watching the pods of node {node} at {self._api.server}", node=node)
        if self._options.posts_events:
            self._announcer = Announcer(self._connect, node, self._journal.warning)
            _thread("events", self._announcer.run)
        for name, path, query in (
            ("namespaces", "/api/v1/namespaces", {}),
            ("services", "/api/v1/services", {}),
            ("pods", "/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"}),
        ):
            informer = Informer(
                name,
                path,
                query,
                self._connect,
                self._sink(name),
                self._stopping,
                on_lost=self._lost,
                on_found=lambda name: self._journal.info(f"{name}: the API server answers again"),
            )
            self._informers.append(informer)
            _thread(name, informer.run)

    def _sink(self, resource: str) -> _Sink:
        """Where an informer's news go: the cluster's methods for its resource."""
        cluster = self._cluster
        replace, put, remove = {
            "namespaces": (cluster.replace_namespaces, cluster.put_namespace, cluster.remove_namespace),
            "services": (cluster.replace_services, cluster.put_service, cluster.remove_service),
            "pods": (cluster.replace_pods, cluster.put_pod, cluster.remove_pod),
        }[resource]
        return _Sink(self._changed, replace, put, remove)

    def _changed(self, change: Callable[[], set[str]]) -> None:
        """Called by the informers: change the cluster, and note whose rules it may touch."""
        with self._lock:
            touched = change()
        if touched and self._is_listed:
            self._queue.add(touched)

    def _loop(self) -> None:
        """Take what is due and bring it in order, until stopped."""
        for informer in self._informers:  # rules of half a cluster would be wrong ones
            while not informer.is_listed.wait(_HEARTBEAT_SECONDS / 10) and not self._stopping.is_set():
                self._turn()
        self._is_listed = True
        resync_at = 0.0
        while not self._stopping.is_set():
            if time.monotonic() >= resync_at or self._sync.was_disturbed():
                started = time.monotonic()
                with self._lock:
                    uids = set(self._cluster.pods)
                traces = self._traces()
                if traces and not uids:
                    self._journal.warning(
                        f"the cluster has no pod on this node; {len(traces)} pods lose the rules they have",
                        tip="is the node's name right? see --node-name",
                    )
                self._bring_in_order(uids | traces)
                self._sync.look_for_bypassed()
                if not self._is_ready and not self._stopping.is_set():
                    self._is_ready = True
                    self._report_start(len(uids), time.monotonic() - started)
                    systemd.notify("READY=1")
                resync_at = time.monotonic() + self._options.resync_seconds
            self._turn()
            pause = min(_HEARTBEAT_SECONDS, max(0.0, resync_at - time.monotonic()))
            self._bring_in_order(self._queue.take(pause))

    def _report_start(self, pods: int, seconds: float) -> None:
        what = f"{pods} pod{'' if pods == 1 else 's'}"
        if self._troubled:
            self._journal.warning(f"{len(self._troubled)} of {what} not in order after {seconds:.2f} s")
        else:
            self._journal.info(f"{what} in order after {seconds:.2f} s")

    def _traces(self) -> set[str]:
        try:
            return self._sync.traces()
        except PodmgrError as error:
            self._complain(error)
            return set()

    def _bring_in_order(self, uids: Iterable[str]) -> None:
        """Some pods at a time, until stopped."""
        left = list(uids)
        while left and not self._stopping.is_set():
            self._bring_some_in_order(left[:_AT_ONCE])
            del left[:_AT_ONCE]
            self._turn()

    def _bring_some_in_order(self, uids: Iterable[str]) -> None:
        with self._lock:
            cluster = self._cluster
            pods = {uid: cluster.pods.get(uid) for uid in uids}
            wanted = {
                uid: Wanted(pod, cluster.rules(pod), cluster.cgroup_uids(pod))
                if pod
                else Wanted(None, _NO_RULES)
                for uid, pod in pods.items()
            }
        started = time.monotonic()
        try:
            result = self._sync.sync(wanted)
            failed, waiting = result.failed, result.waiting
        except Exception as problem:  # the rules that are attached stay, and it is tried again
            self._complain(problem if isinstance(problem, PodmgrError) else unexpected(problem))
            failed, waiting = set(wanted), set()
        for uid in wanted.keys() - failed - waiting:
            self._queue.done(uid)
        for uid in waiting:
            self._queue.retry(uid, _WAIT_SECONDS)
        for uid in failed:
            self._queue.retry(uid)
        self._troubled = (self._troubled - wanted.keys()) | failed
        self._unreadable |= {uid: len(item.rules.errors) for uid, item in wanted.items()}
        self._count(time.monotonic() - started, len(failed))

    def _count(self, seconds: float, failures: int) -> None:
        if self._metrics is not None:
            with self._lock:
                self._metrics.pods = len(self._cluster.pods)
                self._unreadable = {
                    uid: n for uid, n in self._unreadable.items() if uid in self._cluster.pods
                }
            self._metrics.unreadable = sum(self._unreadable.values())
            self._metrics.connected = {
                informer.name: informer.is_listed.is_set() and informer.failure is None
                for informer in self._informers
            }
            self._metrics.reconcile_seconds.observe(seconds)
            self._metrics.errors.inc(failures)
            if not self._troubled:
                self._metrics.synced()

    def _end(self) -> int:
        """Take everything away, or leave it, and say so."""
        systemd.notify("STOPPING=1")
        code = EXIT_DONE
        if self._options.keeps_rules:
            self._journal.info("stopped; the rules stay (--keep): podmgr clean removes them")
        else:
            self._journal.info("stopping: removing all limits (Ctrl-C again: stop at once)")
            try:
                outcomes = self._sync.remove_all()
                failed = [outcome for outcome in outcomes if outcome.error is not None]
                self._journal.info(f"stopped; {len(outcomes) - len(failed)} rules removed")
                code = EXIT_FAILED if failed else EXIT_DONE
            except Exception as problem:
                error = problem if isinstance(problem, PodmgrError) else unexpected(problem)
                self._complain(error, after="; podmgr clean finishes it")
                code = EXIT_FAILED
        if self._announcer is not None:
            self._announcer.close(_LAST_EVENTS_SECONDS)
        self._journal.flush(_LAST_LINES_SECONDS)
        return code

    def _await_signals(self) -> None:
        """The first ends the loop; the second ends everything, and the next start finishes it."""
        signals = _signals()
        signal.sigwait(signals)
        self._stopping.set()
        self._queue.wake()
        signal.sigwait(signals)
        self._journal.warning("stopped at once; podmgr clean, or the next watch, finishes it")
        self._journal.flush(0.2)
        os._exit(130)

    def _serve_metrics(self) -> None:
        if self._options.metrics_address is None:
            return
        from podmgr.watch.metrics import Health, Metrics, serve

        self._metrics = Metrics(self._settings)
        port = serve(self._options.metrics_address, self._metrics, Health(self.is_alive, self.is_ready))
        self._journal.info(f"metrics, healthz and readyz on port {port}", port=port)

    def is_alive(self) -> bool:
        """Whether the loop turns."""
        return time.monotonic() - self._turned_at < _STUCK_SECONDS

    def is_ready(self) -> bool:
        """Whether the whole cluster was seen and its rules were brought in order once."""
        return self._is_ready and self.is_alive()

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        systemd.notify("WATCHDOG=1")

    def _lost(self, name: str, error: PodmgrError) -> None:
        self._complain(error, before=f"{name}: ", after="; the rules stay, trying again")

    def _complain(self, error: PodmgrError, before: str = "", after: str = "") -> None:
        fields = {name: text for name, text in (("tip", error.tip), ("detail", error.detail)) if text}
        self._journal.error(f"{before}{error.message}{after}", **fields)

    def _announce(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None:
        if self._announcer is not None:
            self._announcer.announce(pod, reason, message, is_warning=is_warning)


@dataclass(frozen=True, slots=True)
class _Sink:
    """An informer's news, given to methods that return the UIDs of the pods they may touch."""

    apply: Callable[[Callable[[], set[str]]], None]
    on_replace: Callable[[Iterable[Mapping[str, Any]]], set[str]]
    on_put: Callable[[Mapping[str, Any]], set[str]]
    on_remove: Callable[[Mapping[str, Any]], set[str]]

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None:
        self.apply(lambda: self.on_replace(items))

    def put(self, item: Mapping[str, Any]) -> None:
        self.apply(lambda: self.on_put(item))

    def remove(self, item: Mapping[str, Any]) -> None:
        self.apply(lambda: self.on_remove(item))


def _signals() -> set[signal.Signals]:
    """What ends a watch; nohup has SIGHUP ignored."""
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    return {number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN}


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, or :PORT for all addresses. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise UsageError(
            f"{printable(text)[:80]!r} is no address", tip="--metrics-address HOST:PORT or :PORT"
        )
    return host.strip("[]"), int(port)


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Two watches of one node would undo each other's work when they end.

    The file is removed by who holds its lock; what a crash leaves is taken over.
    """
    with ledger.locked(settings.state_dir) as state:
        path = state.folder / "watch.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise PodmgrError(
                f"another podmgr watch runs on {state.folder}", tip="stop it first; see --state-dir"
            ) from error
    try:
        yield
    finally:
        with suppress(PodmgrError), ledger.locked(settings.state_dir):  # nobody has it open just now
            path.unlink(missing_ok=True)
        os.close(fd)


def _thread(name: str, work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()
