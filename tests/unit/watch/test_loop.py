"""What of `watch` needs neither cluster nor kernel: addresses, and that there is one watch at a time."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podmgr.cluster.access import Access
from podmgr.cluster.api import Api
from podmgr.errors import PodmgrError, UsageError
from podmgr.settings import LogFormat, Settings
from podmgr.watch import loop
from podmgr.watch.journal import Journal
from podmgr.watch.loop import Options, Watch, parse_address
from tests.kube.apiserver import ApiServer
from tests.unit.samples import Script, said


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9090", ("", 9090)),
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9090", ("::1", 9090)),
        ("[::]:9090", ("::", 9090)),
        ("node-1.example.com:65535", ("node-1.example.com", 65_535)),
    ],
)
def test_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "9090", "localhost", "localhost:", "localhost:http", "[::1]", ":-1", ":+1", ":65536"),
        *(": 1", ":9090 ", ":²", ":١", ":9_0", ":1.0", ":0x10", ":" + "9" * 5000),
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address") as caught:
        parse_address(text)
    assert caught.value.tip == "--metrics-address HOST:PORT or :PORT"
    assert len(caught.value.message) < 120


@given(st.text(max_size=30) | st.text("0123456789:[]ab.", max_size=20))
def test_reading_an_address_raises_nothing_but_usage_errors(text: str) -> None:
    try:
        _, port = parse_address(text)
    except UsageError as error:
        assert error.message.isprintable()
        return
    assert 0 <= port <= 65_535


# The server of the beginning


@pytest.fixture
def servers() -> Iterator[tuple[ApiServer, ApiServer]]:
    with ApiServer() as one, ApiServer() as other:
        yield one, other


def test_credentials_may_change_but_not_the_server(
    tmp_path: Path, servers: tuple[ApiServer, ApiServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = servers
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cgroup.controllers").write_text("")
    closed: list[str] = []
    monkeypatch.setattr(Api, "close", lambda api: closed.append(api.server))
    access = Access(str(one.write_kubeconfig(tmp_path / "kubeconfig", token="first")))
    settings = Settings(tmp_path / "state", tmp_path / "bpffs", cgroup_root=tmp_path / "cgroup")
    journal = Journal(LogFormat.TEXT, io.StringIO())
    watching = Watch(Api(access), access, Options(), settings, journal, runner=Script(said("")))

    one.write_kubeconfig(tmp_path / "kubeconfig", token="second")
    renewed = watching._connect()
    assert renewed.server == one.url
    assert "second" in str(renewed._headers)
    assert closed == []

    other.write_kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(PodmgrError) as caught:
        watching._connect()
    assert caught.value.message == f"the kubeconfig leads to {other.url} now, not to {one.url}"
    assert "start podmgr watch again" in (caught.value.tip or "")
    assert closed == [other.url]

    one.write_kubeconfig(tmp_path / "kubeconfig")
    assert watching._connect().server == one.url


# Signals


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_hangup_ends_a_watch_unless_it_is_ignored(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        found = loop._signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    hangup = {signal.SIGHUP} if handler is signal.SIG_DFL else set()
    assert found == {signal.SIGINT, signal.SIGTERM} | hangup


# One at a time

HOLD = """
import sys
from pathlib import Path
from podmgr.watch import loop
from podmgr.settings import LogFormat, Settings
with loop._only_one(Settings(state_dir=Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_watch_of_a_state_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    argv = [sys.executable, "-c", HOLD, str(settings.state_dir)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(PodmgrError, match="another podmgr watch runs on"), loop._only_one(settings):
            pass
        first.kill()  # what a crash leaves is taken over
        first.wait()
    with loop._only_one(settings):
        assert (settings.state_dir / "watch.lock").exists()
    assert not (settings.state_dir / "watch.lock").exists()


def test_two_state_folders_may_be_watched_at_once(tmp_path: Path) -> None:
    with (
        loop._only_one(Settings(state_dir=tmp_path / "a")),
        loop._only_one(Settings(state_dir=tmp_path / "b")),
    ):
        pass
