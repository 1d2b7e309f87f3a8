"""What exec plugins are told, how long their answers count, and that one which fails is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from podmgr import proc
from podmgr.cluster import kubeconfig
from podmgr.cluster.api import StatusError
from podmgr.errors import PodmgrError
from tests.unit.cluster.kubeconfigs import NO, V1, Recorder, answering, ask, config, plugged, refused, script
from tests.unit.samples import Script, said


def test_a_plugin_is_asked_once_with_what_it_wants_to_know(recorder: Recorder, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    said = f'echo "$1 $PLACE $KUBERNETES_EXEC_INFO" >> {asked}'
    plugin = answering(tmp_path, {"token": "from-plugin"}, said)
    plugin |= {"args": ["login"], "env": [{"name": "PLACE", "value": "here"}], "provideClusterInfo": True}
    for _ in range(2):
        ask(tmp_path, config({"server": recorder.url}, {"exec": plugin}))
    assert recorder.last["headers"]["Authorization"] == ["Bearer from-plugin"]
    (line,) = asked.read_text().splitlines()
    words = line.split(maxsplit=2)
    assert words[:2] == ["login", "here"]
    info = json.loads(words[2])
    assert (info["apiVersion"], info["spec"]["cluster"]["server"]) == (V1, recorder.url)


def test_a_credential_that_has_ended_or_is_not_accepted_is_asked_for_anew(
    recorder: Recorder, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    ended = {"token": "t", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    plugin = answering(tmp_path, ended, f"echo x >> {count}")
    for _ in range(2):
        ask(tmp_path, config({"server": recorder.url}, {"exec": plugin}))
    assert count.read_text().count("x") == 2
    lasting = answering(tmp_path, {"token": "t"}, f"echo y >> {count}")
    recorder.status = 401
    for _ in range(2):
        with pytest.raises(StatusError):
            ask(tmp_path, config({"server": recorder.url}, {"exec": lasting}))
    assert count.read_text().count("y") == 2


def test_a_plugin_beside_the_kubeconfig_is_found(recorder: Recorder, tmp_path: Path) -> None:
    plugin = answering(tmp_path, {"token": "t"}) | {"command": "./plugin"}
    ask(tmp_path, config({"server": recorder.url}, {"exec": plugin}))
    assert recorder.last["headers"]["Authorization"] == ["Bearer t"]


def test_a_plugin_is_run_by_whatever_runs_commands(tmp_path: Path) -> None:
    credential = {"apiVersion": V1, "kind": "ExecCredential", "status": {"token": "t"}}
    runner = Script(said(json.dumps(credential)))
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(plugged("login", env=[{"name": "PLACE", "value": "here"}])))
    found = kubeconfig.load(str(path), runner=runner)
    assert found.headers == (("Authorization", "Bearer t"),)
    assert runner.calls == [("login",)]
    assert runner.variables[0]["PLACE"] == "here"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a plugin that is missing": (
        plugged("no-such-plugin", installHint="get it\nhere"),
        "no-such-plugin is not installed",
    ),
    "a plugin of an old version": (
        plugged("true", apiVersion=V1 + "alpha1"),
        "wants 'client.authentication.k8s.io/v1alpha1'",
    ),
    "a plugin that answers nothing": (
        config(NO, {"exec": {"apiVersion": V1, "command": "true"}}),
        "no ExecCredential",
    ),
    "a plugin that fails": (
        config(NO, {"exec": {"apiVersion": V1, "command": "false"}}),
        "ended with code 1",
    ),
    "a plugin that asks": (
        config(NO, {"exec": {"apiVersion": V1, "command": "true", "interactiveMode": "Always"}}),
        "needs a terminal",
    ),
    "a command with a NUL": (plugged("a\0b"), "its exec command holds a NUL"),
    "an argument with a NUL": (plugged("true", args=["ok", "a\0b"]), "its exec args holds a NUL"),
    "a variable with a NUL": (
        plugged("true", env=[{"name": "A", "value": "\0"}]),
        "its exec env A holds a NUL",
    ),
    "a variable's name with a NUL": (plugged("true", env=[{"name": "\0"}]), "its exec env holds a NUL"),
    "a variable called A=B": (plugged("true", env=[{"name": "A=B"}]), "its exec env holds 'A=B'"),
    "a variable without a name": (plugged("true", env=[{"value": "x"}]), "its exec env holds ''"),
    "a plugin that cannot be run": (plugged("/"), "its plugin: /: Permission denied"),
    "a plugin without a command": (plugged(""), "its exec has no command"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    error = refused(tmp_path, content, reason)
    if "installHint" in str(content):
        assert error.tip == "get it·here"


def test_a_plugin_that_does_not_end_or_prints_without_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(PodmgrError, match=r"^kubeconfig .*: its plugin: .*/plugin did not end") as caught:
        ask(tmp_path, plugged(script(tmp_path, "sleep 20 & wait"), installHint="get another"))
    assert caught.value.tip == "get another"
    monkeypatch.setattr(proc, "TIMEOUT_SECONDS", 20.0)
    monkeypatch.setattr(proc, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(PodmgrError, match=r"^kubeconfig .*: its plugin: yes prints more than 1 MiB"):
        ask(tmp_path, plugged("yes"))
