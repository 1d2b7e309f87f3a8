"""Kubeconfigs, and the service account of a pod, as client-go takes them: which server, who we are there.

Owns what stands in these files and what their exec plugins answer. The connection is made by
`connection`. The official Python client knows neither impersonation nor a plugin's hint, writes
keys into temporary files, and takes 350 ms to import.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlunsplit

from podmgr import proc
from podmgr.cluster import documents, proxies
from podmgr.cluster.addresses import address, is_host, without_login
from podmgr.cluster.connection import Connection, Headers
from podmgr.errors import MissingToolError, PodmgrError, printable
from podmgr.proc import Runner

_TIP = "kubectl config view; see --kubeconfig and --context"
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_EXEC_EXTENSION = "client.authentication.k8s.io/exec"
_EARLY_SECONDS = 30.0  # before a credential ends it is asked for anew

Section = Mapping[str, Any]


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


def of_service_account(folder: Path, environment: Mapping[str, str]) -> Connection:
    """The account of the pod we run in. Raises PodmgrError if part of it is missing."""
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    token = _text_of(folder / "token")
    if not host or not token:
        raise PodmgrError(
            "the service account has no token, or no server", tip="see the pod's serviceAccountName"
        )
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    if address(server) is None:
        raise PodmgrError(
            f"KUBERNETES_SERVICE_HOST and _PORT make no address: {printable(server)[:80]!r}",
            tip="the kubelet sets both; see the pod's env",
        )
    return Connection(
        server=server,
        namespace=_text_of(folder / "namespace") or "default",
        ca=_bytes_of(folder / "ca.crt"),
        headers=(("Authorization", f"Bearer {_header('the token', token)}"),),
    )


def load(paths: str, context: str | None = None, *, runner: Runner = proc.run) -> Connection:
    """The connection of a context. `paths` are one file or several with colons between, as in KUBECONFIG.

    Raises PodmgrError with what is wrong and where.
    """
    return _Config(paths, runner).connection(context)


class _Config:
    """The merged files: of what is named twice the first counts."""

    def __init__(self, paths: str, runner: Runner) -> None:
        self._paths = printable(paths)
        self._runner = runner
        self._current = ""
        self._named: dict[str, dict[str, tuple[Section, Path]]] = {
            "clusters": {},
            "users": {},
            "contexts": {},
        }
        files = [Path(path) for path in dict.fromkeys(paths.split(os.pathsep)) if path]
        is_there = [self._read(path, is_only=len(files) == 1) for path in files]
        if not any(is_there):
            raise self._error("none of these files exists", "KUBECONFIG names them; or --kubeconfig FILE")

    def _read(self, path: Path, *, is_only: bool) -> bool:
        """Whether it is there: of several, some may be missing."""
        try:
            text = _content(path).decode("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError) as error:
            if is_only:
                raise PodmgrError(f"{printable(str(path))}: {error.strerror}", tip=_TIP) from error
            return False
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise PodmgrError(f"{printable(str(path))}: {reason}", tip=_TIP) from error
        for content in documents.read(printable(str(path)), text, tip=_TIP):
            if not isinstance(content, dict):
                raise PodmgrError(f"{printable(str(path))} is no kubeconfig", tip=_TIP)
            self._current = self._current or str(content.get("current-context") or "")
            for kind, found in self._named.items():
                for item in _list(content.get(kind)):
                    if isinstance(item, dict) and isinstance(item.get("name"), str):
                        body = item.get(kind.removesuffix("s"))
                        found.setdefault(
                            item["name"], (body if isinstance(body, dict) else {}, path.absolute().parent)
                        )
        return True

    def connection(self, context: str | None) -> Connection:
        name = context or self._current
        if not name:
            raise self._error("it has no current-context", self._there("--context NAME", "contexts"))
        chosen, _ = self._find("contexts", name)
        cluster, place = self._find("clusters", _word(chosen, "cluster"))
        made = self._server(cluster, place)
        made = replace(made, namespace=_word(chosen, "namespace") or "default")
        user = _word(chosen, "user")
        return self._as_user(made, cluster, *self._find("users", user)) if user else made

    def _find(self, kind: str, name: str) -> tuple[Section, Path]:
        found = self._named[kind].get(name)
        if found is None:
            raise self._error(
                f"it has no {kind.removesuffix('s')} {printable(name)[:80]!r}", self._there("known are", kind)
            )
        return found

    def _there(self, words: str, kind: str) -> str:
        names = ", ".join(printable(name)[:60] for name in list(self._named[kind])[:8])
        return f"{words}; there are: {names}" if names else f"it names no {kind}; {_TIP}"

    def _server(self, cluster: Section, place: Path) -> Connection:
        server = _word(cluster, "server").rstrip("/")
        ca = self._bytes(cluster, "certificate-authority", place)
        is_insecure = cluster.get("insecure-skip-tls-verify") is True
        if "://" not in server:
            server = f"{'https' if ca or is_insecure else 'http'}://{server or 'localhost:8080'}"
        parts = address(server)
        if parts is None:
            raise self._error(f"its server {without_login(server)!r} is no http or https address")
        server_name = _word(cluster, "tls-server-name")
        if server_name and not is_host(server_name):
            raise self._error(f"its tls-server-name {printable(server_name)[:80]!r} is no name of a host")
        if ca and is_insecure:
            raise self._error("it names an authority, and asks not to check it", "leave one of the two out")
        return Connection(
            server=urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])),
            ca=ca,
            is_insecure=is_insecure,
            server_name=server_name or None,
            proxy=self._proxy(_word(cluster, "proxy-url")),
            headers=_basic(unquote(parts.username), unquote(parts.password or "")) if parts.username else (),
        )

    def _proxy(self, url: str) -> str | None:
        return proxies.checked(url, f"proxy-url of the kubeconfig {self._paths[:200]}") if url else None

    def _as_user(self, made: Connection, cluster: Section, user: Section, place: Path) -> Connection:
        if user.get("auth-provider"):
            tip = "Kubernetes 1.26 removed auth-provider; the provider has an exec plugin"
            raise self._error("its user has an auth-provider, which podmgr does not know", tip)
        made = replace(
            made,
            certificate=self._bytes(user, "client-certificate", place),
            key=self._bytes(user, "client-key", place),
        )
        impersonation = self._impersonation(user)
        authorization = made.headers or self._authorization(user, place)
        if isinstance(user.get("exec"), dict) and not authorization:
            made = self._by_plugin(made, cluster, user["exec"], place)
            authorization = made.headers
        if bool(made.certificate) != bool(made.key):
            raise self._error(
                "its user has a client certificate without a key, or a key without a certificate"
            )
        return replace(made, headers=(*authorization, *impersonation))

    def _authorization(self, user: Section, place: Path) -> Headers:
        token = ""
        if name := _word(user, "tokenFile"):
            token = self._file(name, place).decode(errors="replace").strip()
        token = token or _word(user, "token").strip()
        if token:
            return (("Authorization", f"Bearer {_header('its token', token)}"),)
        username = _word(user, "username")
        return _basic(username, _word(user, "password")) if username else ()

    def _impersonation(self, user: Section) -> list[tuple[str, str]]:
        """As client-go writes them: who may impersonate acts with the rights of another alone."""
        name, uid = _word(user, "as"), _word(user, "as-uid")
        groups = [str(group) for group in _list(user.get("as-groups"))]
        extra = user.get("as-user-extra") if isinstance(user.get("as-user-extra"), dict) else {}
        if not name:
            if uid or groups or extra:
                raise self._error("its user has as-groups, as-uid or as-user-extra, but no as")
            return []
        headers = [("Impersonate-User", name)] + ([("Impersonate-Uid", uid)] if uid else [])
        headers += [("Impersonate-Group", group) for group in groups]
        headers += [
            (f"Impersonate-Extra-{quote(key, safe='')}", str(value))
            for key, values in (extra or {}).items()
            for value in _list(values)
        ]
        return [(key, _header(key, value)) for key, value in headers]

    def _by_plugin(self, made: Connection, cluster: Section, wanted: Section, place: Path) -> Connection:
        name = repr((made.server, wanted))
        answer = _answers.get(name)
        if answer is None or answer.ends - _EARLY_SECONDS < time.time():
            answer = self._ask(made, cluster, wanted, place)
            _answers[name] = answer
        headers = (("Authorization", f"Bearer {_header('its token', answer.token)}"),) if answer.token else ()
        certificate, key = answer.certificate or made.certificate, answer.key or made.key
        return replace(made, headers=headers, certificate=certificate, key=key, plugin=name)

    def _ask(self, made: Connection, cluster: Section, wanted: Section, place: Path) -> _Credential:
        """Run an exec plugin. https://kubernetes.io/docs/reference/access-authn-authz/authentication"""
        command, version = _word(wanted, "command"), _word(wanted, "apiVersion")
        shown, hint = printable(command)[:80], " ".join(printable(_word(wanted, "installHint")).split())[:500]
        if version not in _EXEC_VERSIONS:
            raise self._error(
                f"its plugin {shown} wants {printable(version)[:60]!r}", f"known: {_EXEC_VERSIONS[0]}"
            )
        if _word(wanted, "interactiveMode") == "Always":
            raise self._error(
                f"its plugin {shown} needs a terminal", "log in with kubectl, or use another user"
            )
        spec: dict[str, Any] = {"interactive": False}
        if wanted.get("provideClusterInfo") is True:
            spec["cluster"] = _cluster_info(made, cluster)
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
        variables = {"KUBERNETES_EXEC_INFO": json.dumps(info), **self._variables(wanted)}
        try:
            done = self._runner(self._argv(wanted, place), env=variables)
        except MissingToolError as error:
            raise self._error(f"its plugin {shown} is not installed", hint or f"install {shown}") from error
        except PodmgrError as error:
            raise self._error(f"its plugin: {printable(error.message)[:300]}", hint or _TIP) from error
        if not done.succeeded:
            lines = printable(done.stderr.strip().replace("\n", " | "))[-300:]
            raise self._error(
                f"its plugin {shown} ended with code {done.code}" + (f": {lines}" if lines else ""),
                hint or _TIP,
            )
        return self._answer(done.output, shown, version)

    def _argv(self, wanted: Section, place: Path) -> list[str]:
        command = self._passed("exec command", _word(wanted, "command"))
        if not command:
            raise self._error("its exec has no command", "command of exec names the plugin")
        words = [self._passed("exec args", str(word)) for word in _list(wanted.get("args"))]
        return [str(place / command) if "/" in command else command, *words]

    def _variables(self, wanted: Section) -> dict[str, str]:
        found = {}
        for item in _list(wanted.get("env")):
            if isinstance(item, dict):
                name = self._passed("exec env", _word(item, "name"))
                if not name or "=" in name:
                    raise self._error(
                        f"its exec env holds {printable(name)[:80]!r}, which is no name of a variable",
                        "an item of env has a name and a value",
                    )
                found[name] = self._passed(f"exec env {name}", str(item.get("value", "")))
        return found

    def _passed(self, field: str, text: str) -> str:
        """A text that a program can be given. What it is may be secret."""
        try:
            if b"\0" not in os.fsencode(text):
                return text
            reason = "a NUL character"
        except UnicodeEncodeError:
            reason = "a character that the locale lacks"
        raise self._error(f"its {printable(field)[:80]} holds {reason}", "no program can be given that")

    def _answer(self, output: bytes, shown: str, version: str) -> _Credential:
        try:
            answer = json.loads(output)
            status = answer["status"]
            token = str(status.get("token") or "")
            certificate = _encoded(status.get("clientCertificateData"))
            key = _encoded(status.get("clientKeyData"))
            until = status.get("expirationTimestamp")
            ends = datetime.fromisoformat(until).timestamp() if until else float("inf")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise self._error(f"its plugin {shown} answers no ExecCredential") from error
        if answer.get("apiVersion") != version or not (token or (certificate and key)):
            raise self._error(f"its plugin {shown} answers no credential of {version}")
        return _Credential(token, certificate, key, ends)

    def _bytes(self, section: Section, name: str, place: Path) -> bytes | None:
        """What stands in `name-data`, in base64, or in the file `name`, seen from the kubeconfig's folder."""
        if data := _word(section, f"{name}-data"):
            try:
                return base64.b64decode(data, validate=False)
            except (binascii.Error, ValueError) as error:
                raise self._error(f"its {name}-data is not base64") from error
        return self._file(path, place) if (path := _word(section, name)) else None

    def _file(self, path: str, place: Path) -> bytes:
        try:
            content = _content(place / path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no name of a file"
            raise self._error(f"{printable(path)}: {reason}") from error
        if len(content) > documents.MAX_BYTES:
            raise self._error(f"{printable(path)} is larger than {documents.MAX_BYTES >> 20} MiB")
        return content

    def _error(self, problem: str, tip: str = _TIP) -> PodmgrError:
        return PodmgrError(f"kubeconfig {self._paths[:200]}: {problem}", tip=tip)


def _cluster_info(made: Connection, cluster: Section) -> dict[str, Any]:
    info: dict[str, Any] = {"server": made.server}
    if made.ca:
        info["certificate-authority-data"] = base64.b64encode(made.ca).decode()
    for key in ("tls-server-name", "insecure-skip-tls-verify", "proxy-url"):
        if cluster.get(key):
            info[key] = cluster[key]
    extensions = [item for item in _list(cluster.get("extensions")) if isinstance(item, dict)]
    config = next((item.get("extension") for item in extensions if item.get("name") == _EXEC_EXTENSION), None)
    return info | ({"config": config} if config is not None else {})


def _encoded(text: object) -> bytes | None:
    """PEM text of a plugin's answer."""
    return text.encode() if isinstance(text, str) and text else None


def _basic(name: str, password: str) -> Headers:
    pair = f"{name}:{password}".encode(errors="replace")
    return (("Authorization", f"Basic {base64.b64encode(pair).decode()}"),)


def _header(what: str, value: str) -> str:
    """A value that may stand in a header: one line of characters that HTTP has."""
    if not value.isprintable() or not value.isascii():
        raise PodmgrError(f"{what} holds characters that no header may hold", tip=_TIP)
    return value


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _word(section: Section, name: str) -> str:
    """A text; numbers are taken for one, and what is anything else is not there."""
    value = section.get(name)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _content(path: Path) -> bytes:
    """What stands in a file; of one without end, enough to say so."""
    with path.open("rb") as file:
        return file.read(documents.MAX_BYTES + 1)


def _text_of(path: Path) -> str:
    return _bytes_of(path).decode(errors="replace").strip()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PodmgrError(
            f"the service account lacks {path}: {error.strerror}", tip="see the pod's volumes"
        ) from error
