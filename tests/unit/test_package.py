"""The wheel: built, installed into an empty virtual environment, used outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_the_wheel_works_from_an_empty_environment(tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("podmgr-*.whl")
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python, podmgr = tmp_path / "venv/bin/python", tmp_path / "venv/bin/podmgr"
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    shown = _run(str(podmgr), "compile", "bandwidth=10 mbps egress", "--output-dir", "out", cwd=tmp_path)
    assert (tmp_path / shown.strip()).read_bytes().startswith(b"\x7fELF")
    code = "from podmgr.programs import shipped_folder as f; print(f('bpf'), f('examples'))"
    for folder in _run(str(python), "-c", code, cwd=tmp_path).split():
        assert folder.startswith(str(tmp_path))
        assert list(Path(folder).glob("*.bpf.c"))


def _run(*argv: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
