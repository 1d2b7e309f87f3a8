"""Manifests in files: the one pod that is meant, the services that select it, and what is refused."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import yaml

from podmgr.attachment import PodRef
from podmgr.errors import PodmgrError, UsageError
from podmgr.programs.find import shipped_folder
from podmgr.rules.keys import KEYS
from podmgr.rules.source import parse_source
from podmgr.targets.manifests import ManifestPod, read_pods

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web, version: 2}
  annotations: {bandwidth: 10 mbps egress, other: text}
spec:
  containers: [{name: web, image: nginx}]
"""
SERVICE = """\
kind: Service
metadata:
  name: front
  annotations: {loss: uniform egress 1%, bandwidth: 1 mbps egress}
spec:
  selector: {app: web}
"""
TEMPLATE = "{metadata: {labels: {app: web}, annotations: {bandwidth: 10 mbps egress}}, spec: {}}"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "pod.yaml"


def read(path: Path, *documents: str) -> ManifestPod:
    path.write_text("---\n".join(documents))
    (pod,) = read_pods([str(path)])
    return pod


def found(pod: ManifestPod) -> list[tuple[str, str]]:
    return [(str(sourced.rule), str(sourced.source)) for sourced in pod.rules.rules]


# The pod


def test_pod_has_name_namespace_and_rules(manifest: Path) -> None:
    pod = read(manifest, POD)
    assert (pod.target, pod.ref) == ("pod/web", PodRef("default", "web", ""))
    assert found(pod) == [("bandwidth=10 mbps egress", "pod")]
    assert not pod.has_host_network


def test_pod_that_an_api_server_has_seen_keeps_its_uid(manifest: Path) -> None:
    pod = read(manifest, POD.replace("  name: web\n", "  name: web\n  namespace: shop\n  uid: 846f24d4\n", 1))
    assert pod.ref == PodRef("shop", "web", "846f24d4")


@pytest.mark.parametrize(("value", "is_host"), [("true", True), ("false", False), ("null", False)])
def test_host_network_is_noticed(manifest: Path, value: str, is_host: bool) -> None:
    pod = read(manifest, POD + f"  hostNetwork: {value}\n")
    assert pod.has_host_network is is_host


@pytest.mark.parametrize(
    "kind", ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "ReplicationController"]
)
def test_workload_stands_for_its_pod_template(manifest: Path, kind: str) -> None:
    pod = read(
        manifest, f"kind: {kind}\nmetadata: {{name: web, namespace: shop}}\nspec: {{template: {TEMPLATE}}}\n"
    )
    assert (pod.target, pod.ref) == (f"{kind.lower()}/web", PodRef("shop", "web", ""))
    assert found(pod) == [("bandwidth=10 mbps egress", "pod")]


def test_cron_job_keeps_its_template_a_floor_deeper(manifest: Path) -> None:
    spec = f"{{jobTemplate: {{spec: {{template: {TEMPLATE}}}}}}}"
    pod = read(manifest, f"kind: CronJob\nmetadata: {{name: web}}\nspec: {spec}\n")
    assert pod.target == "cronjob/web"
    assert found(pod) == [("bandwidth=10 mbps egress", "pod")]


def test_annotations_of_the_workload_itself_are_not_the_pods(manifest: Path) -> None:
    metadata = "{name: web, annotations: {loss: uniform egress 1%}}"
    pod = read(manifest, f"kind: Deployment\nmetadata: {metadata}\nspec: {{template: {TEMPLATE}}}\n")
    assert found(pod) == [("bandwidth=10 mbps egress", "pod")]


def test_list_holds_its_items(manifest: Path) -> None:
    items = [yaml.safe_load(POD), yaml.safe_load(SERVICE), {"kind": "ConfigMap", "metadata": None}]
    pod = read(manifest, yaml.safe_dump({"kind": "List", "items": items}))
    assert ("loss=uniform egress 1%", "service/front") in found(pod)


def test_json_is_a_manifest_too(manifest: Path) -> None:
    text = '{"kind": "Pod", "metadata": {"name": "web", "annotations": {"loss": "uniform egress 1%"}}}'
    assert found(read(manifest, text)) == [("loss=uniform egress 1%", "pod")]


def test_manifest_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(POD.encode())))
    assert read_pods(["-"])[0].target == "pod/web"


