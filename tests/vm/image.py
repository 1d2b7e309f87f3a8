"""What a machine boots from, kept in a cache: a root file system, and a kernel with its modules.

`python -m tests.vm.image` makes both ahead of time. They are kept apart, so that kernels share a root.
Nothing of podmgr itself is inside: the checkout comes at boot.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.vm import cache, debian, kernel, rootfs
from tests.vm.errors import MachineError, report, require_tools

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
TOOLS = (*debian.TOOLS, "chroot", "cpio", "depmod", "mke2fs")


@dataclass(frozen=True, slots=True)
class Image:
    """The files a machine boots from. Machines share them, and write to none."""

    root: Path
    vmlinuz: Path
    initramfs: Path
    modules: Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """One folder of the cache: `decides` holds all that decides its content."""

    name: str
    decides: dict[str, object]
    make: Callable[[Path], None]

    @property
    def folder(self) -> str:
        return f"{self.name}-{cache.digest(self.decides)}"


def root_recipe(lock: Path = CHECKOUT / ".ci/locks/guest.txt") -> Recipe:
    sources = _sources("rootfs.py", "debian.py", "disks.py")
    decides = {"libraries": lock.read_text(), **sources}
    return Recipe("root", decides, lambda folder: rootfs.make(lock, folder))


def kernel_recipe(name: str) -> Recipe:
    sources = _sources("kernel.py", "debian.py", "disks.py", "initramfs.sh")
    return Recipe(f"kernel-{name}", {"kernel": name, **sources}, lambda folder: kernel.make(name, folder))


def _sources(*names: str) -> dict[str, object]:
    """The makers themselves: package lists, options and scripts stand in them."""
    return {name: (HERE / name).read_text() for name in names}


def image(kernel_name: str) -> Image:
    """The image with a kernel, made now if the cache has it not (minutes)."""
    root, booted = _kept(root_recipe()), _kept(kernel_recipe(kernel_name))
    return Image(root / "root.img", booted / "vmlinuz", booted / "initramfs", booted / "modules.img")


def _kept(recipe: Recipe) -> Path:
    def make(staging: Path) -> None:
        require_tools(TOOLS)
        if os.geteuid() != 0:
            raise MachineError("to make a machine's image takes root", tip="sudo make vm-image")
        start = time.monotonic()
        recipe.make(staging)
        cache.tell(f"made {recipe.folder} in {time.monotonic() - start:.0f} s")

    return cache.kept(recipe.folder, make, cache=cache.folder())


def main() -> None:
    """Make the image of a kernel ahead of time."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.image", description=main.__doc__)
    parser.add_argument("--kernel", choices=sorted(kernel.SUITES), default=kernel.DEFAULT)
    try:
        image(parser.parse_args().kernel)
    except MachineError as error:
        sys.exit(report(error))


if __name__ == "__main__":
    main()
