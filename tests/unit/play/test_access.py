"""Who gets an answer."""

from __future__ import annotations

import socket

import pytest

from lightning_action.play.access import Access, addresses, choose_token, is_loopback

LOCAL, SECRET = Access(None, 8000), Access("secret-token", 8000, any_name=True)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_told(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_token_is_made_where_others_can_reach_the_server() -> None:
    assert choose_token("127.0.0.1", None) is None
    made = {choose_token("0.0.0.0", None) for _ in range(3)}
    assert len(made) == 3 and all(len(str(token)) == 24 for token in made)
    assert choose_token("0.0.0.0", "my-own-token") == choose_token("127.0.0.1", "my-own-token") == "my-own-token"


@pytest.mark.parametrize(
    ("listened", "expected"),
    [
        ("127.0.0.1", ["http://127.0.0.1:80/?token=secret"]),
        ("10.0.0.7", ["http://10.0.0.7:80/?token=secret"]),
        ("::1", ["http://[::1]:80/?token=secret"]),
        ("0.0.0.0", ["http://127.0.0.1:80/?token=secret", "http://robot:80/?token=secret"]),
        ("::", ["http://[::1]:80/?token=secret", "http://robot:80/?token=secret"]),
    ],
)
def test_an_address_that_opens_is_told(listened: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "robot")
    assert addresses(listened, 80, "secret") == expected
    assert addresses(listened, 80, None) == [each.removesuffix("/?token=secret") for each in expected]


@pytest.mark.parametrize("token", ["", "short", "has space in it", "a/b?c=d&e", "ünïcödé-token", "a" * 201])
def test_other_tokens_are_refused_without_being_said(token: str) -> None:
    with pytest.raises(ValueError, match="a token has from 8 to 200 letters") as refused:
        choose_token("0.0.0.0", token)
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("localhost:8000", "http://localhost:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("127.0.0.1:8000", None, True),
        ("127.0.0.1:8000", "http://127.0.0.1:8001", False),
        ("127.0.0.1:8000", "http://localhost:8000", False),
        ("127.0.0.2:8000", None, True),
        ("[::1", None, False),
        ("localhost:8000", "http://[", False),
        ("127.0.0.1:8000", "https://evil.example", False),
        ("127.0.0.1:8000", "null", False),
        ("127.0.0.1:8000", "", False),
        # DNS rebinding: the page and the name are the stranger's, the address is this machine's.
        ("evil.example:8000", "http://evil.example:8000", False),
        ("evil.example:8000", None, False),
        ("", None, False),
    ],
)
def test_pages_of_this_server_alone_are_answered(host: str, origin: str | None, allowed: bool) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert LOCAL.allows(headers, {}) is allowed


def test_a_token_is_shown_by_a_cookie_or_a_header() -> None:
    own = {"host": "robot.example", "origin": "https://robot.example"}
    assert SECRET.allows(own, {"play_token_8000": "secret-token"})
    assert SECRET.allows({"host": "robot.example", "authorization": "Bearer secret-token"}, {})
    assert not SECRET.allows(own, {})
    assert not SECRET.allows(own, {"play_token_8000": "secret-tokem"})
    assert not SECRET.allows(own, {"play_token_8001": "secret-token"})
    assert not SECRET.allows({**own, "authorization": "Bearer ünïcödé"}, {})
    foreign = {"host": "robot.example", "origin": "https://evil.example"}
    assert not SECRET.allows(foreign, {"play_token_8000": "secret-token"})
    assert not LOCAL.is_token(None) and not LOCAL.is_token("")
