"""Proxies on the way to an API server: which one the environment names, and which podmgr can use."""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from podmgr.cluster.addresses import address, without_login
from podmgr.cluster.connection import TIP
from podmgr.errors import PodmgrError


def checked(url: str, where: str) -> str:
    """A proxy's address, as it was written `where`. Raises PodmgrError for what podmgr does not speak."""
    if url.lower().startswith("socks"):
        raise PodmgrError(
            f"{where}: {without_login(url)} is a SOCKS proxy, which podmgr does not speak",
            tip="an http proxy; or ssh -L to the API server, and its address as the server",
        )
    if address(url) is None:
        raise PodmgrError(f"{where}: {without_login(url)!r} is no http or https address", tip=TIP)
    return url


def of_environment(server: str) -> str | None:
    """HTTPS_PROXY or HTTP_PROXY, but for what NO_PROXY names, as Go reads them: never for localhost."""
    parts = urlsplit(server)
    host = (parts.hostname or "").lower()
    name = f"{parts.scheme}_proxy"
    url = os.environ.get(name.upper()) or os.environ.get(name)
    if not url or host == "localhost" or _is_excepted(host, parts.port):
        return None
    url = url if "://" in url else f"http://{url}"
    return checked(url, f"{name.upper()} in the environment")


def _is_excepted(host: str, port: int | None) -> bool:
    try:
        ip = ip_address(host)
    except ValueError:
        ip = None
    if ip is not None and ip.is_loopback:
        return True
    for word in (os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "").lower().split(","):
        word = word.strip()
        if word == "*":
            return True
        with suppress(ValueError):
            if ip is not None and ip in ip_network(word, strict=False):
                return True
        name = word.removesuffix(f":{port}").lstrip("*").lstrip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False
