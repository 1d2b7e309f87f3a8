"""`apply`, `list` and `clean` on the objects of a cluster, as kubectl names them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podmgr.reconcile.observe import observe
from tests.kernel.conftest import Cli, assert_nothing_left, podmgr
from tests.kube import objects
from tests.kube.cluster import Simulated, ending

__all__ = ["podmgr"]  # a fixture of the kernel's tests

LOSS, BANDWIDTH = "loss=uniform egress 1%", "bandwidth=10 mbps egress"
DOUBLE = "duplicate=5% egress"
APP = {"app": "web"}


@pytest.fixture
def shop(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """The namespace `shop`: web-0 with a rule of its own, web-1 without, web-2 on another node.

    The service and the workloads called `web` select all three.
    """
    monkeypatch.setenv("KUBECONFIG", str(simulated.kubeconfig))
    monkeypatch.setenv("NODE_NAME", simulated.node)
    simulated.use_namespace("shop")
    simulated.pod("web-0", labels=APP, annotations={"loss": "uniform egress 1%"})
    simulated.pod("web-1", labels=APP)
    simulated.pod("web-2", labels=APP, is_running=False, node="node-2")
    simulated.service("web", APP, {"bandwidth": "10 mbps egress"})
    for kind in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job"):
        simulated.api.create(objects.deployment("web", "shop", kind=kind, labels=APP))
    return simulated


def listed(podmgr: Cli, *words: str) -> set[tuple[str, str, str]]:
    rows = json.loads(podmgr("list", *words, "-o", "json").stdout)["attachments"]
    return {(row["target"], row["rule"], row["source"]) for row in rows if row["state"] == "active"}


def results(text: str) -> dict[str, list[str]]:
    """Of `apply -o json`, each target's actions."""
    found: dict[str, list[str]] = {}
    for row in json.loads(text)["results"]:
        found.setdefault(row["target"], []).append(row["action"])
    return found


WEB_0 = {("pod/web-0", LOSS, "pod"), ("pod/web-0", BANDWIDTH, "service/web")}
WEB_1 = {("pod/web-1", BANDWIDTH, "service/web")}


@pytest.mark.usefixtures("shop")
def test_a_pod_has_its_own_rules_and_its_services(podmgr: Cli) -> None:
    done = podmgr("apply", "po/web-0", "-n", "shop")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["NAMESPACE", "shop", "shop"]
    assert listed(podmgr) == WEB_0
    assert podmgr("apply", "pod", "web-0", "-n", "shop").stdout.count("unchanged") == 2


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    "target", ["svc/web", "deploy/web", "rs/web", "sts/web", "ds/web", "jobs/web", "ns/shop"]
)
def test_an_object_stands_for_its_pods_and_those_elsewhere_are_named_and_skipped(
    podmgr: Cli, target: str
) -> None:
    done = podmgr("apply", target, "-n", "shop", "-o", "json", code=3)
    assert results(done.stdout) == {
        "pod/web-0": ["attached", "attached"],
        "pod/web-1": ["attached"],
        "pod/web-2": ["skipped"],
    }
    assert "1 pod is on node node-2" in done.stderr
    assert listed(podmgr) == WEB_0 | WEB_1
    assert podmgr("clean", target, "-n", "shop").stdout.count("detached") == 3


def test_a_cron_job_is_its_jobs(shop: Simulated, podmgr: Cli) -> None:
    owner = shop.api.create(objects.deployment("night", "shop", kind="CronJob", labels={"app": "night"}))
    for name, by in (("night-1", owner), ("other", None)):
        labels = {"job": name}
        shop.api.create(objects.deployment(name, "shop", kind="Job", labels=labels, owner=by))
        shop.pod(name, labels=labels, annotations={"loss": "uniform egress 1%"})
    podmgr("apply", "cj/night", "-n", "shop")
    assert listed(podmgr) == {("pod/night-1", LOSS, "pod")}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    "words", [("-l", "app=web", "-n", "shop"), ("-l", "app in (web)", "-A"), ("-A",), ("pods", "-n", "shop")]
)
def test_pods_may_be_selected(podmgr: Cli, words: tuple[str, ...]) -> None:
    podmgr("apply", *words, code=3)
    assert listed(podmgr) == listed(podmgr, *words) == WEB_0 | WEB_1
    assert podmgr("clean", *words).stdout.count("detached") == 3
    assert listed(podmgr) == set()


