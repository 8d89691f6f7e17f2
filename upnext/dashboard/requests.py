"""Whether a request may be answered at all: its Host, and for those that change something the site that it comes from. Pure.

Sources: Fetch Metadata (W3C, `Sec-Fetch-Site`), RFC 6454 (`Origin`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping

SAFE_METHODS = frozenset({"GET", "HEAD"})

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)

HEADERS: tuple[tuple[str, str], ...] = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    # With no-referrer, browsers send forms with `Origin: null`.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)
"""On every answer."""


def host_of(header: str) -> str:
    """`example.org:8300` -> example.org, `[::1]:8300` -> ::1, in lower case; "" for what is not a host."""
    text = header.strip().lower()
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        return inside if bracket and (not rest or (rest[0] == ":" and rest[1:].isdecimal())) else ""
    name, _, port = text.partition(":")
    return name.rstrip(".") if not port or port.isdecimal() else ""


def host_is_ours(header: str | None, hosts: Collection[str]) -> bool:
    """Whether the Host header names us. IP literals pass: a name can be bound to another address, a number can't."""
    if header is None:
        return False
    host = host_of(header)
    if not host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in hosts
    return True


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent it from one of our own pages. Without Fetch Metadata the Origin decides; without both: no."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    scheme, separator, origin_host = headers.get("origin", "").lower().partition("://")
    return bool(separator) and scheme in ("http", "https") and origin_host == headers.get("host", "").lower()


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer TOKEN`; None without one."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None
