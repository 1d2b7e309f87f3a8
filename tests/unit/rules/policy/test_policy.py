"""The policy says of each annotation what the grammar says, refuses nothing else, and fits an API server."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podmgr.cli.commands import policy as command
from podmgr.errors import PodmgrError
from podmgr.rules.annotations import misplaced, unknown_keys
from podmgr.rules.grammar import MAX_RULES, MAX_VALUE_CHARACTERS, parse_value
from podmgr.rules.kinds import KINDS
from podmgr.rules.policy.documents import documents
from podmgr.rules.policy.patterns import BLANKS
from podmgr.rules.profiles import rules_of_built_in
from podmgr.rules.rule import Rule
from tests.unit.rules.policy.annotations import Annotation, corpus, generated
from tests.unit.rules.policy.judge import Judge

GENERATED = 10_000
PROCESSES = 2
VERSIONS = ["1.30", "1.36"]
MOST_BYTES = 200_000  # kubectl apply keeps what it applied in an annotation, of 262,144 bytes at most


@functools.cache
def judge() -> Judge:
    return Judge()


def a_profile(_name: str) -> Sequence[Rule]:
    """Of any name: which there are, the policy cannot know."""
    return rules_of_built_in("lte")


def is_read(key: str, value: str) -> bool:
    try:
        parse_value(key, value, profiles=a_profile)
    except PodmgrError:
        return False
    return True


def disagreements(annotations: list[Annotation]) -> tuple[list[object], int]:
    """Those of which the policy says otherwise than the grammar; and how many the grammar reads."""
    found: list[object] = []
    read = 0
    for key, value in annotations:
        said, expected = judge().says_of_value(key, value), is_read(key, value)
        read += expected
        if expected == bool(said):
            found.append((key, value, said))
    return found, read


def held_together(annotations: list[Annotation]) -> int:
    """All processors together; how many annotations the grammar reads, of which the policy says the same."""
    with ProcessPoolExecutor(PROCESSES) as processes:
        parts = [annotations[start::PROCESSES] for start in range(PROCESSES)]
        results = list(processes.map(disagreements, parts))
    assert [one for found, _ in results for one in found] == []
    return sum(read for _, read in results)


# It says what the grammar says


@pytest.mark.timeout(900)  # half a minute of both processors, where nobody else has them
def test_policy_and_grammar_agree_on_all_that_the_grammars_tests_name() -> None:
    annotations = corpus()
    assert len(annotations) > 5_000
    assert held_together(annotations) > 250


@pytest.mark.timeout(900)
def test_policy_and_grammar_agree_on_generated_annotations() -> None:
    annotations = list(generated(GENERATED, seed=15))
    assert held_together(annotations) > GENERATED / 8


@pytest.mark.parametrize(
    ("key", "value", "is_right"),
    [
        ("loss", "1% egress".ljust(MAX_VALUE_CHARACTERS), True),
        ("loss", "1% egress".ljust(MAX_VALUE_CHARACTERS + 1), False),
        ("ebpf-limit", ";".join(f"p{number} egress" for number in range(MAX_RULES)), True),
        ("ebpf-limit", ";".join(f"p{number} egress" for number in range(MAX_RULES + 1)), False),
        ("ebpf-limit", "p egress " + " ".join(f"-DA{number}" for number in range(64)), True),
        ("ebpf-limit", "p egress " + " ".join(f"-DA{number}" for number in range(65)), False),
        ("ebpf-limit", "p egress -DA -DB; p egress -DB -DA", False),
        ("ebpf-limit", "egress ingress; ingress egress", True),
        ("bandwidth", f"{'0' * 38}10 mbps egress", True),
        ("bandwidth", f"{'0' * 39}10 mbps egress", False),
        ("bandwidth", "10 \u212abps egress", True),  # the Kelvin sign, whose small letter is k
        ("bandwidth", "10\u212abps egress", False),
        ("loss", "1% egre\u017fs", False),
        ("bandwidth", "7999.5 bps egress", True),
        ("bandwidth", "7999.49999999999999999999999 bps egress", False),
        ("loss", "markov egress p13=99.9999999999999999999999999% p14=0.0000000000000000000000001%", True),
        ("loss", "markov egress p13=99.9999999999999999999999999% p14=0.0000000000000000000000002%", False),
        ("loss", "burst egress 83.333333% length=5", True),
        ("loss", "burst egress 83.333334% length=5", False),
        ("delay", "5us rtt jitter=5us", True),
        ("delay", "2.001us rtt jitter=2.001us", True),
        ("delay", "2.003us rtt jitter=2.003us", False),
        ("loss", "1% egress peer=10.0.0.1; 2% egress peer=10.0.0.1/32", False),
        ("loss", "1% egress peer=fd00::1,10.0.0.1; 2% egress peer=10.0.0.1,FD00:0::0:1/128", False),
        ("loss", "1% egress port=80,443; 2% egress port=443-443,080,80", False),
        ("loss", "1% egress peer=10.0.0.1; 2% egress", True),
        ("loss", "1% egress peer=2001:db8:8000::/33", True),
        ("loss", "1% egress peer=2001:db8:8000::/32", False),
        ("loss", f"1% egress peer=pod/{'a' * 253}", True),
        ("loss", f"1% egress peer=pod/{'a' * 254}", False),
        ("loss", f"1% egress peer=pod/{'a' * 253}/{'b' * 63}={'c' * 63}", True),
        ("loss", f"1% egress peer=pod/{'a' * 253}/{'b' * 64}={'c' * 63}", False),
        ("loss", "1% egress for=8784h", True),
        ("loss", "1% egress for=8784h1us", False),
        ("loss", "1% egress for=99999h", False),
        ("loss", "1% egress for=30s1m", False),
    ],
)
def test_ends_of_what_is_read_are_the_same(key: str, value: str, is_right: bool) -> None:
    assert is_read(key, value) is is_right
    assert (judge().says_of_value(key, value) == []) is is_right


@given(
    st.sampled_from([kind.key for kind in KINDS]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8")),
)
def test_any_text_is_judged_as_the_grammar_does(key: str, value: str) -> None:
    assert disagreements([(f"podmgr.io/{key}", value)])[0] == []


def test_blanks_are_those_of_python() -> None:
    assert set(BLANKS) == {one for one in map(chr, range(0x110000)) if one.isspace()}


# With the grammar's words


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "bandwidth",
            "10 mpbs egress",
            "units are bps, kbps, mbps, gbps (bits per second) (in '10 mpbs egress')",
        ),
        ("bandwidth", "7 bps egress", "a rate from 8 kbps to 400 gbps (bits per second, powers of 1000)"),
        ("bandwidth", "10 mbps egres", "directions are egress, ingress, both"),
        ("bandwidth", "10 mbps egress burst=1b", "burst=SIZE from 1514b to 1000mb, in b, kb or mb"),
        ("bandwidth", "10 mbps egress burst=2kb algorithm=edt", "burst or algorithm=edt, not both"),
        ("bandwidth", "", "no rule: RATE UNIT DIRECTION"),
        ("loss", "normal egress 2%", "distributions are uniform, exponential, burst, gilbert, markov"),
        ("loss", "101% egress", "a probability from 0% to 100%"),
        ("loss", "2 egress", "the percent sign is missing"),
        ("loss", "2% egress latency=1", "options of this rule are hook=... and interface=..."),
        ("loss", "2% egress port=0", "ports from 1 to 65535"),
        ("loss", "2% egress; 3% both", "one loss rule per direction"),
        ("delay", "100 egress", "units are us, ms, s"),
        ("delay", "1us rtt", "a round trip of 2us or more"),
        ("podmgr.io/corrupt", "1% egress hook=cgroup", "hook=cgroup: tc"),
        ("ebpf-limit", "dropper egress -DINTERFACE=1", "the direction is the second word of the rule"),
        (
            "podmgr.io/loss",
            "2% egress for=1",
            "for=TIME, such as for=30s or for=1m30s; units are us, ms, s, m, h",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_grammars_words(key: str, value: str, said: str) -> None:
    (line,) = judge().says_of_value(key, value)
    assert line.startswith(f"{key}: ")
    assert said in line


@pytest.mark.parametrize("character", ["\x1b[31m", "\n", "\u202e", "\u2028", "\x9b"])
def test_control_characters_are_not_repeated(character: str) -> None:
    for value in (f"2% egress{character}x", f"{character}x", f"1% egress port={character}x"):
        for line in judge().says_of_value("loss", value):
            assert line.isprintable()


# Objects


def pod(**annotations: str) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"annotations": annotations}}


def workload(kind: str, own: dict[str, str], of_pods: dict[str, str]) -> dict[str, Any]:
    spec: dict[str, Any] = {"template": {"metadata": {"annotations": of_pods}}}
    if kind == "CronJob":
        spec = {"jobTemplate": {"spec": spec}}
    return {"kind": kind, "metadata": {"annotations": own}, "spec": spec}


WORKLOADS = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"]
RIGHT, WRONG = {"bandwidth": "10 mbps egress"}, {"loss": "2% egres"}


@pytest.mark.parametrize(
    "item", [{"kind": "Pod", "metadata": {}}, {"kind": "Job", "metadata": {}}, pod(other="x")]
)
def test_who_says_nothing_is_admitted(item: dict[str, Any]) -> None:
    assert judge().says(item) == []


@pytest.mark.parametrize("kind", ["Pod", "Service", "Namespace"])
def test_what_carries_rules_is_judged_by_its_own_annotations(kind: str) -> None:
    assert judge().says({"kind": kind, "metadata": {"annotations": RIGHT}}) == []
    (line,) = judge().says({"kind": kind, "metadata": {"annotations": WRONG}})
    assert line.startswith("loss: ")


@pytest.mark.parametrize("kind", WORKLOADS)
def test_of_a_workload_the_annotations_of_its_pods_count(kind: str) -> None:
    assert judge().says(workload(kind, {"other": "x"}, RIGHT)) == []
    (line,) = judge().says(workload(kind, {}, WRONG))
    assert line.startswith("loss: ")


@pytest.mark.parametrize("kind", WORKLOADS)
@pytest.mark.parametrize("key", ["bandwidth", "podmgr.io/loss", "podmgr.io/x"])
def test_on_a_workload_itself_they_are_misplaced(kind: str, key: str) -> None:
    (line,) = judge().says(workload(kind, {key: "10 mbps egress"}, {}))
    (error,) = misplaced(f"{kind.lower()}/x", [key])
    assert key in line
    assert line.endswith(error.expected)
    # What a controller makes has a copy of its maker's annotations.
    owned = workload(kind, {key: "10 mbps egress"}, {})
    owned["metadata"]["ownerReferences"] = [{"kind": "Other"}]
    assert judge().says(owned) == []


def test_the_jobs_of_a_cron_job_have_no_rules_either() -> None:
    item = workload("CronJob", {}, {})
    item["spec"]["jobTemplate"]["metadata"] = {"annotations": RIGHT}
    (line,) = judge().says(item)
    assert "of the cronjob's jobs (spec.jobTemplate.metadata)" in line


@pytest.mark.parametrize("key", ["podmgr.io/bandwith", "podmgr.io/", "podmgr.io/Loss", "podmgr.io/enforce"])
def test_a_key_that_is_unknown_is_named_with_those_that_are_known(key: str) -> None:
    item = {"kind": "Service", "metadata": {"annotations": {key: "x"}}}
    (line,) = judge().says(item)
    (error,) = unknown_keys([key], is_pods=True)
    assert key in line
    assert line.endswith(error.expected.rpartition("? ")[2])


def test_a_bare_key_of_a_kind_that_needs_the_prefix_is_anybodys() -> None:
    assert judge().says(pod(duplicate="x")) == []


def test_the_prefixed_key_replaces_the_bare_one() -> None:
    assert judge().says(pod(**{"loss": "x", "podmgr.io/loss": "2% egress"})) == []
    (line,) = judge().says(pod(**{"loss": "2% egress", "podmgr.io/loss": "x"}))
    assert line.startswith("podmgr.io/loss: ")


@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        ("true", True),
        ("false", True),
        (" True\u00a0", True),
        ("FAL\u017fE", False),
        ("yes", False),
        ("", False),
    ],
)
def test_a_namespace_enforces_or_not(value: str, is_right: bool) -> None:
    item = {"kind": "Namespace", "metadata": {"annotations": {"podmgr.io/enforce": value}}}
    assert (judge().says(item) == []) is is_right


def test_labels_of_a_namespace_are_not_read() -> None:
    item = {"kind": "Namespace", "metadata": {"labels": {"podmgr.io/enforce": "true"}}}
    assert judge().says(item) == [
        "the label podmgr.io/enforce is not read: write it into metadata.annotations"
    ]
    assert judge().says(item | {"kind": "Pod"}) == []


def test_a_change_of_anything_else_is_let_through() -> None:
    """A finalizer must go from a pod whose annotation was there before the policy."""
    new, old = pod(**WRONG), pod(**WRONG)
    new["metadata"]["finalizers"] = []
    assert not judge().is_asked(new, old, "UPDATE")
    assert judge().is_asked(new, pod(**RIGHT), "UPDATE")
    assert judge().is_asked(new, None, "CREATE")
    assert judge().is_asked(workload("CronJob", {}, WRONG), workload("CronJob", {}, RIGHT), "UPDATE")


# Documents


def test_every_kind_says_how_its_rules_are_written() -> None:
    assert [kind.key for kind in KINDS if kind.text is None] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("warns", [False, True])
def test_the_policy_fits_the_schema_of_its_kind(version: str, warns: bool) -> None:
    for item in documents(warns=warns):
        kubernetes_validate.validate(item, version, strict=True)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    import typer

    app = typer.Typer()
    app.command()(command.command)
    assert typer.main.get_command(app)(list(words), standalone_mode=False) == 0
    return capsys.readouterr().out


def test_it_is_printed_as_yaml_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(yaml.safe_load_all(printed(capsys))) == documents()
    assert json.loads(printed(capsys, "-o", "json"))["items"] == documents()
    policy, binding = yaml.safe_load_all(printed(capsys, "--warn"))
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Warn", "Audit"]


def test_kubectl_can_keep_what_it_applied() -> None:
    assert all(len(json.dumps(item)) < MOST_BYTES for item in documents())


def test_every_error_is_said_once() -> None:
    spec = documents()[0]["spec"]
    names: Iterable[str] = [one["name"] for one in spec["variables"]]
    asked = [one["messageExpression"].removeprefix("variables.") for one in spec["validations"]]
    assert len(set(asked)) == len(asked)
    assert set(asked) <= set(names)
