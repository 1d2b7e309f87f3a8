"""k3s/run.sh, with another folder for / and stand-ins for k3s and curl: nothing is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "k3s/run.sh"
TOOLS = (
    "awk bash cat chmod cut dirname env find grep head kill ln mkdir mktemp mv readlink rm rmdir sed "
    "setsid sh sha256sum sort tail touch tr umount wc"
)

# The server makes its folders, as k3s does, and stays. The API answers while it runs (or while
# there is a file "elsewhere"), and the node gets Ready at the third question.
K3S = """#!/bin/sh
echo "k3s $*" >> "$FAKES/calls"
if [ "$1" = server ]; then
    [ -e "$FAKES/server-dies" ] && { echo "level=fatal msg=no default routes found"; exit 1; }
    mkdir -p "$PODMGR_K3S_ROOT/etc/rancher/k3s" "$PODMGR_K3S_ROOT/var/lib/rancher/k3s/data"
    mkdir -p "$PODMGR_K3S_ROOT/var/lib/kubelet" "$PODMGR_K3S_ROOT/run/k3s"
    touch "$PODMGR_K3S_ROOT/etc/rancher/k3s/k3s.yaml" "$FAKES/elsewhere"
    exec sleep 1000
fi
[ -e "$FAKES/elsewhere" ] || exit 1
case "$*" in
*"get nodes"*)
    echo x >> "$FAKES/asked"
    case $(wc -l < "$FAKES/asked") in
    1) ;;
    2) echo "node-1 False" ;;
    *) [ -e "$FAKES/never-ready" ] && echo "node-1 False" || echo "node-1 True" ;;
    esac ;;