def test_pod_without_a_name_or_rules_is_a_pod(manifest: Path) -> None:
    pod = read(manifest, "kind: Pod\nmetadata:\nspec:\n")
    assert (pod.target, pod.rules.rules) == ("pod/unnamed", ())


@pytest.mark.parametrize(
    "path", sorted(shipped_folder("examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_example_holds_a_pod_with_readable_rules(path: Path) -> None:
    (pod,) = read_pods([str(path)])
    assert pod.rules.rules
    assert pod.rules.errors == ()


# Its services


def test_service_of_the_manifest_adds_what_the_pod_does_not_say(manifest: Path) -> None:
    pod = read(manifest, SERVICE, POD)
    assert found(pod) == [("bandwidth=10 mbps egress", "pod"), ("loss=uniform egress 1%", "service/front")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("selector: {app: web}", "selector: {app: db}"),
        ("selector: {app: web}", "selector: {}"),
        ("selector: {app: web}", "selector: null"),
        ("name: front", "name: front\n  namespace: shop"),
    ],
    ids=["another selector", "an empty selector", "no selector", "another namespace"],
)
def test_service_that_does_not_select_the_pod_does_not_matter(manifest: Path, old: str, new: str) -> None:
    assert found(read(manifest, POD, SERVICE.replace(old, new))) == [("bandwidth=10 mbps egress", "pod")]


def test_labels_and_selectors_are_compared_as_text(manifest: Path) -> None:
    pod = read(manifest, POD, SERVICE.replace("{app: web}", '{version: "2"}'))
    assert ("loss=uniform egress 1%", "service/front") in found(pod)


def test_older_service_of_the_manifest_wins(manifest: Path) -> None:
    bare = POD.replace("bandwidth: 10 mbps egress, ", "")
    young = SERVICE.replace("name: front", 'name: a\n  creationTimestamp: "2024-01-02T00:00:00Z"')
    old = SERVICE.replace("name: front", 'name: b\n  creationTimestamp: "2024-01-01T00:00:00Z"')
    pod = read(manifest, bare, young, old)
    assert {source for _, source in found(pod)} == {"service/b"}
    assert len(pod.rules.warnings) == 2


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds 0 pods"),
        ("---\n---\n", "holds 0 pods"),
        (SERVICE, "holds 0 pods"),
        ("kind: Deployment\nmetadata: {name: web}\n", "holds 0 pods"),
        ("kind: PodList\nitems:\n", "holds 0 pods"),
        ("a: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\x07", "is not YAML"),
        ("a: !!python/object:os.system {}", "is not a manifest"),
        ("a: 2024-99-99", "is not a manifest"),
        ("just text", "is not a manifest"),
        ("- kind: Pod", "is not a manifest"),
        ("metadata: {name: web}", "is not a manifest"),
    ],
)
def test_what_is_no_manifest_of_one_pod_is_refused(manifest: Path, text: str, message: str) -> None:
    with pytest.raises(PodmgrError) as caught:
        read(manifest, text)
    assert caught.value.message.startswith(f"{manifest}")
    assert message in caught.value.message


def test_foreign_annotation_that_is_not_text_is_ignored(manifest: Path) -> None:
    assert found(read(manifest, POD.replace("other: text", "other: 5"))) == [
        ("bandwidth=10 mbps egress", "pod")
    ]


def test_bad_annotation_is_an_error_of_the_pods_rules(manifest: Path) -> None:
    pod = read(manifest, POD.replace("mbps", "mpbs"), SERVICE)
    (error,) = pod.rules.errors
    assert error.message == "pod/web: bandwidth: unknown unit 'mpbs' (column 4)"
    assert ("loss=uniform egress 1%", "service/front") in found(pod)


@pytest.mark.parametrize(
    ("value", "shown"), [("10", "10"), ("[a]", '["a"]'), ("true", "true"), ("{a: 1.5}", '{"a": 1.5}')]
)
def test_annotation_that_is_not_text_stops_no_other(manifest: Path, value: str, shown: str) -> None:
    pod = read(manifest, POD.replace("10 mbps egress", value), SERVICE.replace("1 mbps", "3 mbps"))
    (error,) = pod.rules.errors
    assert error.message == "pod/web: bandwidth: not text (column 1)"
    assert (error.detail or "").startswith(f"bandwidth={shown}\n")
    assert ("loss=uniform egress 1%", "service/front") in found(pod)
    assert pod.rules.unreadable == {(parse_source("pod"), "bandwidth")}


