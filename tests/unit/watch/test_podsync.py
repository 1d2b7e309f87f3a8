"""Bringing pods in order: who is wished what, who waits, who is cleaned up after, and what is said of it.

What reaches the kernel is shown elsewhere: here `apply` and `clean` only write down what they are asked.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podmgr.attachment import Attachment, Cgroup, Link, PodRef, Selection, Wish
from podmgr.cluster.objects import Cluster, Pod
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel.bpf_syscall import Counters
from podmgr.kernel.pins import Pin
from podmgr.kernel.tc import Traffic
from podmgr.reconcile import ledger
from podmgr.reconcile.observe import Observed
from podmgr.reconcile.outcome import Action, Outcome
from podmgr.reconcile.refresh import Moved
from podmgr.rules.keys import ENFORCE
from podmgr.rules.match import Peer, PeerKind
from podmgr.rules.peers import Entry, prefix_of
from podmgr.rules.precedence import PodRules
from podmgr.rules.rule import Hook
from podmgr.rules.source import CLI, parse_source
from podmgr.rules.tables import Peers
from podmgr.settings import LogFormat, Settings
from podmgr.watch.events import MOST_LINES
from podmgr.watch.journal import Journal
from podmgr.watch.podsync import MISSING_SECONDS, PodSync, Synced
from podmgr.watch.ruled import RuledPod
from podmgr.watch.workshop import Workshop
from tests.unit.samples import EGRESS, Script, attachment, parsed, said

SLOW = {"bandwidth": "1 mbps egress"}
LIMIT = "bandwidth=1 mbps egress"
HASH = "f87be1b7b104c9de4fc88b23866881f2"


def uid_of(number: int) -> str:
    return f"{number:08d}-50e1-452e-91c0-7dfcee8503e9"


ONE, TWO = uid_of(1), uid_of(2)


@dataclass
class Kernel:
    """What `apply` and `clean` were asked, and what they shall answer."""

    wishes: list[Wish] = field(default_factory=list)
    applied: int = 0
    cleaned: list[Selection] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    error: PodmgrError | None = None
    answer: Callable[[], list[Outcome]] | None = None

    def apply(self, wishes: Sequence[Wish], *_: object, **__: object) -> list[Outcome]:
        self.applied += 1
        if self.error is not None:
            raise self.error
        self.wishes = list(wishes)
        return self.answer() if self.answer else self.outcomes

    def clean(self, selection: Selection, *_: object, **__: object) -> list[Outcome]:
        self.cleaned.append(selection)
        return self.outcomes


@dataclass
class Node:
    """A node without a kernel: a tree of folders, a ledger, pins that are files, a cluster."""

    settings: Settings
    tree: Path
    kernel: Kernel
    cluster: Cluster = field(default_factory=Cluster)
    log: io.StringIO = field(default_factory=io.StringIO)
    announced: list[tuple[str, str, str, bool]] = field(default_factory=list)
    asked: list[tuple[str, float]] = field(default_factory=list)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.journal = Journal(LogFormat.JSON, self.log)
        self.workshop = Workshop(
            self.settings, lambda *asked: self.asked.append(asked), runner=Script(said("", code=1))
        )
        self.sync = PodSync(
            self.settings,
            self.journal,
            self._announce,
            runner=Script(said("", code=1)),
            workshop=self.workshop,
            enforces=self.cluster.enforces,
            clock=lambda: self.now,
        )

    def _announce(self, pod: PodRef, reason: str, message: str, *, is_warning: bool = False) -> None:
        self.announced.append((pod.uid, reason, message, is_warning))

    def pod(
        self,
        uid: str,
        annotations: Mapping[str, str] | None = None,
        *,
        phase: str = "Running",
        more: Mapping[str, str] | None = None,
        is_deleted: bool = False,
        **spec: object,
    ) -> Pod:
        """The API server has this pod; `is_deleted`: as long as kubelet ends it."""
        self.cluster.put_pod(
            {
                "metadata": {
                    "name": f"pod-{int(uid[:8])}",
                    "namespace": "shop",
                    "uid": uid,
                    "labels": {"app": "web"},
                    "annotations": {**(annotations or {}), **(more or {})},
                    **({"deletionTimestamp": "2026-11-23T10:00:00Z"} if is_deleted else {}),
                },
                "spec": spec,
                "status": {"phase": phase},
            }
        )
        return self.cluster.pods[uid]

    def namespace(self, **annotations: str) -> None:
        self.cluster.put_namespace({"metadata": {"name": "shop", "annotations": annotations}})

    def cgroup(self, name: str, *, is_populated: bool = True) -> Cgroup:
        """The pod has a cgroup, with a process in it."""
        path = self.tree / "kubepods" / f"pod{name}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "cgroup.events").write_text(f"populated {int(is_populated)}\n")
        return Cgroup(path, path.stat().st_ino)

    def rows(self, *rows: Attachment) -> None:
        with ledger.locked(self.settings.state_dir) as state:
            ledger.write(state, rows)

    def pin(self, owner: str, digest: str = "abc") -> None:
        pin = Pin(self.settings.bpffs, owner, digest)
        Path(pin.program).parent.mkdir(parents=True, exist_ok=True)
        Path(pin.program).write_text("")

    def bring(self, *uids: str) -> Synced:
        """As `watch` does for these pods."""
        return self.sync.sync({uid: self._wanted(self.cluster.pods.get(uid)) for uid in uids})

    def _wanted(self, pod: Pod | None) -> RuledPod:
        if pod is None:
            return RuledPod(None, PodRules((), (), ()))
        return RuledPod(pod, self.cluster.rules(pod), self.cluster.cgroup_uids(pod))

    def said(self) -> list[dict[str, Any]]:
        """What the journal has got since the last look."""
        self.journal.flush(2)
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        self.log.seek(0)
        self.log.truncate()
        return lines

    def wished(self) -> dict[str, list[str]]:
        """Rules by UID."""
        return {
            wish.target.pod.uid: [str(item.rule) for item in wish.rules]
            for wish in self.kernel.wishes
            if wish.target.pod
        }


def row(uid: str, source: str = "pod", rule: str = LIMIT) -> Attachment:
    pod = PodRef("shop", "web", uid)
    return attachment(rule, owner=uid, pod=pod, program_id=5, target="pod/web")._replace(
        source=parse_source(source)
    )


def on(cgroup: Cgroup, row: Attachment) -> Attachment:
    return row._replace(cgroup_path=str(cgroup.path), cgroup_id=cgroup.id)


def failure(message: str, uid: str = ONE) -> Outcome:
    return outcome(uid, Action.FAILED, error=PodmgrError(message))


def outcome(uid: str, action: Action, rule: str = LIMIT, source: str = "pod", **more: Any) -> Outcome:
    pod = PodRef("shop", "web", uid)
    hook, note = more.get("hook", "cgroup"), more.get("note", "")
    return Outcome(
        "pod/web", parsed(rule), action, 7, more.get("error"), pod, parse_source(source), Hook(hook), note
    )


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    tree = tmp_path / "cgroup"
    tree.mkdir()
    (tree / "cgroup.controllers").write_text("cpu\n")
    kernel = Kernel()
    monkeypatch.setattr("podmgr.reconcile.transaction.apply", kernel.apply)
    monkeypatch.setattr("podmgr.reconcile.transaction.clean", kernel.clean)
    # Inode numbers of ordinary folders may be those of real cgroups.
    monkeypatch.setattr("podmgr.kernel.cgroups._open_by_id", lambda _: None)
    return Node(Settings(tmp_path / "state", tmp_path / "bpffs", cgroup_root=tree), tree, kernel)


# Wishes


def test_pod_whose_cgroup_is_seen_being_made_has_its_rules_before_its_first_process(node: Node) -> None:
    node.pod(ONE, SLOW, phase="Pending")
    cgroup = node.cgroup(ONE, is_populated=False)
    node.sync.sighted(ONE, cgroup)
    result = node.bring(ONE)
    (early,) = node.kernel.wishes
    assert (early.target.cgroup, early.is_early, node.wished()) == (cgroup, True, {ONE: [LIMIT]})
    assert (result.early, result.waiting) == ({ONE}, set())
    node.cgroup(ONE)
    result = node.bring(ONE)
    assert node.kernel.wishes == [early._replace(is_early=False)]
    assert result.early == set()


def test_pod_that_has_no_cgroup_yet_is_prepared_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wish] = []
    monkeypatch.setattr("podmgr.watch.workshop.Workshop.ahead", lambda _, wish: asked.append(wish))
    node.pod(ONE, SLOW, phase="Pending")
    result = node.bring(ONE)
    assert (result.waiting, node.kernel.applied) == ({ONE}, 0)
    node.sync.sighted(ONE, node.cgroup(ONE, is_populated=False))
    node.bring(ONE)  # what acts on interfaces is still to come
    assert [[str(item.rule) for item in wish.rules] for wish in asked] == [[LIMIT], [LIMIT]]
    assert not any(wish.is_early for wish in asked)


def test_pod_with_rules_and_a_cgroup_gets_a_standing_wish(node: Node) -> None:
    node.pod(ONE, {**SLOW, "loss": "nonsense"})
    cgroup = node.cgroup(ONE)
    result = node.bring(ONE)
    (wish,) = node.kernel.wishes
    assert wish.is_standing
    assert wish.unreadable == {(parse_source("pod"), "loss")}
    assert (wish.target.name, wish.target.cgroup, wish.target.owner) == ("pod/pod-1", cgroup, ONE)
    assert not wish.target.counts_loopback
    assert node.wished() == {ONE: [LIMIT]}
    assert (result.waiting, result.failed, node.kernel.cleaned) == (set(), set(), [])


def test_pod_in_the_hosts_network_counts_its_loopback(node: Node) -> None:
    node.pod(ONE, SLOW, hostNetwork=True)
    node.cgroup(ONE)
    node.bring(ONE)
    assert node.kernel.wishes[0].target.counts_loopback


def test_many_pods_are_one_transaction(node: Node) -> None:
    uids = [uid_of(number) for number in range(20)]
    for uid in uids:
        node.pod(uid, SLOW)
        node.cgroup(uid)
    node.bring(*uids)
    assert node.kernel.applied == 1
    assert node.wished() == {uid: [LIMIT] for uid in uids}


def test_pod_without_rules_and_without_traces_is_left_alone(node: Node) -> None:
    node.pod(ONE)
    node.cgroup(ONE)
    assert node.bring(ONE) == Synced()
    assert (node.kernel.applied, node.kernel.cleaned, node.said(), node.announced) == (0, [], [], [])


def test_nothing_to_bring_in_order_is_no_transaction(node: Node) -> None:
    assert node.bring() == Synced()
    assert (node.kernel.applied, node.kernel.cleaned) == (0, [])


def test_pod_that_has_lost_its_rules_is_wished_none(node: Node) -> None:
    node.pod(ONE)
    node.cgroup(ONE)
    node.rows(row(ONE))
    node.bring(ONE)
    assert node.wished() == {ONE: []}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pod_that_has_ended_is_wished_none(node: Node, phase: str) -> None:
    node.pod(ONE, SLOW, phase=phase)
    node.cgroup(ONE)
    node.rows(row(ONE))
    result = node.bring(ONE)
    assert node.wished() == {ONE: []}
    assert result.waiting == set()


def test_static_pods_cgroup_is_found_by_its_hash_and_its_pins_are_the_uids(node: Node) -> None:
    node.pod(ONE, SLOW, more={"kubernetes.io/config.hash": HASH})
    cgroup = node.cgroup(HASH)
    node.bring(ONE)
    assert node.kernel.wishes[0].target.cgroup == cgroup
    assert node.kernel.wishes[0].target.owner == ONE


def test_enforced_rules_are_wished_as_such(node: Node) -> None:
    node.namespace(loss="uniform egress 1%", **{ENFORCE: "true"})
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.bring(ONE)
    (wish,) = node.kernel.wishes
    assert {str(item.rule): item.is_enforced for item in wish.rules} == {
        LIMIT: False,
        "loss=uniform egress 1%": True,
    }
    assert wish.enforcing == {parse_source("namespace/shop")}


def test_rules_that_are_beaten_are_named(node: Node) -> None:
    node.namespace(bandwidth="2 mbps egress; 2 mbps ingress")
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.bring(ONE)
    (wish,) = node.kernel.wishes
    assert {(str(source), str(rule)) for source, rule in wish.beaten} == {
        ("namespace/shop", "bandwidth=2 mbps egress")
    }


# Pods that are gone

CAP = "bandwidth=2 mbps egress"


@pytest.mark.parametrize("value", ["2 mbps egress", "2 mpbs egress"], ids=["readable", "mistyped since"])
def test_pod_deleted_while_its_processes_run_keeps_what_its_namespace_enforces(
    node: Node, value: str
) -> None:
    node.namespace(bandwidth=value, **{ENFORCE: "true"})
    cgroup = node.cgroup(ONE)
    node.rows(on(cgroup, row(ONE, "namespace/shop", CAP)), on(cgroup, row(ONE)), row(TWO))
    result = node.bring(ONE, TWO)
    assert {selection.owners: selection.spared for selection in node.kernel.cleaned} == {
        frozenset({ONE}): {CLI, parse_source("namespace/shop")},
        frozenset({TWO}): {CLI},
    }
    assert (result.waiting, node.kernel.applied) == ({ONE}, 0)
    node.kernel.cleaned.clear()
    node.cgroup(ONE, is_populated=False)  # and when they have ended, it all goes
    assert node.bring(ONE).waiting == set()
    assert node.kernel.cleaned == [Selection(owners=frozenset({ONE}), spared=frozenset({CLI}))]


@pytest.mark.parametrize(
    "annotations",
    [{}, {"bandwidth": "2 mbps egress"}, {"bandwidth": "2 mbps egress", ENFORCE: "false"}, {ENFORCE: "true"}],
    ids=["none", "not enforced", "said not to be", "nothing to enforce"],
)
def test_deleted_pod_keeps_nothing_that_is_not_enforced(node: Node, annotations: dict[str, str]) -> None:
    node.namespace(**annotations)
    cgroup = node.cgroup(ONE)
    node.rows(on(cgroup, row(ONE, "namespace/shop", CAP)))
    assert node.bring(ONE).waiting == set()
    assert node.kernel.cleaned == [Selection(owners=frozenset({ONE}), spared=frozenset({CLI}))]


@pytest.mark.parametrize("annotations", [SLOW, {}], ids=["with rules", "without"])
def test_pod_whose_cgroup_is_empty_is_left_alone_and_waited_for(
    node: Node, annotations: dict[str, str]
) -> None:
    """Between two of its containers: the next one shall not begin without limits."""
    node.pod(ONE, annotations)
    node.rows(on(node.cgroup(ONE, is_populated=False), row(ONE)))
    assert node.bring(ONE).waiting == {ONE}
    assert (node.kernel.applied, node.kernel.cleaned) == (0, [])
    node.cgroup(ONE)
    assert node.bring(ONE).waiting == set()
    assert node.wished() == {ONE: [LIMIT] if annotations else []}


def test_empty_cgroup_of_a_pod_without_anything_is_not_waited_for(node: Node) -> None:
    node.pod(ONE)
    node.cgroup(ONE, is_populated=False)
    assert node.bring(ONE) == Synced()


def test_mirror_pod_that_is_made_anew_is_not_cleaned_up_after(node: Node) -> None:
    """Its cgroup goes on, under another UID; the pins stay in the folder of the first."""
    mirror = {"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH}
    node.pod(TWO, SLOW, more=mirror)
    cgroup = node.cgroup(HASH)
    node.rows(on(cgroup, row(TWO))._replace(owner=ONE))
    assert node.sync.traces() == {TWO}
    node.bring(ONE, TWO)
    assert (node.wished(), node.kernel.cleaned) == ({TWO: [LIMIT]}, [])


def test_pod_that_is_gone_is_cleaned_up_after_but_for_the_command_lines(node: Node) -> None:
    node.rows(row(ONE), row(TWO))
    node.bring(ONE)
    assert node.kernel.cleaned == [Selection(owners=frozenset({ONE}), spared=frozenset({CLI}))]
    assert node.kernel.applied == 0


def test_pod_that_is_gone_and_had_nothing_is_nothing_to_do(node: Node) -> None:
    node.rows(row(TWO))
    assert node.bring(ONE) == Synced()
    assert (node.kernel.applied, node.kernel.cleaned) == (0, [])


def test_pod_whose_cgroup_is_gone_is_cleaned_up_after(node: Node) -> None:
    node.pod(ONE, phase="Failed")
    node.rows(row(ONE))
    result = node.bring(ONE)
    assert node.kernel.cleaned == [Selection(owners=frozenset({ONE}), spared=frozenset({CLI}))]
    assert result.waiting == set()


def test_pod_between_two_cgroups_is_cleaned_up_after_and_waited_for(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.rows(row(ONE))
    result = node.bring(ONE)
    assert [selection.owners for selection in node.kernel.cleaned] == [{ONE}]
    assert result.waiting == {ONE}


# Traces


def test_traces_are_the_pods_of_the_ledger_and_of_the_pins(node: Node) -> None:
    node.rows(row(ONE), row(ONE, "cli", "loss=uniform egress 1%"), attachment(owner="4711"))
    node.pin(TWO)
    node.pin("4711")
    node.pin("4712")
    assert node.sync.traces() == {ONE, TWO}


def test_pod_that_only_the_command_line_has_touched_is_no_trace(node: Node) -> None:
    node.rows(row(ONE, "cli"))
    node.pin(ONE)
    assert node.sync.traces() == set()
    node.bring(ONE)
    assert node.kernel.cleaned == []


def test_lost_ledger_leaves_the_pins_to_tell(node: Node) -> None:
    node.settings.state_dir.mkdir(mode=0o700)
    (node.settings.state_dir / "ledger.json").write_text("{")
    node.pin(ONE)
    assert node.sync.traces() == {ONE}
    node.bring(ONE)
    assert [selection.owners for selection in node.kernel.cleaned] == [{ONE}]


def test_fresh_machine_has_no_traces(node: Node) -> None:
    assert node.sync.traces() == set()


def test_not_being_allowed_to_look_is_not_having_no_traces(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[Attachment]:
        raise PermissionDeniedError("not allowed")

    monkeypatch.setattr("podmgr.reconcile.ledger.read", refuse)
    with pytest.raises(PermissionDeniedError):
        node.sync.traces()


def test_rules_of_the_command_line_are_told_apart_by_pod(node: Node) -> None:
    node.rows(row(ONE, "cli"), row(TWO))
    assert {uid: list(map(str, rules)) for uid, rules in node.sync.by_hand().items()} == {ONE: [LIMIT]}


def test_removing_all_spares_the_command_lines(node: Node) -> None:
    node.rows(row(ONE), row(TWO, "cli"))
    node.pin(uid_of(3))
    node.kernel.outcomes = [outcome(ONE, Action.DETACHED)]
    assert node.sync.remove_all() == node.kernel.outcomes
    assert node.kernel.cleaned == [Selection(owners=frozenset({ONE, uid_of(3)}), spared=frozenset({CLI}))]
    assert [(reason, message) for _, reason, message, _ in node.announced] == [("RuleRemoved", LIMIT)]


# What another podmgr does


def test_what_another_podmgr_changes_is_seen_once(node: Node) -> None:
    assert not node.sync.was_disturbed()
    for rows in ([row(TWO)], [row(TWO), row(ONE)], []):
        node.rows(*rows)
        assert node.sync.was_disturbed()
        assert not node.sync.was_disturbed()


def test_what_it_has_changed_itself_disturbs_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object, **__: object) -> list[Outcome]:
        node.rows(row(ONE))
        return []

    monkeypatch.setattr("podmgr.reconcile.transaction.apply", write)
    monkeypatch.setattr("podmgr.reconcile.transaction.clean", write)
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.bring(ONE)
    assert not node.sync.was_disturbed()
    node.cluster.remove_pod({"metadata": {"uid": ONE}})
    node.bring(ONE)
    assert not node.sync.was_disturbed()


def test_what_another_has_changed_is_not_lost_behind_an_own_change(node: Node) -> None:
    """A pod that waits is brought in order every two seconds; others' rules are repaired all the same."""
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.rows(row(TWO))
    node.bring(ONE)
    assert node.sync.was_disturbed()


