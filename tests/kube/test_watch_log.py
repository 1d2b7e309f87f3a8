"""With --log-format json every line of `watch` is JSON, whatever goes wrong, and whoever says it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.kube.cluster import Simulated
from tests.kube.watching import Watching, environment_of
from tests.unit.cluster.kubeconfigs import V1, recording

Begin = Callable[..., Watching]


def rewritten(simulated: Simulated, cluster: dict[str, Any], user: dict[str, Any]) -> None:
    """Change what the kubeconfig says of cluster and user."""
    content = json.loads(simulated.kubeconfig.read_text())
    content["clusters"][0]["cluster"] |= cluster
    content["users"][0]["user"] = user
    simulated.kubeconfig.write_text(json.dumps(content))


def lines_of_a_start(simulated: Simulated) -> tuple[int, list[dict[str, Any]]]:
    """What a watch says that ends at once."""
    argv = [sys.executable, "-m", "podmgr", "watch", "--kubeconfig", str(simulated.kubeconfig)]
    done = subprocess.run(
        [*argv, "--node-name", simulated.node, "--log-format", "json"],
        env=environment_of(simulated.settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]


def test_every_line_is_json_through_an_outage_a_bad_certificate_and_a_failing_plugin(
    simulated: Simulated, watching: Begin, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    answer = {"apiVersion": V1, "kind": "ExecCredential"}
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(answer | {'status': {'token': 't'}})}'\n")
    plugin.chmod(0o755)
    used = {"exec": {"apiVersion": answer["apiVersion"], "command": str(plugin)}}
    rewritten(simulated, {}, used)
    watch = watching()
    simulated.api.stop()
    watch.hears("cannot be reached", times=1)
    simulated.api.start()
    watch.hears("answers again", times=3)
    # The kubeconfig of a running watch changes under it: a certificate that is none, a plugin that fails.
    rewritten(simulated, {"insecure-skip-tls-verify": True}, {"exec": used["exec"] | {"command": "false"}})
    simulated.api.end_watches()
    watch.hears("its plugin false ended with code 1")
    watch.hears("answers again", times=3)
    rewritten(simulated, {}, {"client-certificate": "/gone"})
    simulated.api.end_watches()
    watch.hears("/gone: No such file")
    rewritten(simulated, {}, used)
    watch.hears("answers again", times=4)
    watch.stop()
    lines = [json.loads(line) for line in watch.log.read_text().splitlines()]
    assert {line["level"] for line in lines} == {"info", "error"}
    assert not [line for line in lines if "logger" in line]  # no library says once more what we say


@pytest.mark.parametrize(
    ("cluster", "user", "reason"),
    [
        (
            {},
            {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such"}},
            "not installed",
        ),
        ({"server": "https://127.0.0.1:1", "certificate-authority-data": "AAAA"}, {}, "cannot be used"),
        ({"proxy-url": "socks5://127.0.0.1:1"}, {}, "SOCKS"),
        ({"certificate-authority": "/gone"}, {}, "No such file"),
    ],
)
def test_a_start_that_fails_says_so_in_json(
    simulated: Simulated, cluster: dict[str, Any], user: dict[str, Any], reason: str
) -> None:
    rewritten(simulated, cluster, user)
    code, lines = lines_of_a_start(simulated)
    assert (code, [line["level"] for line in lines]) == (1, ["error"])
    assert reason in lines[0]["message"] and lines[0]["tip"]


def test_a_certificate_of_a_stranger_is_told_in_json(
    simulated: Simulated, watching: Begin, tmp_path: Path
) -> None:
    with recording(Authority(), tmp_path) as stranger:
        rewritten(simulated, {"server": stranger.url}, {})
        watch = watching(waits=False, names_node=False)
        watch.hears("its certificate: ")
        watch.stop()
    assert [json.loads(line) for line in watch.log.read_text().splitlines()]
    assert not stranger.seen
