"""Where the credentials for a cluster are: in which kubeconfig, or the service account of our own pod.

What stands in a kubeconfig is `kubeconfig`'s.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podmgr.cluster.addresses import address
from podmgr.cluster.connection import Connection, bearer
from podmgr.cluster.kubeconfig import load
from podmgr.errors import PodmgrError, printable

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_K3S = Path("/etc/rancher/k3s/k3s.yaml")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the credentials are. `kubeconfig` None: the service account of the pod we run in."""

    kubeconfig: str | None
    context: str | None = None

    def connection(self) -> Connection:
        """What stands there now. Raises PodmgrError if it cannot be read, or used."""
        if self.kubeconfig is None:
            return of_service_account(_SERVICE_ACCOUNT, os.environ)
        return load(self.kubeconfig, self.context)


def find_access(kubeconfig: str | None = None, context: str | None = None) -> Access:
    """The flag, KUBECONFIG, the pod we run in, ~/.kube/config (under sudo also the caller's), k3s.

    Raises PodmgrError if there is none of them.
    """
    if kubeconfig:
        if not Path(kubeconfig).is_file():
            raise PodmgrError(f"no kubeconfig at {printable(kubeconfig)}", tip="see --kubeconfig")
        return Access(os.path.abspath(kubeconfig), context)
    if os.environ.get("KUBECONFIG"):
        return Access(os.environ["KUBECONFIG"], context)
    if os.environ.get("KUBERNETES_SERVICE_HOST") and (_SERVICE_ACCOUNT / "token").exists() and not context:
        return Access(None)
    for path in [*_home_configs(), _K3S]:
        if os.path.isfile(path):  # no error where we may not look, as root may not in a home on NFS
            return Access(str(path), context)
    raise PodmgrError(
        "no kubeconfig: not in KUBECONFIG, ~/.kube/config or /etc/rancher/k3s/k3s.yaml",
        tip="name one with --kubeconfig FILE",
    )


def _home_configs() -> Iterator[Path]:
    with suppress(RuntimeError):  # a user whom no one knows, without HOME
        yield Path.home() / ".kube/config"
    with suppress(KeyError):
        if os.environ.get("SUDO_USER"):
            yield Path(pwd.getpwnam(os.environ["SUDO_USER"]).pw_dir) / ".kube/config"


def of_service_account(folder: Path, environment: Mapping[str, str]) -> Connection:
    """The account of the pod we run in. Raises PodmgrError if part of it is missing."""
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    token = _text_of(folder / "token")
    if not host or not token:
        raise PodmgrError(
            "the service account has no token, or no server", tip="see the pod's serviceAccountName"
        )
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    if address(server) is None:
        raise PodmgrError(
            f"KUBERNETES_SERVICE_HOST and _PORT make no address: {printable(server)[:80]!r}",
            tip="the kubelet sets both; see the pod's env",
        )
    return Connection(
        server=server,
        namespace=_text_of(folder / "namespace") or "default",
        ca=_bytes_of(folder / "ca.crt"),
        headers=bearer("the token", token),
    )


def _text_of(path: Path) -> str:
    return _bytes_of(path).decode(errors="replace").strip()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PodmgrError(
            f"the service account lacks {path}: {error.strerror}", tip="see the pod's volumes"
        ) from error