@pytest.mark.usefixtures("shop")
def test_a_rule_of_the_command_line_overrides_the_annotations_for_this_once(podmgr: Cli) -> None:
    podmgr("apply", "pod/web-0", "-n", "shop", "--rule", "bandwidth=1 mbps egress")
    assert listed(podmgr) == {("pod/web-0", LOSS, "pod"), ("pod/web-0", "bandwidth=1 mbps egress", "cli")}
    podmgr("apply", "pod/web-0", "-n", "shop")
    assert listed(podmgr) == WEB_0


def test_what_a_namespace_enforces_is_not_overridden(shop: Simulated, podmgr: Cli) -> None:
    enforced = {"bandwidth": "20 mbps egress", "podmgr.io/enforce": "true"}
    shop.api.patch("namespaces", "", "shop", {"metadata": {"annotations": enforced}})
    podmgr("apply", "pod/web-1", "-n", "shop", "--rule", "bandwidth=1 gbps egress")
    assert listed(podmgr) == {
        ("pod/web-1", "bandwidth=20 mbps egress", "namespace/shop"),
        ("pod/web-1", "bandwidth=1 gbps egress", "cli"),
    }


@pytest.mark.parametrize("enforces", ["true", "false"])
def test_what_may_not_be_read_of_a_namespace_stays_and_the_exit_code_says_so(
    shop: Simulated, podmgr: Cli, enforces: str
) -> None:
    """Rules at both hooks, also where the pod says otherwise now."""
    rules = {"bandwidth": "20 mbps egress", "podmgr.io/duplicate": "5% egress", "podmgr.io/enforce": enforces}
    shop.api.patch("namespaces", "", "shop", {"metadata": {"annotations": rules}})
    shop.delete("services", "web")
    podmgr("apply", "pod/web-0", "-n", "shop")
    limits = {("pod/web-0", rule, "namespace/shop") for rule in ("bandwidth=20 mbps egress", DOUBLE)}
    assert listed(podmgr) == {("pod/web-0", LOSS, "pod")} | limits
    programs = {item.attachment.program_id for item in observe(shop.settings)[0]}
    shop.api.fail("get", 403, "namespaces")
    shop.annotate("pods", "web-0", {"loss": "uniform egress 2%"})
    done = podmgr("apply", "pod/web-0", "-n", "shop", code=3)
    assert "namespace/shop: its annotations may not be read" in done.stderr
    assert "get namespaces" in done.stderr and "k3s/podmgr.yaml" in done.stderr
    assert listed(podmgr) == {("pod/web-0", "loss=uniform egress 2%", "pod")} | limits
    assert len(programs & {item.attachment.program_id for item in observe(shop.settings)[0]}) == 2
    shop.annotate(
        "pods", "web-0", {"loss": None, "bandwidth": "1 gbps egress", "podmgr.io/duplicate": "1% egress"}
    )
    podmgr("apply", "pod/web-0", "-n", "shop", code=3)
    assert ("pod/web-0", "bandwidth=20 mbps egress", "namespace/shop") in listed(podmgr)
    assert (("pod/web-0", DOUBLE, "namespace/shop") in listed(podmgr)) == (enforces == "true")
    shop.api.heal()
    podmgr("apply", "pod/web-0", "-n", "shop")
    assert (("pod/web-0", "bandwidth=20 mbps egress", "namespace/shop") in listed(podmgr)) == (
        enforces == "true"
    )


