"""The manifests that we ship: the API server accepts them, and podmgr can read their rules."""

from __future__ import annotations

import re
import shlex
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from podmgr import __version__
from podmgr.cli.main import make_app
from podmgr.rules.grammar import parse_value
from podmgr.rules.keys import ENFORCE, PREFIX, annotation_values, bare_key
from podmgr.rules.precedence import AnnotatedNamespace
from podmgr.settings import DEFAULT_PROGRAM_DIR, DEFAULT_STATE_DIR, Settings
from podmgr.watch.health import Health
from podmgr.watch.metrics import Metrics
from podmgr.watch.server import serve
from tests.unit.schemas import VERSIONS, RefusedError, validate

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CLUSTER = [ROOT / "k3s/config.yml", ROOT / "k3s/podmgr.yaml", ROOT / "k3s/kubectl-podmgr.yaml"]
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"

Object = dict[str, Any]


def objects(path: Path) -> list[Object]:
    return [item for item in yaml.safe_load_all(path.read_text()) if item is not None]


def annotated(item: Object) -> Iterator[Object]:
    """The metadata of an object, and of the pods that it makes."""
    yield item["metadata"]
    template = item.get("spec", {}).get("template")
    if template:
        yield template["metadata"]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


# The API server accepts them


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", [*EXAMPLES, *CLUSTER], ids=name)
def test_every_object_fits_the_schema_of_its_kind(path: Path, version: str) -> None:
    for item in objects(path):
        validate(item, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("old", "new"),
    [("hostNetwork", "hostNetworks"), ("maxUnavailable: 10%", "maxUnavailable: [10]"), ("- ALL", "- 7")],
)
def test_the_schema_notices_a_slip(old: str, new: str, version: str) -> None:
    text = yaml.safe_dump(daemon_set())
    assert old in text
    with pytest.raises(RefusedError):
        validate(yaml.safe_load(text.replace(old, new)), version)


def test_a_field_of_today_is_none_of_1_20() -> None:
    item = daemon_set()
    item["spec"]["template"]["spec"]["containers"][0]["securityContext"]["appArmorProfile"] = {
        "type": "Unconfined"
    }
    validate(item, "1.30")
    for version in ("1.20", "1.24"):
        with pytest.raises(RefusedError, match="appArmorProfile"):
            validate(item, version)


