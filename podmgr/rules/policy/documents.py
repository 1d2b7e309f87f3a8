"""The policy and its binding, as Kubernetes reads them from 1.30 on: a ValidatingAdmissionPolicy v1.

Apart from `cli.commands.policy`, which alone uses it: what is made is data, and so is tested.
"""

from __future__ import annotations

from typing import Any

from podmgr.rules.keys import ENFORCE, KEYS, PREFIX
from podmgr.rules.kinds import KINDS
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.policy import common, value
from podmgr.rules.policy.cel import COLON, NOTHING, bind, first, first_text, one_of, pattern, quoted, says
from podmgr.rules.policy.patterns import BLANKS, unit_behind
from podmgr.rules.policy.text import Text

NAME = "podmgr.io"
_BARE = [kind.key for kind in KINDS if kind.is_bare]
WAYS = {"egress": ("egress", "both", "rtt"), "ingress": ("ingress", "both", "rtt")}
_OPERATIONS = ["CREATE", "UPDATE"]
_RESOURCES = {
    ("", "v1"): ["pods", "services", "namespaces"],
    ("apps", "v1"): ["deployments", "statefulsets", "daemonsets", "replicasets"],
    ("batch", "v1"): ["jobs", "cronjobs"],
}
_CARRIERS = ("Pod", "Service", "Namespace")

Document = dict[str, Any]


def documents(*, warns: bool = False) -> list[Document]:
    """The policy, and the binding that puts it in force for the whole cluster: it denies, or `warns`."""
    actions = ["Warn", "Audit"] if warns else ["Deny"]
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": NAME},
            "spec": {
                # What this policy cannot decide, podmgr does: no pod shall wait for it.
                "failurePolicy": "Ignore",
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": [group],
                            "apiVersions": [version],
                            "operations": _OPERATIONS,
                            "resources": resources,
                        }
                        for (group, version), resources in _RESOURCES.items()
                    ]
                },
                "matchConditions": [{"name": "annotations-are-new", "expression": _is_new()}],
                "variables": [{"name": name, "expression": text} for name, text in variables().items()],
                "validations": [
                    {
                        "expression": f"variables.{name} == ''",
                        "messageExpression": f"variables.{name}",
                    }
                    for name in errors()
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": NAME},
            "spec": {"policyName": NAME, "validationActions": actions},
        },
    ]


def errors() -> list[str]:
    """The variables that say what is wrong, '' for nothing."""
    of_kinds = [name for kind in KINDS for name in value.errors(kind)]
    collisions = [f"{value.name_of(kind)}_collision" for kind in KINDS if kind.text]
    return ["misplaced", "unknown", "enforce", *of_kinds, *common.errors(), *collisions]


def variables() -> dict[str, str]:
    """By name, each an expression of CEL that may use those before it."""
    found = {
        "kind": "request.kind.kind",
        "carries": f"variables.kind in {one_of(_CARRIERS)}",
        "own": "dyn(object).?metadata.?annotations.orValue({})",
        "annotations": "variables.carries ? variables.own : " + _of_template("object"),
        "misplaced": _misplaced(),
        "unknown": _unknown(),
        "enforce": _enforce(),
    }
    for kind in KINDS:
        found |= value.variables(kind)
    written = [(kind, kind.text()) for kind in KINDS if kind.text]
    found["rules"] = " + ".join(
        f"({value.is_read(kind)} ? variables.{value.name_of(kind)}_rules : [])"
        f".map(p, [variables.{value.name_of(kind)}_key, p])"
        for kind, _ in written
    )
    found |= common.variables()
    found["marks"] = common.marks()
    for way in WAYS:
        found[way] = " + ".join(_of_way(kind, text, way) for kind, text in written)
    return found | {f"{value.name_of(kind)}_collision": _collision(kind) for kind, _ in written}


def _of_way(kind: Kind, text: Text, way: str) -> str:
    """The rules of a kind in one direction, and what tells one from another besides its match."""
    one_way = pattern("" if text.way is None else f"^{text.way}(?i:{'|'.join(WAYS[way])})(?: |$)")
    key = f"variables.{value.name_of(kind)}_key"
    known = f"[{key}]"
    if text.identity != "[]":
        known = bind("w", "r[1].split(' ')", f"[{key}] + {text.identity}")
    return f"variables.rules.filter(r, r[0] == {key} && r[1].matches({one_way})).map(r, [r, {known}])"


