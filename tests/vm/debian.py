"""Debian's packages, from the mirror that this machine's apt uses: a root file system, single packages.

Whoever builds must be root, for debootstrap. Every command's output goes to a log.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm.errors import MachineError

SUITES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")
ARCHITECTURE = "amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = ("apt-get", "debootstrap", "dpkg-deb", "unshare")


def run(argv: Sequence[str], log: Path, *, stdin: str = "", folder: Path | None = None) -> str:
    """A command that must succeed; what it printed. Raises `MachineError` with the end of its output."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, input=stdin, cwd=folder, env=environment
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(argv)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise MachineError(f"{argv[0]} ended with exit code {done.returncode}", detail=end)
    return done.stdout


def mirror(targets: str) -> str:
    """The URI of Debian's main archive, out of `apt-get indextargets` ("RELEASE URI" a line)."""
    for line in targets.splitlines():
        release, _, uri = line.partition(" ")
        if release in SUITES and uri.startswith(("http://", "https://", "file:")):
            return uri
    raise MachineError(
        "apt's configuration names no mirror of Debian",
        tip="name one in PODMGR_VM_MIRROR, as debootstrap takes it",
    )


def mirror_of_this_machine(log: Path) -> str:
    format_ = "$(RELEASE) $(REPO_URI)"
    argv = ["apt-get", "indextargets", "--format", format_, "Created-By: Packages"]
    return os.environ.get("PODMGR_VM_MIRROR") or mirror(run(argv, log))


def bootstrap(suite: str, packages: Sequence[str], root: Path, log: Path) -> None:
    """A root file system. What debootstrap mounts in it, nobody else sees, and it goes with debootstrap."""
    options = ["--variant=minbase", f"--arch={ARCHITECTURE}", f"--keyring={KEYRING}"]
    include = f"--include={','.join(packages)}"
    argv = ["debootstrap", *options, include, suite, str(root), mirror_of_this_machine(log)]
    run(["unshare", "--mount", *argv], log)


class Packages:
    """The packages of one suite, whatever suite the machine itself has."""

    def __init__(self, suite: str, folder: Path, log: Path) -> None:
        self.folder, self._log = folder, log
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        source = f"deb [arch={ARCHITECTURE} signed-by={KEYRING}] {mirror_of_this_machine(log)} {suite} main\n"
        (folder / "sources.list").write_text(source)
        self._apt("apt-get", "update")

    def _apt(self, *words: str) -> str:
        settings = {
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State": self.folder / "state",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": ARCHITECTURE,
            "APT::Sandbox::User": "root",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return run([words[0], *options, *words[1:]], self._log, folder=self.folder)

    def dependency(self, package: str, pattern: str) -> str:
        """The dependency of `package` that matches: which kernel a meta package stands for."""
        found = re.search(rf"^Depends:.*?({pattern})", self._apt("apt-cache", "show", package), re.MULTILINE)
        if found is None:
            raise MachineError(f"{package} depends on nothing like {pattern}")
        return found[1]

    def unpack(self, package: str, into: Path) -> None:
        """Download and unpack, without running the package's scripts."""
        self._apt("apt-get", "download", package)  # into the working folder
        (archive,) = self.folder.glob(f"{package}_*.deb")
        run(["dpkg-deb", "--extract", str(archive), str(into)], self._log)