def test_where_nothing_else_is_to_be_done_what_may_not_be_read_is_a_failure(
    shop: Simulated, podmgr: Cli
) -> None:
    shop.pod("plain")
    shop.api.fail("get", 403, "namespaces")
    assert "may not be read" in podmgr("apply", "pod/plain", "-n", "shop", code=1).stderr


def test_what_services_say_stays_where_they_may_not_be_read(shop: Simulated, podmgr: Cli) -> None:
    podmgr("apply", "pod/web-0", "-n", "shop")
    shop.api.fail("list", 403, "services")
    done = podmgr("apply", "pod/web-0", "-n", "shop", code=3)
    assert "list services" in done.stderr and done.stdout.count("unchanged") == 2
    shop.annotate("pods", "web-0", {"bandwidth": "5 mbps egress"})
    podmgr("apply", "pod/web-0", "-n", "shop", code=3)
    assert listed(podmgr) == {("pod/web-0", LOSS, "pod"), ("pod/web-0", "bandwidth=5 mbps egress", "pod")}


def test_annotations_that_went_away_are_rules_that_go_away(shop: Simulated, podmgr: Cli) -> None:
    podmgr("apply", "pod/web-1", "-n", "shop")
    shop.delete("services", "web")
    assert "detached" in podmgr("apply", "pod/web-1", "-n", "shop").stdout
    assert "has a rule" in podmgr("apply", "pod/web-1", "-n", "shop", code=1).stderr


@pytest.mark.usefixtures("shop")
def test_a_dry_run_touches_nothing(podmgr: Cli) -> None:
    assert podmgr("apply", "pod/web-0", "-n", "shop", "--dry-run").stdout.count("(dry run)") == 2
    assert_nothing_left(podmgr.settings)


def test_a_bad_annotation_fails_its_pod_and_no_other(shop: Simulated, podmgr: Cli) -> None:
    shop.pod("bad", annotations={"loss": "uniform egrss 1%"})
    done = podmgr("apply", "ns/shop", code=3)
    assert "pod/bad: loss: unknown direction 'egrss'" in done.stderr
    assert listed(podmgr) == WEB_0 | WEB_1
    assert podmgr("apply", "pod/bad", "-n", "shop", code=2).stdout == ""


def test_apply_waits_for_a_pod_that_is_to_come(shop: Simulated, podmgr: Cli) -> None:
    """Made and started while apply waits."""

    def come() -> None:
        shop.api.wait_for(
            lambda: any(request.name == "late" for request in shop.api.asked("get", "pods")), 60
        )
        pod = shop.pod("late", annotations={"loss": "uniform egress 1%"}, is_running=False)
        shop.start(pod)

    coming = threading.Thread(target=come)
    coming.start()
    done = podmgr("apply", "pod/late", "-n", "shop", "--timeout", "60s")
    coming.join()
    assert "waiting for pod/late" in done.stderr
    assert listed(podmgr) == {("pod/late", LOSS, "pod")}


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("pod/none", "pod/none"),
        ("deploy/none", "deployment/none"),
        ("svc/none", "service/none"),
        ("ns/none", "namespace/none"),
        ("pod/unstarted", "pod/unstarted"),
        ("pod/ended", "pod/ended"),
    ],
)
def test_a_pod_that_does_not_come_is_a_failure(shop: Simulated, podmgr: Cli, target: str, named: str) -> None:
    shop.pod("unstarted", annotations={"loss": "uniform egress 1%"}, is_running=False)
    shop.pod("ended", annotations={"loss": "uniform egress 1%"}, phase="Succeeded", is_running=False)
    done = podmgr("apply", target, "-n", "shop", "--timeout", "0", code=1)
    assert named in done.stderr
    assert_nothing_left(podmgr.settings)


DELETED = {"metadata": {"deletionTimestamp": "2026-11-23T10:00:00Z", "deletionGracePeriodSeconds": 30}}


