"""How images are named and kept, what a kernel's first modules are, and how qemu is started."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.vm import cache, checkout, debian, image, kernel
from tests.vm.errors import MachineError
from tests.vm.image import Image
from tests.vm.machine import QEMU, Machine, qemu_argv


def test_another_version_of_a_library_is_another_root(tmp_path: Path) -> None:
    lock = tmp_path / "guest.txt"
    lock.write_text("pytest==8.3.0 --hash=sha256:0\n")
    one = image.root_recipe(lock).folder
    assert image.root_recipe(lock).folder == one
    lock.write_text("pytest==8.3.1 --hash=sha256:1\n")
    assert image.root_recipe(lock).folder != one


def test_each_kernel_has_a_folder_of_its_own() -> None:
    assert len({image.kernel_recipe(name).folder for name in kernel.SUITES}) == len(kernel.SUITES)


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    made = cache.kept("root", lambda folder: (folder / "disk").touch(), cache=tmp_path)
    assert cache.kept("root", lambda _: pytest.fail("made twice"), cache=tmp_path) == made
    assert (made / "disk").exists()


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "disk").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.kept("root", interrupted, cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_a_killed_build_left_is_not_taken_for_an_image(tmp_path: Path) -> None:
    (tmp_path / f"root{cache.STAGING_SUFFIX}").mkdir()
    (tmp_path / f"root{cache.STAGING_SUFFIX}" / "half").touch()
    made = cache.kept("root", lambda folder: (folder / "disk").touch(), cache=tmp_path)
    assert [path.name for path in made.iterdir()] == ["disk"]


def test_the_mirror_is_the_one_of_apt() -> None:
    targets = "bookworm-security http://one/debian-security/\nbookworm http://two/debian/\n"
    assert debian.mirror(targets) == "http://two/debian/"


def test_a_machine_without_debian_in_its_apt_is_told_what_to_do() -> None:
    with pytest.raises(MachineError) as failure:
        debian.mirror("noble http://one/ubuntu/\n")
    assert "PODMGR_VM_MIRROR" in str(failure.value.tip)


def test_modules_are_loaded_after_those_they_need_and_once() -> None:
    listing = "a/one.ko: a/two.ko a/three.ko\na/two.ko: a/three.ko\na/three.ko:\na/four.ko: a/three.ko\n"
    needs = kernel.dependencies(listing)
    order = kernel.load_order(needs, ("one", "four", "builtin"))
    assert order == ["a/three.ko", "a/two.ko", "a/one.ko", "a/four.ko"]


def test_a_compressed_module_is_found_by_its_name() -> None:
    needs = kernel.dependencies("a/one.ko.xz: a/two.ko.xz\na/two.ko.xz:\n")
    assert kernel.load_order(needs, ("one",)) == ["a/two.ko.xz", "a/one.ko.xz"]


def test_the_archive_has_untracked_files_and_no_leftovers_of_tools(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    for name in ("podmgr/new.py", "podmgr/__pycache__/new.pyc", ".venv/bin/python", ".ci/run", ".gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    checkout.pack(root, ["echo", "a b"], {"HOME": "/root"}, tmp_path / "job.tar")
    with tarfile.open(tmp_path / "job.tar") as tar:
        content = {entry.name: tar.extractfile(entry) for entry in tar.getmembers()}
        assert {name for name in content if name.startswith("checkout/")} == {
            "checkout/podmgr/new.py",
            "checkout/.ci/run",
            "checkout/.gitignore",
        }
        command, environment = content["job/command"], content["job/environment"]
        assert command is not None and command.read() == b"echo\0a b\0"
        assert environment is not None and environment.read() == b"HOME=/root\0"


def test_qemu_writes_to_no_disk_that_machines_share() -> None:
    files = Image(*(Path(f"/cache/{name}") for name in ("root.img", "vmlinuz", "initramfs", "modules.img")))
    argv = qemu_argv(Machine("6.1", cpus=1), files, Path("/tmp/a,b"))
    assert argv[:3] == [QEMU, "-accel", "tcg"]
    assert argv[argv.index("-smp") + 1] == "1"
    assert "-icount" not in argv
    assert [word for word in argv if word.startswith("file=")] == [
        "file=/cache/root.img,format=raw,if=virtio,snapshot=on",
        "file=/cache/modules.img,format=raw,if=virtio,readonly=on",
        "file=/tmp/a,,b/job.tar,format=raw,if=virtio,readonly=on",
    ]
