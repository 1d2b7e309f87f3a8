"""Who asks, as a kubeconfig's user says: each ends in a request with the right headers, or in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.unit.cluster.kubeconfigs import NO, Recorder, answering, ask, config, encoded, refused

USERS: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    "nobody": ({}, {}),
    "a token": ({"token": "t"}, {"Authorization": ["Bearer t"]}),
    "a token with a newline": ({"token": "t\n"}, {"Authorization": ["Bearer t"]}),
    "a name and a password": (
        {"username": "ann", "password": "päss"},
        {"Authorization": [f"Basic {encoded('ann:päss'.encode())}"]},
    ),
    "another user": (
        {"token": "t", "as": "someone", "as-uid": "7", "as-groups": ["viewers", "testers"]},
        {
            "Authorization": ["Bearer t"],
            "Impersonate-User": ["someone"],
            "Impersonate-Uid": ["7"],
            "Impersonate-Group": ["viewers", "testers"],
        },
    ),
    "another user with more": (
        {"as": "someone", "as-user-extra": {"example.com/scope": ["a", "b"]}},
        {"Impersonate-User": ["someone"], "Impersonate-Extra-example.com%2Fscope": ["a", "b"]},
    ),
}


@pytest.mark.parametrize(("user", "headers"), USERS.values(), ids=USERS.keys())
def test_the_request_says_who_asks(
    recorder: Recorder, tmp_path: Path, user: dict[str, Any], headers: dict[str, list[str]]
) -> None:
    ask(tmp_path, config({"server": recorder.url}, user))
    names = ("Authorization", *(name for name in recorder.last["headers"] if name.startswith("Impersonate-")))
    assert {
        name: recorder.last["headers"][name] for name in names if name in recorder.last["headers"]
    } == headers


def test_a_token_file_is_read_beside_its_kubeconfig_without_its_newline(
    recorder: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    ask(tmp_path, config({"server": recorder.url}, {"tokenFile": "token", "token": "old"}))
    assert recorder.last["headers"]["Authorization"] == ["Bearer from-file"]


@pytest.mark.parametrize("way", ["data", "file", "plugin"])
def test_a_client_certificate_is_shown_without_a_temporary_file(
    secure: Recorder, authority: Authority, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    certificate, key = authority.issue("ann")
    (tmp_path / "ann.crt").write_bytes(certificate)
    (tmp_path / "ann.key").write_bytes(key)
    status = {"clientCertificateData": certificate.decode(), "clientKeyData": key.decode()}
    users: dict[str, Callable[[], dict[str, Any]]] = {
        "data": lambda: {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)},
        "file": lambda: {"client-certificate": "ann.crt", "client-key": str(tmp_path / "ann.key")},
        "plugin": lambda: {"exec": answering(tmp_path, status)},
    }
    cluster = {"server": secure.url, "certificate-authority-data": encoded(authority.pem)}
    ask(tmp_path, config(cluster, users[way]()))
    assert secure.last["client"] == ["ann"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "groups without a user": (config(NO, {"as-groups": ["a"]}), "but no as"),
    "an auth provider": (config(NO, {"auth-provider": {"name": "gcp"}}), "auth-provider"),
    "a certificate without a key": (
        config(NO, {"client-certificate-data": encoded(b"x")}),
        "without a key",
    ),
    "a token of two lines": (config(NO, {"token": "a\nb"}), "no header may hold"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    refused(tmp_path, content, reason)
