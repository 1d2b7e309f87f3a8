"""TARGET on the command line: kubectl's spellings."""

from __future__ import annotations

import pytest

from podmgr.errors import UsageError
from podmgr.targets import names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pod/web", "pod/web"),
        ("po/web", "pod/web"),
        ("pods/web", "pod/web"),
        ("svc/web", "service/web"),
        ("deploy/web", "deployment/web"),
        ("deployments/web", "deployment/web"),
        ("rs/web", "replicaset/web"),
        ("sts/web", "statefulset/web"),
        ("ds/web", "daemonset/web"),
        ("job/web", "job/web"),
        ("cj/web", "cronjob/web"),
        ("ns/shop", "namespace/shop"),
        ("cgroup/a/b", "cgroup/a/b"),
        ("cgroup//sys/fs/cgroup/a", "cgroup//sys/fs/cgroup/a"),
    ],
)
def test_kubectls_spellings_have_one_name(text: str, name: str) -> None:
    assert names.canonical(text) == name
    assert names.canonical(name) == name


@pytest.mark.parametrize(
    "text", ["", "web", "/", "pod", "pod/", "/web", "cgroup", "cgroup/", "pood/web", "node/n", "pod web"]
)
def test_anything_else_is_not_a_target(text: str) -> None:
    with pytest.raises(UsageError, match="is not a target") as caught:
        names.canonical(text)
    assert "cgroup/PATH" in (caught.value.tip or "")


def test_unprintable_target_is_shown_printable() -> None:
    with pytest.raises(UsageError, match=r"'·\[31m' is not a target"):
        names.canonical("\x1b[31m")
