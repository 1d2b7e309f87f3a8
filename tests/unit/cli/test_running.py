"""Whom a command runs as: users by name and number, and who called sudo."""

from __future__ import annotations

import pwd

import pytest

from podmgr.cli.running import User, invoking_user, user_named
from podmgr.errors import UsageError

NOBODY = pwd.getpwnam("nobody")
UNKNOWN_UID = 54_321


def test_user_is_found_by_name_and_by_number() -> None:
    user = user_named("nobody")
    assert (user.uid, user.gid, user.name) == (NOBODY.pw_uid, NOBODY.pw_gid, "nobody")
    assert user_named(str(NOBODY.pw_uid)) == user
    assert NOBODY.pw_gid in user.groups
    assert user.environment["USER"] == user.environment["LOGNAME"] == "nobody"
    assert user.environment["HOME"] == NOBODY.pw_dir


@pytest.mark.parametrize("text", ["nobody:0", "nobody:root", f"{NOBODY.pw_uid}:0"])
def test_group_may_be_given(text: str) -> None:
    user = user_named(text)
    assert (user.uid, user.gid, user.name) == (NOBODY.pw_uid, 0, "nobody")


def test_number_without_a_user_is_a_user_of_no_name() -> None:
    user = user_named(f"{UNKNOWN_UID}:5")
    assert user == User(UNKNOWN_UID, 5, None, None)
    assert (user.groups, user.environment) == ([5], {})


@pytest.mark.parametrize(
    "text", ["", "no such user", ":", ":0", "nobody:", "nobody:no such group", "-1", "٣"]
)
def test_user_that_there_is_not_is_misuse(text: str) -> None:
    with pytest.raises(UsageError, match="there is no user") as caught:
        user_named(text)
    assert caught.value.message.isprintable()


def test_who_called_sudo_is_gone_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY.pw_uid))
    monkeypatch.setenv("SUDO_GID", "5")
    user = invoking_user()
    assert user is not None
    assert (user.uid, user.gid, user.name) == (NOBODY.pw_uid, 5, "nobody")


@pytest.mark.parametrize("gid", ["", "x", "-1"])
def test_without_a_group_of_sudo_the_users_own_is_taken(monkeypatch: pytest.MonkeyPatch, gid: str) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY.pw_uid))
    monkeypatch.setenv("SUDO_GID", gid)
    assert invoking_user() == user_named("nobody")


@pytest.mark.parametrize("uid", ["", "0", "x", "-1", "1 2"])
def test_root_itself_has_no_one_to_go_back_to(monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    assert invoking_user() is None


def test_user_id_out_of_range_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        user_named("99999999999")
