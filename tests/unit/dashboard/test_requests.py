"""Which Host and which Origin pass."""

from __future__ import annotations

import pytest

from upnext.dashboard import requests

OURS = {"localhost", "web-1"}


@pytest.mark.parametrize(
    "header", ["localhost", "LOCALHOST:8300", "web-1:1", "127.0.0.1:8300", "[::1]:8300", "10.1.2.3", "localhost."]
)
def test_our_names_and_ip_literals_pass(header: str) -> None:
    assert requests.host_is_ours(header, OURS)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "evil",
        "evil:8300",
        "localhost.evil",
        "localhost:80.evil",
        "localhost:x",
        "[::1].evil",
        "[::1",
        "a@localhost",
        "127.0.0.1.evil",
        ":80",
    ],
)
def test_other_names_do_not(header: str | None) -> None:
    assert not requests.host_is_ours(header, OURS)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://h", "host": "h"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://h:1", "host": "h:1"}, True),
        ({"origin": "HTTPS://H:1", "host": "h:1"}, True),
        ({"origin": "http://h:2", "host": "h:1"}, False),
        ({"origin": "null", "host": "h:1"}, False),
        ({"origin": "ftp://h:1", "host": "h:1"}, False),
        ({"origin": "", "host": ""}, False),
        ({"host": "h:1"}, False),
        ({}, False),
    ],
)
def test_only_our_own_pages_change_something(headers: dict[str, str], passes: bool) -> None:
    assert requests.is_same_origin(headers) is passes


@pytest.mark.parametrize(
    ("value", "token"),
    [("Bearer abc", "abc"), ("bearer abc ", "abc"), ("Bearer", None), ("Basic abc", None), ("", None)],
)
def test_a_bearer_token_is_read(value: str, token: str | None) -> None:
    assert requests.bearer({"authorization": value}) == token
