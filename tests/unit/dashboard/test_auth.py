"""Passwords, links and sessions: what fits, and that nothing else does."""

from __future__ import annotations

import pytest

from upnext.dashboard import auth
from upnext.dashboard.auth import Right, Role, User
from upnext.errors import UsageError

NOW_S = 1_700_000_000.0
RANDOM = bytes(range(16))
OTHER = bytes(16)
TOKEN = "a-token"


def test_a_line_that_is_made_is_read_back() -> None:
    line = auth.user_line("ada", Role.VIEWER, "pässword", RANDOM)
    user = auth.parse_users(f"# people\n\n{line}\n")["ada"]
    assert user.role is Role.VIEWER
    assert auth.password_fits(user, "pässword")
    assert not auth.password_fits(user, "password")
    assert "scrypt" not in repr(user)


def test_a_viewer_may_look_and_nothing_else() -> None:
    viewer, admin = User("v", Role.VIEWER), User("a", Role.ADMIN)
    assert [right for right in Right if viewer.may(right)] == [Right.VIEW]
    assert all(admin.may(right) for right in Right)


@pytest.mark.parametrize(
    "line",
    [
        "ada",
        "ada:viewer",
        "ada:boss:scrypt$16384$8$1$AAAAAAAAAAA$AAAA",
        "ada:viewer:plain",
        "ada:viewer:scrypt$16384$8$1$AA$AAAA",
        "ada:viewer:scrypt$99999999$8$1$AAAAAAAAAAAAAAAA$" + "A" * 43,
        "a da:viewer:" + auth.user_line("x", Role.VIEWER, "p", RANDOM).split(":", 2)[2],
    ],
)
def test_a_line_that_cannot_be_one_is_named_by_number_and_never_shown(line: str) -> None:
    with pytest.raises(UsageError, match="line 2 is not") as caught:
        auth.parse_users(f"\n{line}\n")
    assert "scrypt" not in str(caught.value)


def test_a_user_who_is_listed_twice_is_refused() -> None:
    line = auth.user_line("ada", Role.ADMIN, "p", RANDOM)
    with pytest.raises(UsageError, match="line 2: user ada is listed twice"):
        auth.parse_users(f"{line}\n{line}")


@pytest.mark.parametrize(("name", "password"), [("a:b", "p"), ("", "p"), ("ada", "")])
def test_names_and_passwords_that_cannot_be_are_refused(name: str, password: str) -> None:
    with pytest.raises(UsageError):
        auth.user_line(name, Role.ADMIN, password, RANDOM)


def test_a_link_is_good_for_a_minute_and_one_use() -> None:
    ticket = auth.make_link(TOKEN, NOW_S, RANDOM)
    started_s = NOW_S - 100
    assert auth.link_fits(TOKEN, ticket, NOW_S + 59, (), started_s)
    assert not auth.link_fits(TOKEN, ticket, NOW_S + 61, (), started_s)
    assert not auth.link_fits(TOKEN, ticket, NOW_S - 10, (), started_s)
    assert not auth.link_fits(TOKEN, ticket, NOW_S + 1, {ticket}, started_s)
    assert not auth.link_fits("another", ticket, NOW_S + 1, (), started_s)
    # Made before this server started: it may have been used with the one before.
    assert not auth.link_fits(TOKEN, ticket, NOW_S + 10, (), NOW_S + 5)


@pytest.mark.parametrize("ticket", ["", ".", "..", "1.2.3", "x" * 200, "1" * 400 + ".a.b", "\ud800.a.b", "é.é.é"])
def test_garbage_is_no_link(ticket: str) -> None:
    assert not auth.link_fits(TOKEN, ticket, NOW_S, (), 0)


def test_a_session_ends_by_time_by_password_by_token_and_with_its_user() -> None:
    ada = User("ada", Role.ADMIN, "secret")
    cookie = auth.make_session(TOKEN, ada, NOW_S, RANDOM)
    assert auth.session_user(TOKEN, cookie, {"ada": ada}, NOW_S + auth.SESSION_LIFE_S - 1) == ada
    assert auth.session_user(TOKEN, cookie, {"ada": ada}, NOW_S + auth.SESSION_LIFE_S) is None
    assert auth.session_user(TOKEN, cookie, {"ada": User("ada", Role.ADMIN, "new")}, NOW_S) is None
    assert auth.session_user("another", cookie, {"ada": ada}, NOW_S) is None
    assert auth.session_user(TOKEN, cookie, {}, NOW_S) is None
    demoted = User("ada", Role.VIEWER, "secret")
    assert auth.session_user(TOKEN, cookie, {"ada": demoted}, NOW_S) == demoted


def test_no_character_of_a_session_can_be_changed() -> None:
    ada = User("ada", Role.ADMIN, "secret")
    cookie = auth.make_session(TOKEN, ada, NOW_S, RANDOM)
    for at in range(len(cookie)):
        forged = cookie[:at] + ("x" if cookie[at] != "x" else "y") + cookie[at + 1 :]
        assert auth.session_user(TOKEN, forged, {"ada": ada, "xda": ada}, NOW_S) is None


@pytest.mark.parametrize("cookie", ["", "|", "||||", "ada|9|9|", "ada|99999999999999999999|x|y", "é|é|é|é", "\ud800"])
def test_garbage_is_no_session(cookie: str) -> None:
    assert auth.session_user(TOKEN, cookie, {"ada": User("ada", Role.ADMIN)}, NOW_S) is None


def test_an_empty_token_lets_nobody_in() -> None:
    assert not auth.token_fits("", "")
    assert not auth.token_fits(TOKEN, "")
    assert not auth.token_fits(TOKEN, "a-tokeń")
    assert auth.token_fits(TOKEN, TOKEN)


def test_dashboards_of_one_host_have_cookies_of_their_own() -> None:
    names = {auth.cookie_name(listen, space) for listen in ("h:1", "h:2") for space in ("a", "b")}
    assert len(names) == 4