@pytest.mark.parametrize("path", [*EXAMPLES, *CLUSTER], ids=name)
def test_selectors_select_the_pods_of_their_file(path: Path) -> None:
    items = objects(path)
    labels = [metadata.get("labels", {}) for item in items for metadata in annotated(item)]
    for item in items:
        spec = item.get("spec", {})
        selector = spec.get("selector", {})
        if item["kind"] == "Service":
            assert any(selector.items() <= found.items() for found in labels)
        elif "template" in spec:
            assert selector["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_kustomization_names_files_that_are_there() -> None:
    kustomization = yaml.safe_load((ROOT / "k3s/kustomization.yaml").read_text())
    assert kustomization["kind"] == "Kustomization"
    assert all((ROOT / "k3s" / resource).is_file() for resource in kustomization["resources"])


def test_the_apparmor_profile_is_said_in_one_form_or_the_other() -> None:
    """As an annotation, and by the component that puts the field in its place."""
    item = daemon_set()
    annotations = item["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {f"{APPARMOR}{container()['name']}": "unconfined"}
    component = yaml.safe_load((ROOT / "k3s/apparmor-field/kustomization.yaml").read_text())
    (patch,) = component["patches"]
    assert patch["target"] == {"kind": "DaemonSet", "name": item["metadata"]["name"]}
    removed, added = yaml.safe_load(patch["patch"])
    *path, last = keys(removed["path"])
    assert removed["op"] == "remove"
    del at(item, path)[last]
    *path, last = keys(added["path"])
    assert added["op"] == "add"
    at(item, path)[last] = added["value"]
    assert not annotations
    for version in VERSIONS[2:]:
        validate(item, version)


def keys(pointer: str) -> list[str]:
    """Of a JSON pointer (RFC 6901)."""
    return [word.replace("~1", "/").replace("~0", "~") for word in pointer.split("/")[1:]]


def at(item: Any, path: list[str]) -> Any:
    for word in path:
        item = item[int(word) if word.isdigit() else word]
    return item


# podmgr can read their rules


@pytest.mark.parametrize("path", [*EXAMPLES, ROOT / "k3s/config.yml"], ids=name)
def test_every_annotation_is_a_rule_that_podmgr_reads(path: Path) -> None:
    read = 0
    for item in objects(path):
        for metadata in annotated(item):
            annotations = metadata.get("annotations", {})
            unknown = [key for key in annotations if not bare_key(key) and key != ENFORCE]
            assert not unknown, "an example says nothing but rules"
            for key, value in annotation_values(annotations):
                read += len(parse_value(key, value))
        if item["kind"] == "Namespace":
            AnnotatedNamespace(item["metadata"]["name"], item["metadata"].get("annotations", {})).check()
    assert read, "an example shows a rule"


@pytest.mark.parametrize("path", [*EXAMPLES, *CLUSTER], ids=name)
def test_no_rule_stands_where_podmgr_does_not_look(path: Path) -> None:
    """Rules count on pods, pod templates, services and namespaces."""
    for item in objects(path):
        if item["kind"] not in ("Pod", "Service", "Namespace"):
            annotations = item["metadata"].get("annotations", {})
            assert not [key for key in annotations if bare_key(key) or key.startswith(PREFIX)]


# The DaemonSet


def daemon_set() -> Object:
    (found,) = (item for item in objects(ROOT / "k3s/podmgr.yaml") if item["kind"] == "DaemonSet")
    return found


def pod() -> Object:
    spec: Object = daemon_set()["spec"]["template"]["spec"]
    return spec


def container() -> Object:
    (found,) = pod()["containers"]
    return dict(found)


def watch_options(*words: str) -> Object:
    """What the command line makes of `podmgr watch WORDS`. Raises for what it does not know."""
    command: Any = typer.main.get_command(make_app())
    options: Object = command.commands["watch"].make_context("watch", list(words)).params
    return options


def test_it_may_look_at_what_carries_rules_and_tell_and_nothing_more() -> None:
    (role,) = (item for item in objects(ROOT / "k3s/podmgr.yaml") if item["kind"] == "ClusterRole")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["pods", "services", "namespaces"],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    ]


def test_it_has_no_more_of_the_node_than_it_needs() -> None:
    context = container()["securityContext"]
    assert context["privileged"] is False
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    assert not any(pod().get(field) for field in ("hostNetwork", "hostIPC"))
    written = {mount["name"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"bpffs", "state"}


def test_the_command_line_knows_its_arguments() -> None:
    command, *words = container()["args"]
    options = watch_options(*words)
    assert command == "watch"
    assert (options["keep"], options["log_format"]) == (True, "json")
    (variable,) = (item for item in container()["env"] if item["name"] == "NODE_NAME")
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_paths_of_the_container_are_those_that_podmgr_uses() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    on_the_node = {volume["name"]: volume["hostPath"]["path"] for volume in pod()["volumes"]}
    (bpffs,) = (item["value"] for item in container()["env"] if item["name"] == "PODMGR_BPFFS")
    assert mounts.keys() == on_the_node.keys()
    assert mounts["state"] == on_the_node["state"] == str(DEFAULT_STATE_DIR)
    assert mounts["programs"] == on_the_node["programs"] == str(DEFAULT_PROGRAM_DIR)
    # So that podmgr on the node itself, where bpffs has another path, finds the same pins.
    assert Path(on_the_node["bpffs"]) / Path(bpffs).relative_to(mounts["bpffs"]) == Settings().bpffs


def test_its_probes_are_answered(tmp_path: Path) -> None:
    health = Health()
    health.begun()
    settings = Settings(tmp_path, tmp_path / "bpffs")
    port = serve(("127.0.0.1", 0), Metrics(settings).page(), health)
    for probe in (container()["livenessProbe"], container()["readinessProbe"]):
        request = probe["httpGet"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{request['path']}") as answer:
            assert answer.status == 200
        (named,) = (item for item in container()["ports"] if item["name"] == request["port"])
        _, *words = container()["args"]
        assert watch_options(*words)["metrics_address"] == f":{named['containerPort']}"


def test_its_image_is_the_one_that_the_container_file_makes() -> None:
    image = container()["image"]
    assert image == f"localhost/podmgr:{__version__}"
    for path in ("k3s/podmgr.yaml", "k3s/Containerfile"):
        named = re.findall(r"localhost/podmgr:[\w.]+", (ROOT / path).read_text())
        assert named
        assert set(named) == {image}


def test_its_readme_tells_what_each_capability_is_for() -> None:
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", (ROOT / "k3s/README.md").read_text(), re.MULTILINE)
    told = [word for row in rows for word in re.findall(r"\w+", row)]
    assert sorted(told) == sorted(container()["securityContext"]["capabilities"]["add"])


@pytest.mark.parametrize("path", ["k3s/podmgr.yaml", "k3s/README.md"])
def test_the_way_out_removes_keep_and_nothing_else(path: str) -> None:
    """The JSON patch of the manifest's first comment names an argument by its place."""
    (patch,) = re.findall(r"-p '(\[.*\])'", (ROOT / path).read_text())
    (step,) = yaml.safe_load(patch)
    assert step["op"] == "remove"
    assert at(daemon_set(), keys(step["path"])) == "--keep"


def test_the_container_file_copies_what_the_wheel_is_made_of() -> None:
    lines = (ROOT / "k3s/Containerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in shlex.split(line)[1:-1]}
    needed = {"pyproject.toml", "README.md", "LICENSE", "podmgr", "bpf", "examples"}
    assert copied >= needed
    assert all((ROOT / path).exists() for path in needed)
