"""`kubectl podmgr` against the tests' API server: what is written, what is refused before, what is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from podmgr.attachment import PodRef
from podmgr.cluster.access import Access
from podmgr.cluster.announcer import Announcer
from podmgr.cluster.api import Api
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.unit.cli.conftest import Kubectl

Obj = dict[str, Any]
DELAY, LOSS = "delay=80ms rtt", "loss=uniform egress 2%"
P = "podmgr.io/"


def annotations_of(server: ApiServer, resource: str, name: str, namespace: str = "shop") -> Obj:
    found: Obj = server.get(resource, namespace, name)["metadata"].get("annotations") or {}
    return found


def is_untouched(server: ApiServer) -> bool:
    return not server.asked("patch")


# annotate


def test_the_prefixed_key_is_written_whichever_is_given(server: ApiServer, kubectl: Kubectl) -> None:
    done = kubectl("annotate pod/web-0", DELAY, f"{P}{LOSS}")
    assert annotations_of(server, "pods", "web-0") == {
        P + "delay": "80ms rtt",
        P + "loss": "uniform egress 2%",
    }
    assert done.rows == [
        ["shop", "pod/web-0", f"{P}{DELAY}", "added"],
        ["shop", "pod/web-0", f"{P}{LOSS}", "added"],
    ]
    assert done.err == ""


def test_a_second_time_there_is_nothing_to_do(server: ApiServer, kubectl: Kubectl) -> None:
    kubectl("annotate pod/web-0", DELAY)
    assert kubectl("annotate pod/web-0", DELAY).rows == [["shop", "pod/web-0", "-", "unchanged"]]
    assert len(server.asked("patch")) == 1
    kubectl("annotate pod/web-0 delay-")
    assert kubectl("annotate pod/web-0 delay-").rows == [["shop", "pod/web-0", "-", "unchanged"]]
    assert len(server.asked("patch")) == 2


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["bandwidth=10 mbit egress"], "unknown unit 'mbit' (column 4)", "did you mean 10 mbps?"),
        (["dealy=80ms rtt"], "unknown annotation podmgr.io/dealy", "did you mean podmgr.io/delay?"),
        (["dealy-"], "unknown annotation podmgr.io/dealy", "did you mean podmgr.io/delay?"),
        (["loss=1% egress; 2% egress"], "collides with", "one loss rule per direction"),
        (["delay=50ms", "egress"], "'egress' is neither KEY=VALUE nor KEY-", "quotes"),
        ([DELAY, "podmgr.io/delay-"], "podmgr.io/delay is given twice", "each key once"),
        (["enforce=true"], "holds for namespaces only", "annotate the namespace"),
        (["delay="], "no rule", "TIME DIRECTION"),
        ([], "nothing to write", "KEY=VALUE"),
    ],
)
def test_what_is_written_amiss_is_told_and_nothing_is_asked(
    server: ApiServer, kubectl: Kubectl, words: list[str], message: str, tip: str
) -> None:
    done = kubectl("annotate pod/web-0", *words, code=2)
    assert message in done.err
    assert tip in done.err
    assert server.requests == []


def test_an_error_shows_the_place_in_what_was_typed(kubectl: Kubectl) -> None:
    done = kubectl("annotate pod/web-0 --for 10m", "bandwidth=10 mbit egress", code=2)
    assert "  bandwidth=10 mbit egress\n               ^\n" in done.err


@pytest.mark.parametrize(
    ("value", "lasts", "written"),
    [
        ("uniform egress 2%", "10m", "uniform egress 2% for=10m"),
        ("2% egress; 1% ingress;", "90s", "2% egress for=90s; 1% ingress for=90s"),
        ("2% both port=80", "1m30s", "2% both port=80 for=1m30s"),
    ],
)
def test_for_ends_each_rule_by_itself(
    server: ApiServer, kubectl: Kubectl, value: str, lasts: str, written: str
) -> None:
    kubectl(f"annotate pod/web-0 --for {lasts}", f"loss={value}")
    assert annotations_of(server, "pods", "web-0") == {P + "loss": written}


@pytest.mark.parametrize(
    ("lasts", "word", "message"),
    [
        ("10", LOSS, "--for: '10' is not a time"),
        ("-1s", LOSS, "--for: negative: '-1s' is not a time"),
        ("10m", "loss=2% egress for=1s", "loss: for twice"),
        ("10m", "loss-", "--for is for rules"),
    ],
)
def test_a_for_that_cannot_be_meant_is_refused(
    server: ApiServer, kubectl: Kubectl, lasts: str, word: str, message: str
) -> None:
    assert message in kubectl(f"annotate pod/web-0 --for={lasts}", word, code=2).err
    assert server.requests == []


def test_another_value_is_overwritten_only_if_asked_and_then_nothing_else_was_sent(
    server: ApiServer, kubectl: Kubectl
) -> None:
    server.annotate("pods", "shop", "web-1", {P + "delay": "10ms rtt"})
    done = kubectl("annotate pods web-0 web-1", DELAY, code=1)
    assert "pod/web-1 in shop: it has podmgr.io/delay already: '10ms rtt'" in done.err
    assert "nothing was changed" in done.err
    assert is_untouched(server)
    done = kubectl("annotate pods web-0 web-1 --overwrite", DELAY)
    assert [row[3] for row in done.rows] == ["added", "changed"]


def test_a_bare_key_is_as_good_as_the_prefixed_one_that_would_replace_it(
    server: ApiServer, kubectl: Kubectl
) -> None:
    server.annotate("pods", "shop", "web-0", {"delay": "10ms rtt", "profile": "anybody's"})
    done = kubectl("annotate pod/web-0", DELAY, code=1)
    assert "it has delay already, which podmgr.io/delay would replace whole: '10ms rtt'" in done.err
    kubectl("annotate pod/web-0 --overwrite", DELAY)
    assert annotations_of(server, "pods", "web-0")[P + "delay"] == "80ms rtt"
    kubectl("annotate pod/web-0", f"{P}delay-")
    assert annotations_of(server, "pods", "web-0") == {"delay": "10ms rtt", "profile": "anybody's"}
    assert kubectl("annotate pod/web-0 delay-").rows == [["shop", "pod/web-0", "delay", "removed"]]
    assert annotations_of(server, "pods", "web-0") == {"profile": "anybody's"}


def test_what_stood_there_amiss_is_hinted_at(server: ApiServer, kubectl: Kubectl) -> None:
    server.annotate("pods", "shop", "web-0", {P + "dealy": "10ms rtt", "loss": "a lot"})
    done = kubectl("annotate pod/web-0", DELAY)
    assert "hint: pod/web-0: unknown annotation podmgr.io/dealy; it stood there already" in done.err
    assert "hint: pod/web-0: loss: " in done.err


@pytest.mark.parametrize("target", ["deploy/web", "deployments web", "deploy -l app=web", "deploy --all"])
def test_a_workload_is_the_pods_that_it_has_now(server: ApiServer, kubectl: Kubectl, target: str) -> None:
    done = kubectl(f"annotate {target}", DELAY)
    assert [row[1] for row in done.rows] == ["pod/web-0", "pod/web-1"]
    assert P + "delay" not in annotations_of(server, "deployments", "web")
    template = server.get("deployments", "shop", "web")["spec"]["template"]["metadata"]
    assert P + "delay" not in (template.get("annotations") or {})
    assert "note: pods that the deployment makes later are not annotated; --template" in done.err


def test_its_template_is_written_if_asked(server: ApiServer, kubectl: Kubectl) -> None:
    done = kubectl("annotate deploy/web --template", DELAY)
    assert done.rows == [["shop", "deployment/web (pod template)", f"{P}{DELAY}", "added"]]
    template = server.get("deployments", "shop", "web")["spec"]["template"]
    assert template["metadata"]["annotations"][P + "delay"] == "80ms rtt"
    assert template["spec"]["containers"]
    assert annotations_of(server, "pods", "web-0") == {}
    assert done.err == ""


@pytest.mark.parametrize("target", ["job/web", "pod/web-0", "svc/web"])
def test_what_has_no_template_that_may_change_is_refused(kubectl: Kubectl, target: str) -> None:
    assert "pod template" in kubectl(f"annotate {target} --template", DELAY, code=2).err


def test_a_cron_job_has_its_template_in_that_of_its_jobs(server: ApiServer, kubectl: Kubectl) -> None:
    made = objects.deployment("night", "shop", kind="CronJob")
    made["spec"] = {"jobTemplate": {"spec": {"template": {"metadata": {}, "spec": {}}}}}
    server.create(made)
    kubectl("annotate cj/night --template", DELAY)
    spec = server.get("cronjobs", "shop", "night")["spec"]["jobTemplate"]["spec"]["template"]
    assert spec["metadata"]["annotations"] == {P + "delay": "80ms rtt"}


def test_services_and_namespaces_are_annotated_themselves(server: ApiServer, kubectl: Kubectl) -> None:
    kubectl("annotate svc/web", DELAY)
    kubectl("annotate ns/shop", LOSS, "enforce=TRUE")
    assert annotations_of(server, "services", "web")[P + "delay"] == "80ms rtt"
    assert annotations_of(server, "namespaces", "shop", "") == {
        P + "loss": "uniform egress 2%",
        P + "enforce": "true",
    }
    assert annotations_of(server, "pods", "web-0") == {}
    done = kubectl("annotate ns/shop enforce=maybe", code=2)
    assert "neither true nor false" in done.err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("-l app=web", ["web-0", "web-1"]),
        ("pods -l 'app in (api)'", ["api"]),
        ("po --all", ["api", "web-0", "web-1"]),
        ("pods --all -A", ["api", "other", "web-0", "web-1"]),
        ("pods --all -n else", ["other"]),
    ],
)
def test_objects_are_selected_as_in_kubectl(
    server: ApiServer, kubectl: Kubectl, words: str, names: list[str]
) -> None:
    server.create(objects.pod("other", "else", labels={"app": "other"}))
    done = kubectl(f"annotate {words}", DELAY)
    assert sorted(row[1] for row in done.rows) == [f"pod/{name}" for name in names]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "which objects?"),
        ("pods", "which objects?"),
        ("--all", "--all of which kind?"),
        ("pod/web-0 -l app=web", "-l selects objects, and targets name them"),
        ("pods -l app=web --all", "--all means all, -l some"),
        ("pod/web-0 -A", "-A needs -l or --all"),
        ("pods --all -A -n shop", "-A is all namespaces, -n is one"),
        ("cgroup/a", "is on a node"),
        ("web-0", "'web-0' is not a target"),
        ("pod/../x", "is not a Kubernetes name"),
        ("pods -l app=none", "nothing is selected"),
        ("pod/web-0 --request-timeout soon", "--request-timeout"),
        ("pod/web-0 --dry-run=maybe", "maybe"),
    ],
)
def test_objects_that_cannot_be_meant(server: ApiServer, kubectl: Kubectl, words: str, message: str) -> None:
    assert message in kubectl(f"annotate {words}", DELAY, code=2).err
    assert is_untouched(server)


def test_of_several_objects_that_which_is_there_is_done(server: ApiServer, kubectl: Kubectl) -> None:
    done = kubectl("annotate pods web-0 gone", DELAY, code=3)
    assert "pod/gone in shop: there is none in namespace shop" in done.err
    assert annotations_of(server, "pods", "web-0")
    server.create(objects.deployment("empty", "shop"))
    assert "it has no pods now" in kubectl("annotate deploy/empty", DELAY, code=1).err


def test_dry_run(server: ApiServer, kubectl: Kubectl) -> None:
    assert kubectl("annotate pod/web-0 --dry-run=client", DELAY).rows[0][-1] == "added (dry run)"
    assert is_untouched(server)
    assert kubectl("annotate pod/web-0 --dry-run server", DELAY).rows[0][-1] == "added (server dry run)"
    assert [request.query for request in server.asked("patch")] == [{"dryRun": "All"}]
    assert annotations_of(server, "pods", "web-0") == {}


def test_what_another_has_written_meanwhile_is_not_overwritten(
    server: ApiServer, kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: Iterator[Obj] = iter([{"note": "x"}, {P + "delay": "10ms rtt"}])
    patch = Api.patch

    def late(api: Api, *words: Any) -> Obj:
        if (other := next(others, None)) is not None:
            server.annotate("pods", "shop", "web-0", other)
        return patch(api, *words)

    monkeypatch.setattr(Api, "patch", late)
    done = kubectl("annotate pod/web-0", DELAY, code=1)
    assert "it has podmgr.io/delay already: '10ms rtt'" in done.err
    assert annotations_of(server, "pods", "web-0") == {"note": "x", P + "delay": "10ms rtt"}
    kubectl("annotate pod/web-0", LOSS)


def test_the_result_as_data(kubectl: Kubectl) -> None:
    result = json.loads(kubectl("annotate pods web-0 gone -o json", DELAY, code=3).out)
    assert result == {
        "version": 1,
        "dry_run": "none",
        "results": [
            {
                "namespace": "shop",
                "target": "pod/web-0",
                "template": False,
                "annotation": P + "delay",
                "value": "80ms rtt",
                "result": "added",
                "error": None,
            },
            {
                "namespace": "shop",
                "target": "pod/gone",
                "template": False,
                "annotation": "",
                "value": None,
                "result": "failed",
                "error": "there is none in namespace shop",
            },
        ],
    }


# get


@pytest.fixture
def announce(server: ApiServer, tmp_path: Path) -> Callable[..., None]:
    """Posts Events as the pod's node does."""
    access = Access(str(server.write_kubeconfig(tmp_path / "of-the-node")))

    def post(name: str, reason: str, message: str) -> None:
        announcer = Announcer(lambda: Api(access), "node-1", pytest.fail)
        announcer.announce(PodRef("shop", name, f"uid-{name}"), reason, message)
        announcer.close(0)
        announcer.run()

    return post


