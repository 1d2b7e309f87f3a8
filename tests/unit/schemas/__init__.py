"""What the API servers of several versions of Kubernetes accept, as JSON schemas.

The newest ones are in the package kubernetes-validate; older ones, which it has dropped, lie beside this
file, made by `__main__`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]

FOLDER = Path(__file__).parent
OLD = ("1.20", "1.24")
VERSIONS = (*OLD, "1.30", kubernetes_validate.latest_version())
KINDS = {
    ("v1", "Namespace"): "io.k8s.api.core.v1.Namespace",
    ("v1", "Pod"): "io.k8s.api.core.v1.Pod",
    ("v1", "Service"): "io.k8s.api.core.v1.Service",
    ("v1", "ServiceAccount"): "io.k8s.api.core.v1.ServiceAccount",
    ("apps/v1", "DaemonSet"): "io.k8s.api.apps.v1.DaemonSet",
    ("apps/v1", "Deployment"): "io.k8s.api.apps.v1.Deployment",
    ("networking.k8s.io/v1", "Ingress"): "io.k8s.api.networking.v1.Ingress",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "io.k8s.api.rbac.v1.ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "io.k8s.api.rbac.v1.ClusterRoleBinding",
}


class RefusedError(Exception):
    """An object that the API server would refuse."""


def validate(item: dict[str, Any], version: str) -> None:
    """Raise RefusedError for an object that this version of Kubernetes does not accept as it stands.

    Also for a field that it does not know, as `kubectl apply` does.
    """
    try:
        if version in OLD:
            _validator(version, KINDS[item["apiVersion"], item["kind"]]).validate(item)
        else:
            kubernetes_validate.validate(item, version, strict=True)
    except jsonschema.ValidationError as error:
        raise RefusedError(f"{error.json_path}: {error.message}") from error


@cache
def _validator(version: str, definition: str) -> Any:
    definitions = json.loads((FOLDER / f"{version}.json").read_text())
    schema = {"definitions": definitions, "$ref": f"#/definitions/{definition}"}
    return jsonschema.Draft202012Validator(schema)
