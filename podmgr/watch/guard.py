"""Who may scrape, and how often: a bearer token, and a page at a time.

Probes are not guarded: they say one word, and kubelet has no token.

Apart from `loop`, which alone uses it: `server` knows connections, and nothing of what is asked there.
"""

from __future__ import annotations

import hmac
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from podmgr.errors import PodmgrError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_MOST_TOKEN_BYTES = 4_096
_MOST_WAITING = 8
_LEAST_PAUSE_SECONDS = 0.05
_MOST_PAUSE_SECONDS = 1.0
_TIP = "--metrics-token-file names a file with one line: what stands behind 'Authorization: Bearer'"


def with_token(page: WSGIApplication, path: Path) -> WSGIApplication:
    """The page for those who say what is in that file, and 401 for all others.

    The file is read each time: a token that is changed is in force at once, and one that can no longer be
    read lets nobody in. Raises PodmgrError if it cannot be read now, or holds none.
    """
    read_token(path)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if _is_known(environ.get("HTTP_AUTHORIZATION", ""), path):
            return page(environ, start_response)
        head = [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Bearer realm="podmgr"')]
        start_response("401 Unauthorized", head)
        return [b"Unauthorized\n"]

    return answer


def _is_known(said: str, path: Path) -> bool:
    scheme, _, told = said.partition(" ")
    try:
        token = read_token(path)
    except PodmgrError:
        return False
    # How long it takes says nothing of how much of it was right.
    return hmac.compare_digest(told.strip().encode("latin-1"), token) and scheme.lower() == "bearer"


def read_token(path: Path) -> bytes:
    """What is in the file, without blanks around it. Raises PodmgrError, also if others may write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not to hang on a pipe
        try:
            status = os.fstat(fd)
            token = os.read(fd, _MOST_TOKEN_BYTES + 1).strip() if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(fd)
    except OSError as error:
        raise PodmgrError(f"the token in {path}: {error.strerror}", tip=_TIP) from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise PodmgrError(f"others may write the token in {path}", tip=_TIP)
    if not token or len(token) > _MOST_TOKEN_BYTES or len(token.split()) > 1:
        raise PodmgrError(f"there is no token in {path}", tip=_TIP)
    return token


def paced(
    page: WSGIApplication,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> WSGIApplication:
    """The page one at a time, with pauses as long as it took: half of a processor goes to scrapes, at most.

    So many may wait, and more are told to come again: a crowd takes neither threads nor time from the watch.
    """
    waiting = threading.BoundedSemaphore(_MOST_WAITING)
    turn = threading.Lock()
    next_at = clock()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        nonlocal next_at
        if not waiting.acquire(blocking=False):
            start_response("503 Service Unavailable", [("Content-Type", "text/plain"), ("Retry-After", "1")])
            return [b"too many scrapes at once\n"]
        try:
            with turn:
                if (pause := next_at - clock()) > 0:
                    sleep(pause)
                began = clock()
                body = list(page(environ, start_response))
                took = clock() - began
                next_at = clock() + min(max(took, _LEAST_PAUSE_SECONDS), _MOST_PAUSE_SECONDS)
                return body
        finally:
            waiting.release()

    return answer
