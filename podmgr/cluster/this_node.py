"""Which of the cluster's nodes podmgr runs on: by its name, as told or as found at the API server."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from podmgr.cluster.api import Api, StatusError
from podmgr.errors import PodmgrError


def find_node(api: Api, named: str | None) -> str:
    """This node's name: as named, or NODE_NAME, or the host's name, or the only node.

    Raises PodmgrError if it is none of these.
    """
    given = named or os.environ.get("NODE_NAME")
    if given:
        return given
    host = socket.gethostname().lower()
    try:
        names = [str(item["metadata"]["name"]) for item in api.list("/api/v1/nodes")[0]]
    except StatusError as error:
        if error.status != 403:
            raise
        return host  # nodes may not be listed: a node is called after its host
    short = host.partition(".")[0]
    found = [name for name in names if name == host] or [
        name for name in names if name.partition(".")[0] == short
    ]
    if len(found) == 1:
        return found[0]
    if len(names) == 1:
        return names[0]
    raise PodmgrError(
        f"which node is this? {host} is none of {len(names)} nodes: {_some(names)}",
        tip="--node-name NAME, or NODE_NAME in the environment",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
