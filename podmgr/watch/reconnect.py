"""A watch speaks to one API server from its start to its end, with credentials that may rotate.

Owns that. When to connect again is for its callers to say: the informers of `cache`, and the announcer.

Apart from `loop`, which alone uses it: what a new connection must not change has nothing to do with pods.
"""

from __future__ import annotations

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.errors import PodmgrError


def reconnect(access: Access, server: str) -> Api:
    """With the credentials of today, but to the server of the beginning.

    Another one, to which the kubeconfig may have been switched, knows none of our pods: their
    limits would go. Raises PodmgrError.
    """
    api = Api(access)
    if api.server != server:
        api.close()
        raise PodmgrError(
            f"the kubeconfig leads to {api.server} now, not to {server}",
            tip="start podmgr watch again to follow it, or name a --context",
        )
    return api