def test_annotation_of_a_service_that_is_not_text_is_told_of_the_service(manifest: Path) -> None:
    pod = read(manifest, POD, SERVICE.replace("1 mbps egress", "5"))
    assert [error.message for error in pod.rules.errors] == ["service/front: bandwidth: not text (column 1)"]
    assert len(found(pod)) == 2


@pytest.mark.parametrize("value", ["", "~", "null"])
def test_annotation_that_is_null_is_not_there(manifest: Path, value: str) -> None:
    text = POD.replace("bandwidth: 10 mbps egress", f"bandwidth: {value}, podmgr.io/loss: {value}")
    pod = read(manifest, text, SERVICE)
    assert pod.rules.errors == ()
    assert [source for _, source in found(pod)] == ["service/front"] * 2
    text = f"kind: Deployment\nmetadata: {{name: web, annotations: {{loss: {value}}}}}\n"
    assert read(manifest, f"{text}spec: {{template: {TEMPLATE}}}\n").misplaced == ()


@pytest.mark.parametrize("value", ["[bandwidth]", "bandwidth", "5"])
@pytest.mark.parametrize("carrier", ["pod/web", "service/front", "namespace/default"])
def test_annotations_that_are_no_mapping_are_unreadable(manifest: Path, value: str, carrier: str) -> None:
    space = "kind: Namespace\nmetadata: {name: default, annotations: {loss: 1% ingress}}\n"
    texts = {"pod/web": POD, "service/front": SERVICE, "namespace/default": space}
    texts[carrier] = re.sub(r"annotations: {[^}]*}", f"annotations: {value}", texts[carrier])
    pod = read(manifest, *texts.values())
    (error,) = pod.rules.errors
    assert error.message == f"{carrier}: annotations: not keys with values (column 1)"
    source = "pod" if carrier == "pod/web" else carrier
    assert pod.rules.unreadable == {(parse_source(source), key) for key in KEYS}
    assert found(pod)


def test_switch_of_a_namespace_that_is_not_text_is_an_error_and_lifts_nothing(manifest: Path) -> None:
    annotations = "{bandwidth: 1 mbps egress, podmgr.io/enforce: true}"
    pod = read(manifest, POD, f"kind: Namespace\nmetadata: {{name: default, annotations: {annotations}}}\n")
    assert [error.message for error in pod.rules.errors] == [
        "namespace/default: podmgr.io/enforce: not text (column 1)"
    ]
    assert ("bandwidth=1 mbps egress", "namespace/default") in found(pod)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.yaml", "No such file or directory"), ("", "is a folder"), ("latin1.yaml", "not UTF-8 text")],
)
def test_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "latin1.yaml").write_bytes(b"kind: P\xf6d\n")
    with pytest.raises(PodmgrError, match=message):
        read_pods([str(tmp_path / name)])


@pytest.mark.parametrize(
    "text",
    [
        "kind: List\nitems: 5",
        "x: !!bool maybe",
        "x: !!timestamp foo",
        "x: !!int ''",
        "kind: Pod\nmetadata: 7",
    ],
)
def test_odd_yaml_is_an_ordinary_failure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    if "metadata" in text:
        assert read_pods([str(path)])[0].target == "pod/unnamed"
        return
    with pytest.raises(PodmgrError):
        read_pods([str(path)])


@pytest.mark.parametrize("uid", ["../../x", "a/b", "a b", "..", "x" * 64])
def test_uid_that_could_not_name_a_folder_is_refused(tmp_path: Path, uid: str) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(f"kind: Pod\nmetadata: {{name: web, uid: '{uid}'}}\n")
    with pytest.raises(PodmgrError, match="not a UID"):
        read_pods([str(path)])


