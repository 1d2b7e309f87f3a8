"""Where the credentials are found, and that they are read anew for each connection."""

from __future__ import annotations

import errno
import json
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster.access import Access, find_access
from podmgr.cluster.api import Api, StatusError
from podmgr.errors import PodmgrError
from tests import certificates
from tests.kube.apiserver import ApiServer

PODS = "/api/v1/pods"


# Which of them


class Machine:
    """Where kubeconfigs may lie on a machine that has none yet."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.home, self.caller = folder / "root", folder / "alice"
        self.k3s = folder / "k3s.yaml"
        self.account = folder / "serviceaccount"
        monkeypatch.setattr("podmgr.cluster.access._K3S", self.k3s)
        monkeypatch.setattr("podmgr.cluster.access._SERVICE_ACCOUNT", self.account)
        monkeypatch.setenv("HOME", str(self.home))
        for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "SUDO_USER"):
            monkeypatch.delenv(name, raising=False)
        users = {"alice": str(self.caller)}

        def getpwnam(name: str) -> pwd.struct_passwd:
            return pwd.struct_passwd((name, "x", 1000, 1000, "", users[name], "/bin/sh"))

        monkeypatch.setattr(pwd, "getpwnam", getpwnam)

    def has(self, *places: str) -> None:
        """A kubeconfig, or what stands for one, in each of these places."""
        for place in places:
            if place == "home":
                _touch(self.home / ".kube/config")
            elif place == "caller":
                self.monkeypatch.setenv("SUDO_USER", "alice")
                _touch(self.caller / ".kube/config")
            elif place == "k3s":
                _touch(self.k3s)
            elif place == "variable":
                self.monkeypatch.setenv("KUBECONFIG", "/a:/b")
            elif place == "pod":
                self.monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.43.0.1")
                _touch(self.account / "token")

    def found(self, place: str) -> str | None:
        return {
            "variable": "/a:/b",
            "pod": None,
            "home": str(self.home / ".kube/config"),
            "caller": str(self.caller / ".kube/config"),
            "k3s": str(self.k3s),
        }[place]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


ORDER = ["variable", "pod", "home", "caller", "k3s"]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_kubeconfig_is_the_first_that_there_is(machine: Machine, first: int) -> None:
    machine.has(*ORDER[first:])
    assert find_access() == Access(machine.found(ORDER[first]))


@pytest.mark.parametrize("place", ORDER)
def test_one_place_is_enough(machine: Machine, place: str) -> None:
    machine.has(place)
    assert find_access() == Access(machine.found(place))


def test_flag_goes_before_all_others(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(*ORDER)
    _touch(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert find_access("mine", "prod") == Access(str(tmp_path / "mine"), "prod")


@pytest.mark.parametrize("name", ["none-such", ".", "\x1b[31m"])
def test_flag_that_names_no_file_is_an_error_whatever_else_there_is(machine: Machine, name: str) -> None:
    machine.has(*ORDER)
    with pytest.raises(PodmgrError, match="no kubeconfig at") as caught:
        find_access(name)
    assert caught.value.message.isprintable()


def test_context_is_of_a_kubeconfig_so_the_pods_account_is_passed_over(machine: Machine) -> None:
    machine.has("pod", "k3s")
    assert find_access(context="prod") == Access(str(machine.k3s), "prod")


def test_empty_variable_is_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("home")
    monkeypatch.setenv("KUBECONFIG", "")
    assert find_access() == Access(machine.found("home"))


def test_pod_without_an_account_is_no_place(machine: Machine) -> None:
    machine.has("pod", "home")
    (machine.account / "token").unlink()
    assert find_access() == Access(machine.found("home"))


def test_caller_that_is_unknown_is_passed_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("k3s")
    monkeypatch.setenv("SUDO_USER", "nobody-such")
    assert find_access() == Access(machine.found("k3s"))


def test_home_that_may_not_be_read_is_passed_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """root may not read a home on NFS."""
    machine.has("caller", "k3s")
    stat = os.stat

    def refuse(path: str | Path, **options: Any) -> os.stat_result:
        if str(path).startswith(str(machine.caller)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert find_access() == Access(machine.found("k3s"))


def test_user_without_a_home_is_no_bug(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("k3s")
    monkeypatch.delenv("HOME")

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert find_access() == Access(machine.found("k3s"))


@pytest.mark.usefixtures("machine")
def test_none_at_all_is_an_error() -> None:
    with pytest.raises(PodmgrError, match="no kubeconfig: not in KUBECONFIG") as caught:
        find_access()
    assert caught.value.tip == "name one with --kubeconfig FILE"


# What stands there


def test_server_and_namespace_are_the_contexts(server: ApiServer, access: Access, tmp_path: Path) -> None:
    assert (Api(access).server, Api(access).namespace) == (server.url, "shop")
    content = json.loads(Path(access.kubeconfig or "").read_text())
    content["contexts"].append({"name": "bare", "context": {"cluster": "other", "user": "test"}})
    content["clusters"].append({"name": "other", "cluster": {"server": "https://example.com:6443/"}})
    path = tmp_path / "two"
    path.write_text(json.dumps(content))
    other = Api(Access(str(path), "bare"))
    assert (other.server, other.namespace) == ("https://example.com:6443", "default")


def test_kubeconfig_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PodmgrError, match="gone: "):
        Api(Access(str(tmp_path / "gone")))


def test_context_that_there_is_not_is_an_error(access: Access) -> None:
    with pytest.raises(PodmgrError, match="none-such"):
        Api(Access(access.kubeconfig, "none-such"))


def test_service_account_that_is_incomplete_is_an_error(machine: Machine) -> None:
    machine.has("pod")
    with pytest.raises(PodmgrError, match="the service account"):
        Api(Access(None))


def test_service_account_is_the_pods_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("pod")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    authority = certificates.Authority().pem
    for name, content in {"token": b"t-1\n", "ca.crt": authority, "namespace": b"podmgr\n"}.items():
        (machine.account / name).write_bytes(content)
    made = Api(find_access())
    assert (made.server, made.namespace) == ("https://10.43.0.1:443", "podmgr")
    assert "bearer t-1" in [value.lower() for value in made._headers.values()]
    (machine.account / "token").write_text("t-2")
    (machine.account / "namespace").write_text("")
    renewed = Api(find_access())
    assert renewed.namespace == "default"
    assert "bearer t-2" in [value.lower() for value in renewed._headers.values()]


@pytest.mark.parametrize("with_file", [True, False])
def test_token_is_sent_as_it_is_on_disk_when_the_connection_is_made(
    server: ApiServer, tmp_path: Path, with_file: bool
) -> None:
    server.tokens = {"first"}
    token = tmp_path / "token"
    token.write_text("first")

    def connect(value: str) -> Api:
        token.write_text(value)
        path = tmp_path / f"kubeconfig-{value}"
        named: Mapping[str, Any] = {"token_file": token} if with_file else {"token": value}
        return Api(Access(str(server.write_kubeconfig(path, **named))))

    assert connect("first").list(PODS)[0] == []
    server.tokens = {"second"}
    with pytest.raises(StatusError) as caught:
        connect("first").list(PODS)
    assert caught.value.status == 401
    assert connect("second").list(PODS)[0] == []


def test_kubeconfig_is_not_written_to(access: Access) -> None:
    path = Path(access.kubeconfig or "")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    Api(access).list(PODS)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
