"""`kubectl podmgr` where there is no Linux: what it loads, and how soon, and what it does without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.kube import objects
from tests.kube.apiserver import ApiServer
from tests.unit.cluster.kubeconfigs import config, encoded, recording

ROOT = Path(__file__).parents[3]

# As on macOS: what Python has on Linux alone is not there, nor is what Linux has at /proc and /run.
ELSEWHERE = """
import builtins, os, select, signal, socket, sys
sys.platform = "darwin"
for module, names in (
    (os, "memfd_create pidfd_open eventfd setns unshare sched_setaffinity"),
    (select, "epoll"),
    (signal, "pidfd_send_signal sigtimedwait"),
    (socket, "TCP_KEEPIDLE TCP_USER_TIMEOUT AF_NETLINK AF_PACKET SO_BINDTODEVICE"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
socket.TCP_KEEPALIVE = socket.TCP_KEEPINTVL  # it has another number there
before = builtins.open
def only_elsewhere(path, *words, **more):
    assert not str(path).startswith(("/proc", "/sys", "/run", "/etc/podmgr")), path
    return before(path, *words, **more)
builtins.open = only_elsewhere
"""
RUN = "from podmgr.cli.plugin import main; sys.argv[0] = 'kubectl-podmgr'; main()"


def elsewhere(*words: str, kubeconfig: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "KUBECONFIG": str(kubeconfig), "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE + RUN, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_it_works_without_what_linux_alone_has_also_with_an_exec_plugin(tmp_path: Path) -> None:
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "t"},
    }
    login = tmp_path / "login"
    login.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    login.chmod(0o755)
    with ApiServer() as server:
        server.tokens = {"t"}
        server.create(objects.namespace("default"))
        server.create(objects.pod("web-0"))
        plugin = {"apiVersion": answer["apiVersion"], "command": str(login), "interactiveMode": "Never"}
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(config({"server": server.url}, {"exec": plugin})))
        done = elsewhere("annotate", "pod/web-0", "loss=2% egress", kubeconfig=kubeconfig)
        assert (done.returncode, done.stderr) == (0, "")
        done = elsewhere("get", kubeconfig=kubeconfig)
        assert "loss=uniform egress 2%" in done.stdout
        assert (done.returncode, done.stderr) == (0, "")


def test_a_client_certificate_needs_no_file_in_memory(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue("me")
    with recording(authority, tmp_path) as server:
        user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
        cluster = {"server": server.url, "certificate-authority-data": encoded(authority.pem)}
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(config(cluster, user)))
        elsewhere("get", "pod/web-0", kubeconfig=kubeconfig)
        assert server.last["client"] == ["me"]


@pytest.mark.parametrize(
    "words", [["--help"], ["annotate", "pod/x", "profile=lte"], ["get", "pod/x"], ["profiles", "lte"]]
)
def test_it_loads_nothing_that_knows_the_kernel(words: list[str], tmp_path: Path) -> None:
    code = f"""
import sys, atexit
atexit.register(lambda: print(*sorted(name for name in sys.modules if name.startswith("podmgr"))))
sys.argv[1:] = {words!r}
{RUN}
"""
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    wings = {re.sub(r"^podmgr\.?(\w*).*", r"\1", name) for name in loaded}
    assert "podmgr.cli.plugin" in loaded
    assert not [name for name in loaded if re.match(r"podmgr\.(kernel|reconcile|watch|demo|refusals)", name)]
    of_programs = {name for name in loaded if name.startswith("podmgr.programs.")}
    assert of_programs <= {"podmgr.programs.profiles", "podmgr.programs.vetting"}
    if words == ["--help"]:
        assert not wings & {"rules", "targets", "proc"}
