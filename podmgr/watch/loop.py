"""`podmgr watch`: the pods of this node have the rules of their annotations, for as long as it runs.

Owns the loop, from start to end. A `cache` of the cluster puts the UIDs of pods into a queue; this
thread takes what is due and lets `podsync` bring it in order. Nothing is remembered of a pod but
what the API server, the ledger and the kernel say, so a start after a crash is a reconcile like
any other: what is attached as it should be is left as it is.

Apart from the command, which alone uses it: --help shall load nothing of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from podmgr.attachment import Cgroup, PodRef
from podmgr.cluster.access import Access
from podmgr.cluster.announcer import Announcer
from podmgr.cluster.api import Api, StatusError, UnreachableError
from podmgr.cluster.backoff import Backoff
from podmgr.cluster.this_node import UnknownNodeError, find_node
from podmgr.errors import EXIT_DONE, EXIT_FAILED, PodmgrError
from podmgr.kernel import cgroups, pod_cgroups
from podmgr.proc import Runner
from podmgr.programs.profiles import finder
from podmgr.runtime.nri import Sandbox
from podmgr.settings import Settings
from podmgr.watch import lock, signals
from podmgr.watch.cache import Cache
from podmgr.watch.following import Following, Refresh
from podmgr.watch.health import Health
from podmgr.watch.journal import Journal
from podmgr.watch.newcomers import Newcomers
from podmgr.watch.options import Options
from podmgr.watch.podsync import PodSync
from podmgr.watch.reconnect import reconnect
from podmgr.watch.ruled import RuledPod, failures_of
from podmgr.watch.sandboxes import Sandboxes, item_of
from podmgr.watch.server import serve
from podmgr.watch.workqueue import WorkQueue
from podmgr.watch.workshop import Workshop

if TYPE_CHECKING:  # prometheus_client only where metrics are served
    from podmgr.watch.metrics import Metrics

_WAIT_SECONDS = 2.0  # at most, between two looks for the cgroup of a pod that starts
_EARLY_SECONDS = 15.0  # the same for its first process, which is listened for
_HEARTBEAT_SECONDS = 5.0
_SLOW_PROGRAM_SECONDS = 5.0  # what takes a compiler longer is not waited for, to be ready
_FIRST_LOOKS_SECONDS = 0.5  # at most, between two looks whether it is
_LAST_EVENTS_SECONDS = 3.0
_LAST_LINES_SECONDS = 2.0
_AT_ONCE = 32  # pods in one transaction: who stops us waits for it, and so for its programs to compile


def watch(access: Access, options: Options, settings: Settings, journal: Journal, *, runner: Runner) -> int:
    """Watch until SIGINT, SIGTERM or SIGHUP; the exit code. Raises PodmgrError if it cannot begin at all."""
    signals.block()
    with lock.held(settings), journal.hearing_libraries():
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
        refresh: Refresh | None = None,
    ) -> None:
        self._api = api
        self._options = options
        self._settings = settings
        self._journal = journal
        self._connect = partial(reconnect, access, api.server)
        self._stopping = threading.Event()
        self._health = Health()
        self._queue = WorkQueue()
        self._cache = Cache(
            self._connect,
            self._changed,
            journal,
            self._stopping,
            reads_standard=options.reads_standard,
            peer_namespaces=options.peer_namespaces,
            profiles=finder(settings),
        )
        self._workshop = Workshop(settings, self._queue.again, runner=runner)
        self._sync = PodSync(
            settings,
            journal,
            self._announce,
            runner=self._health.turning(runner),
            workshop=self._workshop,
            enforces=self._cache.enforces,
        )
        self._following = Following(
            self._connect, refresh or self._sync.refresh, self._changed, journal, self._stopping
        )
        self._root = cgroups.find_root(settings.cgroup_root)
        self._newcomers = Newcomers(self._root, self._sighted, journal, self._stopping)
        self._sandboxes = Sandboxes(
            options.nri, self._meet, self._hurry, journal, self._announce, self._stopping
        )
        self._announcer: Announcer | None = None
        self._metrics: Metrics | None = None
        self._troubled: set[str] = set()
        self._is_listed = False
        self._started = 0.0

    def run(self) -> int:
        signals.on_first_and_second(self._stop, self._stop_at_once)
        self._serve()
        node = self._find_node()
        if node is not None:
            self._start(node)
            self._loop()
        return self._end()

    def _stop(self) -> None:
        self._stopping.set()
        self._queue.wake()

    def _stop_at_once(self) -> None:
        self._journal.warning("stopped at once; podmgr clean, or the next watch, finishes it")
        self._journal.flush(0.2)

    def _serve(self) -> None:
        if self._options.metrics_address is None:
            return
        from podmgr.watch.guard import paced, with_token
        from podmgr.watch.metrics import Metrics

        self._metrics = Metrics(self._settings)
        page, token_file = paced(self._metrics.page()), self._options.metrics_token_file
        page = with_token(page, token_file) if token_file else page
        port = serve(self._options.metrics_address, page, self._health)
        where = f"port {port}" if port else str(self._options.metrics_address)
        self._journal.info(f"metrics, healthz and readyz on {where}", port=port)

    def _find_node(self) -> str | None:
        """This node's name, waiting for the API server if it must be asked; None if stopped.

        After a boot also for kubelet, which says there that this machine is its node.
        """
        backoff, told = Backoff(0.5, 15.0), ""
        while not self._stopping.is_set():
            try:
                return find_node(self._api, self._options.node)
            except (UnreachableError, StatusError, UnknownNodeError) as error:
                if error.message != told:
                    self._journal.failure(error, after="; trying again")
                told = error.message
                self._health.turned()
                self._stopping.wait(backoff.next_seconds())
        return None

    def _start(self, node: str) -> None:
        self._journal.info(f"watching the pods of node {node} at {self._api.server}", node=node)
        if self._options.posts_events:
            self._announcer = Announcer(self._connect, node, self._journal.warning)
            threading.Thread(target=self._announcer.run, name="events", daemon=True).start()
        self._newcomers.start()
        self._following.start(node)
        self._cache.start(node)

    def _announce(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None:
        if self._announcer is not None:
            self._announcer.announce(pod, reason, message, is_warning=is_warning)

    def _changed(self, uids: set[str]) -> None:
        """Called by the cache's threads. What changes before all is listed is among all the first time."""
        if self._is_listed:
            self._queue.add(uids)

    def _sighted(self, uid: str, cgroup: Cgroup) -> None:
        """Called by the thread that listens to kubelet's folders."""
        self._sync.sighted(uid, cgroup)
        self._changed(self._cache.uids_called(uid))

    def _meet(self, sandbox: Sandbox) -> set[str]:
        """The runtime is about to start a pod: its UIDs, if it has rules. Called by other threads."""
        uids = self._cache.introduce(item_of(sandbox))
        if sandbox.network is not None:
            self._sync.have_network(uids, sandbox.network)
        path = self._root / sandbox.cgroup_parent.lstrip("/")
        if sandbox.cgroup_parent and (found := pod_cgroups.pod_at(path)) is not None:
            self._sync.sighted(*found)
        wanted = self._cache.wanted(uids)
        return {uid for uid, item in wanted.items() if item.rules.rules} | self._failures(wanted).keys()

    def _failures(self, wanted: Mapping[str, RuledPod]) -> dict[str, str]:
        nri = self._options.nri
        return failures_of(wanted, with_unseen=nri is not None and nri.is_required)

    def _hurry(self, uids: set[str]) -> None:
        """Called by other threads."""
        for uid in uids:
            self._queue.later(uid, 0.0)

    def _loop(self) -> None:
        """Take what is due and bring it in order, until stopped; now and then, all there is."""
        self._cache.wait_until_listed(self._health.turned)
        self._is_listed = True
        self._sandboxes.start()
        self._started = time.monotonic()
        resync_at = 0.0
        while not self._stopping.is_set():
            if time.monotonic() >= resync_at or self._sync.was_disturbed():
                self._resync()
                resync_at = time.monotonic() + self._options.resync_seconds
            self._health.turned()
            self._begin()
            pause = min(self._longest_pause(), max(0.0, resync_at - time.monotonic()))
            self._bring_in_order(self._queue.take(pause))

    def _resync(self) -> None:
        """Bring all pods in order, and what others have left."""
        uids, traces = self._cache.uids(), self._traces()
        if traces and not uids:
            self._journal.warning(
                f"the cluster has no pod on this node; {len(traces)} pods lose the rules they have",
                tip="is the node's name right? see --node-name",
            )
        self._bring_in_order(uids | traces)
        self._sync.look_for_bypassed()

    def _begin(self) -> None:
        """Be ready, once: a pod whose programs take a compiler long holds up nobody else."""
        if self._health.has_begun or self._stopping.is_set():
            return
        seconds = time.monotonic() - self._started
        compiling = len(self._workshop)
        if compiling and self._workshop.idle_seconds() < _SLOW_PROGRAM_SECONDS:
            return
        self._health.begun()
        pods = len(self._cache.uids())
        what = f"{pods} pod{'' if pods == 1 else 's'}"
        if self._troubled or compiling:
            count = len(self._troubled) + compiling
            self._journal.warning(f"{count} of {what} not in order after {seconds:.2f} s")
        else:
            self._journal.info(f"{what} in order after {seconds:.2f} s")

    def _longest_pause(self) -> float:
        return _HEARTBEAT_SECONDS if self._health.has_begun else _FIRST_LOOKS_SECONDS

    def _traces(self) -> set[str]:
        try:
            return self._sync.traces()
        except PodmgrError as error:
            self._journal.failure(error)
            return set()

    def _bring_in_order(self, uids: Iterable[str]) -> None:
        """Some pods at a time, until stopped."""
        left = list(uids)
        while left and not self._stopping.is_set():
            if urgent := self._sandboxes.urgent():
                self._bring_some_in_order(urgent)
            self._bring_some_in_order(left[:_AT_ONCE])
            del left[:_AT_ONCE]
            self._health.turned()

    def _bring_some_in_order(self, uids: Iterable[str]) -> None:
        asked = self._sandboxes.begin(uids)
        wanted = self._cache.wanted(uids)
        started = time.monotonic()
        try:
            wanted = self._following.with_names(wanted, self._sync.by_hand())
            result = self._sync.sync(wanted)
            self._following.written(wanted)
            failed, waiting, early = result.failed, result.waiting, result.early
            unfinished = waiting | early | result.compiling
            self._cache.forget_told(waiting)
            self._sandboxes.end(asked, result.reasons | self._failures(wanted), unfinished)
            for uid, seconds in result.ends.items():
                self._queue.later(uid, seconds)
        except Exception as problem:  # the rules that are attached stay, and it is tried again
            self._journal.failure(problem)
            failed, waiting, early, unfinished = set(wanted), set(), set(), set()
            self._sandboxes.end(asked, dict.fromkeys(wanted, str(problem)), ())
        for uid in wanted.keys() - failed - unfinished:
            self._queue.done(uid)
        for uid in early - failed:
            self._queue.retry(uid, _EARLY_SECONDS)
        for uid in waiting:
            self._queue.retry(uid, _WAIT_SECONDS)
        for uid in failed:
            self._queue.retry(uid)
        self._troubled = (self._troubled - wanted.keys()) | failed
        if self._metrics is not None:
            self._metrics.reconciled(
                time.monotonic() - started,
                failures=len(failed),
                unreadable={uid: len(item.rules.errors) for uid, item in wanted.items()},
                pods=self._cache.uids(),
                connected=self._connected(),
                is_in_order=not self._troubled,
            )

    def _connected(self) -> dict[str, bool]:
        named, found = self._following.connected(), self._cache.connected()
        return named | {name: is_well and named.get(name, True) for name, is_well in found.items()}

    def _end(self) -> int:
        """Take everything away, or leave it, and say so."""
        self._health.ending()
        self._sandboxes.stop()
        self._following.stop()
        self._workshop.close()
        if self._options.keeps_rules:
            self._journal.info("stopped; the rules stay (--keep): podmgr clean removes them")
            code = EXIT_DONE
        else:
            self._journal.info("stopping: removing all limits (Ctrl-C again: stop at once)")
            code = self._remove_all()
        if self._announcer is not None:
            self._announcer.close(_LAST_EVENTS_SECONDS)
        self._journal.flush(_LAST_LINES_SECONDS)
        return code

    def _remove_all(self) -> int:
        try:
            outcomes = self._sync.remove_all()
        except Exception as problem:
            self._journal.failure(problem, after="; podmgr clean finishes it")
            return EXIT_FAILED
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        self._journal.info(f"stopped; {len(outcomes) - len(failed)} rules removed")
        return EXIT_FAILED if failed else EXIT_DONE
