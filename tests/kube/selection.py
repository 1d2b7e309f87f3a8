"""fieldSelector and labelSelector, as the real server reads them."""

from __future__ import annotations

import re
from typing import Any

from tests.kube.store import Obj, Resource, Selector, StatusError


def selector(resource: Resource, namespace: str | None, fields: str, labels: str) -> Selector:
    """One test out of a namespace (None: all), a fieldSelector and a labelSelector."""
    tests: list[Selector] = [_field(resource, term) for term in fields.split(",") if term]
    tests += [_label(term.strip()) for term in re.split(r",(?![^(]*\))", labels) if term.strip()]
    if namespace is not None:
        tests.append(lambda obj: obj["metadata"].get("namespace") == namespace)
    return lambda obj: all(test(obj) for test in tests)


def _field(resource: Resource, term: str) -> Selector:
    match = re.fullmatch(r"([\w.]+)(==|=|!=)(.*)", term)
    if match is None:
        raise StatusError(400, f"invalid selector: '{term}'; can't understand '{term}'")
    path, operator, wanted = match.groups()
    if path not in {"metadata.name", "metadata.namespace", *resource.fields}:
        raise StatusError(400, f"field label not supported: {path}")

    # Of Events the real server calls so the component that posted it.
    steps = "source.component" if path == "source" else path

    def test(obj: Obj) -> bool:
        value: Any = obj
        for step in steps.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return ((value or "") == wanted) is (operator != "!=")

    return test


def _label(term: str) -> Selector:
    def labels(obj: Obj) -> dict[str, str]:
        return obj["metadata"].get("labels") or {}

    if match := re.fullmatch(r"(!?)\s*([\w./-]+)", term):
        absent, name = bool(match[1]), match[2]
        return lambda obj: (name in labels(obj)) is not absent
    if match := re.fullmatch(r"([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)", term):
        name, wanted, is_in = match[1], {match[3]}, match[2] != "!="
    elif match := re.fullmatch(r"([\w./-]+)\s+(in|notin)\s*\(([^()]*)\)", term):
        name, wanted, is_in = match[1], {value.strip() for value in match[3].split(",")}, match[2] == "in"
    else:
        raise StatusError(400, f"unable to parse requirement: {term}")
    # An object without the label matches != and notin, as with the real server.
    return lambda obj: (labels(obj).get(name) in wanted) is is_in
