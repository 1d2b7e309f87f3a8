"""Addresses of API servers and of proxies: which are any, and how one is shown."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from podmgr.errors import printable


def address(url: str) -> SplitResult | None:
    """The parts of an http or https address; None if it is none for any of those who will read it."""
    from urllib3.util import parse_url  # 40 ms: only where a cluster is used

    try:
        parts = urlsplit(url)
        parse_url(url)
        is_whole = parts.port != 0 and is_host(parts.hostname or "")
    except ValueError:  # of urllib3 too; a port is read when it is asked for
        return None
    return parts if is_whole and parts.scheme in ("http", "https") and url.isprintable() else None


def is_host(name: str) -> bool:
    """Whether TLS may be asked for it."""
    try:
        return bool(name.encode("idna")) and name.isprintable() and not name.startswith(".")
    except UnicodeError:
        return False


def without_login(url: str) -> str:
    """An address for a screen, also one that cannot be read, without name and password."""
    return printable(re.sub("//.*@", "//", url, flags=re.DOTALL))[:80]
