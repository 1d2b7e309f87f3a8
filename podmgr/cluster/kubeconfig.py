"""Kubeconfigs as client-go takes them: several files made one, a context, and the server that it means.

Who we are there is `credentials`' to say, where the files are, `access`'. The official Python client
knows neither impersonation nor a plugin's hint, writes keys into temporary
files, and takes 350 ms to import.

Apart from `access`, which alone uses it: a pod has no kubeconfig, and its service account needs none of this.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlunsplit

from podmgr import proc
from podmgr.cluster import documents, proxies
from podmgr.cluster.addresses import address, is_host, without_login
from podmgr.cluster.connection import TIP, Connection, basic
from podmgr.cluster.credentials import as_user
from podmgr.cluster.kubeconfig_section import Section, content_of, listed, unusable
from podmgr.errors import PodmgrError, printable
from podmgr.proc import Runner


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
        self._named: dict[str, dict[str, Section]] = {"clusters": {}, "users": {}, "contexts": {}}
        files = [Path(path) for path in dict.fromkeys(paths.split(os.pathsep)) if path]
        is_there = [self._read(path, is_only=len(files) == 1) for path in files]
        if not any(is_there):
            raise unusable(
                self._paths, "none of these files exists", "KUBECONFIG names them; or --kubeconfig FILE"
            )

    def _read(self, path: Path, *, is_only: bool) -> bool:
        """Whether it is there: of several, some may be missing."""
        try:
            text = content_of(path).decode("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError) as error:
            if is_only:
                raise PodmgrError(f"{printable(str(path))}: {error.strerror}", tip=TIP) from error
            return False
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise PodmgrError(f"{printable(str(path))}: {reason}", tip=TIP) from error
        for content in documents.read(printable(str(path)), text, tip=TIP):
            if not isinstance(content, dict):
                raise PodmgrError(f"{printable(str(path))} is no kubeconfig", tip=TIP)
            self._current = self._current or str(content.get("current-context") or "")
            for kind, found in self._named.items():
                for item in listed(content.get(kind)):
                    if isinstance(item, dict) and isinstance(item.get("name"), str):
                        body = item.get(kind.removesuffix("s"))
                        body = body if isinstance(body, dict) else {}
                        found.setdefault(item["name"], Section(body, path.absolute().parent, self._paths))
        return True

    def connection(self, context: str | None) -> Connection:
        name = context or self._current
        if not name:
            raise unusable(
                self._paths, "it has no current-context", self._there("--context NAME", "contexts")
            )
        chosen = self._find("contexts", name)
        cluster = self._find("clusters", chosen.word("cluster"))
        made = replace(_server(cluster), namespace=chosen.word("namespace") or "default")
        user = chosen.word("user")
        return as_user(made, cluster, self._find("users", user), self._runner) if user else made

    def _find(self, kind: str, name: str) -> Section:
        found = self._named[kind].get(name)
        if found is None:
            raise unusable(
                self._paths,
                f"it has no {kind.removesuffix('s')} {printable(name)[:80]!r}",
                self._there("known are", kind),
            )
        return found

    def _there(self, words: str, kind: str) -> str:
        names = ", ".join(printable(name)[:60] for name in list(self._named[kind])[:8])
        return f"{words}; there are: {names}" if names else f"it names no {kind}; {TIP}"


def _server(cluster: Section) -> Connection:
    server = cluster.word("server").rstrip("/")
    ca = cluster.data("certificate-authority")
    is_insecure = cluster.content.get("insecure-skip-tls-verify") is True
    if "://" not in server:
        server = f"{'https' if ca or is_insecure else 'http'}://{server or 'localhost:8080'}"
    parts = address(server)
    if parts is None:
        raise cluster.error(f"its server {without_login(server)!r} is no http or https address")
    server_name = cluster.word("tls-server-name")
    if server_name and not is_host(server_name):
        raise cluster.error(f"its tls-server-name {printable(server_name)[:80]!r} is no name of a host")
    if ca and is_insecure:
        raise cluster.error("it names an authority, and asks not to check it", "leave one of the two out")
    return Connection(
        server=urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])),
        ca=ca,
        is_insecure=is_insecure,
        server_name=server_name or None,
        proxy=_proxy(cluster),
        headers=basic(unquote(parts.username), unquote(parts.password or "")) if parts.username else (),
    )


def _proxy(cluster: Section) -> str | None:
    url = cluster.word("proxy-url")
    return proxies.checked(url, f"proxy-url of the kubeconfig {cluster.kubeconfig[:200]}") if url else None
