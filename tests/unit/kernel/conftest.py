"""What several modules' tests of cgroups start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.kernel.cgroup_tree import small_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a small tree of cgroups."""
    return small_tree(tmp_path)
