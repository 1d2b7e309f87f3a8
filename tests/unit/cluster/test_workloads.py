"""Names that may stand in a path of the API. What an object stands for is tested in tests/kube."""

from __future__ import annotations

import pytest

from podmgr.cluster.workloads import require_name
from podmgr.errors import UsageError


@pytest.mark.parametrize("name", ["a", "web-1", "a.b.c", "0", "a" * 253])
def test_name_may_stand_in_a_path(name: str) -> None:
    assert require_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "a b", "A", "-a", "a-", ".", "..", "a" * 254, "ä", "a\n", "a%2f", "a?b", "\x1b"],
)
def test_anything_else_may_not(name: str) -> None:
    with pytest.raises(UsageError, match="is not a Kubernetes name") as caught:
        require_name(name)
    assert caught.value.message.isprintable()