def states(kubectl: Kubectl, line: str = "get") -> dict[tuple[str, str], tuple[str, str]]:
    rows = json.loads(kubectl(f"{line} -o json").out)["rules"]
    return {(row["pod"]["name"], row["rule"]): (row["state"], row["message"]) for row in rows}


def test_a_rule_is_pending_then_active_then_bypassed_then_gone(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None]
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress", "delay": "80ms rtt"})
    assert states(kubectl)["web-0", LOSS][0] == "pending"
    rules = f"{LOSS} (tc hook); delay=40ms egress (tc hook, since it a; b); delay=40ms ingress (tc hook)"
    announce("web-0", "RuleApplied", rules)
    assert {state for state, _ in states(kubectl).values()} == {"active"}
    announce("web-0", "RuleBypassed", f"'{LOSS}' is attached, but packets pass it by: eth0 counts them")
    assert states(kubectl)["web-0", LOSS][0] == "bypassed"
    announce("web-0", "RuleRemoved", LOSS)
    assert states(kubectl)["web-0", LOSS] == ("removed", "podmgr took it away")
    assert states(kubectl)["web-0", "delay=40ms egress"][0] == "active"


def test_a_failure_is_shown_with_its_message_until_it_is_mended(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None]
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress", "bandwidth": "1 gbps egress"})
    announce("web-0", "RuleFailed", f"{LOSS}: no interface leads out; podmgr doctor | and so on")
    found = states(kubectl)
    assert found["web-0", LOSS] == ("failed", "no interface leads out; podmgr doctor")
    assert found["web-0", "bandwidth=1 gbps egress"][0] == "pending"
    assert found["web-0", ""] == ("failed", "and so on")  # of the pod as a whole
    announce("web-0", "RuleApplied", f"{LOSS} (tc hook); bandwidth=1 gbps egress (cgroup hook)")
    assert {state for state, _ in states(kubectl).values()} == {"active"}


