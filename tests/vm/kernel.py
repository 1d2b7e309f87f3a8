"""A Debian kernel for the guest: vmlinuz, its modules as a disk, and the initramfs that reaches the root."""

from __future__ import annotations

import lzma
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.vm import debian
from tests.vm.cache import tell
from tests.vm.disks import make_disk, make_initramfs

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "sid": "sid"}
"""The suite that each is from. `sid` is whatever was newest there when it was fetched."""
DEFAULT = "6.1"
PACKAGE = "linux-image-cloud-amd64"
PARTS = {"sid": ("base", "binary", "modules")}
"""Of what packages an image consists, where it is not whole."""
VERSION = r"[\w.+~-]+"
# What reaches disks and ports. All else is on the modules' disk, and loaded when asked for.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4", "crc32c_generic")
INIT = Path(__file__).with_name("initramfs.sh")


def make(kernel: str, folder: Path) -> None:
    """Write vmlinuz, modules.img and initramfs into `folder`."""
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        tell(f"fetching kernel {kernel} of Debian {SUITES[kernel]}")
        tree = _unpack(kernel, work, log)
        (modules,) = (tree / "lib/modules").iterdir()
        debian.run(["depmod", "--basedir", str(tree), modules.name], log)
        places = (tree / f"boot/vmlinuz-{modules.name}", modules / "vmlinuz")
        shutil.copy(next(place for place in places if place.exists()), folder / "vmlinuz")
        make_disk(modules.parent, folder / "modules.img", log)
        make_initramfs(_initramfs(modules, tree / "bin/busybox", work / "initramfs"), folder / "initramfs")


def _unpack(kernel: str, work: Path, log: Path) -> Path:
    packages = debian.Packages(SUITES[kernel], work / "apt", log)
    series = kernel if kernel != SUITES[kernel] else r"\d+\.\d+"
    image = packages.dependency(PACKAGE, rf"linux-image-{series}\.{VERSION}")
    tree = work / "tree"
    parts = [image.replace("linux-image-", f"linux-{part}-", 1) for part in PARTS.get(kernel, ())]
    for package in (image, *parts, "busybox-static"):
        packages.unpack(package, tree)
    for folder in ("lib", "bin"):
        if not (tree / folder).exists():  # newer packages have all of them below usr
            (tree / folder).symlink_to(f"usr/{folder}")
    return tree


def _initramfs(modules: Path, busybox: Path, folder: Path) -> Path:
    for part in ("bin", "dev", "root", "modules"):
        (folder / part).mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    shutil.copy(INIT, folder / "init")
    (folder / "init").chmod(0o755)
    order = load_order(dependencies((modules / "modules.dep").read_text()), BOOT_MODULES)
    for path in order:
        content = (modules / path).read_bytes()
        (folder / "modules" / _plain(path)).write_bytes(
            lzma.decompress(content) if path.endswith(".xz") else content
        )
    (folder / "modules/order").write_text("".join(f"{_plain(path)}\n" for path in order))
    return folder


def dependencies(modules_dep: str) -> dict[str, list[str]]:
    """Each module's file and those it needs, out of modules.dep."""
    rows = (line.partition(":") for line in modules_dep.splitlines())
    return {path: needed.split() for path, _, needed in rows}


def load_order(needs: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    """The files to load for `names`, what is needed first. A name without a file is built in."""
    files = {_plain(path).removesuffix(".ko"): path for path in needs}
    wanted = (files[name] for name in names if name in files)
    return list(dict.fromkeys(path for file in wanted for path in _needed_first(needs, file)))


def _plain(path: str) -> str:
    """The name of a module's file once it is not compressed."""
    return Path(path).name.removesuffix(".xz")


def _needed_first(needs: Mapping[str, Sequence[str]], file: str) -> Iterator[str]:
    for path in needs[file]:
        yield from _needed_first(needs, path)
    yield file