def test_a_pod_that_is_deleted_and_has_no_process_is_missing_only_where_it_is_named(
    shop: Simulated, podmgr: Cli
) -> None:
    """It is not waited for either."""
    shop.pod("old", labels=APP, annotations={"loss": "uniform egress 1%"}, is_running=False)
    shop.patch("pods", "old", DELETED)
    shop.delete("pods", "web-2")
    for words in (("svc/web", "-n", "shop"), ("-A",), ("-l", "app=web", "-n", "shop")):
        done = podmgr("apply", *words, "--timeout", "1h")
        assert "old" not in done.stderr + done.stdout
    assert listed(podmgr) == WEB_0 | WEB_1
    done = podmgr("apply", "pod/old", "-n", "shop", "--timeout", "0", code=1)
    assert "pod/old" in done.stderr and "has ended" in done.stderr
    podmgr("apply", "pod/old", "pod/web-0", "-n", "shop", "--timeout", "0", code=3)


def test_a_pod_that_is_deleted_has_its_rules_until_it_has_ended(shop: Simulated, podmgr: Cli) -> None:
    shop.patch("pods", "web-0", DELETED)
    podmgr("apply", "pod/web-0", "-n", "shop")
    assert listed(podmgr) == WEB_0


@pytest.mark.parametrize("tool", ["clang", "bpftool"])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_pod_that_ends_while_apply_is_at_it_is_no_failure_of_its_rules(
    shop: Simulated, podmgr: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, is_named: bool
) -> None:
    pod = shop.pod("brief", labels={"app": "brief"}, annotations={"podmgr.io/duplicate": "7% egress"})
    monkeypatch.setenv("PATH", f"{ending(pod, tmp_path / 'bin', tool)}:{os.environ['PATH']}")
    words = ["pod/brief"] if is_named else ["-l", "app=brief"]
    done = podmgr("apply", *words, "-n", "shop", code=1 if is_named else 0)
    assert "has ended meanwhile" in done.stderr and "kernel" not in done.stderr
    assert done.stdout == ""
    assert_nothing_left(shop.settings)


@pytest.mark.usefixtures("shop")
def test_only_pods_elsewhere_is_exit_code_3(podmgr: Cli) -> None:
    assert "skipped" in podmgr("apply", "pod/web-2", "-n", "shop", code=3).stdout


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pod/web-0", "cgroup/x"), "cgroups and pods at once"),
        (("pod/web-0", "-l", "app=web"), "-l selects pods"),
        (("pod/web-0", "-A"), "a name means one object"),
        (("-A", "-n", "shop"), "-A is all namespaces"),
        (("deploy",), "which deployment"),
        (("pod/..",), "not a Kubernetes name"),
        (("pod/a/b",), "not a Kubernetes name"),
        (("pod/web-0", "--timeout", "soon"), "not a duration"),
        (("-n", "shop"), "no target"),
    ],
)
def test_what_cannot_be_meant_is_misuse(podmgr: Cli, words: tuple[str, ...], message: str) -> None:
    assert message in podmgr("apply", *words, code=2).stderr


def test_list_and_clean_need_no_cluster_for_pods_and_namespaces(shop: Simulated, podmgr: Cli) -> None:
    podmgr("apply", "pod/web-0", "pod/web-1", "-n", "shop")
    shop.api.stop()
    assert listed(podmgr, "pod/web-1") == listed(podmgr, "pod", "web-1", "-n", "shop") == WEB_1
    assert listed(podmgr, "ns/shop") == listed(podmgr, "-n", "shop") == WEB_0 | WEB_1
    assert listed(podmgr, "-n", "other") == set()
    assert "cannot be reached" in podmgr("list", "svc/web", code=1).stderr
    assert "nothing of podmgr's is on pod/none" in podmgr("list", "pod/none", code=1).stderr
    assert podmgr("clean", "pod/web-1").stdout.count("detached") == 1
    assert podmgr("clean", "-n", "other").stdout == ""
    assert podmgr("clean", "pod/none", "pod/web-0", code=3).stdout.count("detached") == 2


