"""Programs that say who we are: a kubeconfig's exec plugins, what they are told, and what they answer.

Owns their answers for as long as these are good, and the server accepts them.
https://kubernetes.io/docs/reference/access-authn-authz/authentication
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from podmgr.cluster.connection import TIP, Connection, bearer
from podmgr.cluster.kubeconfig_section import Section
from podmgr.errors import MissingToolError, PodmgrError, printable
from podmgr.proc import Runner

_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_EXEC_EXTENSION = "client.authentication.k8s.io/exec"
_EARLY_SECONDS = 30.0  # before a credential ends it is asked for anew


class _Credential(NamedTuple):
    """What an exec plugin answered, good until `ends` (seconds since the epoch)."""

    token: str
    certificate: bytes | None
    key: bytes | None
    ends: float


_answers: dict[str, _Credential] = {}


def forget(plugin: str) -> None:
    """The server did not accept what the plugin answered: ask it again the next time."""
    _answers.pop(plugin, None)


def asked(made: Connection, cluster: Section, wanted: Section, runner: Runner) -> Connection:
    """The connection with what the plugin that is `wanted` answers, or has answered a while ago.

    Raises PodmgrError.
    """
    name = repr((made.server, wanted.content))
    answer = _answers.get(name)
    if answer is None or answer.ends - _EARLY_SECONDS < time.time():
        answer = _ask(made, cluster, wanted, runner)
        _answers[name] = answer
    headers = bearer("its token", answer.token) if answer.token else ()
    certificate, key = answer.certificate or made.certificate, answer.key or made.key
    return replace(made, headers=headers, certificate=certificate, key=key, plugin=name)


def _ask(made: Connection, cluster: Section, wanted: Section, runner: Runner) -> _Credential:
    """Run an exec plugin."""
    command, version = wanted.word("command"), wanted.word("apiVersion")
    shown, hint = printable(command)[:80], " ".join(printable(wanted.word("installHint")).split())[:500]
    if version not in _EXEC_VERSIONS:
        raise wanted.error(
            f"its plugin {shown} wants {printable(version)[:60]!r}", f"known: {_EXEC_VERSIONS[0]}"
        )
    if wanted.word("interactiveMode") == "Always":
        raise wanted.error(f"its plugin {shown} needs a terminal", "log in with kubectl, or use another user")
    spec: dict[str, Any] = {"interactive": False}
    if wanted.content.get("provideClusterInfo") is True:
        spec["cluster"] = _cluster_info(made, cluster)
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    variables = {"KUBERNETES_EXEC_INFO": json.dumps(info), **_variables(wanted)}
    try:
        done = runner(_argv(wanted), env=variables)
    except MissingToolError as error:
        raise wanted.error(f"its plugin {shown} is not installed", hint or f"install {shown}") from error
    except PodmgrError as error:
        raise wanted.error(f"its plugin: {printable(error.message)[:300]}", hint or TIP) from error
    if not done.succeeded:
        lines = printable(done.stderr.strip().replace("\n", " | "))[-300:]
        raise wanted.error(
            f"its plugin {shown} ended with code {done.code}" + (f": {lines}" if lines else ""),
            hint or TIP,
        )
    return _answer(wanted, done.output, shown, version)


def _argv(wanted: Section) -> list[str]:
    command = _passed(wanted, "exec command", wanted.word("command"))
    if not command:
        raise wanted.error("its exec has no command", "command of exec names the plugin")
    words = [_passed(wanted, "exec args", str(word)) for word in wanted.list("args")]
    return [str(wanted.folder / command) if "/" in command else command, *words]


def _variables(wanted: Section) -> dict[str, str]:
    found = {}
    for item in wanted.list("env"):
        if isinstance(item, dict):
            name = _passed(wanted, "exec env", wanted.part(item).word("name"))
            if not name or "=" in name:
                raise wanted.error(
                    f"its exec env holds {printable(name)[:80]!r}, which is no name of a variable",
                    "an item of env has a name and a value",
                )
            found[name] = _passed(wanted, f"exec env {name}", str(item.get("value", "")))
    return found


def _passed(wanted: Section, field: str, text: str) -> str:
    """A text that a program can be given. What it is may be secret."""
    try:
        if b"\0" not in os.fsencode(text):
            return text
        reason = "a NUL character"
    except UnicodeEncodeError:
        reason = "a character that the locale lacks"
    raise wanted.error(f"its {printable(field)[:80]} holds {reason}", "no program can be given that")


def _answer(wanted: Section, output: bytes, shown: str, version: str) -> _Credential:
    try:
        answer = json.loads(output)
        status = answer["status"]
        token = str(status.get("token") or "")
        certificate = _encoded(status.get("clientCertificateData"))
        key = _encoded(status.get("clientKeyData"))
        until = status.get("expirationTimestamp")
        ends = datetime.fromisoformat(until).timestamp() if until else float("inf")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise wanted.error(f"its plugin {shown} answers no ExecCredential") from error
    if answer.get("apiVersion") != version or not (token or (certificate and key)):
        raise wanted.error(f"its plugin {shown} answers no credential of {version}")
    return _Credential(token, certificate, key, ends)


def _cluster_info(made: Connection, cluster: Section) -> dict[str, Any]:
    info: dict[str, Any] = {"server": made.server}
    if made.ca:
        info["certificate-authority-data"] = base64.b64encode(made.ca).decode()
    for key in ("tls-server-name", "insecure-skip-tls-verify", "proxy-url"):
        if cluster.content.get(key):
            info[key] = cluster.content[key]
    extensions = [item for item in cluster.list("extensions") if isinstance(item, dict)]
    config = next((item.get("extension") for item in extensions if item.get("name") == _EXEC_EXTENSION), None)
    return info | ({"config": config} if config is not None else {})


def _encoded(text: object) -> bytes | None:
    """PEM text of a plugin's answer."""
    return text.encode() if isinstance(text, str) and text else None
