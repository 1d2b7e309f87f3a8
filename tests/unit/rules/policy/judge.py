"""The policy, run by an interpreter of CEL: what it says of an object, or of one annotation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional, ext_strings

from podmgr.rules.policy import documents

_NAMES = ("object", "oldObject", "request")


class Judge:
    """Programs are compiled once, and variables asked for in their order, as the API server may too."""

    def __init__(self) -> None:
        policy, _ = documents.documents()
        spec = policy["spec"]
        names = [one["name"] for one in spec["variables"]]
        self._env = cel.NewEnv(
            variables=dict.fromkeys([*_NAMES, *map(_variable, names)], cel.Type.DYN),
            extensions=[ext_strings.ExtStrings(), ext_optional.ExtOptional()],
        )
        self._conditions = [self._env.compile(one["expression"]) for one in spec["matchConditions"]]
        self._programs = {one["name"]: self._compiled(one["expression"]) for one in spec["variables"]}
        self._needs = {one["name"]: _NEEDS.findall(one["expression"]) for one in spec["variables"]}
        # Each validation is so, and says what its variable says.
        self._errors = [one["messageExpression"].removeprefix("variables.") for one in spec["validations"]]
        for one in spec["validations"]:
            assert one["expression"] == f"{one['messageExpression']} == ''"
        self._plain = self._run({"kind": "Pod", "metadata": {}}, "CREATE", {})

    def is_asked(self, item: object, old: object, operation: str) -> bool:
        """Whether the policy has a look at it."""
        data = {"object": item, "oldObject": old, "request": {"operation": operation}}
        return all(one.eval(data=data).value() for one in self._conditions)

    def says(self, item: Mapping[str, Any], operation: str = "CREATE") -> list[str]:
        """What is wrong with an object; nothing where it is admitted."""
        values = self._run(item, operation, {})
        return [values[name] for name in self._errors if values[name]]

    def says_of_value(self, key: str, value: str) -> list[str]:
        """The same of a pod with one annotation; only what is other than without it is run."""
        item = {"kind": "Pod", "metadata": {"annotations": {key: value}}}
        values = self._run(item, "CREATE", self._plain)
        return [values[name] for name in self._errors if values[name]]

    def _compiled(self, expression: str) -> cel.Expression:
        """Its variables stand by themselves here, so that each is handed what it needs alone."""
        return self._env.compile(_NEEDS.sub(lambda found: _variable(found[1]), expression))

    def _run(self, item: Mapping[str, Any], operation: str, plain: Mapping[str, Any]) -> dict[str, Any]:
        request = {"kind": {"kind": item["kind"]}, "operation": operation}
        values: dict[str, Any] = {}
        changed: set[str] = set()
        for name, program in self._programs.items():
            needs = self._needs[name]
            if plain and name != "own" and changed.isdisjoint(needs):
                values[name] = plain[name]
                continue
            data = {"object": item, "request": request} | {_variable(one): values[one] for one in needs}
            found = program.eval(data=data)
            if found.type() == cel.Type.ERROR:
                raise AssertionError(f"{name}: {found.value()}")
            values[name] = found.plain_value()
            if not plain or values[name] != plain[name]:
                changed.add(name)
        return values


_NEEDS = re.compile(r"\bvariables\.(\w+)")


def _variable(name: str) -> str:
    return f"variables_{name}"
