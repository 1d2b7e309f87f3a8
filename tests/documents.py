"""The project's documents: all Markdown files of the checkout, by their paths in it.

A block ```console behind `<!-- run -->` is a session: `$ command` and what it prints. What stands behind
`run:` says how it is run, see tests/kernel/test_readme.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.vm.checkout import files

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in files(ROOT) if path.suffix == ".md")
TEXTS = {document: (ROOT / document).read_text() for document in DOCUMENTS}


def sessions(document: str) -> list[tuple[str, str]]:
    """(how it is run, its lines) of each session."""
    return re.findall(r"<!-- run(?:: ([^>]*))? -->\n```console\n(.*?)```", TEXTS[document], re.DOTALL)


def rules() -> Iterator[tuple[str, ...]]:
    """Those of each command line that a README shows, and of the annotations that the first begins with."""
    for document in DOCUMENTS:
        for line in TEXTS[document].splitlines() if Path(document).name == "README.md" else ():
            found = tuple(re.findall(r"--rule ['\"]([^'\"]*)['\"]", line))
            if found and "KEY" not in found[0]:
                yield found
    yield tuple(
        f"{key}={value}"
        for key, value in re.findall(r'^    (bandwidth|loss): "(.*)"', TEXTS["README.md"], re.MULTILINE)
    )