# Waiting for a cgroup


def test_pod_without_a_cgroup_waits_in_silence(node: Node) -> None:
    node.pod(ONE, SLOW, phase="Pending")
    for _ in range(3):
        assert node.bring(ONE).waiting == {ONE}
        node.now += 100
    assert (node.kernel.applied, node.said(), node.announced) == (0, [], [])
    node.cgroup(ONE)
    assert node.bring(ONE).waiting == set()
    assert node.wished() == {ONE: [LIMIT]}


def test_pod_that_waits_holds_no_other_up(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.pod(TWO, SLOW)
    node.cgroup(TWO)
    assert node.bring(ONE, TWO).waiting == {ONE}
    assert node.wished() == {TWO: [LIMIT]}


def test_running_pod_without_a_cgroup_is_an_error_after_a_while(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.pod(TWO, SLOW)
    node.cgroup(TWO)
    node.bring(ONE, TWO)
    node.now += MISSING_SECONDS
    node.bring(ONE)
    assert node.announced == []
    node.now += 0.1
    assert node.bring(ONE).waiting == {ONE}
    ((uid, reason, message, is_warning),) = node.announced
    assert (uid, reason, is_warning) == (ONE, "RuleFailed", True)
    assert message.startswith(f"no cgroup of this pod (UID {ONE}) has processes here")
    (line,) = node.said()
    assert (line["level"], line["pod"], line["namespace"], line["uid"]) == ("error", "pod-1", "shop", ONE)


def test_node_on_which_no_pod_has_a_cgroup_is_told_of(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.bring(ONE)
    node.now += MISSING_SECONDS + 1
    node.bring(ONE)
    assert "the node may run its pods on cgroup v1" in node.announced[0][2]


def test_missing_cgroup_is_complained_of_once(node: Node) -> None:
    """The pod is looked for every two seconds, for ever."""
    node.pod(ONE, SLOW)
    for _ in range(60):
        node.bring(ONE)
        node.now += 2
    assert len(node.said()) == 1


def test_time_begins_anew_when_the_cgroup_was_there(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.bring(ONE)
    cgroup = node.cgroup(ONE)
    node.bring(ONE)
    (cgroup.path / "cgroup.events").unlink()
    cgroup.path.rmdir()
    node.now += MISSING_SECONDS + 1
    node.bring(ONE)
    assert node.announced == []


# Pods that end


def test_a_pod_that_is_deleted_and_has_no_process_is_not_missed(node: Node) -> None:
    node.pod(ONE, SLOW, is_deleted=True)
    assert node.bring(ONE).waiting == set()
    node.now += MISSING_SECONDS + 1
    assert node.bring(ONE) == Synced()
    assert (node.announced, node.said(), node.kernel.wishes) == ([], [], [])


def test_a_pod_that_is_deleted_has_its_rules_while_it_has_processes(node: Node) -> None:
    node.pod(ONE, SLOW, is_deleted=True)
    node.cgroup(ONE)
    node.bring(ONE)
    assert node.wished() == {ONE: [LIMIT]}


def test_what_a_deleted_pod_had_goes_with_its_cgroup(node: Node) -> None:
    cgroup = node.cgroup(ONE, is_populated=False)
    node.rows(row(ONE)._replace(cgroup_path=str(cgroup.path), cgroup_id=cgroup.id))
    node.pod(ONE, SLOW, is_deleted=True)
    node.bring(ONE)
    assert node.kernel.cleaned == []
    (cgroup.path / "cgroup.events").unlink()
    cgroup.path.rmdir()
    node.bring(ONE)
    assert [selection.owners for selection in node.kernel.cleaned] == [{ONE}]


@pytest.mark.parametrize("left", ["no cgroup", "no process"])
def test_a_pod_that_ends_while_its_programs_are_attached_has_not_failed(node: Node, left: str) -> None:
    pod = node.pod(ONE, SLOW)
    cgroup = node.cgroup(ONE)

    def end() -> list[Outcome]:
        node.cgroup(ONE, is_populated=False)
        if left == "no cgroup":
            (cgroup.path / "cgroup.events").unlink()
            cgroup.path.rmdir()
        return [failure("the kernel refuses it")._replace(pod=pod.ref)]

    node.kernel.answer = end
    assert node.bring(ONE) == Synced(waiting={ONE}), "a container may come back"
    assert (node.announced, node.said()) == ([], [])


def test_what_fails_on_a_pod_that_is_deleted_is_a_warning_and_no_event(node: Node) -> None:
    """Its interfaces may be gone before its last process. What is enforced is tried on, to the end."""
    pod = node.pod(ONE, SLOW, is_deleted=True)
    node.cgroup(ONE)
    node.kernel.outcomes = [failure("there is no eth0")._replace(pod=pod.ref)]
    for _ in range(2):
        assert node.bring(ONE).failed == {ONE}
    assert node.announced == []
    assert [(line["level"], line["message"]) for line in node.said()] == [
        ("warning", f"while it ends: {LIMIT}: there is no eth0")
    ]


# Complaints


def test_annotation_that_cannot_be_read_is_complained_of_once(node: Node) -> None:
    node.pod(ONE, {"bandwidth": "10 mpbs egress"})
    node.cgroup(ONE)
    node.bring(ONE)
    ((_, reason, message, is_warning),) = node.announced
    assert (reason, is_warning) == ("RuleFailed", True)
    assert "unknown unit 'mpbs' (column 4)" in message
    assert "bandwidth=10 mpbs egress" in message  # the value itself
    assert "did you mean 'mbps'?" in message
    (line,) = node.said()
    assert (line["level"], line["uid"], line["message"]) == ("error", ONE, message)
    node.bring(ONE)
    assert (node.said(), len(node.announced)) == ([], 1)


def test_all_that_cannot_be_read_is_one_event(node: Node) -> None:
    node.pod(ONE, {"bandwidth": "10 mpbs egress", "loss": "nonsense"})
    node.cgroup(ONE)
    node.bring(ONE)
    ((_, _, message, _),) = node.announced
    lines = [line["message"] for line in node.said()]
    assert len(lines) == 2
    assert message == " | ".join(lines)


def test_what_names_stand_for_is_in_the_wish_and_a_refused_rule_is_complained_of_once(node: Node) -> None:
    node.pod(ONE, {"bandwidth": "1 mbps egress", "loss": "1% egress peer=svc/db"})
    node.cgroup(ONE)
    pod = node.cluster.pods[ONE]
    rules = node.cluster.rules(pod)
    peers = {Peer(PeerKind.SERVICE, "db"): (Entry(prefix_of("10.43.0.1")),)}
    node.sync.sync({ONE: RuledPod(pod, rules, (ONE,), peers)})
    assert node.kernel.wishes[0].peers == peers
    refused = ((rules.rules[1].rule, PodmgrError("svc/db is external", tip="a CIDR")),)
    kept = rules._replace(rules=rules.rules[:1])
    for _ in range(2):
        node.sync.sync({ONE: RuledPod(pod, kept, (ONE,), refused=refused)})
    ((_, reason, message, _),) = node.announced
    assert (reason, message) == (
        "RuleFailed",
        "loss=uniform egress 1% peer=svc/db: svc/db is external; a CIDR",
    )
    assert [line["level"] for line in node.said()] == ["error"]


def test_what_has_moved_is_written_for_pods_that_were_brought_in_order(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Peer(PeerKind.SERVICE, "db")
    told: list[tuple[str, object, object]] = []
    failures: list[tuple[Attachment, PodmgrError]] = []

    def refresh(wishes: Sequence[tuple[Wish, Peers]], _: Settings) -> list[tuple[Attachment, PodmgrError]]:
        told.extend((wish.target.owner, wish.peers, before) for wish, before in wishes)
        return failures if wishes else []

    monkeypatch.setattr("podmgr.watch.podsync.refresh", refresh)
    node.pod(ONE, {"loss": "1% egress peer=svc/db"})
    node.cgroup(ONE)
    rules = node.cluster.rules(node.cluster.pods[ONE])
    node.sync.sync({ONE: RuledPod(node.cluster.pods[ONE], rules, (ONE,), {name: ()})})
    moved = Moved({name: ()}, {name: (Entry(prefix_of("10.42.0.1")),)})
    node.sync.refresh({ONE: moved, TWO: moved})
    assert told == [(ONE, moved.now, moved.before)]
    failures.append((row(ONE), PodmgrError("no room")))
    with pytest.raises(PodmgrError, match="no room"):
        node.sync.refresh({ONE: moved})
    node.bring(ONE)  # names nothing any more
    node.sync.refresh({ONE: moved})
    assert len(told) == 2


def test_strangers_annotations_do_not_fill_the_log(node: Node) -> None:
    for number in range(2 * MOST_LINES + 1):
        annotations = {"bandwidth": "1 mbps egress", "loss": "nonsense"}
        node.cluster.put_service(
            {
                "metadata": {"name": f"s{number:02}", "namespace": "shop", "annotations": annotations},
                "spec": {"selector": {"app": "web"}},
            }
        )
    node.pod(ONE)
    node.cgroup(ONE)
    node.bring(ONE)
    lines = node.said()
    errors = [line["message"] for line in lines if line["level"] == "error"]
    warnings = [line["message"] for line in lines if line["level"] == "warning"]
    assert (len(errors), errors[-1]) == (MOST_LINES + 1, f"and {MOST_LINES + 1} more")
    assert (len(warnings), warnings[-1]) == (MOST_LINES + 1, f"and {MOST_LINES} more")
    assert [message for _, _, message, _ in node.announced] == [" | ".join(errors)]


def test_other_complaint_is_new_and_so_is_one_that_had_gone(node: Node) -> None:
    node.cgroup(ONE)
    for value in ("10 mpbs egress", "10 mpbs egress", "10 nbps egress", "10 mbps egress", "10 nbps egress"):
        node.pod(ONE, {"bandwidth": value})
        node.bring(ONE)
    assert len(node.announced) == 3
    assert len(node.said()) == 3


def test_pod_that_is_gone_is_forgotten(node: Node) -> None:
    node.pod(ONE, {"bandwidth": "nonsense"})
    node.bring(ONE)
    node.cluster.remove_pod({"metadata": {"uid": ONE}})
    node.bring(ONE)
    assert not node.sync._telling._complaints
    node.pod(TWO, SLOW)
    node.bring(TWO)
    node.cluster.remove_pod({"metadata": {"uid": TWO}})
    node.bring(TWO)
    assert not node.sync._missing_since


def test_overruled_service_is_a_warning_in_the_log_alone(node: Node) -> None:
    for name in ("a", "b"):
        node.cluster.put_service(
            {
                "metadata": {"name": name, "namespace": "shop", "annotations": SLOW},
                "spec": {"selector": {"app": "web"}},
            }
        )
    node.pod(ONE)
    node.cgroup(ONE)
    node.bring(ONE)
    node.bring(ONE)
    (line,) = node.said()
    assert line["level"] == "warning"
    assert "service/b: 'bandwidth=1 mbps egress' gives way to" in line["message"]
    assert node.announced == []


# What became of it


def test_what_has_changed_is_said_once_for_each_pod_and_reason(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.kernel.outcomes = [
        outcome(ONE, Action.ATTACHED),
        outcome(ONE, Action.REPLACED, "loss=uniform egress 1%", "service/front", hook="tc"),
        outcome(ONE, Action.DETACHED, "loss=uniform ingress 1%"),
        outcome(ONE, Action.UNCHANGED, "ebpf-limit=dropper egress"),
        outcome(TWO, Action.ATTACHED),
        Outcome("cgroup/x", parsed(LIMIT), Action.ATTACHED, 7),
    ]
    result = node.bring(ONE)
    assert node.announced == [
        (
            ONE,
            "RuleApplied",
            f"{LIMIT} (cgroup hook); loss=uniform egress 1% (service/front, tc hook)",
            False,
        ),
        (ONE, "RuleRemoved", "loss=uniform ingress 1%", False),
        (TWO, "RuleApplied", f"{LIMIT} (cgroup hook)", False),
    ]
    lines = node.said()
    assert [line["message"] for line in lines] == [
        f"{LIMIT} attached",
        "loss=uniform egress 1% replaced",
        "loss=uniform ingress 1% detached",
        f"{LIMIT} attached",
    ]
    assert (lines[0]["program_id"], lines[0]["source"], lines[0]["rule"]) == (7, "pod", LIMIT)
    assert [line["hook"] for line in lines] == ["cgroup", "tc", "cgroup", "cgroup"]
    assert result.failed == set()
    assert result.outcomes == node.kernel.outcomes


def test_rule_that_is_not_where_it_would_be_is_said_with_the_reason(node: Node) -> None:
    loss = "loss=uniform egress 1%"
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.kernel.outcomes = [
        outcome(ONE, Action.ATTACHED, loss, note="finds no interface"),
        outcome(TWO, Action.ATTACHED, loss, "service/a", note="finds no interface"),
        outcome(TWO, Action.DETACHED, LIMIT, "service/a"),
    ]
    node.bring(ONE)
    assert node.announced == [
        (ONE, "RuleApplied", f"{loss} (cgroup hook, since it finds no interface)", False),
        (TWO, "RuleApplied", f"{loss} (service/a, cgroup hook, since it finds no interface)", False),
        (TWO, "RuleRemoved", f"{LIMIT} (service/a)", False),
    ]


def test_rule_that_failed_is_said_with_the_line_that_tells_why(node: Node) -> None:
    error = PodmgrError("clang refuses it", detail="one\nx.c:1: error: no y\nthree", tip="look at it")
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.kernel.outcomes = [
        outcome(ONE, Action.FAILED, error=error),
        outcome(TWO, Action.ATTACHED),
    ]
    result = node.bring(ONE)
    assert result.failed == {ONE}
    assert node.announced == [
        (TWO, "RuleApplied", f"{LIMIT} (cgroup hook)", False),
        (ONE, "RuleFailed", f"{LIMIT}: clang refuses it (x.c:1: error: no y); look at it", True),
    ]
    lines = {line["level"]: line["message"] for line in node.said()}
    assert lines == {"info": f"{LIMIT} attached", "error": node.announced[-1][2]}


@pytest.mark.parametrize(
    ("detail", "told"),
    [(None, "it failed"), ("", "it failed"), ("\n \n", "it failed"), ("first\nlast\n\n", "it failed (last)")],
)
def test_last_line_tells_why_if_none_says_error(node: Node, detail: str | None, told: str) -> None:
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.kernel.outcomes = [outcome(ONE, Action.FAILED, error=PodmgrError("it failed", detail=detail))]
    node.bring(ONE)
    assert node.announced == [(ONE, "RuleFailed", f"{LIMIT}: {told}", True)]


def test_failures_of_a_pod_are_one_event(node: Node) -> None:
    node.kernel.outcomes = [failure("one"), failure("else", TWO), failure("two")]
    node.rows(row(ONE))
    assert node.bring(ONE).failed == {ONE, TWO}
    assert node.announced == [
        (ONE, "RuleFailed", f"{LIMIT}: one | {LIMIT}: two", True),
        (TWO, "RuleFailed", f"{LIMIT}: else", True),
    ]


@pytest.mark.parametrize("count", [MOST_LINES, MOST_LINES + 1, 3 * MOST_LINES])
def test_of_many_failures_the_first_are_told(node: Node, count: int) -> None:
    node.rows(row(ONE))
    node.kernel.outcomes = [failure(str(number)) for number in range(count)]
    node.bring(ONE)
    told = [f"{LIMIT}: {number}" for number in range(MOST_LINES)]
    told += [f"and {count - MOST_LINES} more"] if count > MOST_LINES else []
    assert [line["message"] for line in node.said()] == told
    assert [message for _, _, message, _ in node.announced] == [" | ".join(told)]


def test_failure_is_told_again_only_when_it_has_changed_or_was_gone(node: Node) -> None:
    node.rows(row(ONE))

    def told(*outcomes: Outcome) -> list[str]:
        node.announced.clear()
        node.kernel.outcomes = list(outcomes)
        assert node.bring(ONE).failed == {outcome.pod.uid for outcome in outcomes if outcome.pod}
        assert len(node.said()) == len(node.announced) * len(outcomes)
        return [message for _, _, message, _ in node.announced]

    assert told(failure("one")) == [f"{LIMIT}: one"]
    assert told(failure("one")) == []
    assert told(failure("other")) == [f"{LIMIT}: other"]
    assert told(failure("other"), failure("more")) == [f"{LIMIT}: other | {LIMIT}: more"]
    assert told(failure("other")) == []  # less than before
    assert told(failure("other", TWO)) == [f"{LIMIT}: other"]  # another pod's
    assert told() == []
    assert told(failure("other")) == [f"{LIMIT}: other"]


def test_failure_while_cleaning_up_is_a_failure_of_its_pod(node: Node) -> None:
    node.rows(row(ONE))
    node.kernel.outcomes = [outcome(ONE, Action.FAILED, error=PodmgrError("busy"))]
    assert node.bring(ONE).failed == {ONE}


def test_transaction_that_fails_whole_is_the_callers(node: Node) -> None:
    node.pod(ONE, SLOW)
    node.cgroup(ONE)
    node.kernel.error = PodmgrError("no bpffs")
    with pytest.raises(PodmgrError, match="no bpffs"):
        node.bring(ONE)


def test_machine_without_cgroups_is_no_place_to_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podmgr.kernel.mounts.table", list)
    with pytest.raises(PodmgrError, match="no cgroup v2 hierarchy is mounted"):
        runner = Script(said(""))
        workshop = Workshop(Settings(tmp_path), lambda *_: None, runner=runner)
        journal = Journal(LogFormat.TEXT)
        PodSync(Settings(tmp_path), journal, lambda *_, **__: None, runner=runner, workshop=workshop)


# What is bypassed


def test_bypassed_rule_is_told_once_until_it_sees_packets_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, eth0 = PodRef("shop", "web", ONE), Link(1, 2, EGRESS, "eth0")
    row = attachment("loss=uniform egress 1%", pod=pod, program_id=5, links=(eth0,))

    def look(packets: int, seen: int) -> int:
        """How many warnings there are after a look at so many packets, of which so many were seen."""
        item = Observed(row, True, Counters(seen, 0, 0, 0), Traffic(packets, 100 * packets))
        monkeypatch.setattr("podmgr.watch.podsync.observe", lambda _: ([item], 0))
        node.sync.look_for_bypassed()
        return len([line for line in node.announced if line[1] == "RuleBypassed"])

    steps = ((0, 0), (1_000, 0), (1_010, 0), (2_000, 0), (3_000, 1_000), (4_000, 1_000))
    assert [look(*step) for step in steps] == [0, 1, 1, 1, 1, 2]
