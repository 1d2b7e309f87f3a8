"""Where podmgr keeps and finds things, and how it logs. Every path can be moved for tests and odd hosts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

DEFAULT_STATE_DIR = Path("/run/podmgr")
DEFAULT_BPFFS = Path("/sys/fs/bpf/podmgr")
DEFAULT_MAX_MAP_BYTES = 1 << 20
DEFAULT_PROGRAM_DIR = Path("/etc/podmgr/programs")
DEFAULT_NRI_SOCKET = Path("/var/run/nri/nri.sock")


class LogFormat(StrEnum):
    """The values of --log-format."""

    TEXT = "text"
    JSON = "json"


class Settings(NamedTuple):
    """`cgroup_root` None: the cgroup2 mount is looked up in the mount table.

    `trusts_invoker` is true when the program folder was named on the command line: then the
    invoking user may own it, otherwise only root may. All maps of a custom program together stay
    under `max_map_bytes`.
    """

    state_dir: Path = DEFAULT_STATE_DIR
    bpffs: Path = DEFAULT_BPFFS
    cgroup_root: Path | None = None
    program_dir: Path = DEFAULT_PROGRAM_DIR
    trusts_invoker: bool = False
    max_map_bytes: int = DEFAULT_MAX_MAP_BYTES
