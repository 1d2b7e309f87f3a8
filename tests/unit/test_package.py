"""The wheel, and the locked libraries that it and the tests run with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / ".ci" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
WANTED = {
    "build": PROJECT["build-system"]["requires"],
    "run": PROJECT["project"]["dependencies"],
    "guest": PROJECT["project"]["dependencies"] + EXTRAS["guest"],
    "test": PROJECT["project"]["dependencies"] + EXTRAS["guest"] + EXTRAS["test"],
}


@pytest.mark.timeout(600)
def test_the_wheel_works_from_an_empty_environment(tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("podmgr-*.whl")
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python, podmgr = tmp_path / "venv/bin/python", tmp_path / "venv/bin/podmgr"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(*pip, "--require-hashes", "--requirement", str(LOCKS / "run.txt"))
    _run(*pip, "--no-deps", str(wheel))
    _run(str(python), "-m", "pip", "check")
    shown = _run(str(podmgr), "compile", "bandwidth=10 mbps egress", "--output-dir", "out", cwd=tmp_path)
    assert (tmp_path / shown.strip()).read_bytes().startswith(b"\x7fELF")
    assert "mbps" in _run(str(podmgr), "profiles", cwd=tmp_path)
    code = "from podmgr.programs.find import shipped_folder as f; print(f('bpf'), f('examples'))"
    for folder in _run(str(python), "-c", code, cwd=tmp_path).split():
        assert folder.startswith(str(tmp_path))
        assert list(Path(folder).glob("*.bpf.c"))


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_has_a_version_within_the_ranges_of_pyproject_for_each_library(name: str) -> None:
    locked = _locked(name)
    wanted = [Requirement(text) for text in WANTED[name] if not text.startswith("podmgr[")]
    fitting = {
        name
        for wish in wanted
        for name, version in locked
        if name == canonicalize_name(wish.name) and version in wish.specifier
    }
    assert {canonicalize_name(wish.name) for wish in wanted} <= fitting, "make lock"


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_pins_and_hashes_every_library_and_names_no_place_to_fetch_it_from(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    assert not re.search(r"://|file:|^-|^\.", text, re.MULTILINE)
    blocks = re.sub(r" \\\n", "", text).splitlines()
    assert len(blocks) == len(_locked(name)) > 5  # some once for each Python
    assert all("--hash=sha256:" in block for block in blocks)


def test_what_is_in_two_locks_has_one_version() -> None:
    everything = _locked("test")
    for name in WANTED:
        assert _locked(name) <= everything


def _locked(name: str) -> set[tuple[str, str]]:
    found = re.findall(r"^([\w.-]+)==([\w.+!-]+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE)
    return {(canonicalize_name(library), version) for library, version in found}


def _run(*argv: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
