"""Makes the schemas beside this file of those in the package kubernetes-validate 1.24.1 of PyPI.

    pip download --no-deps --no-binary :all: kubernetes-validate==1.24.1
    tar xf kubernetes-validate-1.24.1.tar.gz
    python -m tests.unit.schemas kubernetes-validate-1.24.1/src/kubernetes_validate/kubernetes-json-schema

They are Kubernetes' own OpenAPI definitions (Apache License 2.0), strict: what is not named is refused.
Kept are those of the kinds in KINDS and of what they are made of, without their descriptions.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.unit.schemas import FOLDER, KINDS, OLD


def main(folder: Path) -> None:
    for version in OLD:
        text = (folder / f"v{version}.0-local-strict" / "_definitions.json").read_text()
        kept = _reachable(json.loads(text)["definitions"])
        lines = (f"{json.dumps(name)}: {json.dumps(kept[name], sort_keys=True)}" for name in sorted(kept))
        (FOLDER / f"{version}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _reachable(definitions: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    wanted = set(KINDS.values())
    while wanted:
        name = wanted.pop()
        found[name] = _without_descriptions(definitions[name])
        links = re.findall(r"#/definitions/([\w.]+)", json.dumps(found[name]))
        wanted |= set(links) - found.keys()
    return found


def _without_descriptions(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_descriptions(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_descriptions(item)
        for key, item in value.items()
        if not (key == "description" and isinstance(item, str)) and not key.startswith("x-")
    }


main(Path(sys.argv[1]))