def test_the_rules_of_services_and_namespaces_hold_or_are_beaten(server: ApiServer, kubectl: Kubectl) -> None:
    server.annotate("services", "shop", "web", {"loss": "2% egress"})
    server.annotate("pods", "shop", "web-0", {"loss": "1% egress"})
    enforced: Obj = {"bandwidth": "1 gbps egress", P + "enforce": "true"}
    server.annotate("namespaces", "", "shop", enforced)
    rows = kubectl("get pod/web-0 deploy/web").rows
    assert [row[1:6] for row in rows] == [
        ["web-0", "node-1", "loss=uniform egress 1%", "pod", "pending"],
        ["web-0", "node-1", "bandwidth=1 gbps egress", "namespace/shop", "pending"],
        ["web-0", "node-1", LOSS, "service/web", "beaten"],
        ["web-1", "node-1", LOSS, "service/web", "pending"],
        ["web-1", "node-1", "bandwidth=1 gbps egress", "namespace/shop", "pending"],
    ]
    assert rows[2][6] == "by loss=uniform egress 1% of pod"


def test_what_cannot_be_read_is_shown_with_what_would_be_right(server: ApiServer, kubectl: Kubectl) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2 egress", P + "dealy": "80ms rtt"})
    server.annotate("services", "shop", "web", {"bandwidth": "10 mbit egress"})
    found = states(kubectl, "get pod/web-0")
    assert found["web-0", "loss=2 egress"][0] == "unreadable"
    assert "the percent sign is missing" in found["web-0", "loss=2 egress"][1]
    assert "did you mean podmgr.io/delay?" in found["web-0", "podmgr.io/dealy"][1]
    state, message = found["web-0", "bandwidth=10 mbit egress"]
    assert (state, message.split(";")[0]) == ("unreadable", "unknown unit 'mbit' (column 4)")


