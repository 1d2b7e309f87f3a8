"""The Kubernetes API server: requests, lists and watches, and the two errors that they end in.

Requests go over urllib3's connection pool, as JSON. Where it is and who we are there is known to
`access`, the connection is made by `connection`; following a list is `informer`'s.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from podmgr.cluster import exec_plugin, proxies
from podmgr.cluster.access import Access
from podmgr.cluster.addresses import without_login
from podmgr.cluster.connection import pool
from podmgr.errors import PodmgrError, printable

_PAGE = 500
_ANSWER_SECONDS = 60.0
_MAX_ANSWER_BYTES = 256 << 20
_CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
_TRY_SECONDS = 5.0  # to connect, and to answer, where somebody waits to hear whether it is there at all
# The server says something each minute, if only with a bookmark: after two in silence it is not there.
_SILENCE_SECONDS = 120.0
_GONE = 410
_MAX_LINE_BYTES = 8 << 20


class UnreachableError(PodmgrError):
    """No answer, or half of one."""


class StatusError(PodmgrError):
    """The API server says no. `status` is the HTTP code."""

    def __init__(self, status: int, message: str, *, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.status = status

    @property
    def is_gone(self) -> bool:
        """The resourceVersion is too old: list again."""
        return self.status == _GONE

    @property
    def is_missing(self) -> bool:
        return self.status == 404

    @property
    def is_refusal(self) -> bool:
        """The server knows us, and we lack the right."""
        return self.status == 403


class Api:
    """Requests to one API server, with the credentials as they are on disk when it is made.

    One thread uses it. Methods raise UnreachableError and StatusError.
    """

    def __init__(self, access: Access, *, read_seconds: float = READ_SECONDS) -> None:
        """An answer may take `read_seconds`. Raises PodmgrError if the credentials cannot be read."""
        import urllib3  # 40 ms: only where a cluster is used

        found = access.connection()
        self._read_seconds = read_seconds
        self._urllib3 = urllib3
        self._plugin = found.plugin
        self.server, self.namespace = found.server, found.namespace
        self._proxy = found.proxy or proxies.of_environment(found.server)
        self._pool = pool(found, self._proxy)
        self._headers = urllib3.HTTPHeaderDict({"Accept": "application/json", "User-Agent": "podmgr"})
        for name, value in found.headers:
            self._headers.add(name, value)

    def close(self) -> None:
        self._pool.clear()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One object, or one page of a list."""
        return self._answer("GET", path, query or {})

    def version(self) -> str:
        """What the server says it is, soon: a question that all may ask who are known to it."""
        version = self._answer("GET", "/version", {}, read_seconds=_TRY_SECONDS).get("gitVersion")
        if not isinstance(version, str):
            raise self._no_api()
        return printable(version)[:60]

    def create(self, path: str, item: Mapping[str, Any]) -> None:
        """POST an object."""
        self._answer("POST", path, {}, json.dumps(item).encode())

    def patch(
        self, path: str, change: Mapping[str, Any], query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Change an object by a JSON merge patch (RFC 7386), in which null removes; the object then."""
        return self._answer("PATCH", path, query or {}, json.dumps(change).encode())

    def list(self, path: str, query: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """All objects, in pages, and the resourceVersion from which a watch goes on."""
        items: list[dict[str, Any]] = []
        page = {**(query or {}), "limit": str(_PAGE)}
        while True:
            answer = self.get(path, page)
            kind, is_list, _ = str(answer.get("kind", "")).partition("List")
            if answer.get("items") is None and not is_list:
                raise self._no_api()  # a Status with code 200, say
            try:
                items += ({"kind": kind, **item} for item in answer["items"] or ())
                metadata = dict(answer["metadata"])
            except (KeyError, TypeError, ValueError) as error:  # no list is not an empty one
                raise self._no_api() from error
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion") or "")
            page["continue"] = metadata["continue"]

    def watch(
        self, path: str, query: Mapping[str, str], version: str, *, seconds: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(type, object) of each event since `version`, for `seconds`; then the server ends it.

        Returns as soon as the server has agreed. Bookmarks are among the events.
        StatusError.is_gone: `version` is too old; that may also come in the middle. A server that is
        silent longer than any that sends bookmarks ends it, too.
        """
        asked = {
            **query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        silence = min(seconds + 15.0, _SILENCE_SECONDS)
        response = self._request("GET", path, asked, read_seconds=silence)
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return self._events(response)

    def _events(self, response: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            for line in self._lines(response):
                yield _event(line)
        finally:
            response.close()

    def _lines(self, response: Any) -> Iterator[bytes]:
        """Whole lines; one that the connection's end has cut is not one."""
        rest = bytearray()
        try:
            for chunk in response.stream(amt=None, decode_content=False):
                rest += chunk
                *lines, last = rest.split(b"\n")
                yield from (bytes(line) for line in lines if line.strip())
                rest = bytearray(last)
                if len(rest) > _MAX_LINE_BYTES:
                    raise UnreachableError(f"{self.server}: an event of more than {_MAX_LINE_BYTES} bytes")
        except self._urllib3.exceptions.ReadTimeoutError as error:
            if rest.strip():
                raise self._unreachable(error) from error
            return
        except (self._urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        if rest.strip():
            raise UnreachableError(f"{self.server}: the connection was cut")

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None = None,
        read_seconds: float | None = None,
    ) -> dict[str, Any]:
        seconds = self._read_seconds if read_seconds is None else read_seconds
        response = self._request(method, path, query, body=body, read_seconds=seconds)
        try:
            self._check(response)
            answer = json.loads(self._body(response))
        except (self._urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        except (ValueError, RecursionError) as error:
            raise self._no_api() from error
        finally:
            response.release_conn()
        if not isinstance(answer, dict):
            raise self._no_api()
        return answer

    def _body(self, response: Any) -> bytes:
        """The whole answer, within bounds of size and time."""
        body, deadline = bytearray(), time.monotonic() + _ANSWER_SECONDS
        for chunk in response.stream(1 << 20):
            body += chunk
            if len(body) > _MAX_ANSWER_BYTES or time.monotonic() > deadline:
                raise UnreachableError(
                    f"{self.server} takes too long to answer, or answers too much",
                    tip="kubectl get --raw /readyz",
                )
        return bytes(body)

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: bytes | None = None,
        read_seconds: float,
    ) -> Any:
        headers = self._headers.copy()
        if body:
            headers["Content-Type"] = f"application/{'merge-patch+' if method == 'PATCH' else ''}json"
        url = f"{self.server}{path}"
        if query:
            from urllib.parse import urlencode

            url += "?" + urlencode(query)
        try:
            return self._pool.request(
                method,
                url,
                headers=headers,
                body=body,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=self._urllib3.Timeout(connect=min(_CONNECT_SECONDS, read_seconds), read=read_seconds),
            )
        except (self._urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _check(self, response: Any) -> None:
        if response.status < 300:
            return
        if response.status == 401:
            exec_plugin.forget(self._plugin)
        try:
            message = str(json.loads(response.data).get("message") or "")
        except (self._urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError, RecursionError):
            message = ""
        raise status_error(int(response.status), message or str(response.reason))

    def _no_api(self) -> UnreachableError:
        return UnreachableError(
            f"{self.server} does not answer as an API server does", tip="kubectl cluster-info"
        )

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = str(getattr(error, "reason", None) or error)
        plain = re.search(r"\[Errno -?\d+\] ([^'\")]+)", reason)  # behind what the HTTP library adds
        of_tls = re.search(r"certificate verify failed: ([^(\"']+)", reason)
        what = (
            plain[1]
            if plain
            else f"its certificate: {of_tls[1].strip()}"
            if of_tls
            else printable(reason)[:300]
        )
        if isinstance(error, self._urllib3.exceptions.ProxyError):
            where = without_login(self._proxy or "")
            return UnreachableError(
                f"the proxy {where} to the API server {self.server} cannot be reached: {what}",
                tip="proxy-url of the kubeconfig, or HTTPS_PROXY and NO_PROXY in the environment",
            )
        return UnreachableError(
            f"the API server {self.server} cannot be reached: {what}",
            tip="kubectl cluster-info; see --kubeconfig and --context",
        )


def status_error(status: int, message: str) -> StatusError:
    """What the API server said, with what to do."""
    tip = {
        400: "what is asked makes no sense to it: look at -l and the names",
        401: "the credentials are not accepted: kubectl get pods",
        403: "the user lacks this right: k3s/podmgr.yaml has podmgr's, kubectl-podmgr.yaml the plugin's",
        404: "kubectl get, or -n NAMESPACE",
        409: "somebody else has changed it meanwhile: look, and try again",
    }.get(status, "kubectl get --raw /readyz shows how the API server is")
    return StatusError(status, f"the API server says {status}: {message}", tip=tip)


def _event(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        event = json.loads(line)
        kind, item = event["type"], event["object"]
        if not isinstance(kind, str) or not isinstance(item, dict):
            raise TypeError("not an event")
        if not isinstance(item.get("metadata") or {}, dict):
            raise TypeError("not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StatusError(0, "the API server sent something that is no event") from error
    if kind == "ERROR":
        code = item.get("code")
        raise status_error(
            code if isinstance(code, int) else 0, str(item.get("message") or "no reason given")
        )
    return kind, item
