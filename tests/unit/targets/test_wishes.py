"""From what the user named to wishes: targets, a manifest's pod, and rules that override it."""

from __future__ import annotations

from pathlib import Path

import pytest

from podmgr.attachment import Wish
from podmgr.errors import PodmgrError, UsageError
from podmgr.reconcile.outcome import Action, Outcome, exit_code
from podmgr.rules.grammar import parse_rule_option
from podmgr.rules.rule import Rule
from podmgr.rules.source import parse_source
from podmgr.settings import Settings
from podmgr.targets.wishes import from_manifests, from_targets

LOSS, BANDWIDTH = "loss=uniform egress 1%", "bandwidth=10 mbps egress"
POD = """\
kind: Pod
metadata: {{name: web, labels: {{app: web}}, annotations: {{bandwidth: {bandwidth}}}}}
spec: {{hostNetwork: {host}}}
---
kind: Service
metadata: {{name: a, annotations: {{loss: uniform egress 1%}}}}
spec: {{selector: {{app: web}}}}
---
kind: Service
metadata: {{name: b, annotations: {{loss: uniform egress 2%}}}}
spec: {{selector: {{app: web}}}}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A folder that looks like a cgroup2 mount, with the cgroups `a` and `b`."""
    root = tmp_path / "cgroup"
    for folder in (root, root / "a", root / "b"):
        folder.mkdir()
        (folder / "cgroup.procs").write_text("")
    (root / "cgroup.controllers").write_text("")
    return Settings(cgroup_root=root)


def parsed(*options: str) -> list[Rule]:
    return [rule for option in options for rule in parse_rule_option(option)]


def wanted(wish: Wish) -> list[tuple[str, str]]:
    return sorted((str(sourced.rule), str(sourced.source)) for sourced in wish.rules)


def of_manifest(
    settings: Settings,
    *options: str,
    cgroup: str | None = "a",
    names: tuple[str, ...] = (),
    bandwidth: str = "10 mbps egress",
    host: str = "false",
) -> tuple[Wish, list[str]]:
    """The wish of a manifest, and what was reported."""
    assert settings.cgroup_root is not None
    path = settings.cgroup_root.parent / "pod.yaml"
    path.write_text(POD.format(bandwidth=bandwidth, host=host))
    reported: list[str] = []
    (wish,), failed = from_manifests(
        [str(path)], cgroup, names, parsed(*options), settings, report=reported.append
    )
    assert failed == []
    return wish, reported


# Targets


def test_each_target_is_wished_all_rules(settings: Settings) -> None:
    wishes, failed = from_targets(["cgroup/a", "cgroup/b"], parsed(LOSS, BANDWIDTH), settings)
    assert [wish.target.name for wish in wishes] == ["cgroup/a", "cgroup/b"]
    assert [wanted(wish) for wish in wishes] == [[(BANDWIDTH, "cli"), (LOSS, "cli")]] * 2
    assert failed == []


def test_target_that_there_is_not_fails_alone(settings: Settings) -> None:
    wishes, (outcome,) = from_targets(["cgroup/gone", "cgroup/a"], parsed(LOSS), settings)
    assert [wish.target.name for wish in wishes] == ["cgroup/a"]
    assert (outcome.target, outcome.action) == ("cgroup/gone", Action.FAILED)
    assert outcome.error is not None and "No such file" in outcome.error.message


