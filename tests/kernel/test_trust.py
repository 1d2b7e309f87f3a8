"""What others can write is not believed: cgroups with a pod's name, locks, names, folders of pins."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml

from podmgr.attachment import Cgroup
from podmgr.errors import PodmgrError
from podmgr.kernel import cgroup_life, cgroups, pins, pod_cgroups
from podmgr.reconcile import ledger
from podmgr.settings import Settings
from tests.kernel.conftest import Cli, MakeCgroup, run
from tests.unit.samples import attachment

STRANGER = 54_321
RULE = ("--rule", "bandwidth=10 mbps egress")


def pod_of(uid: str) -> str:
    return json.dumps({"kind": "Pod", "metadata": {"name": "web", "uid": uid}})


def living(parent: Cgroup, name: str) -> tuple[Cgroup, subprocess.Popen[bytes]]:
    """A cgroup with a process in it, until its standard input is closed."""
    made = cgroup_life.create(parent.path, name)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    cgroup_life.join(made, child.pid)
    return made, child


@pytest.mark.parametrize("how", ["owned", "writable"])
def test_a_folder_in_a_users_tree_takes_no_pods_rule(podmgr: Cli, make_cgroup: MakeCgroup, how: str) -> None:
    uid = str(uuid.uuid4())
    users = make_cgroup("users")
    if how == "owned":
        os.chown(users.path, STRANGER, STRANGER)
    else:
        users.path.chmod(0o777)
    forged, child = living(users, f"pod{uid}")
    try:
        words = ("apply", "-f", "-", *RULE, "--cgroup-root", str(users.path.parent))
        done = podmgr(*words, stdin=pod_of(uid), code=1)
        assert "no pod has a cgroup v2 directory here" in done.stderr or "has processes here" in done.stderr
        real, other = living(Cgroup(users.path.parent, 0), f"pod{uid}")
        try:
            podmgr(*words, stdin=pod_of(uid))
            (row,) = podmgr.listed()
            assert ledger.read(podmgr.settings.state_dir)[0].cgroup_id == real.id != forged.id
            assert row["state"] == "active"
            podmgr("clean")
        finally:
            other.communicate()
            cgroup_life.remove(real)
    finally:
        child.communicate()
        cgroup_life.remove(forged)


def test_two_folders_that_claim_one_pod_are_an_error(podmgr: Cli, make_cgroup: MakeCgroup) -> None:
    uid, top = str(uuid.uuid4()), make_cgroup("kubepods")
    claims = [living(cgroup_life.create(top.path, name), f"pod{uid}") for name in ("one", "two")]
    try:
        done = podmgr("apply", "-f", "-", *RULE, "--cgroup-root", str(top.path), stdin=pod_of(uid), code=1)
        assert "several cgroups claim to be this pod" in done.stderr
        assert podmgr.listed() == []
    finally:
        for _, child in claims:
            child.communicate()


def test_a_tree_of_1100_folders_ends_nothing(make_cgroup: MakeCgroup) -> None:
    top = make_cgroup("deep")
    fd = os.open(top.path, os.O_RDONLY)
    made = []
    try:
        for _ in range(1100):
            try:
                os.mkdir("a", dir_fd=fd)
            except OSError:  # the kernel's own bound, where it has one
                break
            below = os.open("a", os.O_RDONLY, dir_fd=fd)
            made.append(fd)
            fd = below
        assert len(made) > 60
        assert len(list(cgroups.walk(top.path))) == len(made) + 1
        assert pod_cgroups.pods(top.path).found == {}
        assert cgroup_life.processes(top) == []
    finally:
        for parent in reversed(made):
            os.close(fd)
            os.rmdir("a", dir_fd=parent)
            fd = parent
        os.close(fd)


@pytest.mark.usefixtures("state_below_run")
def test_who_may_read_the_state_folder_cannot_hold_the_lock(podmgr: Cli, cgroup: Cgroup) -> None:
    folder = podmgr.settings.state_dir
    folder.mkdir()
    folder.chmod(0o755)
    hold = (
        "import fcntl, os, sys\n"
        f"os.setgid({STRANGER}); os.setuid({STRANGER})\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "try: os.open(sys.argv[1] + '/lock', os.O_RDONLY)\n"
        "except OSError: pass\n"
        "else: print('open', flush=True)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    podmgr("apply", f"cgroup/{cgroup.path}", *RULE)
    child = subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"  # the folder's, and it cannot open that of the file
        assert podmgr("apply", f"cgroup/{cgroup.path}", *RULE).stdout.count("unchanged") == 1
    finally:
        child.communicate()


@pytest.mark.parametrize("name", ["x" * 9000, "a\\u0000b", "a\\ud800b"], ids=["long", "NUL", "surrogate"])
def test_a_name_that_could_not_be_read_back_is_refused_or_made_readable(
    podmgr: Cli, cgroup: Cgroup, name: str
) -> None:
    text = f'{{"kind": "Pod", "metadata": {{"name": "{name}"}}}}'
    done = podmgr("apply", "-f", "-", "--cgroup", str(cgroup.path), *RULE, stdin=text, code=None)
    rows = podmgr.listed()
    assert (done.returncode == 0) == bool(rows)
    assert yaml.safe_load(podmgr("list", "-o", "yaml").stdout)["attachments"] == rows
    podmgr("clean")


def test_no_exit_prints_an_escape_or_turns_text_around(podmgr: Cli, cgroup: Cgroup) -> None:
    name = "x\x1b[31m\u202ey\x85"
    text = json.dumps({"kind": "Pod", "metadata": {"name": name}})
    podmgr("apply", "-f", "-", "--cgroup", str(cgroup.path), *RULE, stdin=text)
    for form in ("table", "wide", "json", "yaml"):
        shown = podmgr("list", "-o", form).stdout
        assert all(part not in shown for part in ("\x1b", "\u202e", "\x85")), form
    assert yaml.safe_load(podmgr("list", "-o", "yaml").stdout)["attachments"][0]["pod"]["name"] == name
    podmgr("clean")


def test_a_folder_of_pins_with_a_dot_is_refused_for_that(podmgr: Cli, cgroup: Cgroup) -> None:
    where = ("--bpffs", "/sys/fs/bpf/pod.mgr")
    done = podmgr("apply", f"cgroup/{cgroup.path}", *RULE, *where, code=1)
    assert "no name may hold a dot" in done.stderr and "root" not in done.stderr


def test_clean_says_what_a_crash_left_and_that_it_went(podmgr: Cli, cgroup: Cgroup) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", *RULE)
    podmgr("clean")
    assert "nothing of podmgr's is attached" in podmgr("clean").stderr
    pins = podmgr.settings.bpffs / str(cgroup.id)
    pins.mkdir(parents=True, mode=0o700)
    (pins / "0123456789abcdef-maps").mkdir()
    done = podmgr("clean")
    assert "removed 1 pin, left by a crash" in done.stderr
    assert "nothing" not in done.stderr


def test_doctor_looks_at_the_kubeconfig_that_is_named(podmgr: Cli, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("clusters: []\ncurrent-context: gone\n")
    done = podmgr("doctor", "--kubeconfig", str(path), "-o", "json", code=1)
    findings = {row["name"]: row for row in json.loads(done.stdout)["findings"]}
    assert findings["kubeconfig"]["status"] == "missing"
    assert "no context 'gone'" in findings["kubeconfig"]["found"]


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with ledger.locked(folder) as state:
        assert fcntl.fcntl(state.lock, fcntl.F_GETFD)
        os.mkdir(folder / "ledger.json.new")
        with pytest.raises(PodmgrError, match=r"cannot write the ledger in .*: Is a directory"):
            ledger.write(state, [attachment()])


@pytest.mark.parametrize("words", [["clean"], ["list"], ["apply", "CGROUP", "--rule", "loss=1% egress"]])
def test_a_folder_that_is_no_place_for_pins_loses_nothing(
    podmgr: Cli, cgroup: Cgroup, tmp_path: Path, words: list[str]
) -> None:
    precious = tmp_path / "home" / "user" / "0123456789abcdef-maps" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("")
    (tmp_path / "home" / "empty").mkdir()
    words = [word.replace("CGROUP", f"cgroup/{cgroup.path}") for word in words]
    done = podmgr(*words, "--bpffs", str(tmp_path / "home"), code=1)
    assert "is not on a bpf file system" in done.stderr
    assert precious.exists() and (tmp_path / "home" / "empty").is_dir()


def test_pins_of_others_beside_ours_are_left(podmgr: Cli, cgroup: Cgroup, settings: Settings) -> None:
    podmgr("apply", f"cgroup/{cgroup.path}", "--rule", "loss=1% egress")
    (pin,) = pins.pinned(settings.bpffs)
    theirs = settings.bpffs / "cilium"
    theirs.mkdir()
    run("bpftool", "prog", "pin", "pinned", pin.program, str(theirs / "cil_from_container"))
    podmgr("clean")
    assert (theirs / "cil_from_container").exists()
    (theirs / "cil_from_container").unlink()
    theirs.rmdir()
    settings.bpffs.rmdir()