def test_what_only_the_nodes_podmgr_cannot_read_is_of_the_pod(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None]
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress", "delay": "oops"})
    announce("web-0", "RuleFailed", "pod/web-0: delay: unreadable (column 1) | pod/web-0: newer: no such key")
    found = states(kubectl)
    assert found["web-0", ""] == ("failed", "pod/web-0: newer: no such key")
    assert len(found) == 3


def test_after_an_hour_nobody_knows(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress"})

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr("podmgr.cluster.asking.datetime", Later)
    assert states(kubectl)["web-0", LOSS] == ("unknown", "no Event tells of it any more")
    announce("web-0", "RuleApplied", "x" * 2000)  # more than an Event holds
    assert states(kubectl)["web-0", LOSS] == ("unknown", "an Event had no room to tell of it")


def test_a_rule_with_an_end_is_over_then(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, pulse, long = (
        "loss=uniform egress 2% for=1m",
        "delay=1ms egress every=1m for=1s",
        "corrupt=1% egress",
    )
    rules = {P + rule.partition("=")[0]: rule.partition("=")[2] for rule in (short, pulse)}
    past = "2% egress until=2020-01-01T00:00:00Z"
    server.annotate(
        "pods", "shop", "web-0", {**rules, P + "corrupt": "1% egress for=1h", P + "reorder": past}
    )
    pulse = "delay=1ms egress for=1s every=1m"
    announce("web-0", "RuleApplied", "; ".join(f"{rule} (tc hook)" for rule in (short, pulse)))
    announce("web-0", "RuleOver", f"{long} for=1h (tc hook)")

    def found() -> dict[str, str]:
        return {rule.partition("=")[0]: state for (_, rule), (state, _) in states(kubectl).items()}

    others = {"delay": "active", "corrupt": "over", "reorder": "over"}
    assert found() == {"loss": "active", **others}

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=70)

    monkeypatch.setattr("podmgr.cluster.asking.datetime", Later)
    assert found() == {"loss": "over", **others}


def test_events_of_others_and_of_another_pod_of_that_name_tell_nothing(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None]
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress"})
    announce("web-0", "RuleApplied", LOSS)
    (event,) = server.events()
    server.delete("events", "shop", event["metadata"]["name"])
    for change in (
        {"source": {"component": "kubelet"}},
        {"involvedObject": {**event["involvedObject"], "uid": "uid-gone"}},
    ):
        server.create({**event, **change, "metadata": {"generateName": "x-", "namespace": "shop"}})
    assert states(kubectl)["web-0", LOSS][0] == "pending"


def test_a_pod_without_a_node_waits_and_one_that_has_ended_is_left_out(
    server: ApiServer, kubectl: Kubectl
) -> None:
    rule = {"loss": "2% egress"}
    server.create(objects.pod("new", "shop", node="", phase="Pending", annotations=rule))
    server.create(objects.pod("old", "shop", phase="Succeeded", annotations=rule))
    assert states(kubectl) == {("new", LOSS): ("pending", "the pod has no node yet")}


def test_wide_has_the_hook_the_time_and_the_whole_message(
    server: ApiServer, kubectl: Kubectl, announce: Callable[..., None]
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress", "delay": "1 egress"})
    announce("web-0", "RuleApplied", f"{LOSS} (service/x, tc hook, since it does)")
    narrow, wide = kubectl("get"), kubectl("get -o wide")
    assert narrow.out.splitlines()[0].split() == [
        "NAMESPACE",
        "POD",
        "NODE",
        "RULE",
        "SOURCE",
        "STATE",
        "MESSAGE",
    ]
    (active,) = (row for row in wide.rows if row[5] == "active")
    assert active[6] == "tc"
    assert datetime.now(UTC) - datetime.fromisoformat(active[7]) < timedelta(minutes=1)
    assert max(map(len, narrow.out.splitlines())) < max(map(len, wide.out.splitlines()))


def test_nothing_told_and_nothing_there(kubectl: Kubectl) -> None:
    assert "no pod that is meant was told anything" in kubectl("get pod/web-0").err
    done = kubectl("get pod/gone deploy/gone", code=1)
    assert "pod/gone: there is none in namespace shop" in done.err
    assert kubectl("get cgroup/a", code=2).err
    assert json.loads(kubectl("get -o json").out) == {"version": 1, "rules": []}
    assert kubectl("get -o yaml").out == "version: 1\nrules: []\n"


def test_all_namespaces_and_labels(server: ApiServer, kubectl: Kubectl) -> None:
    server.create(objects.pod("other", "else", labels={"app": "other"}, annotations={"loss": "2% egress"}))
    server.annotate("namespaces", "", "shop", {"loss": "2% egress"})
    assert {name for name, _ in states(kubectl, "get -A")} == {"api", "web-0", "web-1", "other"}
    assert {name for name, _ in states(kubectl, "get -A -l app=other")} == {"other"}
    assert {name for name, _ in states(kubectl, "get ns/shop")} == {"api", "web-0", "web-1"}


@pytest.mark.parametrize(
    ("verb", "resource", "code", "says"),
    [
        ("list", "events", 0, "what became of the rules is not known"),
        ("get", "namespaces", 0, "the annotations of namespace shop may not be read"),
        ("list", "services", 1, "services is forbidden"),
        ("get", "pods", 1, "pods is forbidden"),
    ],
)
def test_a_right_that_is_lacking_is_named(
    server: ApiServer, kubectl: Kubectl, verb: str, resource: str, code: int, says: str
) -> None:
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress"})
    server.fail(verb, 403, resource)
    done = kubectl("get pod/web-0", code=code)
    assert says in done.err
    assert not code or done.out == ""


# all


def test_no_command_shows_what_there_is(kubectl: Kubectl) -> None:
    assert "annotate" in kubectl("").out
    assert "kubectl podmgr annotate" in kubectl("annotate --help").out
    assert "tip: kubectl podmgr --help" in kubectl("anotate", code=2).err
    assert kubectl("--version").out.startswith("podmgr ")


def test_a_timeout_of_a_request(server: ApiServer, kubectl: Kubectl) -> None:
    server.hang("get", "pods")
    assert "cannot be reached" in kubectl("get pod/web-0 --request-timeout 100ms", code=1).err
