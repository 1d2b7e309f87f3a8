"""Who podmgr is to an API server, as a kubeconfig's user says: token, password, certificate, impersonation.

What a user's plugin says is `exec_plugin`'s.

Apart from `kubeconfig`, which alone uses it: that knows which user is meant, and this what a user is.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from podmgr.cluster import exec_plugin
from podmgr.cluster.connection import Connection, Headers, basic, bearer, header_value
from podmgr.cluster.kubeconfig_section import Section, listed
from podmgr.proc import Runner


def as_user(made: Connection, cluster: Section, user: Section, runner: Runner) -> Connection:
    """The connection, made as this user; what the server's address says of one counts first.

    Raises PodmgrError.
    """
    if user.content.get("auth-provider"):
        tip = "Kubernetes 1.26 removed auth-provider; the provider has an exec plugin"
        raise user.error("its user has an auth-provider, which podmgr does not know", tip)
    made = replace(made, certificate=user.data("client-certificate"), key=user.data("client-key"))
    impersonation = _impersonation(user)
    authorization = made.headers or _authorization(user)
    wanted = user.content.get("exec")
    if isinstance(wanted, dict) and not authorization:
        made = exec_plugin.asked(made, cluster, user.part(wanted), runner)
        authorization = made.headers
    if bool(made.certificate) != bool(made.key):
        raise user.error("its user has a client certificate without a key, or a key without a certificate")
    return replace(made, headers=(*authorization, *impersonation))


def _authorization(user: Section) -> Headers:
    token = ""
    if name := user.word("tokenFile"):
        token = user.read(name).decode(errors="replace").strip()
    token = token or user.word("token").strip()
    if token:
        return bearer("its token", token)
    username = user.word("username")
    return basic(username, user.word("password")) if username else ()


def _impersonation(user: Section) -> list[tuple[str, str]]:
    """As client-go writes them: who may impersonate acts with the rights of another alone."""
    name, uid = user.word("as"), user.word("as-uid")
    groups = [str(group) for group in user.list("as-groups")]
    extra = user.content.get("as-user-extra")
    extra = extra if isinstance(extra, dict) else {}
    if not name:
        if uid or groups or extra:
            raise user.error("its user has as-groups, as-uid or as-user-extra, but no as")
        return []
    headers = [("Impersonate-User", name)] + ([("Impersonate-Uid", uid)] if uid else [])
    headers += [("Impersonate-Group", group) for group in groups]
    headers += [
        (f"Impersonate-Extra-{quote(key, safe='')}", str(value))
        for key, values in extra.items()
        for value in listed(values)
    ]
    return [(key, header_value(key, value)) for key, value in headers]
