"""What `kubectl podmgr` asks of the API server is what its roles allow, and each right of them is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.unit.cli.conftest import APP, Kubectl

ROLES = Path(__file__).parents[3] / "k3s/kubectl-podmgr.yaml"

Right = tuple[str, str]  # verb and resource

_KINDS = {"deploy": "Deployment", "rs": "ReplicaSet", "sts": "StatefulSet", "ds": "DaemonSet"}
_JOBS = {"job": "Job", "cj": "CronJob"}

GET = [
    "get",
    "get -A",
    "get pod/web-0 svc/web ns/shop",
    *(f"get {kind}/web" for kind in (*_KINDS, *_JOBS)),
]
PODS = [
    "annotate pod/web-0 loss=1%egress",
    "annotate pods -l app=web delay=1ms,rtt --dry-run=client",
    "annotate svc/web loss=1%egress",
    "annotate svc --all loss-",
    *(f"annotate {kind} -l app=web delay-" for kind in (*_KINDS, *_JOBS)),
]
NAMESPACES = ["annotate ns/shop loss=1%egress", "annotate ns --all loss-"]
TEMPLATES = [f"annotate {kind}/web --template loss=1%egress" for kind in (*_KINDS, "cj")]
NEEDED = {
    "podmgr-get": GET,
    "podmgr-annotate": PODS,
    "podmgr-annotate-namespaces": NAMESPACES,
    "podmgr-annotate-templates": TEMPLATES,
}


def roles() -> dict[str, set[Right]]:
    return {
        role["metadata"]["name"]: {
            (verb, resource)
            for rule in role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for role in yaml.safe_load_all(ROLES.read_text())
    }


@pytest.fixture
def shop(server: ApiServer) -> ApiServer:
    for kind in (*_KINDS.values(), *_JOBS.values()):
        if kind != "Deployment":
            server.create(objects.deployment("web", "shop", kind=kind, labels=APP))
    server.annotate("pods", "shop", "web-0", {"loss": "2% egress"})
    return server


def words(line: str) -> str:
    return line.replace("delay=1ms,rtt", "'delay=1ms rtt'").replace(
        "loss=1%egress", "'loss=1% egress' --overwrite"
    )


def asked(server: ApiServer, kubectl: Kubectl, lines: list[str]) -> set[Right]:
    server.requests.clear()
    for line in lines:
        kubectl(words(line), code=None)
    return {(request.verb, request.resource) for request in server.requests}


def test_what_is_asked_is_what_the_roles_allow(shop: ApiServer, kubectl: Kubectl) -> None:
    allowed = roles()
    of_get = asked(shop, kubectl, GET)
    everything = of_get.union(*(asked(shop, kubectl, lines) for lines in NEEDED.values()))
    assert everything == set.union(*allowed.values())
    for name, lines in NEEDED.items():
        assert asked(shop, kubectl, lines) <= allowed[name] | allowed["podmgr-get"]
    assert of_get <= allowed["podmgr-get"]


@pytest.mark.parametrize(("verb", "resource"), sorted(set.union(*roles().values())))
def test_without_a_right_something_fails_and_says_which(
    shop: ApiServer, kubectl: Kubectl, verb: str, resource: str
) -> None:
    shop.fail(verb, 403, resource)
    shown = [kubectl(words(line), code=None) for lines in NEEDED.values() for line in lines]
    told = [done for done in shown if done.code or "may not be read" in done.err]
    assert told
    for done in told:
        says = f'cannot {verb} resource "{resource}"' in done.err or "may not be read" in done.err
        assert says or "no pods now" in done.err
