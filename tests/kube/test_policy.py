"""The policy in a real API server, where PODMGR_TEST_KUBECONFIG names one: the tests' own has no CEL.

It is put in force for one namespace of the test's own, and removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podmgr.rules.policy.documents import documents

KUBECONFIG = os.environ.get("PODMGR_TEST_KUBECONFIG")
NAME = f"podmgr-test-policy-{os.getpid()}"
MOST = {  # as much as the grammar reads: the API server must be able to pay for it
    "podmgr.io/loss": ";".join(f"1% egress peer=10.{at}.0.0/16 port=80,443" for at in range(64)),
    "podmgr.io/bandwidth": "10 mbps egress".ljust(4_096),
    "podmgr.io/delay": ";".join(f"10ms both jitter=1ms peer=10.{at}.0.0/16" for at in range(64)),
    "podmgr.io/ebpf-limit": ";".join(f"p{at} egress -DA=1 -DB=10.0.0.1" for at in range(64)),
}


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    """kubernetes' client, of a cluster that has the policy for one namespace."""
    from kubernetes import client, config

    load: Any = config.load_kube_config
    load(str(Path(str(KUBECONFIG)).expanduser()))
    core: Any = client.CoreV1Api()  # which takes plain documents as well
    admission: Any = client.AdmissionregistrationV1Api()
    policy, binding = documents()
    policy["metadata"]["name"] = binding["metadata"]["name"] = binding["spec"]["policyName"] = NAME
    # A policy that cannot decide shall be seen here, and not let everything through.
    policy["spec"]["failurePolicy"] = "Fail"
    binding["spec"]["matchResources"] = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAME}}
    }
    core.create_namespace({"metadata": {"name": NAME}})
    try:
        admission.create_validating_admission_policy(policy)
        admission.create_validating_admission_policy_binding(binding)
        yield core
    finally:
        for remove in (
            admission.delete_validating_admission_policy_binding,
            admission.delete_validating_admission_policy,
            core.delete_namespace,
        ):
            remove(NAME)


def refusal(core: Any, annotations: dict[str, str]) -> str:
    """What the API server says to a service with these annotations; "" where it takes it."""
    from kubernetes.client import ApiException

    service = {
        "metadata": {"generateName": "x-", "annotations": annotations},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "none"}},
    }
    try:
        core.create_namespaced_service(NAME, service, dry_run="All")
    except ApiException as error:
        return str(error.body)
    return ""


if KUBECONFIG:  # a test that is skipped is a failure of .ci/run

    def test_a_real_api_server_refuses_what_podmgr_cannot_read(api: Any) -> None:
        deadline = time.monotonic() + 60  # a new policy is in force some seconds later
        while not refusal(api, {"podmgr.io/bandwidth": "10 mpbs egress"}) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "units are bps, kbps, mbps, gbps" in refusal(api, {"podmgr.io/bandwidth": "10 mpbs egress"})
        assert "unknown annotation podmgr.io/los" in refusal(api, {"podmgr.io/los": "2% egress"})
        assert refusal(api, {"podmgr.io/bandwidth": "10 mbps egress"}) == ""

    def test_a_real_api_server_can_pay_for_all_that_podmgr_reads(api: Any) -> None:
        assert refusal(api, MOST) == ""
