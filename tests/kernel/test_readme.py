"""Everything that the documents show is run, and shows what it shows, but for the numbers.

A block ```console behind `<!-- run -->` is a session: `$ command` and what it prints. `run: exit N`
names the exit code of its last command, `run: any` only asks for each line's first words, and
`run: demo` is the demo, whose lines come from standard output alone. `run: cluster` has a cluster
with the namespace `shop`, where a `watch` has told of the rules of web-0.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from podmgr.attachment import PodRef
from podmgr.cluster import reasons
from podmgr.cluster.access import Access
from podmgr.cluster.announcer import Announcer
from podmgr.cluster.api import Api
from podmgr.settings import Settings
from tests.documents import DOCUMENTS, ROOT, TEXTS, sessions
from tests.kernel.conftest import Cli
from tests.kube import objects
from tests.kube.cluster import Simulated

SESSIONS = {document: sessions(document) for document in DOCUMENTS}
NOT_HERE = ("demo", "cluster")
WITH_SESSIONS = [document for document, found in SESSIONS.items() if {how for how, _ in found} - {*NOT_HERE}]
WITH_A_CLUSTER = [document for document, found in SESSIONS.items() if "cluster" in dict(found)]


def test_every_console_block_is_run() -> None:
    pattern = re.compile(r"(?:<!-- run[^>]*-->\n)?```console\n")
    blocks = [block for text in TEXTS.values() for block in pattern.findall(text)]
    assert sum(map(len, SESSIONS.values())) == len(blocks) >= 9
    assert all(block.startswith("<!-- run") for block in blocks)
    assert {"README.md", "examples/README.md"} <= set(WITH_SESSIONS)
    assert WITH_A_CLUSTER


@pytest.mark.usefixtures("podmgr")
@pytest.mark.parametrize("document", WITH_SESSIONS)
def test_a_document_shows_what_happens(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sessions, in order, as one reader would type them."""
    _put_commands_on_the_path(tmp_path, monkeypatch)
    _play([(how, session) for how, session in SESSIONS[document] if how not in NOT_HERE])


@pytest.mark.usefixtures("podmgr")
@pytest.mark.parametrize("document", WITH_A_CLUSTER)
def test_a_document_shows_what_happens_in_a_cluster(
    document: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_commands_on_the_path(tmp_path, monkeypatch)
    monkeypatch.setenv("PODMGR_CGROUP_ROOT", str(settings.cgroup_root))
    cluster = Simulated(settings, tmp_path)
    cluster.api.start()
    try:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.setenv("NODE_NAME", cluster.node)
        cluster.use_namespace("shop")
        pod = cluster.pod("web-0", labels={"app": "web"}, annotations={"bandwidth": "20 mbps ingress"})
        told = "bandwidth=20 mbps ingress (cgroup hook); bandwidth=10 mbps egress (service/web, cgroup hook)"
        announcer = Announcer(lambda: Api(Access(str(cluster.kubeconfig))), cluster.node, pytest.fail)
        announcer.announce(PodRef("shop", "web-0", pod.uid), reasons.APPLIED, told)
        announcer.close(0)
        announcer.run()
        cluster.pod("web-1", labels={"app": "web"})
        cluster.service("web", {"app": "web"}, {"bandwidth": "10 mbps egress"})
        cluster.api.create(objects.deployment("web", "shop"))
        _play([(how, session) for how, session in SESSIONS[document] if how == "cluster"])
    finally:
        cluster.close()


def _play(sessions: list[tuple[str, str]]) -> None:
    """Type what stands behind `$`, and compare."""
    assert sessions
    for how, session in sessions:
        shown: list[str] = []
        printed: list[str] = []
        code = 0
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            done = subprocess.run(
                ["bash", "-c", f"exec 2>&1; {command}"], cwd=ROOT, capture_output=True, text=True, check=False
            )
            code = done.returncode
            shown += output.splitlines()
            printed += done.stdout.splitlines()[: len(output.splitlines()) if how == "any" else None]
        assert code == (int(how.removeprefix("exit ")) if how.startswith("exit") else 0), printed
        if how == "any":
            assert [line.split()[:2] for line in printed] == [line.split()[:2] for line in shown]
        else:
            assert _without_numbers(printed) == _without_numbers(shown)


def test_the_demo_is_right_and_prints_what_the_readme_shows(podmgr: Cli) -> None:
    """The demo whole, as it is: every declared value is measured, and nothing is left."""
    (session,) = (session for how, session in SESSIONS["README.md"] if how == "demo")
    done = podmgr("demo")
    assert _without_numbers(done.stdout.splitlines()) == _without_numbers(session.splitlines()[1:])
    assert done.stdout.count("right\n") == 9


def test_the_demo_ends_the_command_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert ".venv/bin/podmgr demo" in makefile


def test_ci_runs_the_readmes_test_command() -> None:
    assert "sudo make test" in TEXTS["README.md"]
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


def test_every_command_and_option_is_documented(podmgr: Cli) -> None:
    commands = re.findall(r"^  ([a-z]+)  ", podmgr("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(commands) == {
        "apply",
        "list",
        "clean",
        "watch",
        "compile",
        "profiles",
        "policy",
        "run",
        "demo",
        "doctor",
    }
    for command in commands:
        assert re.search(rf"podmgr {command}|make {command}", TEXTS["README.md"]), command
        text = podmgr(command, "--help").stdout
        assert "Options:" in text


def _without_numbers(lines: list[str]) -> list[str]:
    """Lines with digests and numbers blotted out, and blanks run together."""
    text = [re.sub(r"\b[0-9a-f]{16}\b", "DIGEST", line) for line in lines]
    return [" ".join(re.sub(r"[-+]?[0-9][0-9,.]*", "N", line).split()) for line in text]


def _put_commands_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`podmgr` and `kubectl podmgr` as installed, and `sudo`, which root does not need."""
    for name, script in (
        ("podmgr", f'exec "{sys.executable}" -m podmgr "$@"'),
        ("sudo", 'exec "$@"'),
        ("kubectl", f'shift; exec "{sys.executable}" -c "from podmgr.cli.plugin import main; main()" "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.delenv("PODMGR_CGROUP_ROOT")  # the documents' cgroups are relative to the mount
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