def test_older_service_wins_also_where_yaml_reads_its_age_as_a_time(tmp_path: Path) -> None:
    service = """---
kind: Service
metadata: {name: %s, creationTimestamp: %s, annotations: {bandwidth: "%s mbps egress"}}
spec: {selector: {app: web}}
"""
    path = tmp_path / "pod.yaml"
    younger, older = service % ("a", "2024-01-01T11:00:00Z", 1), service % ("b", '"2024-01-01T10:00:00Z"', 2)
    path.write_text("kind: Pod\nmetadata: {name: web, labels: {app: web}}\n" + younger + older)
    assert [str(sourced.rule) for sourced in read_pods([str(path)])[0].rules.rules] == [
        "bandwidth=2 mbps egress"
    ]


@pytest.mark.parametrize(
    ("name", "enforces", "rules"),
    [
        ("default", "false", {"bandwidth=10 mbps egress": "pod"}),
        (
            "default",
            "true",
            {"bandwidth=10 mbps egress": "pod", "bandwidth=1 mbps egress": "namespace/default"},
        ),
        ("other", "true", {"bandwidth=10 mbps egress": "pod"}),
    ],
)
def test_namespace_of_the_manifest_is_the_weakest_layer_unless_it_enforces(
    manifest: Path, name: str, enforces: str, rules: dict[str, str]
) -> None:
    annotations = f'{{bandwidth: 1 mbps egress, podmgr.io/enforce: "{enforces}"}}'
    space = f"kind: Namespace\nmetadata: {{name: {name}, annotations: {annotations}}}\n"
    manifest.write_text(f"{space}---\n{POD}")
    found = read_pods([str(manifest)])[0].rules.rules
    assert {str(sourced.rule): str(sourced.source) for sourced in found} == rules