esac
"""

CURL = """#!/bin/sh
echo "curl $*" >> "$FAKES/calls"
[ -e "$FAKES/no-network" ] && { echo "curl: (6) Could not resolve host" >&2; exit 6; }
while [ $# -gt 1 ]; do [ "$1" = --output ] && output=$2; shift; done
cat "$FAKES/release/${1##*/}" > "$output"
"""


class Machine:
    """A folder that is / to the script, and a PATH of stand-ins and a few real tools."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.fakes = folder / "fakes"
        self.bin = folder / "bin"
        for path in (self.fakes / "release", self.bin, self.root / "sys/fs/cgroup"):
            path.mkdir(parents=True)
        (self.root / "sys/fs/cgroup/cgroup.controllers").touch()
        for tool in TOOLS.split():
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.fake("id", "#!/bin/sh\necho 0\n")
        self.fake("uname", "#!/bin/sh\necho x86_64\n")
        self.fake("sleep", f'#!/bin/sh\n[ "$1" = 1 ] && set -- 0.02\nexec {shutil.which("sleep")} "$1"\n')
        self.fake("ip", '#!/bin/sh\necho "ip $*" >> "$FAKES/calls"\n')
        self.fake("curl", CURL)
        (self.fakes / "release/k3s").write_text(K3S)

    def fake(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def happen(self, what: str) -> None:
        (self.fakes / what).touch()

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """What the script prints, on both streams, in order."""
        done = subprocess.run(
            ["bash", str(SCRIPT), *words],
            env={"PATH": str(self.bin), "PODMGR_K3S_ROOT": str(self.root), "FAKES": str(self.fakes)}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def calls(self, start: str = "") -> list[str]:
        path = self.fakes / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(start)]

    @property
    def state(self) -> Path:
        return self.root / "var/lib/podmgr-k3s"

    @property
    def server(self) -> int:
        return int((self.state / "pid").read_text().split()[0])

    def files(self) -> set[str]:
        """All that is below the root, but for what was there at the beginning."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()} - {
            "sys/fs/cgroup/cgroup.controllers"
        }

    def release(self, file: str = "k3s", arch: str = "amd64") -> None:
        """A release whose own list of hashes is right."""
        content = (self.fakes / "release/k3s").read_bytes()
        (self.fakes / "release" / file).write_bytes(content)
        lines = f"{'0' * 64}  k3s-airgap-images.tar\n{sha256(content).hexdigest()}  {file}\n"
        (self.fakes / "release" / f"sha256sum-{arch}.txt").write_text(lines)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for cmdline in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FAKES={machine.fakes}\0".encode() in cmdline.read_bytes():
                os.kill(int(cmdline.parent.name), signal.SIGKILL)


@pytest.fixture
def installed(machine: Machine) -> Machine:
    """A machine that has k3s already."""
    machine.fake("k3s", K3S)
    return machine


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


# What it refuses


@pytest.mark.parametrize("command", [[], ["stop"], ["uninstall"]], ids=["start", "stop", "uninstall"])
def test_without_root_nothing_is_done(installed: Machine, command: list[str]) -> None:
    installed.fake("id", "#!/bin/sh\necho 1000\n")
    assert "error: k3s needs root\ntip: sudo " in installed.run(*command, code=1)
    assert (installed.calls(), installed.files()) == ([], set())


def test_an_architecture_without_a_pinned_hash_is_refused(machine: Machine) -> None:
    machine.fake("uname", "#!/bin/sh\necho riscv64\n")
    assert "knows amd64 and arm64, not riscv64" in machine.run(code=1)
    assert (machine.calls(), machine.files()) == ([], set())


def test_without_a_network_it_says_so_and_leaves_nothing(machine: Machine) -> None:
    machine.happen("no-network")
    said = machine.run(code=1)
    assert re.search(r"error: cannot download https://\S+/k3s \(curl: 6\)\ntip: is there a network\?", said)
    assert machine.files() == set()
    assert not machine.state.exists()


def test_without_curl_it_says_what_to_install(machine: Machine) -> None:
    (machine.bin / "curl").unlink()
    assert "tip: apt-get install curl" in machine.run(code=1)


def test_a_host_with_cgroup_v1_is_refused_before_the_download(machine: Machine) -> None:
    (machine.root / "sys/fs/cgroup/cgroup.controllers").unlink()
    assert "needs cgroup v2 alone" in machine.run(code=1)
    assert machine.calls() == []


def test_an_unknown_command_is_refused(machine: Machine) -> None:
    assert "unknown command 'halt'" in machine.run("halt", code=1)


@pytest.mark.parametrize("version", [{}, {"K3S_VERSION": "v1.35.1+k3s1"}], ids=["pinned", "another"])
def test_a_file_with_another_hash_is_never_installed(machine: Machine, version: dict[str, str]) -> None:
    machine.release()
    (machine.fakes / "release/k3s").write_text("#!/bin/sh\necho not k3s\n")
    assert "error: what was downloaded is not k3s" in machine.run(code=1, **version)
    assert machine.files() == set()


def test_a_list_without_the_file_is_no_excuse(machine: Machine) -> None:
    machine.release()
    (machine.fakes / "release/sha256sum-amd64.txt").write_text(f"{'0' * 64}  k3s-airgap-images.tar\n")
    assert "its SHA-256 is not in the list" in machine.run(code=1, K3S_VERSION="v1.35.1+k3s1")


# What it installs


def pins() -> tuple[str, dict[str, str]]:
    text = SCRIPT.read_text()
    (version,) = re.findall(r"^pinned=(\S+)$", text, re.MULTILINE)
    return version, dict(re.findall(r"^ +\[(\w+)\]=([0-9a-f]{64})$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("uname", "arch", "file"),
    [("x86_64", "amd64", "k3s"), ("aarch64", "arm64", "k3s-arm64"), ("arm64", "arm64", "k3s-arm64")],
)
def test_the_pinned_release_is_checked_against_the_pinned_hash(
    machine: Machine, uname: str, arch: str, file: str
) -> None:
    version, hashes = pins()
    machine.release(file, arch)
    machine.fake("uname", f"#!/bin/sh\necho {uname}\n")
    (machine.bin / "sha256sum").unlink()
    machine.fake("sha256sum", f'#!/bin/sh\necho "{hashes[arch]}  $1"\n')
    machine.run()
    (call,) = machine.calls("curl")
    assert call.endswith(f"/k3s-io/k3s/releases/download/{version.replace('+', '%2B')}/{file}")
    binary = machine.root / "usr/local/bin/k3s"
    assert binary.read_text() == K3S
    assert binary.stat().st_mode & 0o777 == 0o755


def test_two_architectures_have_two_hashes() -> None:
    version, hashes = pins()
    assert re.fullmatch(r"v1\.\d+\.\d+\+k3s\d+", version)
    assert hashes.keys() == {"amd64", "arm64"}
    assert len(set(hashes.values())) == 2


def test_another_version_is_checked_against_its_own_list(machine: Machine) -> None:
    machine.release()
    said = machine.run(K3S_VERSION="v1.35.1+k3s1")
    assert "is not pinned here: its hash comes from the release itself" in said
    assert [call.rsplit("/", 2)[1:] for call in machine.calls("curl")] == [
        ["v1.35.1%2Bk3s1", "k3s"],
        ["v1.35.1%2Bk3s1", "sha256sum-amd64.txt"],
    ]


def test_an_installed_k3s_is_used(installed: Machine) -> None:
    installed.run()
    assert installed.calls("curl") == []
    assert not (installed.root / "usr/local").exists()


# What it starts


def test_it_waits_for_the_node_and_says_what_it_waits_for(installed: Machine) -> None:
    said = installed.run()
    places = [
        said.index(part)
        for part in (
            "k3s server; its log is",
            "the API server answers; no node yet",
            "the API server answers; node node-1 False",
            "node node-1 is Ready after",
            "k3s is ready",
            "run.sh stop",
        )
    ]
    assert places == sorted(places)
    assert is_running(installed.server)
    assert next(call for call in installed.calls() if " apply " in call).endswith(
        f"apply -f {SCRIPT.parent}/config.yml"
    )


def test_every_question_goes_to_the_cluster_that_it_made(installed: Machine) -> None:
    """Not to the one that KUBECONFIG names."""
    installed.run(KUBECONFIG="/somebody/elses")
    asked = installed.calls("k3s kubectl")
    assert asked
    assert all(f" --kubeconfig {installed.root}/etc/rancher/k3s/k3s.yaml " in call for call in asked)


def test_a_second_start_starts_no_second_server(installed: Machine) -> None:
    installed.run()
    server = installed.server
    assert "the server runs already" in installed.run()
    assert installed.server == server
    assert len(installed.calls("k3s server")) == 1


def test_a_server_that_dies_is_an_error_with_its_last_words(installed: Machine) -> None:
    installed.happen("server-dies")
    said = installed.run(code=1)
    assert "msg=no default routes found\nerror: k3s has ended" in said
    installed.run("uninstall")
    assert installed.files() == set()


def test_a_node_that_never_gets_ready_ends_the_waiting(installed: Machine) -> None:
    installed.happen("never-ready")
    said = installed.run(code=1, K3S_READY_SECONDS="2")
    assert "error: no node is Ready after 2 s" in said
    assert not [call for call in installed.calls() if " apply " in call]


# What it stops and removes


def test_stop_ends_the_server_that_it_started(installed: Machine) -> None:
    installed.run()
    server = installed.server
    assert f"stopping the server (process {server})" in installed.run("stop")
    assert_ends(server)
    assert "no server of this script runs here" in installed.run("stop")


def test_stop_ends_the_pods_that_the_server_leaves(installed: Machine) -> None:
    installed.run()
    shim = installed.root / "var/lib/rancher/k3s/data/hash/bin/containerd-shim-runc-v2"
    shim.parent.mkdir(parents=True)
    shutil.copy(shutil.which("bash") or "", shim)
    process = subprocess.Popen([shim, "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    container = int(process.stdout.readline())
    assert "ending 2 processes of pods" in installed.run("stop")
    assert process.wait(5) == -signal.SIGKILL
    assert_ends(container)
    process.stdout.close()
    assert "ip link delete cni0" in installed.calls("ip")


def test_stop_spares_a_process_that_has_got_the_number_of_the_server(installed: Machine) -> None:
    installed.run()
    server = installed.server
    with subprocess.Popen(["sleep", "1000"]) as other:
        (installed.state / "pid").write_text(f"{other.pid} 12345\n")
        installed.run("stop")
        assert other.poll() is None
        other.kill()
    os.kill(server, signal.SIGKILL)


def test_uninstall_removes_all_that_was_brought(machine: Machine) -> None:
    machine.release()
    machine.run(K3S_VERSION="v1.35.1+k3s1")
    server = machine.server
    assert {"usr/local/bin/k3s", "etc/rancher/k3s/k3s.yaml"} < machine.files()
    machine.run("uninstall")
    assert_ends(server)
    assert machine.files() == set()
    left = [path for path in machine.root.rglob("*") if path.name in ("podmgr-k3s", "rancher", "kubelet")]
    assert left == []


def test_uninstall_keeps_what_was_there_before(installed: Machine) -> None:
    kept = [
        installed.root / path
        for path in ("var/lib/rancher/k3s/server/db", "var/lib/kubelet/x", "etc/rancher/a")
    ]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    installed.run()
    said = installed.run("uninstall")
    assert "uninstalled" in said
    assert all(path.read_text() == "mine" for path in kept)
    assert (installed.bin / "k3s").exists()
    assert any(" delete " in call for call in installed.calls()), "the example leaves a cluster that stays"


def test_a_k3s_that_runs_already_is_used_and_left_running(installed: Machine) -> None:
    (installed.root / "etc/rancher/k3s").mkdir(parents=True)
    (installed.root / "etc/rancher/k3s/k3s.yaml").touch()
    (installed.root / "var/lib/rancher/k3s").mkdir(parents=True)
    installed.happen("elsewhere")
    said = installed.run()
    assert "another k3s runs here already" in said
    assert "run.sh stop" not in said
    assert installed.calls("k3s server") == []
    assert "no server of this script runs here" in installed.run("uninstall")
    assert (installed.root / "etc/rancher/k3s/k3s.yaml").exists()
