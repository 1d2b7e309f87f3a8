"""TLS: whose certificates are accepted, and that those which cannot be used are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podmgr.cluster.api import UnreachableError
from tests.certificates import Authority
from tests.unit.cluster.kubeconfigs import Recorder, ask, config, encoded, refused


def test_a_clusters_authority_without_key_usage_is_accepted_and_a_strangers_is_not(
    secure: Recorder, authority: Authority, tmp_path: Path
) -> None:
    trusted = encoded(authority.pem)
    ask(tmp_path, config({"server": secure.url, "certificate-authority-data": trusted}))
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    ask(tmp_path, config({"server": secure.url, "certificate-authority": "ca.crt"}))
    assert len(secure.seen) == 2
    for cluster in (
        {"server": secure.url, "certificate-authority-data": encoded(Authority("other").pem)},
        {"server": secure.url},
        {
            "server": secure.url,
            "certificate-authority-data": encoded(authority.pem),
            "tls-server-name": "else",
        },
    ):
        with pytest.raises(UnreachableError, match="certificate"):
            ask(tmp_path, config(cluster))
    assert len(secure.seen) == 2
    ask(tmp_path, config({"server": secure.url, "insecure-skip-tls-verify": True}))
    ask(
        tmp_path,
        config(
            {
                "server": secure.url,
                "certificate-authority-data": encoded(authority.pem),
                "tls-server-name": "localhost",
            }
        ),
    )
    assert len(secure.seen) == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an authority that is none": (
        config({"server": "https://x", "certificate-authority-data": encoded(b"nonsense")}),
        "certificates for https://x cannot be used",
    ),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    refused(tmp_path, content, reason)
