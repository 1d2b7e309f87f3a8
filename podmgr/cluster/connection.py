"""What a connection to an API server is made of, and how it is made: TLS, keepalive, a proxy on the way.

What a server is asked over it, and what is said when it fails, is `api`'s.
"""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from podmgr.errors import PodmgrError

if TYPE_CHECKING:
    import ssl

TIP = "kubectl config view; see --kubeconfig and --context"

Headers = tuple[tuple[str, str], ...]

# A peer that has vanished without a word is noticed within half a minute. On a workstation that is no Linux
# the system may lack some of these, and says the first in another word.
_TCP_OPTIONS = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPALIVE": 15,  # macOS
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 30_000,
    "TCP_NODELAY": 1,
}
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _TCP_OPTIONS.items()
        if hasattr(socket, name)
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """All that a connection needs. PEM texts are bytes; `ca` None: the system's authorities.

    `server` is without the name and password that may stand in it: those are among the headers, as Go
    sends them. `server_name` is what the certificate is checked for, if it is not the host.
    """

    server: str
    namespace: str = "default"
    ca: bytes | None = None
    is_insecure: bool = False
    server_name: str | None = None
    proxy: str | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    headers: Headers = ()
    plugin: str = ""  # names the exec plugin's answer, to be forgotten when the server does not accept it


def bearer(what: str, token: str) -> Headers:
    """What a token is sent as; `what` it is called if it cannot be. Raises PodmgrError."""
    return (("Authorization", f"Bearer {header_value(what, token)}"),)


def basic(name: str, password: str) -> Headers:
    """What a name and a password are sent as."""
    pair = f"{name}:{password}".encode(errors="replace")
    return (("Authorization", f"Basic {b64encode(pair).decode()}"),)


def header_value(what: str, value: str) -> str:
    """A value that may stand in a header: one line of characters that HTTP has. Raises PodmgrError."""
    if not value.isprintable() or not value.isascii():
        raise PodmgrError(f"{what} holds characters that no header may hold", tip=TIP)
    return value


def pool(found: Connection, proxy: str | None) -> Any:
    """The connections: over TLS as the kubeconfig says, through a proxy if there is one.

    Raises PodmgrError for certificates that cannot be used.
    """
    import urllib3  # 40 ms: only where a cluster is used

    urllib3.disable_warnings()  # they would go to stderr, between our own lines
    options: dict[str, Any] = {"socket_options": _KEEPALIVE}
    if found.server.startswith("https:"):
        options["ssl_context"] = _tls(found)
        if found.is_insecure:
            options["assert_hostname"] = False
        elif found.server_name:
            options["server_hostname"] = found.server_name
    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    sent = {"Proxy-Authorization": f"Basic {b64encode(login).decode()}"} if parts.username else None
    return urllib3.ProxyManager(proxy, proxy_headers=sent, **options)


def _tls(found: Connection) -> ssl.SSLContext:
    """Chain and name are checked. Of Python's own demands, new in 3.13, clusters' authorities know nothing:
    many lack a key usage or a key identifier.
    """
    import ssl

    try:
        context = ssl.create_default_context(cadata=found.ca.decode() if found.ca else None)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if found.is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if found.certificate and found.key:
            with _file_of(found.certificate + b"\n" + found.key) as name:  # it is read from a file only
                context.load_cert_chain(name, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
        raise PodmgrError(
            f"the certificates for {found.server} cannot be used: {reason[:200]}",
            tip="kubectl config view --raw shows them",
        ) from error
    return context


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """A file that nobody else can read: in memory, or where there is no such thing, on disk for a moment."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("podmgr"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    import tempfile

    with tempfile.NamedTemporaryFile() as file:  # its mode is 0600
        file.write(content)
        file.flush()
        yield file.name
