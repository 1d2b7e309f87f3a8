"""How to watch: what the command line says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from podmgr.watch.sandboxes import Nri
from podmgr.watch.server import Address

RESYNC_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to watch. `node` None: found out. `keeps_rules`: they stay when watch ends.

    `reads_standard`: Kubernetes' own annotations of pods count, too. `peer_namespaces` are those that
    rules of others may name.
    """

    node: str | None = None
    keeps_rules: bool = False
    resync_seconds: float = RESYNC_SECONDS
    posts_events: bool = True
    reads_standard: bool = False
    peer_namespaces: frozenset[str] = frozenset()
    metrics_address: Address | None = None
    metrics_token_file: Path | None = None
    nri: Nri | None = None
