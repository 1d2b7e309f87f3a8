"""The project's documents: all Markdown files of the checkout, by their paths in it."""

from __future__ import annotations

from pathlib import Path

from tests.vm.checkout import files

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in files(ROOT) if path.suffix == ".md")
