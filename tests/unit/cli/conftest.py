"""`kubectl podmgr` in this process, against the tests' API server."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from podmgr.cli import plugin, this_process
from tests.kube import objects
from tests.kube.apiserver import ApiServer

APP = {"app": "web"}


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The table, without its heading."""
        return [[cell.strip() for cell in line.split("   ") if cell] for line in self.out.splitlines()[1:]]


Kubectl = Callable[..., Done]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """The namespace `shop`: web-0 and web-1 of the deployment web, behind the service web, and api."""
    with ApiServer() as made:
        made.create(objects.namespace("shop"))
        made.create(objects.deployment("web", "shop", labels=APP))
        made.create(objects.service("web", "shop", selector=APP))
        for name, labels in (("web-0", APP), ("web-1", APP), ("api", {"app": "api"})):
            made.create(objects.pod(name, "shop", uid=f"uid-{name}", labels=labels))
        made.requests.clear()
        yield made


@pytest.fixture
def kubectl(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Kubectl:
    """Runs `kubectl podmgr`, as a user whose context has the namespace `shop`. `code` None: any."""
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", namespace="shop")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setattr(this_process, "end_on_signals", lambda: None)
    monkeypatch.setattr("gc.disable", lambda: None)

    def run(line: str, *words: str, code: int | None = 0) -> Done:
        monkeypatch.setattr("sys.argv", ["kubectl-podmgr", *shlex.split(line), *words])
        with pytest.raises(SystemExit) as ended:
            plugin.main()
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        assert code in (ended.value.code, None), shown.err
        return Done(ended.value.code, shown.out, shown.err)

    return run