def test_a_name_in_two_namespaces_is_ambiguous(shop: Simulated, podmgr: Cli) -> None:
    podmgr("apply", "pod/web-0", "-n", "shop")
    shop.use_namespace("fair")
    shop.pod("web-0", annotations={"loss": "uniform egress 1%"})
    podmgr("apply", "pod/web-0", "-n", "fair")
    assert "-n NAMESPACE" in podmgr("clean", "pod/web-0", code=2).stderr
    assert podmgr("clean", "pod/web-0", "-n", "fair").stdout.count("detached") == 1
    assert listed(podmgr) == WEB_0


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (lambda api: api.fail("list", 403, "pods"), "lacks this right"),
        (lambda api: api.fail("list", 500), "says 500"),
        (lambda api: api.stop(), "cannot be reached"),
    ],
)
def test_a_cluster_that_does_not_answer_is_one_clear_error(
    shop: Simulated, podmgr: Cli, setup: Callable[[Any], None], message: str
) -> None:
    setup(shop.api)
    done = podmgr("apply", "-A", code=1)
    assert message in done.stderr and "tip:" in done.stderr
    assert_nothing_left(podmgr.settings)


@pytest.mark.parametrize(
    "text", ["", "a: [", "kind: Config", "clusters: 7", "apiVersion: v1\nkind: Config\ncurrent-context: x\n"]
)
def test_a_kubeconfig_that_makes_no_sense_is_one_clear_error(podmgr: Cli, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    done = podmgr("apply", "pod/web", "--kubeconfig", str(path), "--timeout", "0", code=1)
    assert done.stderr.count("error:") == 1 and "bug" not in done.stderr


def test_annotations_of_a_workload_itself_are_told_where_to_write_them(podmgr: Cli, shop: Simulated) -> None:
    wrong = {"bandwidth": "1 mbps egress"}
    shop.api.create(objects.deployment("front", "shop", labels=APP, annotations=wrong))
    done = podmgr("apply", "deploy/front", "-n", "shop", code=3)
    assert "the annotation bandwidth of the deployment itself is not read" in done.stderr
    assert "spec.template.metadata.annotations" in done.stderr
    assert listed(podmgr) == WEB_0 | WEB_1
    shop.api.create(objects.deployment("lone", "shop", labels={"app": "lone"}, annotations=wrong))
    shop.pod("lone-0", labels={"app": "lone"})
    podmgr("apply", "deploy/lone", "-n", "shop", code=2)


def test_an_unknown_key_is_told_and_the_other_rules_are_in_force(podmgr: Cli, shop: Simulated) -> None:
    annotations = {"podmgr.io/bandwith": "1 mbps egress", "loss": "1% egress", "los": "x"}
    shop.pod("typo", labels={"app": "typo"}, annotations=annotations)
    done = podmgr("apply", "pod/typo", "-n", "shop", code=3)
    assert "did you mean podmgr.io/bandwidth?" in done.stderr
    assert "hint: pod/typo: the annotation los is not read" in done.stderr
    assert listed(podmgr) == {("pod/typo", LOSS, "pod")}


def test_standard_annotations_are_read_where_it_is_asked_for(podmgr: Cli, shop: Simulated) -> None:
    shop.pod("std", labels={"app": "std"}, annotations={"kubernetes.io/ingress-bandwidth": "10M"})
    assert "--standard-annotations" in podmgr("apply", "pod/std", "-n", "shop", code=1).stderr
    podmgr("apply", "pod/std", "-n", "shop", "--standard-annotations")
    assert listed(podmgr) == {("pod/std", "bandwidth=10 mbps ingress", "standard")}


@pytest.mark.parametrize("option", ["-n", "--timeout", "--kubeconfig", "--state-dir", "-o"])
def test_an_option_of_one_value_that_is_given_twice_is_an_error(podmgr: Cli, option: str) -> None:
    done = podmgr("apply", "pod/web-0", option, "a", option, "b", code=2)
    assert "given twice" in done.stderr