# Several files, several pods, and what is not read

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, annotations: {bandwidth: 10 mbps egress, podmgr.io/los: x, other: y}}
spec: {template: {metadata: {annotations: {loss: uniform egress 1%}}, spec: {containers: []}}}
"""


def test_a_pod_and_its_service_may_stand_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD)
    (tmp_path / "service.yaml").write_text(SERVICE)
    (pod,) = read_pods([str(tmp_path / "pod.yaml"), str(tmp_path / "service.yaml")])
    assert ("loss=uniform egress 1%", "service/front") in found(pod)


def test_a_file_that_is_named_twice_is_an_error(manifest: Path) -> None:
    manifest.write_text(POD)
    with pytest.raises(UsageError, match="twice"):
        read_pods([str(manifest), str(manifest)])


@pytest.mark.parametrize("kind", ["kind: PodList", "kind: List"])
def test_items_of_a_list_of_pods_are_pods(manifest: Path, kind: str) -> None:
    own = "kind: Pod, " if kind == "kind: List" else ""
    item = "{%smetadata: {name: %s, annotations: {bandwidth: 10 mbps egress}}, spec: {containers: []}}"
    manifest.write_text(f"{kind}\nitems: [{item % (own, 'a')}, {item % (own, 'b')}]\n")
    assert [pod.target for pod in read_pods([str(manifest)])] == ["pod/a", "pod/b"]


def test_annotations_of_a_workload_itself_are_told(manifest: Path) -> None:
    pod = read(manifest, DEPLOYMENT)
    assert found(pod) == [("loss=uniform egress 1%", "pod")]
    assert [error.message for error in pod.misplaced] == [
        "deployment/shop: the annotation bandwidth of the deployment itself is not read",
        "deployment/shop: the annotation podmgr.io/los of the deployment itself is not read",
    ]
    assert "spec.template.metadata.annotations" in (pod.misplaced[0].tip or "")


def test_annotations_of_a_cron_job_and_of_its_jobs_are_told(manifest: Path) -> None:
    jobs = f"{{metadata: {{annotations: {{loss: 1% egress}}}}, spec: {{template: {TEMPLATE}}}}}"
    metadata = "{name: tick, annotations: {bandwidth: 1 mbps egress}}"
    pod = read(manifest, f"kind: CronJob\nmetadata: {metadata}\nspec: {{jobTemplate: {jobs}}}\n")
    assert [error.message for error in pod.misplaced] == [
        "cronjob/tick: the annotation bandwidth of the cronjob itself is not read",
        "cronjob/tick: the annotation loss of the cronjob's jobs (spec.jobTemplate.metadata) is not read",
    ]
    assert {error.tip for error in pod.misplaced} == {
        "rules are annotations of its pods: write it into spec.jobTemplate.spec.template.metadata.annotations"
    }


def test_errors_name_the_workload_whose_template_it_is(manifest: Path) -> None:
    template = TEMPLATE.replace("mbps", "mpbs")
    pod = read(manifest, f"kind: StatefulSet\nmetadata: {{name: db}}\nspec: {{template: {template}}}\n")
    assert [error.message for error in pod.rules.errors] == [
        "statefulset/db: bandwidth: unknown unit 'mpbs' (column 4)"
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nspec: {action: delay}\n", "NetworkChaos"),
        ("kind: Kustomization\nresources: [a]\n", "Kustomization"),
        ("kind: SealedSecret\nspec: {template: {metadata: {name: a}, type: Opaque}}\n", "SealedSecret"),
        (SERVICE, "Service"),
        ("kind: ConfigMap\ndata: {v: =}\n", "ConfigMap"),
        ("kind: &a [1]\nmetadata: *a\n", "is not a manifest"),
    ],
)
def test_objects_of_other_kinds_are_named(manifest: Path, text: str, named: str) -> None:
    manifest.write_text(text)
    with pytest.raises(PodmgrError, match=named):
        read_pods([str(manifest)])


def test_another_object_may_hold_what_yaml_libraries_stumble_over(manifest: Path) -> None:
    other = "kind: ConfigMap\ndata: {op: =, at: 2024-99-99, ratio: 1:30}\n"
    assert read(manifest, other, POD).target == "pod/web"


@pytest.mark.parametrize(
    ("path", "message"),
    [("https://example.com/pod.yaml", "fetches no"), ("/", "is a folder"), ("a\0b", "no name of a file")],
)
def test_what_is_no_file_gets_a_clear_answer(path: str, message: str) -> None:
    with pytest.raises(PodmgrError, match=message):
        read_pods([path])


@pytest.mark.parametrize("place", ["name: *a", "name: web, uid: *a", "name: web, namespace: *a"])
def test_aliases_in_the_place_of_names_are_no_text(manifest: Path, place: str) -> None:
    manifest.write_text(
        f"x: &a [[1, 2], [3]]\nkind: Pod\nmetadata: {{{place}, annotations: {{loss: 1% egress}}}}\n"
    )
    (pod,) = read_pods([str(manifest)])
    assert pod.ref.name in ("web", "unnamed") and pod.ref.namespace == "default" and pod.ref.uid == ""


def test_template_is_of_its_workloads_namespace(manifest: Path) -> None:
    template = TEMPLATE.replace("{metadata: {", "{metadata: {namespace: other, ")
    text = f"kind: Job\nmetadata: {{name: web, namespace: shop}}\nspec: {{template: {template}}}\n"
    assert read(manifest, text).ref.namespace == "shop"


ROLLOUT = "kind: Rollout\nmetadata: {name: web, annotations: {%s: 1%% egress}}\nspec: {}\n"


@pytest.mark.parametrize(
    ("text", "namespace", "said"),
    [
        (SERVICE, None, ""),
        (SERVICE.replace("web", "db"), None, "service/front: it has rules, but selects no pod here"),
        (SERVICE.replace("name: front", "name: front\n  namespace: shop"), None, "selects no pod here"),
        (SERVICE.replace("name: front", "name: front\n  namespace: shop"), "default", ""),
        ("kind: Service\nmetadata: {name: front}\nspec: {selector: {app: db}}\n", None, ""),
        ("kind: Namespace\nmetadata: {name: default, annotations: {loss: 1% egress}}\n", None, ""),
        (
            "kind: Namespace\nmetadata: {name: shop, annotations: {loss: 1% egress}}\n",
            None,
            "namespace/shop: it has rules, but no pod here is in it",
        ),
        (ROLLOUT % "podmgr.io/loss", None, "rollout/web: the annotation podmgr.io/loss of such an object"),
        (ROLLOUT % "loss", None, ""),
        (ROLLOUT.replace("{}", f"{{template: {TEMPLATE}}}") % "loss", None, ""),
    ],
)
def test_rules_that_hold_on_no_pod_are_told(
    manifest: Path, text: str, namespace: str | None, said: str
) -> None:
    manifest.write_text(f"{text}---\n{POD}")
    lines: list[str] = []
    read_pods([str(manifest)], namespace, warn=lines.append)
    assert len(lines) == bool(said)
    assert said in "".join(lines)