def _collision(kind: Kind) -> str:
    """Two rules of the same direction and match, that nothing else tells from each other."""
    # Two that are the same have each the other's second, too: most are told apart by that.
    same = "d.filter(b, a[1] in b && b[1] in a && a.all(x, x in b) && b.all(x, x in a)).size() > 1"
    is_read = " && ".join(f"variables.{name} == ''" for name in common.errors())
    why = says("two rules collide", f"one {kind.key} rule per direction and match")
    of_match = "(variables.marks.filter(m, m[0] == r[0]).map(m, m[1]) + [['']])[0]"
    key = f"variables.{value.name_of(kind)}_key"
    ways = [f"variables.{way}.filter(r, r[0][0] == {key}).map(r, r[1] + {of_match})" for way in WAYS]
    found = f"[{', '.join(ways)}].map(d, d.filter(a, {same})).filter(d, d.size() > 0)"
    read = first_text(f"{found}.map(d, d[0][0] + {COLON} + {why})")
    return f"{key} == '' || !({is_read}) ? '' : {read}"


def _of_template(of: str) -> str:
    """The annotations of the pods that a workload makes."""
    spec = f"dyn({of}).?spec"
    pods = f"{spec}.?template.?metadata.?annotations"
    of_jobs = f"{spec}.?jobTemplate.?spec.?template.?metadata.?annotations"
    return f"{pods}.or({of_jobs}).orValue({{}})"


def _is_new() -> str:
    """A change of anything else, such as a finalizer's, is nothing that this policy may hold up."""

    def of(name: str) -> str:
        metadata = f"dyn({name}).?metadata"
        jobs = f"dyn({name}).?spec.?jobTemplate.?metadata.?annotations.orValue({{}})"
        own = f"{metadata}.?annotations.orValue({{}}), {metadata}.?labels.orValue({{}})"
        return f"[{own}, {_of_template(name)}, {jobs}]"

    return f"request.operation == 'CREATE' || {of('object')} != {of('oldObject')}"


def _is_own(key: str) -> str:
    return f"({key}.startsWith({quoted(PREFIX)}) || {key} in {one_of(_BARE)})"


def _misplaced() -> str:
    """As annotations.misplaced says it. What has an owner has its annotations from there."""
    jobs = "dyn(object).?spec.?jobTemplate.?metadata.?annotations.orValue({})"
    owned = "dyn(object).?metadata.?ownerReferences.orValue([]).size() > 0"
    kind = "variables.kind.lowerAscii()"
    path = "(variables.kind == 'CronJob' ? 'spec.jobTemplate.spec.template' : 'spec.template')"
    write = f"'rules are annotations of its pods: write it into ' + {path} + '.metadata.annotations'"
    cases = []
    for of, whose in (
        ("variables.own", "' itself is not read: '"),
        (jobs, '"\'s jobs (spec.jobTemplate.metadata) is not read: "'),
    ):
        keys = f"{of}.map(k, k).filter(k, {_is_own('k')})"
        cases.append(
            (
                f"{of}.exists(k, {_is_own('k')})",
                f"'the annotation ' + {keys}[0] + ' of the ' + {kind} + {whose} + {write}",
            )
        )
    return first([(f"variables.carries || {owned}", NOTHING), *cases], NOTHING)


def _unknown() -> str:
    """As annotations.unknown_keys says it; and labels of namespaces, which podmgr does not read."""
    known = [PREFIX + key for key in KEYS]
    namespaces = f"variables.kind == 'Namespace' && k == {quoted(ENFORCE)}"
    unknown = f"k.startsWith({quoted(PREFIX)}) && !(k in {one_of(known)}) && !({namespaces})"
    keys = f"variables.annotations.map(k, k).filter(k, {unknown})"
    labels = "(variables.kind == 'Namespace' ? dyn(object).?metadata.?labels.orValue({}) : {})"
    own_labels = f"{labels}.map(k, k).filter(k, k.startsWith({quoted(PREFIX)}))"
    only = f"{ENFORCE} holds for namespaces only: annotate the namespace"
    keys_are = f": keys are {', '.join(known)}"
    return first(
        [
            (f"{keys}.exists(k, k == {quoted(ENFORCE)})", quoted(only)),
            (f"{keys}.size() > 0", f"'unknown annotation ' + {keys}[0] + {quoted(keys_are)}"),
            (
                f"{own_labels}.size() > 0",
                f"'the label ' + {own_labels}[0] + ' is not read: write it into metadata.annotations'",
            ),
        ],
        NOTHING,
    )


def _enforce() -> str:
    blanks = "".join(rf"\x{{{ord(blank):x}}}" for blank in BLANKS)
    right = pattern(f"^[{blanks}]*(?:{'|'.join(map(unit_behind, ('true', 'false')))})[{blanks}]*$")
    text = f"variables.own[{quoted(ENFORCE)}]"
    return first(
        [
            (f"variables.kind != 'Namespace' || !({quoted(ENFORCE)} in variables.own)", NOTHING),
            (
                f"!{text}.matches({right})",
                quoted(f'{ENFORCE}: neither true nor false: "true" or "false"'),
            ),
        ],
        NOTHING,
    )
