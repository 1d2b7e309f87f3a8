"""kubectl's three ways to try a change. By itself, so that `--help` need not load what makes changes."""

from __future__ import annotations

from enum import StrEnum


class DryRun(StrEnum):
    """The values of --dry-run, as in kubectl: nothing is sent, or the server is asked what it would do."""

    NONE = "none"
    CLIENT = "client"
    SERVER = "server"
