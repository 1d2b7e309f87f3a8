"""What names stand for, asked of the API server once, and of no more than is named.

Apart from `targets.in_cluster`, which alone uses it: `watch` follows what is asked here once.
"""

from __future__ import annotations

from podmgr.cluster.api import Api, StatusError
from podmgr.cluster.directory import SERVICE_OF_SLICE, Directory, Part, Resource
from podmgr.cluster.peers import Resolved, may_not_be_seen, parts_of, resolve
from podmgr.rules.match import Peer, PeerKind


class Lookup:
    """Looks each name up the first time it is asked for. `node` is this node's name."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._directory = Directory()
        self._asked: set[tuple[str, str]] = set()
        self.found: dict[Peer, Resolved] = {}

    def __call__(self, peer: Peer) -> Resolved:
        """What a peer, with its namespace, stands for. Raises PodmgrError if the cluster cannot be asked."""
        if peer not in self.found:
            try:
                for part in parts_of(peer, self._node):
                    self._fetch(part, peer)
                self.found[peer] = resolve(self._directory, peer, self._node)
            except StatusError as error:
                if error.status != 403:
                    raise
                self.found[peer] = Resolved(error=may_not_be_seen(error))
        return self.found[peer]

    def _fetch(self, part: Part, peer: Peer) -> None:
        """Those objects of the part that the peer is about."""
        query = part.query
        if part.resource is Resource.SLICES and peer.kind is PeerKind.SERVICE:
            query = {"labelSelector": f"{SERVICE_OF_SLICE}={peer.name}"}
        elif part.resource is Resource.SERVICES and peer.kind is PeerKind.SERVICE:
            query = {"fieldSelector": f"metadata.name={peer.name}"}
        elif peer.kind is PeerKind.POD:
            is_label = "=" in peer.name
            query = (
                {"labelSelector": peer.name} if is_label else {"fieldSelector": f"metadata.name={peer.name}"}
            )
        asked = (part.path, str(query))
        if asked in self._asked:
            return
        for item in self._api.list(part.path, query)[0]:
            self._directory.put(part.resource, item)
        self._asked.add(asked)