def test_target_that_is_named_twice_is_wished_once(settings: Settings) -> None:
    wishes, _ = from_targets(["cgroup/a", "cgroup/a"], parsed(LOSS), settings)
    assert len(wishes) == 1


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], [LOSS], "no target"),
        (["cgroup/a"], [], "no rule"),
        (["cgroup/a", "cgroup/."], [LOSS], "the whole machine"),
    ],
)
def test_command_line_that_makes_no_sense_is_misuse(
    settings: Settings, names: list[str], options: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        from_targets(names, parsed(*options), settings)


# Manifests


def test_a_manifest_may_name_a_profile_of_the_program_folder(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir(mode=0o755)
    (folder / "office.toml").write_text('round-trip = "20ms"')
    path = tmp_path / "pod.yaml"
    path.write_text(
        "{kind: Pod, metadata: {name: web, annotations: {podmgr.io/profile: office, delay: 1ms egress}}}"
    )
    mine = settings._replace(program_dir=folder)
    (wish,), failed = from_manifests([str(path)], "a", [], [], mine, report=print)
    assert failed == []
    assert wanted(wish) == [("delay=10ms ingress", "pod"), ("delay=1ms egress", "pod")]
    _, (failure,) = from_manifests([str(path)], "a", [], [], settings, report=print)
    assert failure.error is not None
    assert "there is no profile 'office'" in failure.error.message


def test_manifests_pod_stands_on_the_cgroup_under_its_own_name(settings: Settings) -> None:
    wish, reported = of_manifest(settings)
    assert settings.cgroup_root is not None
    assert (wish.target.name, wish.target.cgroup.path) == ("pod/web", settings.cgroup_root / "a")
    assert wanted(wish) == [(BANDWIDTH, "pod"), (LOSS, "service/a")]
    assert reported == [
        "warning: service/b: 'loss=uniform egress 2%' gives way to 'loss=uniform egress 1%' of service/a"
    ]


def test_cgroup_may_be_the_target(settings: Settings) -> None:
    wish, _ = of_manifest(settings, cgroup=None, names=("cgroup/b",))
    assert wish.target.cgroup.path.name == "b"


def test_rules_of_the_command_line_override_annotations_per_collision_key(settings: Settings) -> None:
    wish, _ = of_manifest(settings, "bandwidth=1 mbps egress", "bandwidth=2 mbps ingress")
    assert wanted(wish) == [
        ("bandwidth=1 mbps egress", "cli"),
        ("bandwidth=2 mbps ingress", "cli"),
        (LOSS, "service/a"),
    ]


@pytest.mark.parametrize(("host", "counts"), [("true", True), ("false", False)])
def test_loopback_counts_only_for_host_network_pods(settings: Settings, host: str, counts: bool) -> None:
    assert of_manifest(settings, host=host)[0].target.counts_loopback is counts


@pytest.mark.parametrize(
    ("bandwidth", "message"),
    [("10 mpbs egress", "pod/web: bandwidth: unknown unit 'mpbs'"), ("10", "pod/web: bandwidth: not text")],
)
def test_bad_annotation_of_the_manifest_is_an_outcome_beside_what_holds(
    settings: Settings, tmp_path: Path, bandwidth: str, message: str
) -> None:
    text = POD.format(bandwidth=bandwidth, host="false")
    (wish,), failed = apply_chart(settings, tmp_path / "pod.yaml", [], text)
    assert wanted(wish) == [(LOSS, "service/a")]
    assert (parse_source("pod"), "bandwidth") in wish.unreadable
    (error,) = [outcome.error for outcome in failed]
    assert error is not None and error.message.startswith(message)
    done = Outcome("pod/web", parsed(LOSS)[0], Action.ATTACHED, pod=wish.target.pod)
    assert [exit_code([*failed, done]), exit_code(failed)] == [3, 2]


@pytest.mark.parametrize(("cgroup", "names"), [("a", ("cgroup/b",)), (None, ("cgroup/a", "cgroup/b"))])
def test_manifest_takes_one_cgroup_at_most(
    settings: Settings, cgroup: str | None, names: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="-f takes one cgroup"):
        of_manifest(settings, cgroup=cgroup, names=names)


def test_pod_without_a_rule_is_an_error(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text("kind: Pod\nmetadata: {name: web}\n")
    with pytest.raises(PodmgrError, match="pod/web has no rule"):
        from_manifests([str(path)], "a", [], [], settings, report=lambda _: None)


# Several pods in the manifests

CHART = """\
kind: Deployment
metadata: {name: shop}
spec: {template: {metadata: {annotations: {bandwidth: 10 mbps egress}}}}
---
kind: Pod
metadata: {name: shop-test, annotations: {helm.sh/hook: test}}
"""


def apply_chart(
    settings: Settings, path: Path, names: list[str], text: str = CHART, namespace: str | None = None
) -> tuple[list[Wish], list[Outcome]]:
    path.write_text(text)
    return from_manifests([str(path)], "a", names, [], settings, namespace=namespace, report=lambda _: None)


def test_of_several_pods_the_target_chooses(settings: Settings, tmp_path: Path) -> None:
    (wish,), failed = apply_chart(settings, tmp_path / "chart.yaml", ["deployment/shop"])
    assert (wish.target.name, failed) == ("deployment/shop", [])


@pytest.mark.parametrize("names", [[], ["deployment/front"], ["deployment/shop", "pod/shop-test"]])
def test_several_pods_are_named_where_it_is_not_clear_which_is_meant(
    settings: Settings, tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(PodmgrError) as caught:
        apply_chart(settings, tmp_path / "chart.yaml", names)
    said = f"{caught.value.message} {caught.value.tip}"
    assert "deployment/shop" in said


def test_what_is_not_read_is_an_outcome_beside_what_is_done(settings: Settings, tmp_path: Path) -> None:
    text = "kind: Pod\nmetadata: {name: web, annotations: {podmgr.io/los: x, bandwidth: 1 mbps egress}}\n"
    (wish,), failed = apply_chart(settings, tmp_path / "pod.yaml", [], text)
    assert [str(item.rule) for item in wish.rules] == ["bandwidth=1 mbps egress"]
    assert [
        exit_code([*failed, Outcome("pod/web", parsed(LOSS)[0], Action.ATTACHED)]),
        exit_code(failed),
    ] == [3, 2]


# Namespaces

WEB = """---
kind: Deployment
metadata: {name: web%s}
spec: {template: {metadata: {annotations: {bandwidth: %s mbps egress}}}}
"""
TWO = WEB % (", namespace: a", 1) + WEB % (", namespace: b", 2)


@pytest.mark.parametrize("names", [[], ["deployment/web"]])
@pytest.mark.parametrize(("namespace", "rule"), [("a", "1 mbps"), ("b", "2 mbps"), ("c", "3 mbps")])
def test_of_several_namespaces_the_option_chooses(
    settings: Settings, tmp_path: Path, names: list[str], namespace: str, rule: str
) -> None:
    """An object without a namespace is of the one that is given."""
    text = TWO + (WEB % ("", 3) if namespace == "c" else "")
    (wish,), failed = apply_chart(settings, tmp_path / "x.yaml", names, text, namespace)
    assert failed == [] and wish.target.pod is not None
    assert wish.target.pod.namespace == namespace
    assert wanted(wish) == [(f"bandwidth={rule} egress", "pod")]


@pytest.mark.parametrize(
    ("names", "namespace", "text", "message", "tip"),
    [
        ([], None, TWO, "deployment/web in a, deployment/web in b", "apply deployment/web -n a -f FILE"),
        (["deployment/web"], None, TWO, "several deployment/web", "apply deployment/web -n a -f FILE"),
        ([], "zz", TWO, "no pod in namespace zz", "there is deployment/web in a, deployment/web in b"),
        (["deployment/web"], "zz", TWO, "no deployment/web in namespace zz", "there is deployment/web in a"),
        (["deployment/web"], None, WEB % ("", 1) * 2, "deployment/web of namespace default twice", "leave"),
    ],
)
def test_tip_leads_to_the_object_that_is_meant(
    settings: Settings,
    tmp_path: Path,
    names: list[str],
    namespace: str | None,
    text: str,
    message: str,
    tip: str,
) -> None:
    with pytest.raises(PodmgrError) as caught:
        apply_chart(settings, tmp_path / "x.yaml", names, text, namespace)
    assert message in caught.value.message
    assert tip in (caught.value.tip or "")
