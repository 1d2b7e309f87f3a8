"""Folders that take minutes to make, kept under a digest of all that decides their content.

A folder is made under another name and renamed when it is whole, so that what an interrupted build left
is never taken for a finished one. Builds wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STAGING_SUFFIX = ".building"


def folder() -> Path:
    """Where images are kept: $PODMGR_VM_CACHE, else the invoking user's cache."""
    own = os.environ.get("PODMGR_VM_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(cache) / "podmgr-vm"


def digest(recipe: Mapping[str, object]) -> str:
    """Names a recipe; another one has another name. `recipe` holds only what JSON can hold."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def tell(progress: str) -> None:
    print(f"podmgr vm: {progress}", file=sys.stderr, flush=True)


def kept(name: str, make: Callable[[Path], None], *, cache: Path) -> Path:
    """The folder `name` of the cache, filled by `make` if it is not there."""
    whole = cache / name
    if whole.is_dir():
        return whole
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):
        if not whole.is_dir():  # another build may have made it meanwhile
            _make_and_rename(whole, make)
    return whole


def _make_and_rename(whole: Path, make: Callable[[Path], None]) -> None:
    staging = whole.with_name(whole.name + STAGING_SUFFIX)
    _remove(staging)
    staging.mkdir()
    try:
        make(staging)
        staging.rename(whole)
    finally:
        _remove(staging)


def _remove(staging: Path) -> None:
    if staging.exists():
        shutil.rmtree(staging)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
